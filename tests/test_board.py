"""Leaderboards: what compares with what, in which order, and what is never ranked."""

from __future__ import annotations

import hashlib
import json
import math

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.board import BOARD, MEASURES, boards
from bench.record import TRIALS

DEFAULTS = {
    "algorithm": "plain",
    "algorithm_version": "1",
    "algorithm_source_sha256": "a",
    "hyperparameters": {"lr": 0.1},
    "fillers": "[]",
    "workload": "micro",
    "workload_version": "1.2.3",
    "tier": "small",
    "precision": "fp32",
    "data_source": "drawn",
    "data_sha256": "d",
    "protocol": "default",
    "protocol_version": "1.0",
    "protocol_sha256": "p",
    "study": 0,
    "point": 0,
    "seed": 0,
    "device_class": "cpu-2",
    "device_listed": True,
    "outcome": "reached",
    "metric": "loss",
    "metric_direction": "min",
    "target": 1.0,
    "quality": 0.9,
    "rss_peak_bytes": 1000,
    "optimizer_state_bytes": 10,
    "contended": False,
}


def trial(steps=None, time=None, **changes):
    """Return one row; ``steps`` and ``time`` are the interpolated ones to the target (default: a miss)."""
    row = dict.fromkeys(TRIALS.names) | DEFAULTS | changes
    if steps is None:
        row["outcome"] = changes.get("outcome", "missed")
    else:
        time = 10.0 * steps if time is None else time
        row |= {"steps_to_target": math.ceil(steps), "time_to_target_s": time}
        row |= {"steps_to_target_interpolated": float(steps), "time_to_target_interpolated_s": float(time)}
    row["hyperparameters"] = json.dumps(row["hyperparameters"])
    row["trial_id"] = hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:20]
    return row


def cell(steps, name, seeds=5, **changes):
    """Return one setting over its seeds, all alike."""
    return [trial(steps, algorithm=name, seed=seed, **changes) for seed in range(seeds)]


def frame(*rows):
    """Return rows as pandas reads them from the stored table."""
    return pa.Table.from_pylist(list(rows), schema=TRIALS).to_pandas()


def only(trials, by="time"):
    (board,) = boards(trials, by)
    return board


def names(board):
    return [row["algorithm"] for row in board.records()]


# -- what compares ---------------------------------------------------------------------------------------------------
def test_no_trials_make_no_board():
    assert boards(frame()) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("workload", "macro"),
        ("workload_version", "1.3.3"),
        ("workload_version", "2.2.3"),
        ("tier", "large"),
        ("precision", "bf16"),
        ("data_source", "local"),
        ("data_sha256", "0"),
        ("protocol", "external"),
        ("protocol_sha256", "0"),
        ("device_class", "cpu-16"),
    ],
)
def test_what_differs_never_shares_a_board(column, value):
    found = boards(frame(trial(5), trial(6, **{column: value})))
    assert [len(board.rows) for board in found] == [1, 1]
    key = {"workload_version": "workload_minor"}.get(column, column)
    assert found[0].shared[key] != found[1].shared[key]


def test_patch_versions_of_a_workload_share_a_board_and_a_row():
    board = only(frame(trial(5, seed=0), trial(5, seed=1, workload_version="1.2.9")))
    assert board.shared["workload_minor"] == "1.2"
    assert [row["seeds"] for row in board.records()] == [2]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("algorithm", "other"),
        ("algorithm_version", "2"),
        ("algorithm_source_sha256", "b"),
        ("hyperparameters", {"lr": 0.2}),
        ("fillers", '[{"name": "steady"}]'),
    ],
)
def test_another_setting_is_another_row(column, value):
    assert len(only(frame(trial(5), trial(6, **{column: value}))).rows) == 2


def test_rows_of_one_algorithm_say_in_what_they_differ():
    board = only(
        frame(
            trial(5, hyperparameters={"lr": 0.1, "beta": 0.9}),
            trial(6, hyperparameters={"lr": 0.2, "beta": 0.9}),
            trial(7, algorithm="other", hyperparameters={"lr": 0.3}),
        )
    )
    assert [row["setting"] for row in board.records()] == ["lr=0.1", "lr=0.2", ""]


def test_a_board_tells_what_its_rows_share():
    board = only(frame(trial(5), trial(None, outcome="error", metric=None, target=None)))
    assert {key: board.shared[key] for key in BOARD} == {
        "workload": "micro",
        "workload_minor": "1.2",
        "tier": "small",
        "precision": "fp32",
        "data_source": "drawn",
        "data_sha256": "d",
        "protocol": "default",
        "protocol_sha256": "p",
        "device_class": "cpu-2",
    }
    assert (board.shared["target"], board.shared["metric"], board.shared["by"]) == (1.0, "loss", "time")


