"""The refined schedule: the closed form, its filter, and the properties that the card lists.

No package has it, and the authors' script is not free to reuse; so the closed form is written out below, and the bound
that it minimises is compared with that of other schedules.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest

from bench import Run
from bench.errors import BadValue
from bench.plugins.schedules.linear_decay import LinearDecay
from bench.plugins.schedules.refined import Refined, parsed_norms, refined_schedule, running_median

pytestmark = pytest.mark.paper

LENGTH = 1000


def noisy(length=LENGTH, seed=0):
    return np.exp(0.3 * np.random.default_rng(seed).standard_normal(length)) * np.linspace(3.0, 1.0, length)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_constant_norms_give_linear_decay(norm):
    s = refined_schedule(np.full(LENGTH, 7.0), norm)
    assert np.abs(s - (1 - np.arange(LENGTH) / (LENGTH - 1))).max() <= 1e-15


@pytest.mark.parametrize(("norm", "power"), [("l1", -1), ("l2", -2)])
def test_it_is_the_closed_form_of_the_card(norm, power):
    norms = noisy(60)
    weights = running_median(norms, 0.1) ** power
    raw = [weights[t] * sum(weights[t + 1 :]) for t in range(60)]
    assert refined_schedule(norms, norm) == pytest.approx(np.array(raw) / max(raw), abs=1e-12)


@pytest.mark.parametrize(("tau", "length"), [(0.1, 60), (0.2, 61), (0.05, 39)])
def test_the_median_repeats_the_first_value_and_reflects_the_last(tau, length):
    norms = noisy(length)
    half = int(tau * length) // 2
    width = 2 * half + 1
    long = [norms[0]] * half + list(norms) + list(norms[-2 : -2 - 2 * width : -1])  # twice the width, then cut
    expected = [median(long[t : t + width]) for t in range(length)]
    assert running_median(norms, tau).tolist() == expected


def last_iterate_bound(norms, schedule):
    """The bound of the card's numerical alternative at distance 1 from a minimum, with the schedule's best factor."""
    rates, squares = schedule[:-1], norms[:-1] ** 2  # a last rate of zero is no step
    tails, energies = (values[::-1].cumsum()[::-1] for values in (rates, squares * rates**2))
    growing = energies[0] / tails[0] + (rates[:-1] * energies[:-1] / (tails[:-1] * tails[1:])).sum()
    return float(np.sqrt(growing / tails[0]))  # the minimum over a > 0 of (1 / (a tails[0]) + a growing) / 2


@pytest.mark.parametrize("seed", range(3))
def test_its_bound_on_the_last_iterate_is_lower_than_that_of_common_schedules(seed):
    norms = running_median(noisy(seed=seed), 0.1)  # the norms that the schedule takes for the true ones
    time = np.arange(LENGTH) / (LENGTH - 1)
    refined = last_iterate_bound(norms, refined_schedule(norms, "l2", tau=1e-9))
    for other in (1 - time, 0.5 + 0.5 * np.cos(np.pi * time), np.ones(LENGTH), refined_schedule(norms, "l1", tau=1e-9)):
        assert refined < 0.97 * last_iterate_bound(norms, other)


def test_norms_that_fall_at_the_start_give_a_warm_up():
    norms = np.ones(LENGTH)
    norms[:100] = np.linspace(10.0, 1.0, 100)
    s = refined_schedule(norms, "l2")
    assert abs(int(s.argmax()) - 100) <= 5
    assert s[0] == pytest.approx(0.01, rel=0.2)
    assert refined_schedule(norms, "l1")[0] == pytest.approx(0.1, rel=0.2)


def test_norms_that_rise_at_the_end_anneal_faster_than_linearly():
    norms = np.ones(LENGTH)
    norms[800:] = np.linspace(1.0, 4.0, 200)
    s, line = refined_schedule(norms, "l2"), 1 - np.arange(LENGTH) / (LENGTH - 1)
    assert (s[850:-1] < 0.7 * line[850:-1]).all()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_constant_factor_of_all_norms_changes_nothing(norm):
    assert refined_schedule(1e-5 * noisy(), norm) == pytest.approx(refined_schedule(noisy(), norm), abs=1e-12)


@pytest.mark.parametrize("steps", [2, 300, 1000])
def test_the_last_step_is_exactly_zero_at_every_length(steps):
    factor = Refined(norms=" ".join(map(str, noisy()))).schedule(Run(seed=0, steps=steps))
    assert factor(steps - 1) == factor(steps) == 0.0
    assert factor(steps - 2) > 0.0


def test_resampling_a_smooth_log_hardly_changes_the_mean():
    norms = np.linspace(3.0, 1.0, LENGTH) + 5.0 * np.exp(-np.linspace(0.0, 30.0, LENGTH))
    means = []
    for length in (300, 400, LENGTH, 2000, 5000):
        log = np.interp(np.linspace(0, LENGTH - 1, length), np.arange(LENGTH), norms)
        factor = Refined(norms=" ".join(map(str, log))).schedule(Run(seed=0, steps=LENGTH))
        means.append(np.mean([factor(step) for step in range(LENGTH)]))
    assert max(means) - min(means) < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_without_norms_the_plugin_is_linear_decay(steps):
    run = Run(seed=0, steps=steps)
    ours, line = Refined().schedule(run), LinearDecay(warmup_fraction=0.0).schedule(run)
    assert [ours(t) for t in range(2 * steps)] == pytest.approx([line(t) for t in range(2 * steps)], abs=1e-14)


def test_norms_are_read_from_text_and_those_that_are_not_finite_left_out():
    assert parsed_norms("1, 2.5 3e-1,\nnan inf 4").tolist() == [1.0, 2.5, 0.3, 4.0]
    factor = Refined(norms="10,1,1,1,1,1,1,1,1,1", norm="l2", tau=0.1).schedule(Run(seed=0, steps=10))
    assert factor(1) == 1.0
    assert factor(0) == pytest.approx(0.01 * 9 / 8)


def test_a_vanishing_norm_does_not_take_the_whole_rate():
    s = refined_schedule([1.0, 1.0, 0.0, 1.0, 1.0], "l1", 0.1)
    assert np.isfinite(s).all()
    assert s[2] == 1.0


@pytest.mark.parametrize("norms", ["", "1", "1 two 3", "1 -2 3", "0 0 0", "nan nan 1"])
def test_norms_that_are_none_are_refused_with_value_and_domain(norms):
    with pytest.raises(BadValue, match="refined: norms = ") as raised:
        Refined(norms=norms)
    assert "numbers >= 0" in (raised.value.hint or "")


def test_fields_outside_their_domain_are_refused():
    with pytest.raises(BadValue, match=r"tau = 0\.0"):
        Refined(tau=0.0)
    with pytest.raises(BadValue, match="norm = 'l3'"):
        Refined(norm="l3")
