"""Data selection: which examples of a batch train the model."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of the data selectors."""
    return [
        Entry(
            name="colm",
            target="bench.plugins.data_selection.colm:CoLM",
            track="data-selection",
            paper="arXiv:2407.19580",
            summary="all examples of rare sources, and of the others those whose gradients represent the rest",
        ),
        Entry(
            name="colm-random",
            target="bench.plugins.data_selection.colm_random:CoLMRandom",
            track="data-selection",
            paper="arXiv:2407.19580",
            summary="the control of colm: all examples of rare sources, and of the others any",
        ),
    ]
