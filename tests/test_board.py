"""Leaderboards: what compares with what, in which order, what is never ranked, and what is told apart."""

from __future__ import annotations

import hashlib
import json
import math
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.board import BOARD, COLUMNS, MEASURES, boards, rows_of
from bench.protocol import Protocol, grid
from bench.record import TRIALS
from bench.store import Store

RULES = Protocol(name="default", version="1.0", summary="", seeds=5, ranked=True)
QUICK = Protocol(name="quick", version="1.0", summary="", seeds=1, ranked=False)
SEARCH = Protocol(
    name="search", version="1.0", summary="", seeds=1, ranked=True, search="learning-rate", points=grid(2), reruns=2
)
STRICT = Protocol(name="strict", version="1.0", summary="", seeds=2, ranked=True, confidence=0.99)
KNOWN = {rules.sha256: rules for rules in (RULES, QUICK, SEARCH, STRICT)}

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
    "protocol_sha256": RULES.sha256,
    "phase": "measure",
    "study": 0,
    "point": 0,
    "seed": 0,
    "reference": "plain",
    "is_reference": False,
    "device_class": "cpu-2",
    "device_listed": True,
    "outcome": "reached",
    "metric": "loss",
    "metric_direction": "min",
    "target": 1.0,
    "quality": 0.9,
    "budget_steps": 100,
    "steps": 100,
    "time_s": 1000.0,
    "rss_peak_bytes": 1000,
    "optimizer_state_bytes": 10,
    "contended": False,
}


def under(rules):
    """Return the columns of a trial under a protocol."""
    return {"protocol": rules.name, "protocol_version": rules.version, "protocol_sha256": rules.sha256}


def trial(steps=None, time=None, **changes):
    """Return one row; ``steps`` and ``time`` are the interpolated ones to the target (default: a miss)."""
    row = dict.fromkeys(TRIALS.names) | DEFAULTS | {"outcome": "missed" if steps is None else "reached"} | changes
    if steps is not None:
        time = 10.0 * steps if time is None else time
        row |= {"steps_to_target": math.ceil(steps), "time_to_target_s": time}
        row |= {"steps_to_target_interpolated": float(steps), "time_to_target_interpolated_s": float(time)}
    row["hyperparameters"] = json.dumps(row["hyperparameters"])
    row["trial_id"] = hashlib.sha256(repr(sorted(row.items(), key=str)).encode()).hexdigest()[:20]
    return row


def cell(steps, name, seeds=5, **changes):
    """Return one setting over its seeds, all alike."""
    return [trial(steps, algorithm=name, seed=seed, **changes) for seed in range(seeds)]


NOISE = (0.96, 1.03, 0.99, 1.05, 0.975)


def noisy(steps, name, **changes):
    """Return one setting over five seeds that differ by some percent."""
    return [trial(steps * factor, algorithm=name, seed=seed, **changes) for seed, factor in enumerate(NOISE)]


def frame(*rows):
    """Return rows as pandas reads them from the stored table."""
    return pa.Table.from_pylist(list(rows), schema=TRIALS).to_pandas()


def only(trials, by="time", known=None):
    (board,) = boards(trials, by, KNOWN if known is None else known)
    return board


def names(board):
    return [row["algorithm"] for row in board.records()]


def note(board, words):
    """Whether some note of the board has these words."""
    return any(words in text for text in board.notes)


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
    assert [row["replicates"] for row in board.records()] == [2]


def test_a_seed_that_ran_under_two_patch_versions_counts_once_and_is_told():
    board = only(frame(trial(5), trial(6, workload_version="1.2.9")))
    assert [(row["replicates"], row["outcomes"]) for row in board.records()] == [(1, "2 reached")]
    assert board.rows["steps_to_target"][0] == pytest.approx(6.0)
    assert note(board, "1 trials of older patch versions left out")


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


def test_a_search_is_one_row_whatever_it_selected():
    tried = [
        trial(5 + point, phase="tune", point=point, study=study, hyperparameters={"lr": study + point}, **under(SEARCH))
        for study in range(3)
        for point in range(2)
    ]
    board = only(frame(*tried))
    assert (board.shared["replicate"], len(board.rows)) == ("study", 1)
    assert board.records()[0]["hyperparameters"] == ""
    assert board.records()[0]["replicates"] == 3


