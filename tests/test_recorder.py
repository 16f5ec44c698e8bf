"""When a trial ends, and as what."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from bench.clock import Clock
from bench.recorder import Recorder, tell
from bench.workload import Target


def recorder(clock_s=1.0, *, direction="min", **tier):
    facts = {"target": Target(value=1.0, how="test"), "steps": 10, "budget_s": None, "patience_steps": None} | tier
    workload = SimpleNamespace(
        tier=SimpleNamespace(**facts), target=facts["target"], direction=direction, metric="loss", judged_from_step=0
    )
    clock = Clock(torch.device("cpu"))
    clock.seconds["step"] = clock_s
    trial = SimpleNamespace(timeout_s=1e9)
    nothing = [None] * 5
    return Recorder(trial, workload, nothing[0], clock, *nothing[:4], hooks=None)


def test_a_trial_goes_on_to_its_budget_so_that_the_quality_at_budget_is_known():
    judged = recorder()
    assert [judged._judge(step, 0.5) for step in (0, 4, 8)] == [None, None, None]
    assert judged._judge(10, 0.7) == ("reached", "")
    assert judged.hit_step == 0


def test_a_target_that_is_not_met_is_missed():
    judged = recorder()
    assert judged._judge(8, 1.5) is None
    assert judged._judge(10, 1.1) == ("missed", "")


def test_a_tier_without_target_completes():
    assert recorder(target=None)._judge(10, 1.0)[0] == "completed"


def test_patience_counts_from_the_hit():
    judged = recorder(patience_steps=4)
    assert judged._judge(2, 0.9) is None
    assert judged._judge(4, 2.0) is None
    assert judged._judge(6, 2.0) == ("reached", "")


@pytest.mark.parametrize("quality", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_diverges_and_meets_no_target(quality):
    assert recorder()._judge(4, quality)[0] == "diverged"


def test_what_was_reached_before_it_diverged_stays_reached():
    judged = recorder()
    assert judged._judge(4, 0.9) is None
    assert judged._judge(8, math.nan) == ("reached", "")


def test_an_evaluation_beyond_the_budget_in_seconds_ends_the_trial_and_does_not_count():
    assert recorder(61.0, budget_s=60.0)._judge(4, 0.5) == ("missed", "")
    assert recorder(59.0, budget_s=60.0)._judge(4, 0.5) is None


def test_the_direction_of_the_metric_decides_what_meets_the_target():
    assert recorder(direction="max")._judge(10, 1.5) == ("reached", "")
    assert recorder(direction="max")._judge(10, 0.5) == ("missed", "")


def test_a_trial_that_takes_too_long_times_out():
    judged = recorder()
    judged.trial.timeout_s = -1.0
    assert judged._judge(4, 2.0)[0] == "timeout"
    assert judged._judge(10, 2.0) == ("missed", "")


def test_what_was_reached_in_time_is_no_timeout():
    judged = recorder()
    assert judged._judge(4, 0.5) is None
    judged.trial.timeout_s = -1.0
    assert judged._judge(6, 0.5) == ("reached", "")


def test_a_hook_that_raises_is_told_in_the_log_and_ends_nothing(capsys):
    def hook(**facts):
        raise RuntimeError(f"no {facts['trial']}")

    tell(hook, trial="luck")
    assert "RuntimeError: no luck" in capsys.readouterr().err
