"""Pages of the documentation that are written from the code, the plugins and the committed records."""

from __future__ import annotations

from .extension import setup, write

__all__ = ["setup", "write"]
