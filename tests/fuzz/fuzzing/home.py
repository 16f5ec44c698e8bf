"""Puts a module on the path that could be imported, and that no input may get imported."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from fuzzing.hostile import CANARY

SITE = tempfile.TemporaryDirectory(prefix="fuzz-site-")
_package = Path(SITE.name) / CANARY
(_package / "inner").mkdir(parents=True)
for _folder in (_package, _package / "inner"):
    (_folder / "__init__.py").write_text("raise RuntimeError('foreign code was imported')\n", encoding="utf-8")
sys.path.append(SITE.name)