# -- order -----------------------------------------------------------------------------------------------------------
def test_rows_are_ordered_by_time_and_by_steps():
    trials = frame(*cell(5, "slow", time=90.0), *cell(6, "fast", time=10.0), *cell(7, "between", time=50.0))
    assert names(only(trials)) == ["fast", "between", "slow"]
    assert names(only(trials, "steps")) == ["slow", "fast", "between"]


def test_every_miss_comes_after_every_full_set_of_hits():
    mixed = [*cell(2, "mixed", seeds=4), trial(algorithm="mixed", seed=4)]
    trials = frame(*mixed, *cell(9, "steady"), *cell(None, "never"), *cell(None, "broken", outcome="error"))
    for by in ("time", "steps"):
        assert names(only(trials, by)) == ["steady", "mixed", "never", "broken"]
    assert [row["hits"] for row in only(trials).records()[:2]] == [5, 4]


def test_rows_that_never_hit_are_ordered_by_quality_and_failures_come_last():
    trials = frame(
        *cell(None, "worse", quality=3.0),
        *cell(None, "broken", outcome="error", quality=None, metric_direction=None),
        *cell(None, "better", quality=2.0),
    )
    assert names(only(trials)) == ["better", "worse", "broken"]


def test_order_by_quality_follows_the_direction_of_the_metric():
    trials = frame(trial(5, algorithm="a", quality=0.5), trial(5, algorithm="b", quality=0.7))
    assert names(only(trials, "quality")) == ["a", "b"]
    trials["metric_direction"] = "max"
    assert names(only(trials, "quality")) == ["b", "a"]


@pytest.mark.parametrize("seed", range(8))
def test_a_failure_that_knows_no_direction_does_not_turn_the_order_round(seed):
    broken = trial(outcome="error", seed=seed, algorithm="c", metric=None, metric_direction=None, quality=None)
    trials = frame(trial(5, algorithm="a", quality=0.5), trial(5, algorithm="b", quality=0.7), broken)
    assert names(only(trials, "quality")) == ["a", "b", "c"]


def test_order_by_memory_and_energy():
    trials = frame(
        trial(5, algorithm="a", rss_peak_bytes=3000, energy_j=1.0),
        trial(5, algorithm="b", rss_peak_bytes=2000, energy_j=None),
        trial(5, algorithm="c", rss_peak_bytes=1000, energy_j=3.0),
    )
    assert names(only(trials, "memory")) == ["c", "b", "a"]
    assert names(only(trials, "energy")) == ["a", "c", "b"]


def test_ties_are_broken_by_steps_quality_and_name():
    trials = frame(
        trial(5, time=10.0, algorithm="d"),
        trial(5, time=10.0, algorithm="c"),
        trial(5, time=10.0, algorithm="b", quality=0.8),
        trial(4, time=10.0, algorithm="a"),
    )
    assert names(only(trials)) == ["a", "b", "c", "d"]


# -- ranks -----------------------------------------------------------------------------------------------------------
def test_a_ranked_protocol_ranks_rows_that_have_all_its_seeds():
    board = only(frame(*cell(5, "whole"), *cell(4, "few", seeds=3)))
    assert [(row["algorithm"], row["order"], row["ranked"]) for row in board.records()] == [
        ("few", 1, False),
        ("whole", 2, True),
    ]
    assert any("takes 5 seeds" in note for note in board.notes)


def test_failed_seeds_are_no_seeds():
    board = only(frame(*cell(5, "some", seeds=4), trial(algorithm="some", seed=4, outcome="interrupted")))
    (row,) = board.records()
    assert (row["seeds"], row["hits"], row["ranked"]) == (4, 4, False)
    assert row["outcomes"] == "1 interrupted, 4 reached"


@pytest.mark.parametrize("protocol", ["quick", "unheard-of"])
def test_quick_and_unknown_protocols_are_shown_and_never_ranked(protocol):
    board = only(frame(*cell(5, "a", protocol=protocol), *cell(4, "b", protocol=protocol)))
    assert names(board) == ["b", "a"]
    assert not board.rows["ranked"].any()
    assert any(f"protocol {protocol} is shown and never ranked" in note for note in board.notes)


