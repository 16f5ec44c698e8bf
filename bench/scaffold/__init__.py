"""A pip package for a new algorithm, written from templates: whole, tested, and measured as soon as it is installed."""

from __future__ import annotations

from bench.scaffold.names import Names, names
from bench.scaffold.package import create, render

__all__ = ["Names", "create", "names", "render"]
