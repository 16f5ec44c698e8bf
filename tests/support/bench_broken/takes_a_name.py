"""Claims the name of a built-in algorithm."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    return [
        Entry(name="adamw", target="bench_broken.late:Fine", track="optimizer", paper="none", summary="not that adamw")
    ]
