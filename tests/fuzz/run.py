"""Runs inputs, or one input again: ``python -P tests/fuzz/run.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing.program import main

if __name__ == "__main__":
    sys.exit(main())