def test_rows_of_one_algorithm_say_in_what_they_differ():
    board = only(
        frame(
            trial(5, hyperparameters={"lr": 0.1, "beta": 0.9, "betas": [1, 2]}),
            trial(6, hyperparameters={"lr": 0.2, "beta": 0.9, "betas": [1, 3]}),
            trial(7, algorithm="other", hyperparameters={"lr": 0.3}),
        )
    )
    assert [row["setting"] for row in board.records()] == ["lr=0.1, betas=[1, 2]", "lr=0.2, betas=[1, 3]", ""]


def test_setting_that_is_a_whole_file_is_told_by_its_beginning_and_its_hash():
    norms = "\n".join(str(number) for number in range(300))
    other = norms.replace("299", "298")
    board = only(frame(*(trial(5 + i, hyperparameters={"norms": text}) for i, text in enumerate((norms, other, None)))))
    first, second, third = (row["setting"] for row in board.records())
    assert re.fullmatch(r"norms=0 1 2 3 4 5 6 7 8 9 … \([0-9a-f]{6}\)", first)
    assert re.fullmatch(r"norms=0 1 2 3 4 5 6 7 8 9 … \([0-9a-f]{6}\)", second)
    assert first != second
    assert third == "norms=None"


def test_settings_name_versions_sources_and_what_fills_the_other_slots():
    def fillers(warmup):
        return json.dumps([{"name": "cosine", "values": {"warmup": warmup}}])

    board = only(
        frame(
            trial(5, fillers=fillers(1)),
            trial(6, fillers=fillers(2)),
            trial(7, algorithm="other", algorithm_version="1.0", algorithm_source_sha256="abcdefghij"),
            trial(8, algorithm="other", algorithm_version="1.1", algorithm_source_sha256="klmnopqrst"),
        )
    )
    assert [row["setting"] for row in board.records()] == [
        "cosine.warmup=1",
        "cosine.warmup=2",
        "version=1.0, source=abcdefgh",
        "version=1.1, source=klmnopqr",
    ]


def test_a_board_tells_what_its_rows_share():
    failed = trial(None, outcome="error", metric=None, target=None, metric_direction=None, device_listed=None)
    board = only(frame(trial(5), failed))
    assert {key: board.shared[key] for key in BOARD} == {
        "workload": "micro",
        "workload_minor": "1.2",
        "tier": "small",
        "precision": "fp32",
        "data_source": "drawn",
        "data_sha256": "d",
        "protocol": "default",
        "protocol_sha256": RULES.sha256,
        "device_class": "cpu-2",
    }
    assert {key: value for key, value in board.shared.items() if key not in BOARD} == {
        "target": 1.0,
        "metric": "loss",
        "metric_direction": "min",
        "protocol_version": "1.0",
        "origin": None,
        "replicate": "seed",
        "by": "time",
        "confidence": 0.95,
    }
    assert list(board.rows.columns) == list(COLUMNS)


def test_what_does_not_apply_is_none_in_text_and_nan_in_figures():
    (row,) = only(frame(trial(None, outcome="error", quality=None, rss_peak_bytes=None, reference=None))).records()
    for name in ("reference", "basis", "origin", "memory_source"):
        assert row[name] is None
    for name in ("quality", "memory_bytes", "energy_j", "steps_ratio", "hit_rate", "tuning_trials"):
        assert math.isnan(row[name])


def test_columns_have_the_same_types_on_every_board():
    lonely = only(frame(trial(None, outcome="error", reference=None, quality=None)))
    whole = only(frame(*noisy(5, "plain", is_reference=True, origin="elsewhere", energy_j=1.0)))
    assert lonely.rows.dtypes.to_dict() == whole.rows.dtypes.to_dict()


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
    assert note(only(trials), "flatter what missed some times: mixed")


def test_rows_that_miss_some_times_are_ordered_by_what_a_hit_is_expected_to_take():
    rarely = [*cell(2, "rarely", seeds=1), *[trial(algorithm="rarely", seed=seed) for seed in range(1, 5)]]
    often = [*cell(50, "often", seeds=4), trial(algorithm="often", seed=4)]
    board = only(frame(*rarely, *often), "steps")
    assert names(board) == ["often", "rarely"]
    assert board.rows["expected_steps"].tolist() == [(4 * 50 + 100) / 4, 2 + 4 * 100]


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


def test_order_by_memory_and_energy_puts_unknown_ones_last_and_unranked():
    trials = frame(
        *cell(5, "a", rss_peak_bytes=3000, energy_j=1.0),
        *cell(5, "b", rss_peak_bytes=2000, energy_j=None),
        *cell(5, "c", rss_peak_bytes=1000, energy_j=3.0),
    )
    assert names(only(trials, "memory")) == ["c", "b", "a"]
    board = only(trials, "energy")
    assert names(board) == ["a", "c", "b"]
    assert board.rows[["ranked", "group"]].to_numpy().tolist() == [[True, 1], [True, 2], [False, 0]]


