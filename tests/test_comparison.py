"""Two rows against each other: figures, words, what does not compare; and that chance alone tells nothing apart."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from bench.board import BOARD, boards
from bench.comparison import compare, differing, why_not
from bench.protocol import Protocol, grid
from bench.record import TRIALS
from bench.statistics import power_of_ratio, welch

RULES = Protocol(name="default", version="1.0", summary="", seeds=5, ranked=True)
SEARCH = Protocol(
    name="search", version="1.0", summary="", seeds=1, ranked=True, search="learning-rate", points=grid(2), reruns=1
)
KNOWN = {rules.sha256: rules for rules in (RULES, SEARCH)}

DEFAULTS = {
    "algorithm_version": "1",
    "algorithm_source_sha256": "a",
    "hyperparameters": '{"lr": 0.1}',
    "fillers": "[]",
    "workload": "micro",
    "workload_version": "1.0.0",
    "tier": "small",
    "precision": "fp32",
    "data_source": "drawn",
    "data_sha256": "d" * 64,
    "protocol": "default",
    "protocol_sha256": RULES.sha256,
    "phase": "measure",
    "study": 0,
    "point": 0,
    "reference": "adamw",
    "is_reference": False,
    "device_class": "cpu-2",
    "device_listed": True,
    "metric": "loss",
    "metric_direction": "min",
    "target": 1.0,
    "quality": 0.9,
    "budget_steps": 500,
    "steps": 500,
    "time_s": 50.0,
    "rss_peak_bytes": 1000,
    "contended": False,
}


def cell(name, steps, **changes):
    """Return one trial per seed; ``None`` is a miss."""
    rows = []
    for seed, reach in enumerate(steps):
        row = dict.fromkeys(TRIALS.names) | DEFAULTS | {"algorithm": name, "seed": seed, "outcome": "missed"}
        row["is_reference"] = name == "adamw"
        if reach is not None:
            row |= {"outcome": "reached", "steps_to_target": math.ceil(reach), "time_to_target_s": reach / 10}
            row |= {"steps_to_target_interpolated": float(reach), "time_to_target_interpolated_s": reach / 10}
        row |= changes
        row["trial_id"] = hashlib.sha256(repr(sorted(row.items(), key=str)).encode()).hexdigest()[:20]
        rows.append(row)
    return rows


def frame(*rows):
    return pa.Table.from_pylist(list(rows), schema=TRIALS).to_pandas()


def held(*rows, by="steps"):
    """Return galore against adamw."""
    trials = frame(*rows)
    (board,) = boards(trials, by, KNOWN)
    row = {record["algorithm"]: record for record in board.records()}
    return compare(board, row["galore"], row["adamw"], trials)


ADAMW = (230, 215, 241, 228, 233)
GALORE = (186, 175, 196, 181, 187)


# -- figures ---------------------------------------------------------------------------------------------------------
def test_ratios_are_a_over_b_by_welch_on_logarithms():
    figures = held(*cell("galore", GALORE), *cell("adamw", ADAMW)).figures
    ours, theirs = (stats.describe(np.log(values)) for values in (GALORE, ADAMW))
    wanted = welch(ours.mean, math.sqrt(ours.variance), 5, theirs.mean, math.sqrt(theirs.variance), 5).exp()
    for name in ("steps", "time"):
        found = [figures[f"{name}_ratio{suffix}"] for suffix in ("", "_low", "_high", "_p")]
        assert found == pytest.approx([float(wanted.value), float(wanted.low), float(wanted.high), float(wanted.p)])
    assert figures["separation_p"] == pytest.approx(figures["steps_ratio_p"])
    assert figures["memory_ratio"] == 1.0
    assert figures["quality_difference"] == 0.0
    assert math.isnan(figures["energy_ratio"])


def test_seeds_that_both_have_are_compared_in_pairs():
    figures = held(*cell("galore", GALORE), *cell("adamw", ADAMW)).figures
    logs = np.log(np.array(GALORE) / np.array(ADAMW))
    assert figures["steps_pairs"] == 5
    assert figures["steps_paired_ratio"] == pytest.approx(math.exp(logs.mean()))
    assert figures["steps_paired_ratio_p"] == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)
    assert figures["steps_sign_flip_p"] == pytest.approx(1 / 16)
    missed = held(*cell("galore", (186, None, 196)), *cell("adamw", (230, 215, 241, 228))).figures
    assert missed["steps_pairs"] == 2


def test_studies_of_a_search_are_no_pairs():
    facts = {"protocol": "search", "protocol_sha256": SEARCH.sha256, "phase": "rerun"}
    figures = held(*cell("galore", GALORE, **facts), *cell("adamw", ADAMW, **facts)).figures
    assert (figures["steps_pairs"], figures["steps_ratio"]) == (0, pytest.approx(0.806, abs=1e-3))
    assert math.isnan(figures["steps_paired_ratio"])


def test_the_log_rank_test_counts_misses_as_censored():
    found = held(*cell("galore", (100, 120, 110, 105, 99)), *cell("adamw", [400, None, None, 450, None])).figures
    wanted = stats.logrank(
        [100, 120, 110, 105, 99],
        stats.CensoredData.right_censored([400, 500, 500, 450, 500], [False, True, True, False, True]),
    )
    assert found["log_rank_p"] == pytest.approx(wanted.pvalue)


def test_figures_that_do_not_compare_are_left_out():
    busy = held(*cell("galore", GALORE, contended=True), *cell("adamw", ADAMW), by="time")
    assert busy.figures["by"] == "steps"
    assert all(math.isnan(value) for name, value in busy.figures.items() if name.startswith("time_"))
    other = held(*cell("galore", GALORE, nvml_peak_bytes=7), *cell("adamw", ADAMW))
    assert math.isnan(other.figures["memory_ratio"])
    assert not math.isnan(other.figures["steps_ratio"])


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"target": 0.5}, "trials of this board have different values of target: 0.5, 1.0"),
        ({"outcome": "error"}, "no trial of galore is a measurement (5 error)"),
    ],
)
def test_rows_of_one_board_that_do_not_compare_say_why(facts, why):
    found = held(*cell("galore", GALORE, **facts), *cell("adamw", ADAMW))
    assert found.verdict == f"not comparable: {why}"
    assert all(math.isnan(value) for name, value in found.figures.items() if name != "by")


def test_a_selected_row_is_not_compared_with_a_confirmed_one():
    facts = {"protocol": "search", "protocol_sha256": SEARCH.sha256}
    rows = [*cell("galore", GALORE, phase="tune", **facts), *cell("adamw", ADAMW, phase="rerun", **facts)]
    assert held(*rows).verdict.startswith("not comparable: the replicates of galore are selected, those of adamw conf")


def test_a_record_is_flat_and_has_both_sides():
    record = held(*cell("galore", GALORE), *cell("adamw", ADAMW)).record()
    assert (record["algorithm_a"], record["algorithm_b"], record["hits_a"], record["workload"]) == (
        "galore",
        "adamw",
        5,
        "micro",
    )
    assert all(isinstance(value, str | float | int | bool | None) for value in record.values())


# -- words -----------------------------------------------------------------------------------------------------------
SPREAD = (230, 190, 280, 215, 250)


@pytest.mark.parametrize(
    ("galore", "adamw", "by", "verdict"),
    [
        (
            GALORE,
            ADAMW,
            "steps",
            "galore needs 0.81x the steps of adamw [0.76, 0.86]; 5 and 5 seeds; separable",
        ),
        (
            GALORE[:1],
            ADAMW[:1],
            "time",
            "galore needs 0.81x the time of adamw; 1 and 1 seeds: too few to tell whether this is chance",
        ),
        (
            SPREAD,
            SPREAD[::-1],
            "steps",
            (
                "galore and adamw cannot be told apart: galore needs 1.00x the steps of adamw [0.81, 1.24]; "
                "5 and 5 seeds; this comparison would show 36% or more"
            ),
        ),
        (
            [None] * 5,
            ADAMW,
            "steps",
            "galore reached the target in 0 of 5 seeds, adamw in 5 of 5; 5 and 5 seeds; separable",
        ),
        (
            [180, None, None, None, None],
            [230, 215, None, None, None],
            "steps",
            (
                "galore and adamw cannot be told apart: galore reached the target in 1 of 5 seeds, adamw in 2 of 5; "
                "over the hits galore needs 0.81x the steps of adamw; 5 and 5 seeds"
            ),
        ),
        (
            [None] * 5,
            [None] * 5,
            "time",
            (
                "galore and adamw cannot be told apart: neither reached the target; the loss of galore differs by +0 "
                "from that of adamw [+0, +0]; 5 and 5 seeds"
            ),
        ),
        (
            GALORE,
            ADAMW,
            "memory",
            (
                "galore and adamw cannot be told apart: galore needs 1.00x the memory of adamw [1.00, 1.00]; "
                "5 and 5 seeds; this comparison would show 0% or more"
            ),
        ),
    ],
)
def test_the_verdict_says_what_was_found_in_words(galore, adamw, by, verdict):
    assert held(*cell("galore", galore), *cell("adamw", adamw), by=by).verdict == verdict


def test_settings_of_one_algorithm_are_named_and_never_averaged():
    rows = [cell("galore", GALORE, hyperparameters=f'{{"lr": {lr}}}') for lr in (0.1, 0.2)]
    trials = frame(*rows[0], *rows[1], *cell("adamw", ADAMW))
    (board,) = boards(trials, "steps", KNOWN)
    found = [compare(board, row, board.records()[2], trials) for row in board.records()[:2]]
    assert [one.verdict[:20] for one in found] == ["galore lr=0.1 needs ", "galore lr=0.2 needs "]
    assert [one.figures["steps_pairs"] for one in found] == [5, 5]


# -- what does not compare -------------------------------------------------------------------------------------------
def shared(**changes):
    return dict.fromkeys(BOARD, "x") | changes


def test_boards_differ_in_names_and_hashes_tell_more_only_where_names_do_not():
    assert differing([shared(), shared()]) == []
    assert differing([shared(), shared(tier="y", workload_minor="1.1")]) == ["workload_minor", "tier"]
    assert differing([shared(), shared(protocol="y", protocol_sha256="z")]) == ["protocol"]
    assert differing([shared(), shared(data_sha256="z"), shared(tier="y")]) == ["tier", "data_sha256"]


def test_why_two_sets_of_boards_do_not_compare_names_the_nearest_pairs():
    ones = [shared(workload_minor="1.0"), shared(workload_minor="1.0", tier="large")]
    others = [shared(workload_minor="1.1"), shared(workload_minor="1.1", device_class="h100", tier="huge")]
    assert why_not(ones, others) == ["workload version 1.0 vs 1.1"]
    assert why_not([shared(data_sha256="a" * 64)], [shared(data_sha256="b" * 64)]) == [
        f"data hash {'a' * 12} vs {'b' * 12}"
    ]


# -- chance ----------------------------------------------------------------------------------------------------------
def twins(faster, boards_, seed):
    """Return ``boards_`` boards of a reference and its twin, ``faster`` times as fast, 5 seeds each, at a CV of 5%."""
    noise = np.exp(np.random.default_rng(seed).normal(scale=0.05, size=(boards_, 2, 5)))
    noise[:, 1] /= faster
    rows = []
    for number, (one, twin) in enumerate(200 * noise):
        rows += cell("adamw", one, workload=f"w{number:03d}")
        rows += cell("adamw-twin", twin, workload=f"w{number:03d}")
    return frame(*rows)


def test_the_same_numbers_under_two_names_tie_everywhere():
    trials = frame(*cell("adamw", ADAMW), *cell("adamw-twin", ADAMW[::-1]))
    for by in ("time", "steps", "memory", "quality"):
        (board,) = boards(trials, by, KNOWN)
        assert board.rows["group"].tolist() == [1, 1]
        assert board.rows["ranked"].all()
    twin = board.rows.set_index("algorithm").loc["adamw-twin"]
    for name in ("steps", "time", "memory"):
        assert twin[f"{name}_ratio"] == pytest.approx(1.0, abs=1e-12)
        assert twin[f"{name}_ratio_low"] <= 1 <= twin[f"{name}_ratio_high"]
        assert twin[f"{name}_ratio_p"] > 0.9
    rows = {row["algorithm"]: row for row in board.records()}
    found = compare(board, rows["adamw-twin"], rows["adamw"], trials)
    assert "cannot be told apart" in found.verdict


def test_a_twin_with_noise_of_its_own_ties():
    trials = twins(1.0, 1, seed=1)
    (board,) = boards(trials, "steps", KNOWN)
    assert board.rows["group"].tolist() == [1, 1]
    twin = board.rows.set_index("algorithm").loc["adamw-twin"]
    assert twin["steps_ratio_low"] < 1 < twin["steps_ratio_high"]
    assert twin["steps_ratio_p"] > 0.05
    rows = {row["algorithm"]: row for row in board.records()}
    assert "cannot be told apart" in compare(board, rows["adamw-twin"], rows["adamw"], trials).verdict


BOARDS = 300
"""How many boards a simulation has; bounds are three standard deviations of a binomial count."""


def separated(trials):
    """Return in how many boards the twin is in another group, how often p says so, and how often 1 is not covered."""
    found = pd.concat([board.rows for board in boards(trials, "steps", KNOWN)])
    twin = found[found["algorithm"] == "adamw-twin"]
    outside = (twin["steps_ratio_low"] > 1) | (twin["steps_ratio_high"] < 1)
    return int((found["group"] == 2).sum()), int((twin["steps_ratio_p"] < 0.05).sum()), int(outside.sum())


def test_chance_separates_twins_in_at_most_about_one_board_of_twenty():
    counts = separated(twins(1.0, BOARDS, seed=7))
    bound = 0.05 * BOARDS + 3 * math.sqrt(BOARDS * 0.05 * 0.95)
    assert max(counts) <= bound
    assert min(counts) >= 1, "a test that never fires would pass too"


def test_ten_percent_at_a_noise_of_five_are_found_as_often_as_the_printed_power_says():
    power = float(power_of_ratio(1.1, 0.05, 5, 5))
    spread = 3 * math.sqrt(BOARDS * power * (1 - power))
    for count in separated(twins(1.1, BOARDS, seed=8)):
        assert abs(count - BOARDS * power) <= spread
    assert 0.7 < power < 0.85
