"""Standings: costs as medians with misses, scores, ratios to the reference, groups, and what counts at all."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import record
from bench.errors import BadValue
from bench.imports import algoperf
from bench.profiles import held_out_gate, performance_profile, profile_score
from bench.protocol import Protocol, grid
from bench.standings import leave_one_out, standings

EXCERPT = Path(__file__).parent / "fixtures" / "algoperf_published.csv"

RULES = Protocol(name="three", version="1.0", summary="three seeds", seeds=3, ranked=True)
QUICK = Protocol(name="quick", version="1.0", summary="one seed", seeds=1, ranked=False)
SEARCH = Protocol(
    name="search", version="1.0", summary="", seeds=1, ranked=True, search="space", points=grid(2), reruns=1
)
KNOWN = {rules.sha256: rules for rules in (RULES, QUICK, SEARCH)}

DEFAULTS = {
    "algorithm_version": "1",
    "algorithm_source_sha256": "a" * 64,
    "hyperparameters": "{}",
    "fillers": "[]",
    "workload_version": "1.2.3",
    "tier": "small",
    "precision": "fp32",
    "data_source": "drawn",
    "data_sha256": "d" * 64,
    "phase": "measure",
    "study": 0,
    "point": 0,
    "reference": "plain",
    "device_class": "cpu-2",
    "device_listed": True,
    "metric": "loss",
    "metric_direction": "min",
    "target": 1.0,
    "contended": False,
}


def cell(algorithm, workload, times, rules=RULES, **changes):
    """Return one trial per seed; a time of ``None`` is a miss."""
    rows = []
    for seed, time_s in enumerate(times):
        row = dict.fromkeys(record.TRIALS.names) | DEFAULTS
        row |= {"algorithm": algorithm, "workload": workload, "seed": seed, "is_reference": algorithm == "plain"}
        row |= {"protocol": rules.name, "protocol_version": rules.version, "protocol_sha256": rules.sha256}
        row |= {"outcome": "missed", "steps": 100, "time_s": 100.0, "quality": 2.0}
        if time_s is not None:
            row |= {"outcome": "reached", "time_to_target_s": float(time_s), "steps_to_target": round(10 * time_s)}
        row |= changes
        row["trial_id"] = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:20]
        rows.append(row)
    return rows


def frame(*cells):
    return pd.DataFrame([row for rows in cells for row in rows])


def only(trials, by="time"):
    (found,) = standings(trials, by, KNOWN)
    return found


def rows_of(found):
    return found.rows.set_index("algorithm")


def two_workloads():
    return frame(
        cell("plain", "a", [10, 10, 10]),
        cell("plain", "b", [20, 20, 20]),
        cell("fast", "a", [5, 5, 5]),
        cell("fast", "b", [10, 10, 10]),
        cell("slow", "a", [30, 30, 30]),
        cell("slow", "b", [None, 50, None]),
    )


# -- published figures -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def excerpt():
    trials = algoperf.to_trials(algoperf.read(EXCERPT)).to_pandas()
    return trials, {rules.sha256: rules for rules in algoperf.RULESETS.values()}


def test_the_excerpt_gives_the_two_published_scores_to_four_decimals(excerpt):
    (found,) = standings(excerpt[0], "time", excerpt[1])
    assert rows_of(found)["score_trapezoid"].round(4).to_dict() == {"schedule_free_adamw": 0.8542, "baseline": 0.8194}


def test_the_excerpt_gives_what_a_hand_computes_from_its_medians(excerpt):
    """The third shortest of each five published times; neither reached the target of imagenet_resnet."""
    baseline = np.array([5794.335, 1976.387, 73981.263, 57674.482, 36051.124, 8422.818, 40361.463])
    schedule_free = np.array([5763.720, 1321.424, 52380.766, 58997.146, 49010.281, 5993.652, 45376.384])
    (found,) = standings(excerpt[0], "time", excerpt[1])
    reached = found.costs.drop(columns="imagenet_resnet")
    assert reached.loc["baseline"].tolist() == baseline.tolist()
    assert reached.loc["schedule_free_adamw"].tolist() == schedule_free.tolist()
    assert np.isinf(found.costs["imagenet_resnet"]).all()
    rows = rows_of(found)
    best = np.minimum(baseline, schedule_free)
    assert rows["score"]["schedule_free_adamw"] == pytest.approx(np.sum(4 - schedule_free / best) / 3 / 8)
    assert rows["score"]["baseline"] == pytest.approx(np.sum(4 - baseline / best) / 3 / 8)
    assert rows["ratio"]["schedule_free_adamw"] == pytest.approx(np.prod(schedule_free / baseline) ** (1 / 7))
    assert rows[["workloads", "reached"]].to_numpy().tolist() == [[8, 7], [8, 7]]


def test_the_excerpt_cannot_tell_its_two_submissions_apart(excerpt):
    (found,) = standings(excerpt[0], "time", excerpt[1])
    assert found.rows["group"].tolist() == [1, 1]
    assert found.rows["score_low"].max() < found.rows["score_high"].min()
    assert found.shared["origin"] == "algoperf v0.5"
    assert (found.shared["replicate"], found.shared["replicates"]) == ("study", 5)


# -- costs -------------------------------------------------------------------------------------------------------------
def test_scores_ratios_and_hits_of_a_small_table():
    found = only(two_workloads())
    rows = rows_of(found)
    assert found.rows["algorithm"].tolist() == ["fast", "plain", "slow"]
    assert found.rows["order"].tolist() == [1, 2, 3]
    assert rows["score"].to_dict() == pytest.approx({"fast": 1.0, "plain": 2 / 3, "slow": 0.0})
    assert rows["ratio"].to_dict() == pytest.approx({"fast": 0.5, "plain": 1.0, "slow": 3.0})
    assert rows["reached"].to_dict() == {"fast": 2, "plain": 2, "slow": 1}
    assert rows["group"].to_dict() == {"fast": 1, "plain": 2, "slow": 3}
    assert rows.loc["plain", ["ratio_low", "ratio_high"]].isna().all()
    assert rows.loc["fast", ["ratio_low", "ratio_high"]].tolist() == pytest.approx([0.5, 0.5])


def test_a_cost_is_the_median_with_misses_as_infinite():
    found = only(frame(cell("plain", "a", [10, None, 30]), cell("fast", "a", [10, None, None])))
    assert found.costs["a"].to_dict() == {"fast": np.inf, "plain": 30.0}


def test_missing_replicates_are_misses_and_a_note_says_so():
    found = only(frame(cell("plain", "a", [10, 10, 10]), cell("fast", "a", [5]), cell("tried", "a", [6, 7])))
    assert found.costs["a"].to_dict() == {"fast": np.inf, "plain": 10.0, "tried": 7.0}
    assert "fast has fewer than the 3 replicates of the protocol on a: the others count as misses" in found.notes
    assert "tried has fewer than the 3 replicates of the protocol on a: the others count as misses" in found.notes


def test_replicates_beyond_those_of_the_protocol_change_nothing():
    base = [cell("plain", "a", [10, 11, 12])]
    found = only(frame(*base, cell("fast", "a", [5, 6, 7, 1, 1, 1])))
    assert found.costs["a"]["fast"] == 6.0


def test_a_failure_is_no_replicate_and_counts_as_one_that_is_missing():
    crashed = cell("fast", "a", [5, 5, 5], outcome="out_of_memory")
    found = only(frame(cell("plain", "a", [10, 10, 10]), crashed))
    assert rows_of(found).loc["fast", ["workloads", "reached", "score"]].tolist() == [1, 0, 0.0]


def test_an_algorithm_that_was_not_run_everywhere_counts_a_miss_and_a_note_says_so():
    found = only(frame(*(cell("plain", name, [10, 10, 10]) for name in "ab"), cell("fast", "a", [5, 5, 5])))
    assert rows_of(found).loc["fast", ["workloads", "reached", "score"]].tolist() == [1, 1, 0.5]
    assert "fast was not run on b: a miss there" in found.notes


def test_the_interpolated_cost_counts_where_it_is_known():
    found = only(frame(cell("plain", "a", [10, 10, 10], time_to_target_interpolated_s=9.5)))
    assert found.costs["a"]["plain"] == 9.5


@pytest.mark.parametrize(
    ("by", "column", "costs"),
    [
        ("steps", None, {"fast": 50.0, "plain": 100.0}),
        ("energy", "energy_j", {"fast": 7.0, "plain": 3.0}),
        ("memory", "rss_peak_bytes", {"fast": 7.0, "plain": 3.0}),
        ("memory", "nvml_peak_bytes", {"fast": 7.0, "plain": 3.0}),
    ],
)
def test_other_costs_are_scored_like_time(by, column, costs):
    plain, fast = ({column: value} if column else {} for value in (3, 7))
    found = only(frame(cell("plain", "a", [10, 10, 10], **plain), cell("fast", "a", [5, 5, 5], **fast)), by)
    assert found.shared["by"] == by
    assert found.costs["a"].to_dict() == costs


@pytest.mark.parametrize("by", ["quality", "pareto", "speed"])
def test_what_is_no_cost_is_refused(by):
    with pytest.raises(BadValue, match=f"standings by '{by}'"):
        standings(two_workloads(), by, KNOWN)


# -- what does not rank ------------------------------------------------------------------------------------------------
def test_a_busy_machine_gives_no_rank_by_time_and_does_not_touch_the_others():
    busy = cell("busy", "a", [1, 1, 1], contended=True)
    quiet = [cell("plain", "a", [10, 10, 10]), cell("fast", "a", [5, 5, 5])]
    found = only(frame(*quiet, busy))
    alone = only(frame(*quiet))
    pd.testing.assert_frame_equal(found.rows.iloc[:2], alone.rows)
    row = found.rows.iloc[2]
    assert row["algorithm"] == "busy"
    assert (row["group"], row["reached"], np.isnan(row["score"])) == (0, 1, True)
    assert "not ranked, a time from a busy machine: busy" in found.notes
    assert rows_of(only(frame(*quiet, busy), "steps"))["score"]["busy"] == 1.0


def test_a_target_that_was_met_before_the_first_step_costs_nothing_that_ranks():
    found = only(frame(cell("plain", "a", [10, 10, 10]), cell("odd", "a", [10, 10, 0])))
    assert rows_of(found)["group"].to_dict() == {"plain": 1, "odd": 0}
    assert "not ranked, time that nobody measured: odd" in found.notes


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"contended": True}, "every time comes from a busy machine: by steps, not by time"),
        ({"device_listed": False}, "cpu-2 is not a listed device class: by steps, not by time"),
    ],
)
def test_where_no_time_ranks_steps_do(change, note):
    found = only(frame(cell("plain", "a", [10, 10, 10], **change)))
    assert found.shared["by"] == "steps"
    assert note in found.notes
    assert found.costs["a"]["plain"] == 100.0


def test_a_cost_that_nobody_measured_has_no_standings():
    assert standings(two_workloads(), "energy", KNOWN) == []


def test_only_protocols_that_rank_and_are_known_have_standings():
    quick = frame(cell("plain", "a", [10], rules=QUICK))
    assert standings(quick, "time", KNOWN) == []
    assert standings(two_workloads(), "time", {}) == []
    assert standings(two_workloads()) == []
    assert standings(two_workloads().iloc[:0], "time", KNOWN) == []


def test_a_selected_point_that_was_not_repeated_has_no_rank():
    plain = cell("plain", "a", [10], rules=SEARCH, phase="tune") + cell("plain", "a", [11], rules=SEARCH, phase="rerun")
    fast = cell("fast", "a", [1], rules=SEARCH, phase="tune")
    found = only(frame(plain, fast))
    assert rows_of(found)["group"].to_dict() == {"plain": 1, "fast": 0}
    assert found.costs["a"].to_dict() == {"plain": 11.0}
    assert "not ranked, points that were selected and not repeated: fast" in found.notes


@pytest.mark.parametrize(
    ("target", "note"),
    [([1.0, 1.0, 2.0], "b small does not count: its trials disagree on the target"), ([None] * 3, "no target")],
)
def test_a_workload_without_one_target_is_no_column(target, note):
    other = frame(cell("plain", "b", [1, 1, 1]))
    other["target"] = target
    found = only(pd.concat([frame(cell("plain", "a", [10, 10, 10])), other]))
    assert list(found.costs.columns) == ["a"]
    assert any(note in text for text in found.notes)


def test_one_workload_says_no_more_than_its_board():
    assert "one workload: this says no more than the board of a" in only(frame(cell("plain", "a", [1, 1, 1]))).notes


# -- columns and entrants ----------------------------------------------------------------------------------------------
def test_workloads_of_one_name_are_columns_of_their_own_and_patch_versions_are_not():
    found = only(
        frame(
            cell("plain", "a", [10, 10, 10]),
            cell("plain", "a", [20, 20, 20], tier="large"),
            cell("fast", "a", [5, 5, 5], workload_version="1.2.9"),
            cell("plain", "b", [7, 7, 7]),
        )
    )
    assert found.shared["workloads"] == ("a large", "a small", "b")
    assert found.costs["a small"].to_dict() == {"fast": 5.0, "plain": 10.0}


def test_a_device_class_has_standings_of_its_own():
    other = frame(cell("plain", "a", [1, 1, 1], device_class="cpu-4"))
    found = standings(pd.concat([two_workloads(), other]), "time", KNOWN)
    assert [each.shared["device_class"] for each in found] == ["cpu-2", "cpu-4"]


def test_held_out_variants_gate_their_workload_and_unscored_ones_never_count():
    trials = frame(
        cell("plain", "a", [10, 10, 10]),
        cell("fast", "a", [5, 5, 5]),
        cell("slow", "a", [12, 12, 12]),
        cell("plain", "a", [10, 10, 10], tier="held-out", data_sha256="v"),
        cell("fast", "a", [41, 41, 41], tier="held-out", data_sha256="v"),
        cell("slow", "a", [None] * 3, tier="held-out", data_sha256="v"),
        cell("slow", "c", [1, 1, 1], tier="unscored"),
    )
    found = only(trials)
    assert (found.shared["workloads"], found.shared["held_out"]) == (("a",), ("a (held-out)",))
    assert found.costs["a"].to_dict() == {"fast": np.inf, "plain": 10.0, "slow": np.inf}
    assert rows_of(found)["reached"].to_dict() == {"fast": 1, "plain": 1, "slow": 1}
    base = pd.DataFrame({"a": {"plain": 10.0, "fast": 5.0, "slow": 12.0}})
    variant = pd.DataFrame({"a": {"plain": 10.0, "fast": 41.0, "slow": np.inf}})
    pd.testing.assert_frame_equal(found.costs, held_out_gate(base, variant))
    assert "1 boards of tier unscored do not count" in found.notes


def test_a_variant_of_no_column_gates_nothing_and_a_note_says_so():
    stray = cell("plain", "b", [None] * 3, tier="held-out")
    found = only(frame(cell("plain", "a", [10, 10, 10]), stray))
    assert found.shared["held_out"] == ()
    assert "b (held-out) gates nothing: it is not the one variant of one column" in found.notes


def test_other_settings_of_one_algorithm_compete_under_their_own_names():
    tuned = cell("plain", "a", [10, 10, 10], hyperparameters='{"lr": 0.1}')
    other = cell("plain", "a", [5, 5, 5], hyperparameters='{"lr": 0.2}', is_reference=False)
    fast = [cell("fast", "a", [time] * 3, hyperparameters=f'{{"lr": {time}}}') for time in (4, 8)]
    found = only(frame(tuned, other, *fast))
    assert found.rows["algorithm"].tolist() == ["fast lr=4", "plain lr=0.2", "fast lr=8", "plain"]
    assert rows_of(found)["ratio"].to_dict() == pytest.approx(
        {"fast lr=4": 0.4, "plain lr=0.2": 0.5, "fast lr=8": 0.8, "plain": 1.0}
    )


def test_without_a_reference_there_is_no_ratio_and_a_note_says_so():
    found = only(frame(cell("fast", "a", [5, 5, 5]), cell("slow", "a", [6, 6, 6])))
    assert found.rows["ratio"].isna().all()
    assert "there is no reference here, and so no ratio" in found.notes


# -- bootstrap and groups ----------------------------------------------------------------------------------------------
def noisy(names=("plain", "near", "far"), factors=(1.0, 1.02, 2.0), workloads="abcd"):
    generator = np.random.default_rng(5)
    return frame(
        *(
            cell(name, workload, (100 * factor * generator.lognormal(0, 0.1, 3)).round(3).tolist())
            for name, factor in zip(names, factors, strict=True)
            for workload in workloads
        )
    )


def test_intervals_enclose_their_figure_and_groups_part_what_differs():
    rows = rows_of(only(noisy()))
    assert (rows["score_low"] <= rows["score"]).all()
    assert (rows["score"] <= rows["score_high"]).all()
    assert rows["ratio_low"]["far"] < rows["ratio"]["far"] < rows["ratio_high"]["far"]
    assert rows["group"].to_dict() == {"plain": 1, "near": 1, "far": 2}


def test_the_reference_under_two_names_ties():
    trials = noisy()
    twin = trials[trials["algorithm"] == "plain"].assign(algorithm="twin", is_reference=False)
    twin["trial_id"] = "t" + twin["trial_id"].str.slice(1)
    rows = rows_of(only(pd.concat([trials, twin])))
    assert rows["score"]["twin"] == rows["score"]["plain"]
    assert rows["group"]["twin"] == rows["group"]["plain"] == 1
    assert rows["ratio"]["twin"] == 1.0
    assert rows["ratio_low"]["twin"] < 1.0 < rows["ratio_high"]["twin"]


def test_scores_and_profile_are_those_of_the_costs():
    found = only(noisy())
    expected = profile_score(found.costs)
    assert rows_of(found)["score"].to_dict() == pytest.approx(expected.to_dict())
    assert performance_profile(found.costs, [1e9]).to_numpy().tolist() == [[1.0, 1.0, 1.0]]


@functools.cache
def sorted_standings():
    mixed = pd.concat([noisy(workloads="ab"), two_workloads().assign(device_class="cpu-4")], ignore_index=True)
    return mixed, standings(mixed, "time", KNOWN)


@settings(max_examples=8)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_never_shows(generator):
    mixed, expected = sorted_standings()
    again = standings(mixed.iloc[generator.sample(range(len(mixed)), len(mixed))], "time", KNOWN)
    assert [each.shared for each in again] == [each.shared for each in expected]
    for first, second in zip(expected, again, strict=True):
        assert first.notes == second.notes
        pd.testing.assert_frame_equal(first.rows, second.rows, check_exact=True)
        pd.testing.assert_frame_equal(first.costs, second.costs, check_exact=True)


# -- leave one out -----------------------------------------------------------------------------------------------------
def test_leaving_one_entrant_out_can_flip_the_others():
    """``spoiler`` is so good on b that ``plain`` has almost nothing left there."""
    trials = frame(
        cell("plain", "a", [10, 10, 10]),
        cell("plain", "b", [30, 30, 30]),
        cell("steady", "a", [20, 20, 20]),
        cell("steady", "b", [20, 20, 20]),
        cell("spoiler", "b", [9, 9, 9]),
    )
    assert only(trials).rows["algorithm"].tolist() == ["steady", "plain", "spoiler"]
    found = leave_one_out(trials, "time", KNOWN)
    assert list(found.columns[:6]) == ["protocol", "protocol_sha256", "device_class", "origin", "left_out", "algorithm"]
    assert len(found) == 3 * 2
    without = found[found["left_out"] == "spoiler"].set_index("algorithm")
    assert without["score"].to_dict() == pytest.approx({"plain": (3 + 2.5) / 6, "steady": (2 + 3) / 6})
    with_all = {"plain": (3 + 4 - 30 / 9) / 6, "steady": (2 + 4 - 20 / 9) / 6}
    assert without["score_with_all"].to_dict() == pytest.approx(with_all)
    assert without["order"].to_dict() == {"plain": 1, "steady": 2}
    assert without["order_with_all"].to_dict() == {"plain": 2, "steady": 1}
    assert without["flipped"].all()
    assert not found["flipped"][found["left_out"] != "spoiler"].any()


def test_leaving_one_out_of_nothing_gives_an_empty_table():
    found = leave_one_out(two_workloads(), "time", {})
    assert found.empty
    assert "flipped" in found.columns