def test_memory_of_another_source_does_not_compare():
    trials = frame(*cell(5, "a", nvml_peak_bytes=9000), *cell(5, "b"))
    board = only(trials, "memory")
    assert (names(board), board.rows["ranked"].tolist()) == (["a", "b"], [True, False])
    assert note(board, "no memory from nvml, so it does not compare: b")


def test_ties_are_broken_by_steps_quality_and_name():
    trials = frame(
        trial(5, time=10.0, algorithm="d"),
        trial(5, time=10.0, algorithm="c"),
        trial(5, time=10.0, algorithm="b", quality=0.8),
        trial(4, time=10.0, algorithm="a"),
    )
    assert names(only(trials)) == ["a", "b", "c", "d"]


def test_pareto_lists_the_front_of_time_and_memory_first_and_ranks_nothing():
    trials = frame(
        *cell(5, "quick", time=10.0, rss_peak_bytes=3000),
        *cell(5, "worse", time=20.0, rss_peak_bytes=4000),
        *cell(9, "small", time=90.0, rss_peak_bytes=1000),
        *cell(2, "hits-some", seeds=4, rss_peak_bytes=10),
        trial(algorithm="hits-some", seed=4),
    )
    board = only(trials, "pareto")
    assert list(zip(names(board), board.rows["pareto"], strict=True)) == [
        ("quick", True),
        ("small", True),
        ("worse", False),
        ("hits-some", False),
    ]
    assert not board.rows["ranked"].any()
    assert set(board.rows["group"]) == {0}
    assert note(board, "the front of time x memory")


@pytest.mark.parametrize("facts", [{"contended": True}, {"device_listed": False}])
def test_the_front_is_that_of_steps_where_times_do_not_rank(facts):
    trials = frame(
        *cell(5, "few-steps", time=90.0, **facts),
        *cell(9, "quick", time=10.0, **facts),
    )
    board = only(trials, "pareto")
    assert board.rows.set_index("algorithm")["pareto"].to_dict() == {"few-steps": True, "quick": False}
    assert note(board, "the front of steps x memory")


# -- ranks -----------------------------------------------------------------------------------------------------------
def test_a_ranked_protocol_ranks_rows_that_have_all_its_seeds():
    board = only(frame(*cell(5, "whole"), *cell(4, "few", seeds=3)))
    assert [(row["algorithm"], row["order"], row["ranked"], row["group"]) for row in board.records()] == [
        ("few", 1, False, 0),
        ("whole", 2, True, 1),
    ]
    assert note(board, "takes 5 seeds")


def test_failed_seeds_are_no_seeds():
    board = only(frame(*cell(5, "some", seeds=4), trial(algorithm="some", seed=4, outcome="interrupted")))
    (row,) = board.records()
    assert (row["replicates"], row["hits"], row["ranked"]) == (4, 4, False)
    assert row["outcomes"] == "1 interrupted, 4 reached"


def test_a_board_of_failures_ranks_nothing_and_says_what_failed():
    board = only(frame(*cell(None, "a", outcome="error", target=None, metric=None, quality=None)))
    (row,) = board.records()
    assert (row["replicates"], row["ranked"], row["outcomes"]) == (0, False, "5 error")
    assert (board.shared["by"], board.shared["target"]) == ("quality", None)


def test_quick_is_shown_and_never_ranked():
    board = only(frame(*cell(5, "a", **under(QUICK)), *cell(4, "b", **under(QUICK))))
    assert names(board) == ["b", "a"]
    assert not board.rows["ranked"].any()
    assert note(board, "protocol quick is shown and never ranked")


def test_a_protocol_whose_rules_are_not_known_is_shown_and_never_ranked():
    board = only(frame(*cell(5, "a"), *cell(4, "b")), known={})
    assert names(board) == ["b", "a"]
    assert not board.rows["ranked"].any()
    assert note(board, "protocol default is not known here: shown and never ranked")


def test_installed_protocols_are_known_unless_others_are_named():
    from bench.protocol import protocol

    (board,) = boards(frame(*cell(5, "a", **under(protocol("default")))))
    assert board.rows["ranked"].all()


