"""A listing that imports torch: what no listing may do."""

from __future__ import annotations

import torch  # noqa: F401 - that is what is wrong

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """List a good algorithm in a heavy way."""
    target = "bench_wrong.facts:Heavy"
    return [Entry(name="heavy", target=target, track="merging", paper="none", summary="listed in a heavy way")]
