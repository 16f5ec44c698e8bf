"""Intervals, tests, power, survival and paired tests: figures worked by hand or published, and other routes to them."""

from __future__ import annotations

from itertools import product
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from bench.errors import BadValue
from bench.pairs import paired, sign_flip
from bench.statistics import (
    detectable_ratio,
    expected_running_time,
    holm,
    log_t_interval,
    power_of_ratio,
    t_interval,
    welch,
    wilson_interval,
)
from bench.survival import kaplan_meier, log_rank

FEW = settings(max_examples=30)
VALUES = st.lists(st.floats(-50, 50).map(lambda value: round(value, 3)), min_size=2, max_size=12)
TRIALS = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=15)

DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
"""Crossed minus self-fertilised maize, eighths of an inch (Darwin 1876, as in Fisher 1935, sections 17 and 21)."""

REMISSION = (
    [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35],
    [1] * 9 + [0] * 12,
    [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23],
    [1] * 21,
)
"""Weeks of remission under 6-MP and placebo (Freireich et al., Blood 21, 1963): the textbook's example of the test."""


def moments(values):
    return np.mean(values), np.std(values, ddof=1) if len(values) > 1 else np.nan, len(values)


# -- intervals of one cell -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_the_t_interval_has_the_quantiles_of_student_s_table(n, quantile):
    low, high = t_interval(10.0, 2.0, n)
    assert (high - 10.0) * np.sqrt(n) / 2.0 == pytest.approx(quantile, abs=6e-4)
    assert low == pytest.approx(20.0 - high)


@FEW
@given(VALUES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_t_interval_is_scipy_s_of_one_sample(values, confidence):
    values = [*values, max(values) + 1.0]  # not all equal
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert t_interval(*moments(values), confidence) == pytest.approx((expected.low, expected.high))


def test_the_log_t_interval_is_around_the_geometric_mean():
    # 100, 200, 400: logs have mean ln 200 and s.d. ln 2; t = 4.30265, so the factor is 2^(4.30265 / sqrt 3) = 5.5951.
    low, high = log_t_interval(np.log(200.0), np.log(2.0), 3)
    assert (float(low), float(high)) == pytest.approx((200 / 5.5951, 200 * 5.5951), rel=1e-4)


def test_a_log_t_interval_may_be_anything_without_a_warning():
    low, high = log_t_interval(0.0, 100.0, 2)
    assert (low, high) == (0.0, np.inf)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_replicates_have_no_interval(n):
    assert np.isnan(t_interval(3.0, 0.0, n)).all()
    assert np.isnan(log_t_interval(3.0, np.nan, n)).all()
    difference = welch(3.0, 0.0, n, 2.0, 1.0, 5)
    assert np.isnan([difference.low, difference.high, difference.p]).all()
    assert difference.value == 1.0
    assert np.isnan(detectable_ratio(0.1, n, 5))
    assert np.isnan(power_of_ratio(0.9, 0.1, 5, n))


def test_no_spread_gives_an_interval_of_no_width():
    assert t_interval(3.0, 0.0, 5) == (3.0, 3.0)
    assert log_t_interval(0.0, 0.0, 2) == (1.0, 1.0)


def test_nan_stays_where_it_is():
    low, high = t_interval([1.0, np.nan, 1.0, 1.0, np.inf], [1.0, 1.0, np.nan, 1.0, 0.0], [5, 5, 5, np.nan, 5])
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [False, True, True, True, True]


def test_wilson_at_none_and_at_all():
    # z^2 = 3.8415: none of 10 reaches z^2 / (10 + z^2), all of 5 begin at 5 / (5 + z^2).
    low, high = wilson_interval([0, 5], [10, 5])
    assert low[0] == 0.0
    assert high[1] == 1.0
    assert high[0] == pytest.approx(3.8415 / 13.8415, rel=1e-4)
    assert low[1] == pytest.approx(5 / 8.8415, rel=1e-4)


def test_wilson_is_scipy_s_and_lies_around_the_share():
    cells = [(hits, n) for n in range(1, 13) for hits in range(n + 1)]
    low, high = wilson_interval(*np.transpose(cells), confidence=0.9)
    for (hits, n), *ends in zip(cells, low, high, strict=True):
        expected = stats.binomtest(hits, n).proportion_ci(0.9, method="wilson")
        assert ends == pytest.approx([expected.low, expected.high], abs=1e-12)
        assert 0 <= ends[0] <= hits / n <= ends[1] <= 1


def test_wilson_of_nothing_is_nan_for_no_trials_and_an_error_for_too_many_hits():
    assert np.isnan(wilson_interval(0, 0)).all()
    with pytest.raises(BadValue, match=r"hits = 3\.0 of n = 2\.0"):
        wilson_interval([1, 3], [2, 2])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -0.1, float("nan")])