def test_a_search_ranks_once_what_it_selected_is_repeated():
    tried = [trial(5 + point, phase="tune", point=point, **under(SEARCH)) for point in range(2)]
    board = only(frame(*tried))
    assert board.rows[["basis", "ranked"]].to_numpy().tolist() == [["selected", False]]
    assert note(board, "takes 2 repetitions of selected points")
    assert note(board, "selected, not confirmed: plain")
    again = [trial(6, phase="rerun", seed=seed, **under(SEARCH)) for seed in (1, 2)]
    board = only(frame(*tried, *again))
    assert board.rows[["basis", "ranked", "replicates"]].to_numpy().tolist() == [["confirmed", True, 2]]
    assert not note(board, "selected")


def test_times_of_a_busy_machine_do_not_rank_and_steps_do():
    busy = cell(1, "busy", time=1.0)
    busy[2]["contended"] = True
    trials = frame(*busy, *cell(5, "calm"))
    by_time = only(trials)
    assert [(row["algorithm"], row["ranked"]) for row in by_time.records()] == [("calm", True), ("busy", False)]
    assert note(by_time, "busy machine")
    by_steps = only(trials, "steps")
    assert [(row["algorithm"], row["ranked"]) for row in by_steps.records()] == [("busy", True), ("calm", True)]


def test_a_trial_too_short_to_know_whether_the_machine_was_busy_ranks():
    assert only(frame(*cell(5, "a", contended=None))).rows["ranked"].all()


def test_unlisted_devices_are_ordered_by_steps():
    trials = frame(*cell(5, "slow", time=90.0, device_listed=False), *cell(6, "fast", time=10.0, device_listed=False))
    board = only(trials)
    assert names(board) == ["slow", "fast"]
    assert board.shared["by"] == "steps"
    assert note(board, "not a listed device class")


def test_without_a_target_rows_are_ordered_by_quality():
    trials = frame(
        *cell(None, "worse", outcome="completed", target=None, quality=0.9),
        *cell(None, "better", outcome="completed", target=None, quality=0.8),
    )
    board = only(trials)
    assert (names(board), board.shared["by"]) == (["better", "worse"], "quality")
    assert board.rows["group"].tolist() == [1, 2]
    assert note(board, "no target is set here")


def test_a_failure_that_knows_no_device_does_not_make_the_device_unlisted():
    broken = trial(algorithm="slow", seed=9, outcome="error", device_listed=None)
    trials = frame(
        *cell(5, "slow", time=90.0), *cell(6, "fast", time=10.0), *cell(9, "plain", is_reference=True), broken
    )
    board = only(trials)
    assert (board.shared["by"], names(board), board.notes) == ("time", ["fast", "slow", "plain"], ())


@pytest.mark.parametrize("facts", [{"target": 0.5}, {"metric": "accuracy"}, {"metric_direction": "max"}])
def test_trials_that_disagree_on_the_goal_do_not_compare(facts):
    board = only(frame(*noisy(5, "plain", is_reference=True), *noisy(4, "other", **facts)))
    assert not board.rows["ranked"].any()
    assert board.rows["steps_ratio"].isna().all()
    assert note(board, "disagree on target, metric or direction")
    (known,) = ({"target", "metric", "metric_direction"} & set(facts),)
    assert board.shared[known.pop()] is None


# -- figures, ratios and groups of rows ------------------------------------------------------------------------------
def test_rows_have_ratios_to_the_reference_and_groups_of_what_is_told_apart():
    trials = frame(
        *noisy(100, "plain", is_reference=True), *noisy(101, "equal"), *noisy(70, "quick"), *noisy(150, "slow")
    )
    board = only(trials)
    assert list(zip(names(board), board.rows["group"], strict=True)) == [
        ("quick", 1),
        ("plain", 2),
        ("equal", 2),
        ("slow", 3),
    ]
    rows = board.rows.set_index("algorithm")
    assert rows["steps_ratio"].to_dict() == pytest.approx({"quick": 0.7, "plain": 1.0, "equal": 1.01, "slow": 1.5})
    assert rows["time_ratio_low"]["equal"] < 1 < rows["time_ratio_high"]["equal"]
    assert rows["steps_ratio_p"]["equal"] > 0.05 > rows["steps_ratio_p"]["quick"]
    assert rows["steps_ratio_low"].isna().to_dict() == {"quick": False, "plain": True, "equal": False, "slow": False}
    assert rows["is_reference"].to_dict() == {"quick": False, "plain": True, "equal": False, "slow": False}
    assert 1.05 < rows["steps_detectable_ratio"]["quick"] < 1.1
    assert rows["memory_ratio"]["quick"] == 1.0


