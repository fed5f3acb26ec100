"""``python -m chattn_cuda doctor | demo | verify | bench | traffic``."""

from __future__ import annotations

import sys

from chattn_cuda.cli import main

if __name__ == "__main__":
    sys.exit(main())