def test_a_confidence_outside_the_unit_interval_is_refused(confidence):
    calls = [
        lambda: t_interval(1.0, 1.0, 5, confidence),
        lambda: wilson_interval(1, 5, confidence),
        lambda: welch(1.0, 1.0, 5, 1.0, 1.0, 5, confidence),
        lambda: kaplan_meier([1.0], [True], confidence),
        lambda: detectable_ratio(0.1, 5, 5, alpha=confidence),
    ]
    for call in calls:
        with pytest.raises(BadValue, match="not between 0 and 1"):
            call()


def test_negative_counts_and_spreads_are_refused():
    for call in (lambda: t_interval(1.0, -0.1, 5), lambda: t_interval(1.0, 0.1, -5), lambda: wilson_interval(-1, 5)):
        with pytest.raises(BadValue, match="is below 0"):
            call()


# -- two cells -------------------------------------------------------------------------------------------------------


def test_welch_by_hand():
    # 1, 2, 3 and 2, 4, 6: v = 1/3 and 4/3, t = -2 / sqrt(5/3) = -1.54919, nu = (25/9) / (17/18) = 50/17.
    found = welch(2.0, 1.0, 3, 4.0, 2.0, 3)
    half = stats.t.ppf(0.975, 50 / 17) * np.sqrt(5 / 3)
    assert found.value == -2.0
    assert (float(found.low), float(found.high)) == pytest.approx((-2 - half, -2 + half))
    assert float(found.p) == pytest.approx(2 * stats.t.cdf(-1.549193, 50 / 17), rel=1e-5)


@FEW
@given(VALUES, VALUES)
def test_welch_is_scipy_s_test_of_unequal_variances(a, b):
    a, b = [*a, max(a) + 1.0], [*b, max(b) + 2.0]  # not all equal
    found = welch(*moments(a), *moments(b))
    expected = stats.ttest_ind(a, b, equal_var=False)
    ends = expected.confidence_interval(0.95)
    assert float(found.p) == pytest.approx(expected.pvalue, abs=1e-9)
    assert (float(found.low), float(found.high)) == pytest.approx((ends.low, ends.high), abs=1e-9)


@FEW
@given(VALUES, VALUES)
def test_welch_the_other_way_round_is_the_same_with_the_other_sign(a, b):
    one, other = welch(*moments(a), *moments(b)), welch(*moments(b), *moments(a))
    found, expected = [one.value, one.low, one.high, one.p], [-other.value, -other.high, -other.low, other.p]
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-9, atol=1e-12)


def test_welch_on_logs_gives_ratios():
    ratio = welch(np.log(90.0), 0.05, 5, np.log(100.0), 0.05, 5).exp()
    assert float(ratio.value) == pytest.approx(0.9)
    assert float(ratio.low) * float(ratio.high) == pytest.approx(0.81)
    assert ratio.p == welch(np.log(90.0), 0.05, 5, np.log(100.0), 0.05, 5).p


def test_two_sides_without_spread_are_equal_or_not():
    found = welch([5.0, 5.0], 0.0, 5, [5.0, 4.0], 0.0, 3)
    assert found.p.tolist() == [1.0, 0.0]
    assert found.low.tolist() == found.high.tolist() == [0.0, 1.0]


def test_rounding_errors_are_no_difference():
    """The same bytes measured five and three times: means and deviations differ in the last bits."""
    log = np.log(123_456_789.0)
    found = welch(np.nextafter(log, 99), 3e-15, 5, log, 0.0, 3)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_one_side_without_spread_is_a_test_of_the_other():
    found = welch(2.0, 1.0, 4, 1.0, 0.0, 2)
    assert float(found.p) == pytest.approx(2 * stats.t.sf(2.0, 3))


def test_welch_of_a_million_cells_is_the_same_as_one_by_one():
    generator = np.random.default_rng(1)
    columns = [generator.uniform(0.1, 2.0, 50), generator.uniform(0.1, 2.0, 50), generator.integers(0, 9, 50)]
    together = welch(*columns, *reversed(columns[:2]), columns[2][::-1])
    alone = [welch(*row) for row in zip(*columns, *reversed(columns[:2]), columns[2][::-1], strict=True)]
    for name in ("value", "low", "high", "p"):
        np.testing.assert_array_equal(getattr(together, name), [getattr(one, name) for one in alone])


# -- power -----------------------------------------------------------------------------------------------------------


