"""The extension that writes pages, and the pages that it writes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def extension():
    """Return ``name -> module of docs/_ext/plugin_pages``; it needs no Sphinx to write pages."""
    home = str(ROOT / "docs" / "_ext")
    sys.path.insert(0, home)
    yield lambda name: importlib.import_module(f"plugin_pages.{name}")
    sys.path.remove(home)


@pytest.fixture(scope="session")
def generated(extension, registry):
    """Return the text of every generated page by its path."""
    return extension("extension").pages(extension("context").Context(root=ROOT, registry=registry))