def test_times_of_a_busy_machine_do_not_rank_and_steps_do():
    busy = cell(1, "busy", time=1.0)
    busy[2]["contended"] = True
    trials = frame(*busy, *cell(5, "calm"))
    by_time = only(trials)
    assert [(row["algorithm"], row["ranked"]) for row in by_time.records()] == [("calm", True), ("busy", False)]
    assert any("busy machine" in note for note in by_time.notes)
    by_steps = only(trials, "steps")
    assert [(row["algorithm"], row["ranked"]) for row in by_steps.records()] == [("busy", True), ("calm", True)]


def test_a_trial_too_short_to_know_whether_the_machine_was_busy_ranks():
    assert only(frame(*cell(5, "a", contended=None))).rows["ranked"].all()


def test_unlisted_devices_are_ordered_by_steps():
    trials = frame(*cell(5, "slow", time=90.0, device_listed=False), *cell(6, "fast", time=10.0, device_listed=False))
    board = only(trials)
    assert names(board) == ["slow", "fast"]
    assert board.shared["by"] == "steps"
    assert any("not a listed device class" in note for note in board.notes)


def test_a_failure_that_knows_no_device_does_not_make_the_device_unlisted():
    broken = trial(algorithm="slow", seed=9, outcome="error", device_listed=None)
    board = only(frame(*cell(5, "slow", time=90.0), *cell(6, "fast", time=10.0), broken))
    assert (board.shared["by"], names(board), board.notes) == ("time", ["fast", "slow"], [])


# -- figures of a row ------------------------------------------------------------------------------------------------
def test_times_are_geometric_means_of_hits_and_the_spread_is_relative():
    board = only(frame(trial(2, seed=0, time=1.0), trial(8, seed=1, time=100.0), trial(seed=2)))
    (row,) = board.records()
    assert row["steps_to_target"] == pytest.approx(4.0)
    assert row["time_to_target_s"] == pytest.approx(10.0)
    assert row["steps_cv"] == pytest.approx(math.sqrt(18) / 5)
    assert (row["seeds"], row["hits"], row["outcomes"]) == (3, 2, "1 missed, 2 reached")


def test_one_seed_has_no_spread_and_no_hit_has_no_time():
    (row,) = only(frame(trial(5))).records()
    assert math.isnan(row["steps_cv"])
    assert math.isnan(row["quality_sd"])
    (row,) = only(frame(trial())).records()
    assert math.isnan(row["time_to_target_s"])


def test_a_diverged_seed_is_not_averaged_away():
    good, bad = trial(5, seed=0, quality=0.1), trial(seed=1, quality=math.nan, outcome="diverged")
    board = only(frame(good, bad, trial(5, algorithm="other", quality=0.5)), "quality")
    assert names(board) == ["other", "plain"]
    assert math.isnan(board.records()[1]["quality"])


def test_memory_is_nvml_where_any_seed_has_it_and_never_a_mixture():
    rows = [trial(5, seed=seed, nvml_peak_bytes=100 + seed, rss_peak_bytes=9) for seed in range(3)]
    (row,) = only(frame(*rows, trial(5, seed=3, rss_peak_bytes=9))).records()
    assert (row["memory_bytes"], row["memory_source"]) == (101.0, "nvml")
    (row,) = only(frame(trial(5, rss_peak_bytes=9))).records()
    assert (row["memory_bytes"], row["memory_source"]) == (9.0, "rss")


# -- order of the input ----------------------------------------------------------------------------------------------
ROWS = st.builds(
    lambda steps, time, facts: trial(steps, None if steps is None else time, **facts),
    st.one_of(st.none(), st.integers(1, 9)),
    st.sampled_from([1.0, 10.0, 30.0]),
    st.fixed_dictionaries(
        {
            "algorithm": st.sampled_from(["a", "b"]),
            "seed": st.integers(0, 50),
            "protocol": st.sampled_from(["default", "quick"]),
            "contended": st.sampled_from([None, True, False]),
            "quality": st.sampled_from([None, math.nan, 0.1, 0.2, 0.3, 0.7, 1e9]),
            "device_listed": st.sampled_from([True, None]),
            "metric_direction": st.sampled_from(["min", None]),
        }
    ),
)


@settings(max_examples=25)
@given(st.lists(ROWS, min_size=1, max_size=12, unique_by=lambda row: row["trial_id"]), st.randoms(), st.data())
def test_boards_do_not_depend_on_the_order_of_the_rows(rows, random, data):
    by = data.draw(st.sampled_from(MEASURES))
    shuffled = list(rows)
    random.shuffle(shuffled)
    first, second = boards(frame(*rows), by), boards(frame(*shuffled), by)
    assert [board.shared for board in first] == [board.shared for board in second]
    assert [list(board.notes) for board in first] == [list(board.notes) for board in second]
    for left, right in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(left.rows, right.rows, check_exact=True)