def test_power_is_the_textbook_s_where_samples_are_large():
    # Cohen, Statistical Power Analysis (1988), table 2.4.1: 64 on each side see d = 0.5 with power 0.80.
    assert float(power_of_ratio(np.exp(0.5), 1.0, 64, 64)) == pytest.approx(0.80, abs=0.005)
    assert float(np.log(detectable_ratio(1.0, 64, 64))) == pytest.approx(0.50, abs=0.005)


def test_power_of_very_large_samples_is_the_normal_distribution_s():
    # delta = ln(rho) / (sigma sqrt(2 / n)) = 2.8
    ratio = np.exp(2.8 * np.sqrt(2 / 100_000))
    assert float(power_of_ratio(ratio, 1.0, 100_000, 100_000)) == pytest.approx(NormalDist().cdf(2.8 - 1.96), abs=1e-4)


@pytest.mark.parametrize(("n_a", "n_b", "shift"), [(2, 2, 3.0), (3, 3, 2.5), (3, 10, 3.0), (5, 5, 3.2), (5, 2, 1.0)])
def test_power_is_the_integral_over_both_sums_of_squares(n_a, n_b, shift):
    """Another route: chi-squared densities of both sides, and the normal distribution of the means."""
    error = np.sqrt(1 / n_a + 1 / n_b)

    def seen(square_b, square_a):
        v_a, v_b = square_a / (n_a - 1) / n_a, square_b / (n_b - 1) / n_b
        degrees = (v_a + v_b) ** 2 / (v_a**2 / (n_a - 1) + v_b**2 / (n_b - 1))
        critical = stats.t.isf(0.025, degrees) * np.sqrt(v_a + v_b) / error
        share = stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift)
        return share * stats.chi2.pdf(square_a, n_a - 1) * stats.chi2.pdf(square_b, n_b - 1)

    grid = np.linspace(1e-9, 7.0, 401)  # of the roots, where the densities are smooth
    values = seen(grid[np.newaxis, :] ** 2, grid[:, np.newaxis] ** 2) * 4 * grid[np.newaxis, :] * grid[:, np.newaxis]
    expected = integrate.simpson(integrate.simpson(values, x=grid, axis=1), x=grid)
    found = power_of_ratio(np.exp(shift * error), 1.0, n_a, n_b)
    assert float(found) == pytest.approx(expected, abs=2e-4)


def test_five_seeds_at_a_cv_of_five_percent_show_about_ten_percent():
    assert float(detectable_ratio(0.05, 5, 5)) == pytest.approx(1.11, abs=0.005)
    assert power_of_ratio(0.9, 0.05, [3, 5, 10], [3, 5, 10]) == pytest.approx([0.40, 0.81, 0.993], abs=0.005)


@FEW
@given(
    st.integers(2, 12), st.integers(2, 12), st.floats(0.01, 0.3), st.floats(0.3, 0.99), st.sampled_from([0.05, 0.01])
)
def test_the_detectable_ratio_has_the_power_asked_for(n_a, n_b, log_sd, power, alpha):
    ratio = detectable_ratio(log_sd, n_a, n_b, power, alpha)
    assert ratio > 1
    for way in (ratio, 1 / ratio):
        assert float(power_of_ratio(way, log_sd, n_a, n_b, alpha)) == pytest.approx(power, abs=1e-5)
    assert ratio == detectable_ratio(log_sd, n_b, n_a, power, alpha)


def test_more_replicates_and_less_noise_show_smaller_effects():
    assert (np.diff(detectable_ratio(0.05, np.arange(2, 30), np.arange(2, 30))) < 0).all()
    assert (np.diff(detectable_ratio([0.01, 0.05, 0.1, 0.2], 5, 5)) > 0).all()
    assert (np.diff(power_of_ratio([1.0, 1.02, 1.05, 1.1, 1.5], 0.05, 5, 5)) > 0).all()


def test_power_that_chance_alone_has_shows_any_ratio():
    # Two against eleven: Welch's test rejects more than 10% of true hypotheses at its level of 5%.
    assert float(power_of_ratio(1.0, 0.1, 2, 11)) > 0.1
    assert detectable_ratio(0.1, 2, 11, power=0.1) == 1.0


def test_without_noise_any_difference_shows_and_no_difference_never_does():
    assert detectable_ratio(0.0, 3, 5) == 1.0
    assert power_of_ratio([0.999, 1.0, 2.0], 0.0, 3, 5).tolist() == [1.0, 0.0, 1.0]


def test_power_of_a_huge_effect_is_one():
    assert power_of_ratio([1e3, 1e300], 1e-6, 5, 5) == pytest.approx([1.0, 1.0])


