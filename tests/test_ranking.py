"""The rows of a board against each other: fronts, groups of neighbours, references and ratios to them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import ranking, statistics
from bench.cells import Sample


def sample(*rows):
    """Return (mean, sd, n) of several rows."""
    return Sample(*np.array(rows, dtype=float).reshape(-1, 3).T)


# -- front -----------------------------------------------------------------------------------------------------------
POINTS = st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0, math.nan]), st.sampled_from([1.0, 2.0, 3.0])), max_size=9)


@settings(max_examples=200)
@given(POINTS)
def test_the_front_is_what_no_other_point_dominates(points):
    def dominated(point):
        return any(
            other[0] <= point[0] and other[1] <= point[1] and (other[0] < point[0] or other[1] < point[1])
            for other in points
        )

    found = ranking.on_front(np.array([x for x, _ in points]), np.array([y for _, y in points]))
    assert found.tolist() == [not math.isnan(point[0]) and not dominated(point) for point in points]


# -- groups ----------------------------------------------------------------------------------------------------------
def groups(*rows, **options):
    return ranking.groups(sample(*rows), 0.95, **options).tolist()


def test_rows_far_apart_lead_groups_of_their_own_and_close_ones_share_one():
    near, far = (5.0, 0.05, 5), (6.0, 0.05, 5)
    assert groups(near, (5.01, 0.05, 5), far, (6.01, 0.05, 5), (7.0, 0.05, 5)) == [1, 1, 2, 2, 3]


def test_a_row_is_compared_with_the_leader_of_its_group_and_not_with_its_neighbour():
    drift = [(5.0 + 0.06 * step, 0.05, 5) for step in range(4)]
    assert groups(*drift) == [1, 1, 2, 2]
    one, two = sample(drift[1]), sample(drift[2])
    assert one.minus(two, 0.95).p[0] > 0.05, "which their boundary does not show"


def test_many_rows_after_the_leader_make_each_test_stricter():
    leader, rival = (5.0, 0.05, 5), (5.08, 0.05, 5)
    assert groups(leader, rival) == [1, 2]
    assert groups(leader, rival, *[(5.081, 0.5, 5)] * 9)[1] == 1


def test_a_row_that_cannot_be_tested_joins_the_group_that_it_comes_to():
    assert groups((5.0, 0.05, 5), (9.0, math.nan, 1), (6.0, 0.05, 5)) == [1, 1, 2]
    assert groups((5.0, math.nan, 1), (9.0, math.nan, 1)) == [1, 1]


def test_a_row_that_is_better_than_the_leader_of_its_group_is_not_separated_from_it():
    assert groups((5.0, 0.05, 5), (4.0, 0.05, 5)) == [1, 1]
    assert groups((0.9, 0.01, 5), (0.5, 0.01, 5), minimise=False) == [1, 2]


def test_rows_without_any_noise_are_apart_where_they_differ_at_all():
    assert groups((5.0, 0.0, 5), (5.0, 0.0, 5), (5.001, 0.0, 5)) == [1, 1, 2]


def test_no_rows_make_no_groups():
    assert ranking.groups(sample(), 0.95).tolist() == []


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(-9, 9), st.sampled_from([0.0, 0.05, 0.3, math.nan]), st.integers(0, 9)),
        min_size=1,
        max_size=6,
    )
)
def test_p_values_are_those_of_the_project_s_own_test(rows):
    rows = [(mean, sd if n > 1 else math.nan, n) for mean, sd, n in rows]
    one, other = sample(*rows), sample(*rows[:1])
    wanted = one.minus(other, 0.95).p
    np.testing.assert_allclose(ranking.p_of_welch(one, other), wanted, rtol=1e-9, atol=1e-15)


# -- reference -------------------------------------------------------------------------------------------------------
def rows(*facts):
    """Return rows of (algorithm, reference, is_reference, fillers, board)."""
    names = ["algorithm", "reference", "is_reference", "fillers", "board"]
    found = pd.DataFrame([(*fact, *("[]", 0)[len(fact) - 3 :]) for fact in facts], columns=names)
    return found.astype({"is_reference": object, "reference": "str"})


def test_the_reference_of_a_row_is_the_tuned_row_of_its_name():
    found, reasons = ranking.references(
        rows(("galore", "adamw", False), ("adamw", "adamw", False), ("adamw", "adamw", True), ("plain", "sgd", False))
    )
    assert found.tolist() == [2, 2, 2, -1]
    assert reasons == {0: ["no ratio for plain: no row of sgd is here"]}


def test_the_same_fillers_go_before_others():
    tuned = [("adamw", "adamw", True, "[1]"), ("adamw", "adamw", True, "[2]")]
    found, _ = ranking.references(rows(("galore", "adamw", False, "[2]"), *tuned))
    assert found.tolist() == [2, 1, 2]
    found, _ = ranking.references(rows(("galore", "adamw", False, "[3]"), tuned[0]))
    assert found.tolist() == [1, 1]
    found, reasons = ranking.references(rows(("galore", "adamw", False, "[3]"), *tuned))
    assert found.tolist() == [-1, 1, 2]
    assert reasons == {0: ["no ratio for galore: 2 rows of adamw are the reference"]}


def test_a_reference_is_never_taken_from_another_board():
    found, reasons = ranking.references(
        rows(("galore", "adamw", False, "[]", 3), ("adamw", "adamw", True, "[]", 4), ("galore", None, None, "[]", 4))
    )
    assert found.tolist() == [-1, 1, -1]
    assert reasons == {
        3: ["no ratio for galore: no row of adamw is here"],
        4: ["no ratio for galore: the record names no reference"],
    }


# -- ratios ----------------------------------------------------------------------------------------------------------
def measured(**changes):
    """Return two rows, the second one the reference, at log means 5.0 and 5.2 with noise 0.05 over five replicates."""
    columns = {"board": [0, 0], "basis": ["seeds"] * 2, "contended": [False] * 2, "memory_source": ["rss"] * 2}
    for name in ("log_steps_to_target", "log_time_to_target_s", "log_memory_bytes", "log_energy_j", "quality"):
        columns |= {f"{name}_mean": [5.0, 5.2], f"{name}_sd": [0.05, 0.05], f"{name}_n": [5, 5]}
    return pd.DataFrame(columns | changes)


def ratios(frame, reference=(1, 1)):
    found = ranking.ratios(frame, np.array(reference), 0.95)
    return {name: values.tolist() for name, values in found.items()}


def test_ratios_are_this_over_the_reference_with_welch_s_interval():
    found = ratios(measured())
    wanted = statistics.welch(5.0, 0.05, 5, 5.2, 0.05, 5)
    for name in ("steps", "time", "memory", "energy"):
        assert found[f"{name}_ratio"] == [pytest.approx(math.exp(-0.2)), 1.0]
        assert found[f"{name}_ratio_low"][0] == pytest.approx(float(wanted.exp().low))
        assert found[f"{name}_ratio_p"][0] == pytest.approx(float(wanted.p))
        assert found[f"{name}_detectable_ratio"][0] == pytest.approx(float(statistics.detectable_ratio(0.05, 5, 5)))
        for other in ("ratio_low", "ratio_high", "ratio_p", "detectable_ratio"):
            assert math.isnan(found[f"{name}_{other}"][1]), "a reference has no interval to itself"
    assert found["quality_difference"] == [pytest.approx(-0.2), 0.0]
    assert found["quality_difference_low"][0] == pytest.approx(float(wanted.low))


def test_p_is_adjusted_over_the_comparisons_of_its_own_board():
    two = pd.concat([measured().iloc[[0, 0, 1]], measured(board=[1, 1])], ignore_index=True)
    found = ratios(two, (2, 2, 2, 4, 4))["steps_ratio_p"]
    assert found[0] == found[1] == pytest.approx(2 * found[3])


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"contended": [True, False]}, {"time"}),
        ({"contended": [False, True]}, {"time"}),
        ({"memory_source": ["nvml", "rss"]}, {"memory"}),
        ({"basis": ["selected", "confirmed"]}, {"steps", "time", "memory", "energy", "quality"}),
        ({"log_energy_j_mean": [math.nan, 5.0]}, {"energy"}),
    ],
)
def test_what_does_not_compare_has_no_ratio(changes, lacking):
    found = ratios(measured(**changes))
    names = {name: f"{name}_ratio" for name in ranking.RATIOS} | {"quality": "quality_difference"}
    assert {short for short, name in names.items() if math.isnan(found[name][0])} == lacking
    assert {short for short, name in names.items() if math.isnan(found[f"{name}_p"][0])} == lacking


def test_rows_without_a_reference_have_no_ratio():
    found = ratios(measured(), (-1, 1))
    assert all(math.isnan(values[0]) for values in found.values())


def test_the_noise_that_a_detectable_ratio_rests_on_is_pooled():
    one, other = sample((5.0, 0.03, 5)), sample((5.0, 0.09, 3))
    assert one.pooled_sd(other)[0] == pytest.approx(math.sqrt((4 * 0.03**2 + 2 * 0.09**2) / 6))
    alone = sample((5.0, math.nan, 1))
    assert one.pooled_sd(alone)[0] == pytest.approx(0.03)
    assert math.isnan(alone.pooled_sd(alone)[0])
