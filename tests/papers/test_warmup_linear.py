"""Linear warm-up and linear decay, against the formula and transformers."""

from __future__ import annotations

import pytest
import torch

from bench import Run
from bench.plugins.schedules.warmup_cosine import WarmupCosine
from bench.plugins.schedules.warmup_linear import WarmupLinear

pytestmark = pytest.mark.paper


def schedule(steps, **fields):
    return WarmupLinear(**fields).schedule(Run(seed=0, steps=steps))


def test_it_rises_in_a_line_from_zero_and_falls_in_a_line_to_a_tenth():
    factor = schedule(300)
    assert [factor(step) for step in (0, 15, 30, 165, 300)] == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])
    decays = [factor(step) - factor(step + 1) for step in range(30, 300)]
    assert decays == pytest.approx([0.9 / 270] * 270)


@pytest.mark.parametrize("steps", [10, 300])
def test_parity_with_transformers_where_it_ends_at_zero(steps, package):
    make = package("transformers.optimization", "transformers").get_linear_schedule_with_warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs, factor = make(optimizer, steps // 5, steps), schedule(steps, warmup_fraction=0.2, final_factor=0.0)
    for step in range(steps + 3):
        assert factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_it_stays_at_its_final_value_past_the_end():
    assert schedule(300)(301) == schedule(300)(10_000) == pytest.approx(0.1)


def test_its_warm_up_is_that_of_the_cosine_schedule():
    cosine = WarmupCosine().schedule(Run(seed=0, steps=777))
    assert [schedule(777)(step) for step in range(79)] == [cosine(step) for step in range(79)]


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_short_runs_work(steps):
    assert all(0.0 <= schedule(steps)(step) <= 1.0 for step in range(steps + 2))
