"""Linear decay to zero: its indexing, its warm-up, and the bound that it is the best schedule for."""

from __future__ import annotations

import math

import pytest
import torch

from bench import Run
from bench.errors import BadValue
from bench.plugins.schedules.linear_decay import LinearDecay

pytestmark = pytest.mark.paper


def schedule(steps, **fields):
    return LinearDecay(**fields).schedule(Run(seed=0, steps=steps))


@pytest.mark.parametrize("steps", [2, 3, 10, 300])
def test_without_warm_up_it_falls_in_a_line_from_one_to_zero(steps):
    factor = schedule(steps, warmup_fraction=0.0)
    assert [factor(t) for t in range(steps)] == pytest.approx([1 - t / (steps - 1) for t in range(steps)], abs=1e-15)
    raw = [1 - t / steps for t in range(1, steps + 1)]  # s_t of the paper, divided by its maximum
    assert [factor(t) for t in range(steps)] == pytest.approx([s / max(raw) for s in raw], abs=1e-15)


@pytest.mark.parametrize("steps", [2, 10, 300])
def test_parity_with_torch_polynomial_lr_of_power_one(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps - 1, power=1.0)
    factor = schedule(steps, warmup_fraction=0.0)
    for step in range(steps + 3):
        assert factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_with_warm_up_it_is_the_published_form():
    factor, steps, fraction = schedule(1000, warmup_fraction=0.1), 1000, 0.1
    for t in range(1, steps + 1):
        published = t / (fraction * steps) if t <= fraction * steps else (1 - t / steps) / (1 - fraction)
        assert factor(t - 1) == pytest.approx(published, abs=1e-12)
    assert factor(99) == 1.0


@pytest.mark.parametrize("steps", [2, 10, 333])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5])
def test_last_step_is_exactly_zero_the_peak_exactly_one_and_the_first_step_is_used(steps, fraction):
    values = [schedule(steps, warmup_fraction=fraction)(t) for t in range(steps)]
    assert values[-1] == 0.0
    assert max(values) == 1.0
    assert values[0] > 0.0


def test_it_stays_at_zero_past_the_end_and_a_single_step_is_taken():
    assert schedule(300)(300) == schedule(300)(10_000) == 0.0
    assert schedule(1)(0) == 1.0


@pytest.mark.parametrize("steps", [10, 100, 1000])
@pytest.mark.parametrize("distance", [1.0, 0.37])
def test_subgradient_descent_on_the_absolute_value_reaches_the_worst_case_bound(steps, distance):
    x, lipschitz = distance, 1.0
    factor, lr = schedule(steps, warmup_fraction=0.0), distance / (lipschitz * math.sqrt(steps))
    for t in range(steps):
        x -= lr * factor(t) * math.copysign(lipschitz, x)
    assert abs(x) <= distance * lipschitz / math.sqrt(steps)


def test_a_fraction_outside_its_domain_is_refused():
    with pytest.raises(BadValue, match=r"warmup_fraction = 1\.0"):
        LinearDecay(warmup_fraction=1.0)