def test_rows_that_always_miss_are_below_those_that_hit_and_told_apart_by_quality_alone():
    misses = [*cell(None, "misses"), *cell(None, "misses-alike"), *cell(None, "worse", quality=2.0)]
    board = only(frame(*noisy(50, "hits"), *misses), "steps")
    expected = [("hits", 1), ("misses", 2), ("misses-alike", 2), ("worse", 3)]
    assert list(zip(names(board), board.rows["group"], strict=True)) == expected


def test_among_many_rows_a_miss_of_far_worse_quality_is_still_told_apart():
    """Twenty comparisons adjusted by Holm hide what five misses cost; what they ended with is not hidden."""
    qualities = [(1.0 + 0.001 * number + 0.01 * seed) for number in range(20) for seed in range(5)]
    many = [
        trial(None, algorithm=f"miss-{place // 5:02}", seed=place % 5, quality=quality + 5.0)
        for place, quality in enumerate(qualities)
    ]
    slow = [trial(95.0 * factor, algorithm="hits", seed=seed) for seed, factor in enumerate((0.6, 1.0, 0.8, 1.05, 0.7))]
    board = only(frame(*slow, *many), "steps")
    assert board.rows["group"].tolist()[:2] == [1, 2]


def test_a_lacking_or_doubled_reference_is_told_and_gives_no_ratio():
    board = only(frame(*noisy(5, "a"), *noisy(6, "b", reference=None)))
    assert board.rows["steps_ratio"].isna().all()
    assert note(board, "no ratio for a: no row of plain is here")
    assert note(board, "no ratio for b: the record names no reference")
    two = [noisy(5, "plain", is_reference=True, algorithm_version=version) for version in ("1", "2")]
    board = only(frame(*noisy(5, "a"), *two[0], *two[1]))
    assert math.isnan(board.rows.set_index("algorithm")["steps_ratio"]["a"])
    assert note(board, "no ratio for a: 2 rows of plain are the reference")


def test_intervals_have_the_level_of_their_protocol():
    near, strict = noisy(5, "a"), noisy(5, "a", **under(STRICT))
    found = {board.shared["protocol"]: board for board in boards(frame(*near, *strict), "steps", KNOWN)}
    assert [board.shared["protocol"] for board in found.values()] == ["default", "strict"]
    widths = {
        name: board.rows["steps_to_target_high"][0] / board.rows["steps_to_target_low"][0]
        for name, board in found.items()
    }
    assert widths["strict"] > widths["default"]
    assert found["strict"].shared["confidence"] == 0.99


def test_a_diverged_seed_is_not_averaged_away():
    good, bad = trial(5, seed=0, quality=0.1), trial(seed=1, quality=math.nan, outcome="diverged")
    board = only(frame(good, bad, trial(5, algorithm="other", quality=0.5)), "quality")
    assert names(board) == ["other", "plain"]
    assert math.isnan(board.records()[1]["quality"])
    assert not board.rows["ranked"].any()


def test_the_trials_behind_a_row_are_found_again():
    rows = [*noisy(5, "a"), trial(None, algorithm="a", seed=7, outcome="error"), *noisy(6, "a", tier="large")]
    tried = [
        trial(9 + point, algorithm="a", phase="tune", point=point, hyperparameters={"lr": point}, **under(SEARCH))
        for point in range(3)
    ]
    trials = frame(*rows, *tried)
    for board in boards(trials, "steps", KNOWN):
        (row,) = board.records()
        found = rows_of(board, row, trials)
        same = (trials["tier"] == board.shared["tier"]) & (trials["protocol"] == board.shared["protocol"])
        assert found.index.tolist() == trials.index[same].tolist()
        assert found["counted"].sum() == row["replicates"]
        assert not found["counted"][found["outcome"] == "error"].any()
    assert found["point"][found["counted"]].tolist() == [0]


