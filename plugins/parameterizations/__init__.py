"""Other parameterizations of the weights, trained from scratch; torch-free, for listing."""

from __future__ import annotations

from bench import Entry, hookimpl


@hookimpl
def bench_algorithms() -> list[Entry]:
    """Return the entries of this track."""
    home, track = "bench.plugins.parameterizations", "parameterization"
    return [
        Entry(
            name="gradual-pruning",
            target=f"{home}.gradual_pruning:GradualPruning",
            track=track,
            paper="arXiv:1710.01878",
            summary="masks close over the smallest weights along a cubic curve during training",
        ),
        Entry(
            name="sltrain",
            target=f"{home}.sltrain:SLTrain",
            track=track,
            paper="arXiv:2406.02214",
            summary="hidden weights as a low-rank product plus a sparse matrix on a random support",
        ),
    ]