def test_power_refuses_ratios_and_powers_that_mean_nothing():
    with pytest.raises(BadValue, match="ratio = 0"):
        power_of_ratio(0.0, 0.1, 5, 5)
    with pytest.raises(BadValue, match="not above alpha"):
        detectable_ratio(0.1, 5, 5, power=0.04)


# -- many comparisons, misses ----------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04, and the last is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_does_not_count_nan():
    assert holm([np.nan, 0.02, np.nan, 0.01]) == pytest.approx([np.nan, 0.02, np.nan, 0.02], nan_ok=True)
    assert holm([]).size == 0
    assert np.isnan(holm([np.nan])).all()


@FEW
@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=12), st.randoms())
def test_holm_does_not_depend_on_the_order_and_lies_between_p_and_bonferroni(p, random):
    shuffled = list(range(len(p)))
    random.shuffle(shuffled)
    adjusted = holm(p)
    np.testing.assert_array_equal(holm([p[index] for index in shuffled]), adjusted[shuffled])
    known = ~np.isnan(adjusted)
    bonferroni = np.minimum(1, np.asarray(p)[known] * known.sum())
    assert (np.asarray(p)[known] <= adjusted[known]).all()
    assert (adjusted[known] <= bonferroni).all()


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(BadValue, match=r"p = 1\.5"):
        holm([0.1, 1.5])


def test_expected_running_time_by_hand():
    # Hits after 10 and 20 s and a miss that spent 30 s: one hit per 30 s.
    assert expected_running_time([60.0, 60.0, np.nan, 0.0], [2, 0, 1, 0]) == pytest.approx(
        [30.0, np.inf, np.nan, np.inf], nan_ok=True
    )


# -- survival --------------------------------------------------------------------------------------------------------


def test_kaplan_meier_reproduces_the_example_of_its_paper():
    # Kaplan & Meier (1958), section 2: deaths at 0.8, 3.1, 5.4, 9.2, losses at 1.0, 2.7, 7.0, 12.1.
    time = [0.8, 3.1, 5.4, 9.2, 1.0, 2.7, 7.0, 12.1]
    found = kaplan_meier(time, [1, 1, 1, 1, 0, 0, 0, 0])
    at_hits = found.set_index("time").loc[[0.8, 3.1, 5.4, 9.2]]
    assert list(found["time"]) == sorted(time)
    assert list(1 - at_hits["reached"]) == pytest.approx([0.875, 0.700, 0.525, 0.2625])
    assert list(at_hits["at_risk"]) == [8, 5, 4, 2]
    # At 0.8: Greenwood's sum is 1 / (8 * 7), over |ln 0.875| a deviation of 1.00080 of ln(-ln S).
    factor = np.exp(1.959964 * np.sqrt(1 / 56) / -np.log(0.875))
    assert list(at_hits.iloc[0][["reached_low", "reached_high"]]) == pytest.approx(
        [1 - 0.875 ** (1 / factor), 1 - 0.875**factor]
    )


def test_kaplan_meier_without_misses_is_the_share_of_hits():
    found = kaplan_meier([4, 1, 2, 2, 5], [True] * 5)
    assert list(found["time"]) == [1, 2, 4, 5]
    assert list(found["reached"]) == pytest.approx([0.2, 0.6, 0.8, 1.0])
    assert found["reached_low"].isna().tolist() == [False, False, False, True]


def test_kaplan_meier_of_misses_alone_and_of_nothing():
    missed = kaplan_meier([3.0, 3.0, 5.0], [False] * 3)
    assert missed["reached"].tolist() == [0.0, 0.0]
    assert missed[["reached_low", "reached_high"]].isna().all(axis=None)
    assert missed["at_risk"].tolist() == [3, 1]
    empty = kaplan_meier([], [])
    assert list(empty.columns) == list(missed.columns)
    assert (empty.dtypes == missed.dtypes).all()
    assert empty.empty


@FEW
@given(TRIALS, st.randoms())
def test_kaplan_meier_rises_within_its_band_and_knows_no_order(trials, random):
    found = kaplan_meier(*zip(*trials, strict=True))
    random.shuffle(trials)
    pd.testing.assert_frame_equal(kaplan_meier(*zip(*trials, strict=True)), found, check_exact=True)
    assert (np.diff(found["reached"]) >= 0).all()
    known = found.dropna()
    assert ((known["reached_low"] >= 0) & (known["reached_low"] <= known["reached"])).all()
    assert ((known["reached"] <= known["reached_high"]) & (known["reached_high"] <= 1)).all()


