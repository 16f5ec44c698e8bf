"""Lists algorithms that look right and turn out to be wrong when they are used."""

# ruff: noqa: ARG002, ARG005 - a slot takes its contract's arguments, used or not

from __future__ import annotations

from bench import Algorithm, Entry, Run, hookimpl


class Fine(Algorithm):
    """An algorithm under another name than its entry has."""

    name = "fine"

    def schedule(self, run: Run):
        return lambda step: 1.0


class Idle(Algorithm):
    """An algorithm that fills no slot."""

    name = "idle"


NOT_A_CLASS = "idle"


@hookimpl
def bench_algorithms() -> list[Entry]:
    targets = {
        "raises-late": "bench_broken.raises:Anything",
        "misnamed": "bench_broken.late:Fine",
        "idle": "bench_broken.late:Idle",
        "no-class": "bench_broken.late:NOT_A_CLASS",
        "no-attribute": "bench_broken.late:Nothing",
    }
    return [
        Entry(name=name, target=target, track="optimizer", paper="none", summary="turns out wrong when it is used")
        for name, target in targets.items()
    ]
