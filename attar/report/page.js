// Makes the table's columns sortable; the page reads the same without it.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const value = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
      // What was not measured stays at the end, whichever way the column is sorted.
      const missing = (row) => row.cells[place].dataset.value === "";
      const order = (one, other) =>
        missing(one) - missing(other) ||
        (down ? -1 : 1) * value(one).localeCompare(value(other), "en", { numeric: true });
      const number = (one, other) =>
        missing(one) - missing(other) || (down ? -1 : 1) * (Number(value(one)) - Number(value(other)));
      const numeric = head.classList.contains("figure");
      body.append(...[...body.rows].sort(numeric ? number : order));
    });
  });
}
// What is folded is printed too.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
