"""`python -m attar` is `attar`."""

from __future__ import annotations

import sys

from attar.cli import main

if __name__ == "__main__":
    sys.exit(main())
