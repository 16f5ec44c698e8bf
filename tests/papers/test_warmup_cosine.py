"""Linear warm-up and cosine decay, against the formula, the published scripts' schedule and transformers."""

from __future__ import annotations

import math

import pytest
import torch

from bench import Run
from bench.errors import BadValue
from bench.plugins.schedules.warmup_cosine import WarmupCosine

pytestmark = pytest.mark.paper


def schedule(steps, **fields):
    return WarmupCosine(**fields).schedule(Run(seed=0, steps=steps))


def test_it_rises_in_a_line_from_zero_to_one():
    factor = schedule(10_000)
    assert factor(0) == 0.0
    assert [factor(step) for step in (1, 250, 999)] == pytest.approx([1 / 1000, 0.25, 0.999])
    assert factor(1000) == 1.0


def test_it_falls_along_half_a_cosine_to_a_tenth():
    factor = schedule(10_000)
    assert factor(1000 + 4500) == pytest.approx(0.55)
    assert factor(1000 + 3000) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 3)))
    assert factor(9_999) == pytest.approx(0.1, abs=1e-6)
    assert factor(10_000) == pytest.approx(0.1)


@pytest.mark.parametrize("steps", [10, 300])
@pytest.mark.parametrize("final_factor", [0.0, 0.1])
def test_parity_with_transformers(steps, final_factor, package):
    make = package("transformers.optimization", "transformers").get_cosine_with_min_lr_schedule_with_warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = make(optimizer, steps // 5, steps, min_lr_rate=final_factor)
    factor = schedule(steps, warmup_fraction=0.2, final_factor=final_factor)
    for step in range(steps + 1):
        assert factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_it_stays_at_its_final_value_past_the_end_where_the_reference_starts_over():
    factor = schedule(10_000)
    assert factor(10_001) == factor(25_000) == pytest.approx(0.1)
    assert any("cyclic" in deviation for deviation in WarmupCosine.deviations)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 300])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.9])
def test_every_length_works_and_the_factor_never_leaves_its_range(steps, fraction):
    factor = schedule(steps, warmup_fraction=fraction, final_factor=0.0)
    values = [factor(step) for step in range(steps + 2)]
    assert all(0.0 <= value <= 1.0 for value in values)
    peak = values.index(max(values))
    assert values[peak] == 1.0
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_no_warmup_starts_at_the_peak():
    assert schedule(100, warmup_fraction=0.0)(0) == 1.0


def test_fields_outside_their_domain_are_refused():
    with pytest.raises(BadValue, match=r"warmup_fraction = 1\.0"):
        WarmupCosine(warmup_fraction=1.0)
    with pytest.raises(BadValue, match=r"final_factor = 1\.5"):
        WarmupCosine(final_factor=1.5)
