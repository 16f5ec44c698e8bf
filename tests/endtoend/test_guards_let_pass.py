"""No algorithm of this project changes, sees or leaves behind what guards watch: each does a whole trial under them."""

from __future__ import annotations

import pytest

from bench.errors import SlotMismatch
from bench.registry import Registry
from bench.trial import MEASURED

OWN = "bench-training"


def names() -> list[str]:
    """Return the algorithms of this project's own distribution that are called in training."""
    registry = Registry()
    tracks = {"compression", "merging"}
    return [
        name
        for name, entry in sorted(registry.algorithms.items())
        if registry.packages[name] == OWN and entry.track not in tracks
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_an_algorithm_of_ours_passes_every_guard(run_here, name, capfd):
    try:
        row = run_here(name)
    except SlotMismatch as error:
        pytest.skip(str(error.message))
    if "bench.errors.SlotMismatch: " in capfd.readouterr().err:  # what only shows when the model is there
        pytest.skip(str(row["outcome_reason"]))
    assert row["outcome"] in MEASURED, row["outcome_reason"]