def test_the_log_rank_test_of_the_remission_times():
    # Chi-squared 16.79 with one degree of freedom (Kleinbaum & Klein, Survival Analysis, chapter 2).
    p = log_rank(*REMISSION)
    assert stats.chi2.isf(p, 1) == pytest.approx(16.79, abs=0.005)


@FEW
@given(TRIALS, TRIALS, st.randoms())
def test_the_log_rank_test_knows_no_order_and_no_sides(a, b, random):
    p = log_rank(*zip(*a, strict=True), *zip(*b, strict=True))
    random.shuffle(a)
    random.shuffle(b)
    assert log_rank(*zip(*b, strict=True), *zip(*a, strict=True)) == pytest.approx(p, nan_ok=True)
    assert np.isnan(p) or 0 <= p <= 1


def test_the_log_rank_test_needs_two_sides_and_a_hit():
    assert np.isnan(log_rank([], [], [1.0], [True]))
    assert np.isnan(log_rank([1.0, 2.0], [False, False], [1.0], [False]))


@pytest.mark.parametrize(
    ("time", "hit", "message"),
    [
        ([1.0, np.nan], [True, False], "time = nan"),
        ([1.0, np.inf], [True, False], "time = inf"),
        ([1.0, -2.0], [True, False], r"time = -2\.0"),
        ([1.0, 2.0], [True], r"shape \(2,\)"),
        ([1.0, 2.0], [0, 2], "not true or false"),
    ],
)
def test_survival_refuses_what_is_no_observation(time, hit, message):
    with pytest.raises(BadValue, match=message):
        kaplan_meier(time, hit)
    with pytest.raises(BadValue, match=message):
        log_rank([1.0], [True], time, hit)


# -- pairs -----------------------------------------------------------------------------------------------------------


def test_the_paired_test_of_darwin_s_maize():
    # Fisher (1935), section 17: mean 20.93, t = 2.148 on 14 degrees of freedom.
    found = paired(DARWIN)
    assert float(found.value) == pytest.approx(20.93, abs=0.005)
    assert stats.t.isf(float(found.p) / 2, 14) == pytest.approx(2.148, abs=5e-4)
    expected = stats.ttest_1samp(DARWIN, 0).confidence_interval(0.9)
    wide = paired(DARWIN, 0.9)
    assert (float(wide.low), float(wide.high)) == pytest.approx((expected.low, expected.high))


def test_paired_rows_are_tested_one_by_one_and_a_missed_pair_makes_its_row_nan():
    rows = np.array([[1.0, 2.0, 4.0], [1.0, np.nan, 4.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, np.inf, 2.0]])
    found = paired(rows)
    assert np.isnan(found.value).tolist() == np.isnan(found.p).tolist() == [False, True, False, False, True]
    assert found.p[[2, 3]].tolist() == [0.0, 1.0]
    assert float(found.p[0]) == float(paired(rows[0]).p)


def test_a_paired_test_of_none_or_one():
    assert np.isnan([paired([]).value, paired([]).p]).all()
    assert paired([2.0]).value == 2.0
    assert np.isnan([paired([2.0]).low, paired([2.0]).high, paired([2.0]).p]).all()


def test_the_sign_flip_test_of_darwin_s_maize():
    # Fisher (1935), section 21: 1726 of the 32768 patterns, 0.0527. Drawn here: p is twice a tail of 0.0263 out of
    # 9999, so its standard deviation is 0.0032.
    assert sign_flip(DARWIN) == pytest.approx(1726 / 32768, abs=4 * 0.0032)


def test_few_pairs_cannot_show_much():
    assert sign_flip([0.1, 0.2, 0.3, 0.4, 0.5]) == 1 / 16
    assert sign_flip([0.1]) == 1.0
    assert sign_flip([0.0, 0.0, 0.0]) == 1.0


@FEW
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=8), st.randoms())
def test_the_sign_flip_test_counts_all_patterns(differences, random):
    sums = [np.dot(signs, differences) for signs in product((-1, 1), repeat=len(differences))]
    expected = np.mean(np.abs(sums) >= abs(sum(differences)))
    assert sign_flip(differences) == pytest.approx(expected)
    shuffled = list(differences)
    random.shuffle(shuffled)
    assert sign_flip(shuffled) == sign_flip(differences)


def test_the_drawn_sign_flips_are_the_same_in_any_order():
    assert sign_flip(DARWIN) == sign_flip(DARWIN[::-1])


def test_the_sign_flip_test_of_what_is_not_a_row_of_numbers():
    assert np.isnan(sign_flip([]))
    assert np.isnan(sign_flip([1.0, np.nan]))
    with pytest.raises(BadValue, match=r"shape \(1, 2\)"):
        sign_flip([[1.0, 2.0]])
