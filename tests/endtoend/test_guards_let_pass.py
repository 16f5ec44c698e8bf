"""No algorithm of this project changes, sees or leaves behind what guards watch: each does a whole trial under them."""

from __future__ import annotations

import signal

import pytest

from bench.calibration import Pinning
from bench.errors import SlotMismatch
from bench.plan import make_plan
from bench.registry import Registry
from bench.request import Request
from bench.store import Store
from bench.trial import MEASURED
from bench.worker import work

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
def test_an_algorithm_of_ours_passes_every_guard(name, tmp_path, micro_site, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(micro_site))
    monkeypatch.setattr("bench.worker.pin_threads", lambda _: Pinning(1, None, "a test"))
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        plan = make_plan(Registry(), Request(plugins=[name], workload="micro", reference=False))
    except SlotMismatch as error:
        pytest.skip(str(error.message))
    try:
        row = work(Store(tmp_path / "results", create=True).folder(plan.trials[0]) / "trial.json")
    finally:
        signal.signal(signal.SIGTERM, terminated)
    if "bench.errors.SlotMismatch: " in capfd.readouterr().err:  # what only shows when the model is there
        pytest.skip(str(row["outcome_reason"]))
    assert row["outcome"] in MEASURED, row["outcome_reason"]
