"""From trials to replicates to cells: what a study selects, what counts, and what it adds up to."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cells import cells, figures, moments, sample
from bench.record import TRIALS
from bench.score import BOARD, CELL, identify, replicates, select

DEFAULTS = {
    "algorithm": "plain",
    "algorithm_version": "1",
    "algorithm_source_sha256": "a",
    "fillers": "[]",
    "workload": "micro",
    "workload_version": "1.2.3",
    "tier": "small",
    "precision": "fp32",
    "data_source": "drawn",
    "data_sha256": "d",
    "protocol": "search",
    "protocol_sha256": "p",
    "phase": "tune",
    "study": 0,
    "point": 0,
    "seed": 0,
    "device_class": "cpu-2",
    "metric_direction": "min",
    "budget_steps": 100,
    "steps": 100,
    "time_s": 50.0,
    "quality": 0.9,
    "contended": False,
    "trust_tier": "self-reported",
}


def trial(reach=None, **changes):
    """Return one row; it reaches the target after ``reach`` steps (interpolated), or misses it."""
    row = dict.fromkeys(TRIALS.names) | DEFAULTS | {"outcome": "missed" if reach is None else "reached"}
    if reach is not None:
        row |= {"steps_to_target": math.ceil(reach), "steps_to_target_interpolated": float(reach)}
        row |= {"time_to_target_s": reach / 2, "time_to_target_interpolated_s": reach / 2}
        row |= {"evaluations_to_target": math.ceil(reach / 10)}
    row |= changes
    row["hyperparameters"] = json.dumps(row["hyperparameters"] or {"lr": 0.1 * (row["point"] + 1)})
    row["trial_id"] = changes.get("trial_id") or hashlib.sha256(repr(sorted(row.items(), key=str)).encode()).hexdigest()
    return row


def seed(number, reach, **changes):
    """Return one seed of a fixed setting."""
    return trial(reach, phase="measure", seed=number, hyperparameters={"lr": 0.1}, **changes)


def frame(*rows):
    return pa.Table.from_pylist(list(rows), schema=TRIALS).to_pandas()


def only(*rows):
    """Return the one cell of ``rows``."""
    (found,) = cells(frame(*rows)).to_dict("records")
    return found


# -- selection -------------------------------------------------------------------------------------------------------
def points(*trials):
    """Return the points that the studies of ``trials`` select, by study."""
    found = select(frame(*trials))
    return dict(zip(found["study"], found["point"], strict=True))


def test_the_earliest_evaluation_is_selected_whatever_it_took():
    slow = trial(11, point=1, time_to_target_s=99.0, evaluations_to_target=2)
    assert points(trial(12, point=0, evaluations_to_target=3), slow, trial(None, point=2, best_quality=0.0)) == {0: 1}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"steps_to_target_interpolated": 10.5}, {"steps_to_target_interpolated": 10.6}),
        ({"steps_to_target_interpolated": 10.5}, {"steps_to_target_interpolated": None}),
        ({"time_to_target_s": 1.0}, {"time_to_target_s": 2.0}),
        ({"best_quality": 0.1}, {"best_quality": 0.2}),
        ({"best_quality": 0.2, "metric_direction": "max"}, {"best_quality": 0.1, "metric_direction": "max"}),
    ],
)
def test_ties_at_the_same_evaluation_are_broken_by_steps_time_and_quality(better, worse):
    assert points(trial(11, point=0, **worse), trial(11, point=1, **better)) == {0: 1}
    assert points(trial(11, point=0, **better), trial(11, point=1, **worse)) == {0: 0}


@pytest.mark.parametrize(("direction", "best"), [("min", 2), ("max", 1)])
def test_among_misses_the_best_quality_in_the_direction_of_the_metric_is_selected(direction, best):
    qualities = [math.nan, 0.7, 0.3, None]
    tried = [trial(point=n, best_quality=q, metric_direction=direction) for n, q in enumerate(qualities)]
    assert points(*tried) == {0: best}


def test_a_full_tie_goes_to_the_first_point():
    assert points(trial(11, point=2), trial(11, point=1), trial(11, point=3)) == {0: 1}


def test_failures_and_repetitions_are_never_selected():
    failed = trial(5, point=0, outcome="error")
    assert points(failed, trial(7, point=1, phase="rerun"), trial(9, point=2)) == {0: 2}
    assert select(frame(failed)).empty


def test_every_study_of_every_cell_selects_for_itself():
    tried = [trial(10 + point, point=point, study=study) for study in range(2) for point in range(2)]
    other = [trial(10 - point, point=point, algorithm="other") for point in range(2)]
    chosen = select(frame(*tried, *other))
    assert chosen[["algorithm", "study", "point"]].to_numpy().tolist() == [
        ["other", 0, 1],
        ["plain", 0, 0],
        ["plain", 1, 0],
    ]


def test_rows_as_plain_objects_select_as_stored_ones_do():
    rows = [trial(12, point=0), trial(11, point=1), trial(None, point=2)]
    assert select(pd.DataFrame(rows, columns=TRIALS.names))["point"].tolist() == [1]
    assert select(pd.DataFrame([], columns=TRIALS.names)).empty


# -- replicates ------------------------------------------------------------------------------------------------------
def test_a_replicate_of_a_fixed_setting_is_a_seed():
    found = replicates(frame(seed(1, 20), seed(0, 10), seed(2, None), seed(3, None, outcome="error")))
    assert found["seed"].tolist() == [0, 1, 2]
    assert found["basis"].tolist() == ["seeds"] * 3
    assert found["hit"].tolist() == [True, True, False]
    assert found["steps_to_target"].tolist()[:2] == [10.0, 20.0]
    assert found.index.tolist() == [1, 0, 2], "the rows of the trials"


def test_a_replicate_of_a_search_is_its_selected_trial_until_it_is_repeated():
    tried = [trial(10 + 5 * study + point, study=study, point=point) for study in range(2) for point in range(2)]
    found = replicates(frame(*tried))
    assert found[["study", "point"]].to_numpy().tolist() == [[0, 0], [1, 0]]
    assert set(found["basis"]) == {"selected"}
    again = trial(30, phase="rerun", study=0, seed=7)
    found = replicates(frame(*tried, again))
    assert found[["study", "seed"]].to_numpy().tolist() == [[0, 7]], "a study that is not repeated is not mixed in"
    assert found["basis"].tolist() == ["confirmed"]
    assert replicates(frame(*tried, again | {"outcome": "error"}))["basis"].tolist() == ["selected"] * 2


def test_interpolated_figures_count_where_they_are_known():
    raw = {"steps_to_target_interpolated": None, "time_to_target_interpolated_s": None}
    found = replicates(frame(seed(0, 10.4), seed(1, 10.4, **raw)))
    assert found["steps_to_target"].tolist() == [10.4, 11.0]
    assert found["time_to_target_s"].tolist() == [5.2, 5.2]


@pytest.mark.parametrize(
    ("changes", "spent", "bound"),
    [
        ({"outcome": "missed", "steps": 100, "time_s": 50.0}, (100, 50), (100, 50)),
        ({"outcome": "missed", "steps": 80, "time_s": 50.0, "budget_s": 45.0}, (80, 50), (80, 50)),
        ({"outcome": "diverged", "steps": 20, "time_s": 10.0}, (20, 10), (100, 50)),
        ({"outcome": "timeout", "steps": 20, "time_s": 10.0, "budget_s": 30.0}, (20, 10), (100, 30)),
        ({"outcome": "diverged", "steps": 0, "time_s": 1.0}, (0, 1), (100, math.nan)),
        ({"outcome": "diverged", "steps": 20, "time_s": 10.0, "budget_steps": None}, (20, 10), (20, 10)),
    ],
)
def test_a_miss_costs_what_it_spent_and_needs_at_least_the_budget_that_it_did_not_use(changes, spent, bound):
    row = replicates(frame(seed(0, None, **changes))).iloc[0]
    assert math.isnan(row["steps_to_target"])
    assert (row["spent_steps"], row["spent_time_s"]) == spent
    np.testing.assert_array_equal([row["bound_steps"], row["bound_time_s"]], bound)


def test_of_one_seed_under_several_patch_versions_the_newest_counts():
    rows = [seed(0, 10, workload_version="1.2.9"), seed(0, 30, workload_version="1.2.10"), seed(1, 20)]
    assert replicates(frame(*rows))["steps_to_target"].tolist() == [30.0, 20.0]
    failed = seed(0, None, workload_version="1.2.11", outcome="interrupted")
    found = only(*rows, failed)
    assert (found["replicates"], found["superseded"]) == (2, 1), "a failure supersedes nothing"


def test_numbers_of_boards_and_cells_follow_the_keys():
    rows = [seed(0, 1, tier=tier, algorithm=name) for tier in ("b", "a") for name in ("y", "x")]
    found = identify(frame(*rows))
    assert found["board"].tolist() == [1, 1, 0, 0]
    assert found["cell"].tolist() == [3, 2, 1, 0]
    assert {*BOARD, *CELL} - {"workload_minor"} < set(TRIALS.names)


# -- cells -----------------------------------------------------------------------------------------------------------
def test_costs_are_geometric_means_of_hits_with_a_log_t_interval():
    found = cells(frame(seed(0, 20), seed(1, 80), seed(2, None)))
    row = found.iloc[0]
    assert (row["replicates"], row["hits"], row["outcomes"]) == (3, 2, "1 missed, 2 reached")
    shown = {name: values[0] for name, values in figures(found, 0.95).items()}
    assert shown["steps_to_target"] == pytest.approx(40.0)
    assert shown["time_to_target_s"] == pytest.approx(20.0)
    half = 12.706204736 * math.log(4) / 2  # the 97.5% quantile of t with one degree of freedom, times sd / sqrt(2)
    assert shown["steps_to_target_low"] == pytest.approx(40 / math.exp(half))
    assert shown["steps_to_target_high"] == pytest.approx(40 * math.exp(half))
    assert row["steps_to_target_cv"] == pytest.approx(math.sqrt(1800) / 50)
    assert (shown["expected_steps"], shown["expected_time_s"]) == (100.0, 50.0)
    assert (shown["hit_rate"], shown["hit_rate_low"]) == (pytest.approx(2 / 3), pytest.approx(0.2077, abs=1e-4))
    bound = sample(found, "log_bound_steps")
    assert (math.exp(bound.mean[0]), bound.n[0]) == (pytest.approx((20 * 80 * 100) ** (1 / 3)), 3)


def test_what_never_hit_is_expected_to_take_for_ever_and_what_failed_is_not_known():
    missed = figures(cells(frame(seed(0, None))), 0.95)
    assert missed["expected_steps"][0] == math.inf
    assert math.isnan(missed["steps_to_target"][0])
    failed = cells(frame(seed(0, None, outcome="error", quality=None)))
    assert (failed["replicates"][0], failed["hits"][0], failed["outcomes"][0]) == (0, 0, "1 error")
    assert all(math.isnan(values[0]) for values in figures(failed, 0.95).values())


def test_one_replicate_has_figures_and_no_interval():
    shown = {name: values[0] for name, values in figures(cells(frame(seed(0, 20))), 0.95).items()}
    assert shown["steps_to_target"] == pytest.approx(20.0)
    for name in ("steps_to_target_low", "time_to_target_s_high", "quality_low"):
        assert math.isnan(shown[name])


def test_quality_is_a_plain_mean_and_a_diverged_seed_is_not_averaged_away():
    row = only(seed(0, 5, quality=0.2), seed(1, 5, quality=0.4))
    assert (row["quality_mean"], row["quality_sd"]) == (pytest.approx(0.3), pytest.approx(math.sqrt(0.02)))
    row = only(seed(0, 5, quality=0.2), seed(1, None, quality=math.nan, outcome="diverged"))
    assert math.isnan(row["quality_mean"])


def test_memory_is_nvml_where_any_seed_has_it_and_never_a_mixture():
    rows = [seed(n, 5, nvml_peak_bytes=100, rss_peak_bytes=9) for n in range(3)]
    row = only(*rows, seed(3, 5, rss_peak_bytes=9))
    assert (math.exp(row["log_memory_bytes_mean"]), row["log_memory_bytes_n"]) == (pytest.approx(100.0), 3)
    assert row["memory_source"] == "nvml"
    assert only(seed(0, 5, rss_peak_bytes=9))["memory_source"] == "rss"
    assert pd.isna(only(seed(0, 5))["memory_source"])


def test_energy_is_that_of_the_replicates_that_have_it():
    row = only(seed(0, 5, energy_j=10.0), seed(1, 5, energy_j=40.0), seed(2, 5))
    assert (math.exp(row["log_energy_j_mean"]), row["log_energy_j_n"]) == (pytest.approx(20.0), 2)


def test_a_search_shows_what_it_selected_and_what_it_cost_beside_what_was_confirmed():
    tried = [trial(10 + 5 * study + point, study=study, point=point) for study in range(2) for point in range(3)]
    failed = trial(None, study=1, point=3, outcome="error", steps=None, time_s=None)
    again = [trial(30, phase="rerun", study=study, seed=2 + study) for study in range(2)]
    row = only(*tried, failed, *again)
    assert (row["basis"], row["replicates"], row["hyperparameters"]) == ("confirmed", 2, "")
    assert math.exp(row["log_steps_to_target_mean"]) == pytest.approx(30.0)
    assert row["selected_steps_to_target"] == pytest.approx(math.sqrt(10 * 15))
    assert row["selected_time_to_target_s"] == pytest.approx(math.sqrt(10 * 15) / 2)
    assert (row["tuning_trials"], row["tuning_steps"], row["tuning_time_s"]) == (7, 600, 300)
    assert math.isnan(only(seed(0, 5))["tuning_trials"])


def test_a_row_is_worth_what_its_least_trusted_trial_is_worth():
    rows = [seed(n, 5, trust_tier=tier) for n, tier in enumerate(("verified", "reproduced", "verified"))]
    assert only(*rows)["trust_tier"] == "reproduced"
    assert only(*rows, seed(9, 5, trust_tier="unheard-of"))["trust_tier"] == "self-reported"


def test_facts_of_a_cell_are_those_that_all_of_it_know():
    row = only(seed(0, 5, reference="adamw"), seed(1, 5, reference=None), seed(2, 5, reference="adamw"))
    assert row["reference"] == "adamw"
    assert row["is_reference"] is None
    row = only(seed(0, 5, reference="adamw", is_reference=False), seed(1, 5, reference="sgd", is_reference=True))
    assert pd.isna(row["reference"])
    assert row["is_reference"] is True


def test_equal_values_have_a_deviation_of_exactly_zero():
    group = np.repeat([0, 1, 2], [3, 7, 1])
    found = moments(group, np.log(np.array([0.1] * 3 + [0.1] * 7 + [0.1])), 4)
    assert found.mean[0] == found.mean[1] == found.mean[2] == math.log(0.1)
    assert found.sd[:2].tolist() == [0.0, 0.0]
    assert np.isnan(found.sd[2:]).all()
    assert found.n.tolist() == [3, 7, 1, 0]


@settings(max_examples=25)
@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=30), st.integers(1, 4))
def test_sums_of_groups_are_those_of_each_by_itself(values, size):
    group = np.sort(np.arange(len(values)) % size)
    found = moments(group, np.array(values), size)
    for number in range(size):
        own = np.array(values)[group == number]
        assert found.n[number] == len(own)
        if len(own):
            assert found.mean[number] == pytest.approx(own.mean())
        if len(own) > 1:
            assert found.sd[number] == pytest.approx(own.std(ddof=1), rel=1e-6, abs=1e-9 * own.max())
