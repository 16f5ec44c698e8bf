"""Baselines: the yardsticks that every other algorithm is compared with."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of the baselines."""
    return [
        Entry(
            name="adamw",
            target="bench.plugins.baselines.adamw:AdamW",
            track="optimizer",
            paper="arXiv:1711.05101",
            summary="Adam with decoupled weight decay",
        ),
        Entry(
            name="sgd",
            target="bench.plugins.baselines.sgd:SGD",
            track="optimizer",
            paper="Sutskever et al., ICML 2013",
            summary="stochastic gradient descent with Nesterov momentum",
        ),
    ]
