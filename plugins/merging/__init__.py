"""The built-in plugins for merging of several trained models. This module is light: listing does not import torch."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of this track."""
    return []