# -- many rows -------------------------------------------------------------------------------------------------------
def test_the_figures_of_many_rows_are_those_of_each_by_itself():
    """20,000 trials: 4,000 rows of five on twenty boards, against sums by hand."""
    size, draw = 20_000, np.random.default_rng(0)
    number = draw.permutation(size)
    cells, seed = number // 5, number % 5
    steps = 200 * np.exp(0.3 * draw.normal(size=size // 5)[cells] + 0.05 * draw.normal(size=size))
    columns = dict.fromkeys(TRIALS.names) | {name: [value] * size for name, value in trial(5).items()}
    columns |= {
        "trial_id": [f"{i:08d}" for i in number],
        "algorithm": [f"a{i:04d}" for i in cells],
        "tier": [f"t{i % 20:02d}" for i in cells],
        "reference": [f"a{i % 20:04d}" for i in cells],
        "is_reference": cells < 20,
        "seed": seed,
        "steps_to_target_interpolated": steps,
        "quality": steps / 100,
    }
    trials = pa.Table.from_pydict(columns, schema=TRIALS).to_pandas()
    found = boards(trials, "steps", KNOWN)
    assert [len(board.rows) for board in found] == [200] * 20
    logs = pd.Series(np.log(steps)).groupby(cells).agg(["mean", "std"])
    for board in found:
        rows = board.rows
        mine = logs.loc[rows["algorithm"].str[1:].astype(int)].reset_index(drop=True)
        assert rows["steps_to_target"].is_monotonic_increasing
        assert rows["group"].is_monotonic_increasing
        np.testing.assert_allclose(rows["steps_to_target"], np.exp(mine["mean"]))
        half = 2.7764451051977934 * mine["std"] / math.sqrt(5)  # the 97.5% quantile of t with four degrees of freedom
        np.testing.assert_allclose(rows["steps_to_target_high"], np.exp(mine["mean"] + half))
        reference = int(board.shared["tier"][1:])
        np.testing.assert_allclose(rows["steps_ratio"], np.exp(mine["mean"] - logs["mean"][reference]))
        assert rows["steps_ratio_p"].isna().sum() == 1


# -- order of the input ----------------------------------------------------------------------------------------------
PHASES = [
    {"phase": "measure", **under(RULES)},
    {"phase": "measure", **under(QUICK)},
    {"phase": "tune", **under(SEARCH)},
    {"phase": "rerun", **under(SEARCH)},
]
ROWS = st.builds(
    lambda steps, time, phase, facts: trial(steps, None if steps is None else time, **phase, **facts),
    st.one_of(st.none(), st.floats(1, 9)),
    st.floats(1, 30),
    st.sampled_from(PHASES),
    st.fixed_dictionaries(
        {
            "algorithm": st.sampled_from(["a", "b", "plain"]),
            "workload_version": st.sampled_from(["1.2.3", "1.2.4"]),
            "is_reference": st.sampled_from([True, False, None]),
            "seed": st.integers(0, 5),
            "study": st.integers(0, 1),
            "point": st.integers(0, 2),
            "contended": st.sampled_from([None, True, False]),
            "quality": st.sampled_from([None, math.nan, 0.1, 0.2, 0.3, 0.7, 1e9]),
            "best_quality": st.sampled_from([None, 0.1, 0.2]),
            "rss_peak_bytes": st.sampled_from([None, 1000, 1003, 900]),
            "energy_j": st.sampled_from([None, 1.1, 2.3]),
            "device_listed": st.sampled_from([True, None]),
            "metric_direction": st.sampled_from(["min", None]),
        }
    ),
)


def same(first, second):
    """Assert that two lists of boards are equal bit for bit."""
    assert [board.shared for board in first] == [board.shared for board in second]
    assert [board.notes for board in first] == [board.notes for board in second]
    for left, right in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(left.rows, right.rows, check_exact=True)


@settings(max_examples=40)
@given(st.lists(ROWS, min_size=1, max_size=16, unique_by=lambda row: row["trial_id"]), st.randoms(), st.data())
def test_boards_do_not_depend_on_the_order_of_the_rows(rows, random, data):
    by = data.draw(st.sampled_from(MEASURES))
    shuffled = list(rows)
    random.shuffle(shuffled)
    same(boards(frame(*rows), by, KNOWN), boards(frame(*shuffled), by, KNOWN))


def test_boards_do_not_depend_on_the_order_of_the_files(tmp_path):
    rows = [*noisy(5, "a"), *noisy(6, "b"), *noisy(7, "plain", is_reference=True)]
    stores = [Store(tmp_path / name, create=True) for name in ("forth", "back")]
    for store, order in zip(stores, (rows, rows[::-1]), strict=True):
        (store.root / "trials").mkdir()
        for number, row in enumerate(order):
            pq.write_table(pa.Table.from_pylist([row], schema=TRIALS), store.root / "trials" / f"{number:02d}.parquet")
    first, second = (store.trials() for store in stores)
    assert first["trial_id"].tolist() == second["trial_id"].tolist()[::-1], "the files are read in another order"
    same(boards(first, "steps", KNOWN), boards(second, "steps", KNOWN))
