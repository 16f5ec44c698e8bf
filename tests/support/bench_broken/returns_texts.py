"""Returns names where entries belong."""

from __future__ import annotations

from bench import hookimpl


@hookimpl
def bench_algorithms() -> list[str]:
    return ["lion"]
