"""Implements a hook that does not exist."""

from __future__ import annotations

from bench import hookimpl


@hookimpl
def bench_algorithm() -> list[str]:
    return []
