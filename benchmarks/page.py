"""What a browser makes of a report: accessibility, time to open, what it asks of the network.

    python benchmarks/page.py runs/NAME/report.html ... [--shots DIR]

Each page is opened in headless Chromium in light, in dark, and as wide as a phone (390 px), its
folded parts opened, and looked through by axe-core (WCAG 2.2 A and AA, and best practices). Printed
are what axe finds, the milliseconds until the page has loaded, and its bytes; the command fails
where axe finds anything, a page is wider than its window, says an error or asks for another file.
Needs `chromium`, `node` and `npm`; axe-core and playwright-core are installed into a folder that is
thrown away. `--shots` keeps a picture of each and the printed page as a PDF.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("axe-core@4", "playwright-core@1")

LOOK = """
import { chromium } from "playwright-core";
import fs from "fs";
const [browser, profile, shots, ...pages] = process.argv.slice(2);
const quiet = ["quic", "background-networking", "component-update", "sync", "gpu"];
const args = ["--no-sandbox", "--no-first-run", ...quiet.map((each) => `--disable-${each}`)];
const axe = fs.readFileSync("node_modules/axe-core/axe.min.js", "utf8");
const context = await chromium.launchPersistentContext(profile, {
  executablePath: browser, args, headless: true, bypassCSP: true,
});
let well = true;
const views = { light: ["light", 1200], dark: ["dark", 1200], phone: ["light", 390] };
for (const page of pages) for (const [view, [colorScheme, width]] of Object.entries(views)) {
  const tab = await context.newPage();
  const said = [], asked = [];
  tab.on("pageerror", (error) => said.push(String(error)));
  tab.on("console", (line) => line.type() === "error" && said.push(line.text()));
  tab.on("request", (request) => asked.push(request.url()));
  await tab.setViewportSize({ width, height: 900 });
  await tab.emulateMedia({ colorScheme });
  await tab.goto(`file://${page}`);
  const timing = () => performance.getEntriesByType("navigation")[0].loadEventEnd;
  const loaded = await tab.evaluate(timing);
  const wide = await tab.evaluate(() => document.documentElement.scrollWidth);
  const name = page.split("/").slice(-2).join("-").replace(/\\.html$/, "");
  if (shots) await tab.screenshot({ path: `${shots}/${name}-${view}.png`, fullPage: true });
  if (shots && view === "light") await tab.pdf({ path: `${shots}/${name}.pdf`, format: "A4" });
  await tab.evaluate(() => document.querySelectorAll("details").forEach((x) => { x.open = true; }));
  await tab.evaluate(axe);
  const { violations, passes } = await tab.evaluate(() => axe.run(document));
  const bytes = fs.statSync(page).size;
  console.log(`${name} ${view}: violations ${violations.length}, rules passed ${passes.length}, `
    + `loaded in ${loaded.toFixed(0)} ms, ${bytes} bytes, requests ${asked.length}`);
  for (const { id, impact, help, nodes } of violations)
    console.log(`  ${impact} ${id}: ${help} (${nodes.length}, such as ${nodes[0].target})`);
  for (const line of said) console.log(`  says ${line}`);
  if (wide > width) console.log(`  is ${wide} px wide in a window of ${width}`);
  if (violations.length || said.length || asked.length > 1 || wide > width) well = false;
  await tab.close();
}
await context.close();
process.exit(well ? 0 : 1);
"""


def main() -> int:
    """Look at every page named on the command line."""
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("pages", nargs="+", type=Path)
    words.add_argument("--shots", type=Path)
    said = words.parse_args()
    needed = {name: shutil.which(name) for name in ("chromium", "node", "npm")}
    if lacking := [name for name, found in needed.items() if found is None]:
        print(f"install {', '.join(lacking)} first", file=sys.stderr)
        return 2
    if said.shots is not None:
        said.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "look.mjs").write_text(LOOK, "utf-8")
        (here / "package.json").write_text("{}", "utf-8")
        install = [str(needed["npm"]), "install", "--silent", "--ignore-scripts", *PACKAGES]
        subprocess.run(install, cwd=here, check=True)
        shots = "" if said.shots is None else str(said.shots.resolve())
        pages = [str(page.resolve()) for page in said.pages]
        look = [str(needed["node"]), "look.mjs", str(needed["chromium"]), str(here / "profile")]
        return subprocess.run([*look, shots, *pages], cwd=here, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
