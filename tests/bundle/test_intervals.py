"""The stored intervals are what the results say, and cover what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.bundle.intervals import SUFFIX, prediction, read_intervals, sample_of
from bench.bundle.make_intervals import main, make
from bench.errors import BrokenPlugin

ROOT = Path(__file__).parents[2]


def test_the_committed_files_are_what_the_results_give(registry):
    folders = [Path("results") / name for name in ("cpu-1", "cpu-2", "mixture", "tuning")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        made = make(registry, folders)
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "workloads").glob(f"*{SUFFIX}")}
    assert {path.name: text for path, text in made.items()} == committed
    assert len(committed) >= 7


def test_every_tier_with_a_measured_reference_has_an_interval():
    import pandas as pd

    stored = {
        (path.name.removesuffix(SUFFIX), one.tier, one.protocol)
        for path in (ROOT / "workloads").glob(f"*{SUFFIX}")
        for one in read_intervals(path.read_bytes(), path.name)
    }
    trials = pd.concat([pd.read_parquet(ROOT / "results" / name / "trials") for name in ("cpu-1", "cpu-2")])
    own = trials[trials["is_reference"].eq(other=True) & ~trials["protocol"].eq("quick")]
    measured = {
        (workload.replace("-", "_"), tier, protocol)
        for workload, tier, protocol in own[["workload", "tier", "protocol"]].drop_duplicates().itertuples(index=False)
    }
    assert measured <= stored


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 3), (5, 5)])
def test_the_interval_holds_the_mean_of_new_seeds_as_often_as_it_says(n, m):
    rng = np.random.default_rng(3)
    inside, repetitions = 0, 4000
    for _ in range(repetitions):
        old, new = np.exp(rng.normal(5.0, 0.1, n)), np.exp(rng.normal(5.0, 0.1, m))
        logs = np.log(old)
        low, high = prediction("steps_to_target", float(np.exp(logs.mean())), float(logs.std(ddof=1)), n, m)
        inside += low <= np.exp(np.log(new).mean()) <= high
    assert inside / repetitions == pytest.approx(0.99, abs=0.006)


def test_a_miss_counts_as_its_budget_and_nothing_as_nothing():
    hit = {"outcome": "reached", "steps_to_target_interpolated": 100.0, "budget_steps": 300, "quality": 1.0}
    miss = hit | {"outcome": "missed", "steps_to_target_interpolated": None, "quality": 2.0}
    assert sample_of([hit, hit]).measure == "steps_to_target"
    assert sample_of([hit, miss]).measure == "quality"
    assert sample_of([hit, miss], "steps_to_target").mean == pytest.approx((100 * 300) ** 0.5)
    assert sample_of([hit | {"outcome": "error"}]) is None
    assert sample_of([miss | {"quality": float("nan")}]) is None


@pytest.mark.parametrize("content", [b"\xff", b"x = 1", b"reference = 1", b"[[reference]]\ntier = 1\n"])
def test_a_file_that_is_none_is_named(content):
    with pytest.raises(BrokenPlugin, match=r"module\.reference\.toml"):
        read_intervals(content, "module.reference.toml")


def test_the_command_says_what_it_wants(capsys, tmp_path):
    assert main([]) == 2
    assert main([str(tmp_path)]) == 2
    assert "name the results folders" in capsys.readouterr().err
