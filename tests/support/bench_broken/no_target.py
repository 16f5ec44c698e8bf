"""Lists an algorithm whose module does not exist."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    return [
        Entry(name="absent", target="bench_broken.absent:Absent", track="optimizer", paper="none", summary="not here")
    ]
