"""Imports, and raises when it is asked for its entries."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    raise KeyError("entries")
