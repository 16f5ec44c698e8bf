"""The built-in plugins for compression of a trained model. This module is light: listing does not import torch."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of this track."""
    return []
