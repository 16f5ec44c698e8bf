"""Figures: what is drawn is what was measured, what is told is what is drawn, and the bytes never vary."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bench import figures
from bench.board import boards
from bench.errors import BadValue
from bench.figures import style, text
from bench.figures.labels import place_labels
from bench.figures.rows import rows
from bench.figures.svg import identifier
from bench.record import TRIALS
from bench.standings import Standings

DEFAULTS = {
    "algorithm_version": "1",
    "algorithm_source_sha256": "a",
    "hyperparameters": "{}",
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
    "phase": "measure",
    "study": 0,
    "point": 0,
    "reference": "adamw",
    "device_class": "cpu-2",
    "device_listed": True,
    "metric": "loss",
    "metric_direction": "min",
    "target": 1.0,
    "budget_steps": 100,
    "budget_s": 1000.0,
    "steps": 100,
    "time_s": 1000.0,
    "rss_peak_bytes": 1_000_000,
    "contended": False,
}
HOSTILE = (
    "<script>alert(1)</script>",
    "$x^2$",
    "_hidden",
    'a & b\' "c"',
    "y" * 90,
    "bell\x07 \u202e</svg>",
    "100% \\f{",
)


def trial(name, seed, to_target=None, **changes):
    """Return a row of ``trials``; so many steps ``to_target``, 10 s each; ``None`` is a miss."""
    row = dict.fromkeys(TRIALS.names) | DEFAULTS | {"algorithm": name, "seed": seed, "is_reference": name == "adamw"}
    row |= {"outcome": "missed", "quality": 1.5, "best_quality": 1.4}
    if to_target is not None:
        row |= {"outcome": "reached", "quality": 0.9, "best_quality": 0.9, "steps_to_target": math.ceil(to_target)}
        row |= {"steps_to_target_interpolated": to_target, "time_to_target_interpolated_s": 10.0 * to_target}
        row |= {"time_to_target_s": 10.0 * to_target, "evaluations_to_target": int(to_target // 10)}
    row |= changes
    row["trial_id"] = hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:20]
    return row


def table(found):
    return pa.Table.from_pylist(list(found), schema=TRIALS).to_pandas()


def curve(row, qualities, step=10, second=10.0):
    """Return the evaluations of a trial, every ``step`` steps of ``second`` seconds."""
    places = range(0, step * len(qualities), step)
    return [
        {"trial_id": row["trial_id"], "step": at, "time_s": second * at, "quality": quality}
        for at, quality in zip(places, qualities, strict=True)
    ]


def only(trials, by="steps"):
    (board,) = boards(trials, by)
    return board


def some(names=("adamw", "lion", "muon"), seeds=3, **changes):
    """Return trials and curves of some algorithms, all with different figures, and the last one without any hit."""
    found, evaluations = [], []
    for number, name in enumerate(names):
        for seed in range(seeds):
            steps = None if number == len(names) - 1 and number else 40.0 + 5 * number + 3 * seed
            memory = {"rss_peak_bytes": 10_000_000 - 100_000 * number + 1000 * seed}
            found.append(trial(name, seed, steps, **(memory | changes)))
            speed = (steps or 200.0) / 40
            evaluations += curve(found[-1], [0.5 + 4 * math.exp(-k / (4 * speed)) for k in range(11)])
    return table(found), pd.DataFrame(evaluations)


def axes_of(**sizes):
    return figures.new_figure(**sizes)[1]


def texts_of(axes):
    return [each.get_text() for each in axes.figure.findobj(mpl.text.Text)]


def luminance(colour):
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# -- curves ----------------------------------------------------------------------------------------------------------
def test_a_curve_is_the_median_over_seeds_and_its_band_goes_from_the_lowest_to_the_highest():
    found = [trial("adamw", seed, 20.0 + seed) for seed in range(3)]
    evaluations = [
        curve(row, qualities) for row, qualities in zip(found, [[4, 3, 1], [4, 2, 0.9], [4, 1, 0.5]], strict=True)
    ]
    axes = axes_of()
    alt = figures.draw_curves(axes, only(table(found)), table(found), pd.DataFrame(itertools.chain(*evaluations)))
    assert axes.lines[0].get_xydata().tolist() == [[0, 4], [10, 2], [20, 0.9]]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in band} >= {(10, 1), (10, 3), (20, 0.5), (20, 1)}
    for told in (
        "3 of 3 seeds reached the target",
        "after 21 (",
        "ended at 0.9 in the median, from 0.5 to 1",
        "target is 1",
    ):
        assert told in alt


def test_curves_against_time_meet_between_their_evaluations_on_a_common_grid():
    found = [trial("adamw", seed, 20.0) for seed in range(2)]
    evaluations = curve(found[0], [4, 2, 0], second=1.0) + curve(found[1], [4, 2, 0], second=2.0)
    axes = axes_of()
    figures.draw_curves(axes, only(table(found)), table(found), pd.DataFrame(evaluations), x="time")
    assert axes.lines[0].get_xydata().tolist() == [[0, 4], [10, 2.5], [20, 1]]
    assert axes.lines[1].get_xydata().tolist() == [[20, 2], [40, 0]]  # the slower one goes on alone
    assert axes.get_xlabel() == "charged time (s)"


def test_a_seed_that_stopped_early_ends_the_median_and_the_others_go_on_as_thin_lines():
    found = [trial("adamw", seed, 10.0 + 10 * seed) for seed in range(2)]
    axes = axes_of()
    evaluations = pd.DataFrame(curve(found[0], [4, 1]) + curve(found[1], [4, 3, 2, 1]))
    figures.draw_curves(axes, only(table(found)), table(found), evaluations)
    assert axes.lines[0].get_xdata().tolist() == [0, 10]
    assert axes.lines[1].get_xydata().tolist() == [[10, 3], [20, 2], [30, 1]]
    assert axes.lines[1].get_linewidth() < axes.lines[0].get_linewidth()


def test_what_is_not_a_number_counts_as_the_worst_and_leaves_a_gap_instead_of_a_better_median():
    found = [trial("adamw", seed) for seed in range(3)]
    evaluations = curve(found[0], [4, 3, 2]) + curve(found[1], [4, math.nan, 2]) + curve(found[2], [4, math.inf, 1])
    axes = axes_of()
    alt = figures.draw_curves(axes, only(table(found)), table(found), pd.DataFrame(evaluations))
    assert np.isnan(axes.lines[0].get_ydata()[1])
    assert axes.lines[0].get_ydata()[[0, 2]].tolist() == [4, 2]
    assert "0 of 3 seeds reached the target" in alt


def test_a_seed_that_diverged_stays_the_worst_to_the_end():
    found = [trial("adamw", seed, 20.0) for seed in range(2)] + [trial("adamw", 2, outcome="diverged", steps=10)]
    evaluations = curve(found[0], [4, 3, 2]) + curve(found[1], [4, 2, 1]) + curve(found[2], [4, 9])
    axes = axes_of()
    alt = figures.draw_curves(axes, only(table(found)), table(found), pd.DataFrame(evaluations))
    assert axes.lines[0].get_xydata().tolist() == [[0, 4], [10, 3], [20, 2]]
    assert "1 ended without a number" in alt
    assert axes.get_ylim()[1] < 9  # worse than where the runs began: outside of the picture


def test_where_more_is_better_the_worst_is_the_lowest():
    found = [trial("adamw", seed, 20.0, metric="accuracy", metric_direction="max", target=0.8) for seed in range(3)]
    evaluations = curve(found[0], [0.1, 0.5]) + curve(found[1], [0.1, math.nan]) + curve(found[2], [0.1, 0.7])
    axes = axes_of()
    figures.draw_curves(axes, only(table(found)), table(found), pd.DataFrame(evaluations))
    assert axes.lines[0].get_ydata().tolist() == [0.1, 0.5]
    assert axes.get_ylabel() == "validation accuracy"


def test_of_a_search_the_reruns_are_drawn_and_without_them_the_selected_trials_which_are_named_so():
    tuned = [
        trial("adamw", 0, 30.0 + point, phase="tune", study=study, point=point, hyperparameters=f'{{"lr": {point}}}')
        for study in range(2)
        for point in range(2)
    ]
    evaluations = [line for row in tuned for line in curve(row, [4, row["point"] + 2 * row["study"] + 1])]
    axes = axes_of()
    alt = figures.draw_curves(axes, only(table(tuned)), table(tuned), pd.DataFrame(evaluations))
    assert axes.lines[0].get_ydata().tolist() == [4, 2]  # point 0 of both studies
    assert "adamw, selected: 2 of 2 studies" in alt
    rerun = [trial("adamw", seed, 35.0, phase="rerun", study=seed) for seed in range(2)]
    evaluations += [line for row in rerun for line in curve(row, [4, 7])]
    axes = axes_of()
    alt = figures.draw_curves(axes, only(table(tuned + rerun)), table(tuned + rerun), pd.DataFrame(evaluations))
    assert axes.lines[0].get_ydata().tolist() == [4, 7]
    assert "selected" not in alt


def test_failed_trials_and_those_of_other_boards_are_not_drawn():
    found = [trial("adamw", 0, 20.0), trial("adamw", 1, outcome="error")]
    other = trial("adamw", 0, 20.0, tier="large")
    axes = axes_of()
    evaluations = pd.DataFrame([line for row in (*found, other) for line in curve(row, [4, row["seed"] + 1])])
    board = boards(table([*found, other]), "steps")[1]
    figures.draw_curves(axes, board, table([*found, other]), evaluations)
    assert board.shared["tier"] == "small"
    assert axes.lines[0].get_ydata().tolist() == [4, 1]


def test_the_figure_of_a_board_has_its_title_and_a_legend_with_hits():
    trials, curves = some()
    figure = figures.board_figure(only(trials), trials, curves)
    (axes,) = figure.axes
    assert axes.get_title() == "micro small, drawn data, cpu-2"
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["adamw (3/3)", "lion (3/3)", "muon (0/3)"]


# -- hits ------------------------------------------------------------------------------------------------------------
def test_hits_are_kaplan_and_meiers_steps_with_misses_censored_at_their_end():
    short = trial("adamw", 2, steps=30, budget_steps=30)
    trials = table([trial("adamw", 0, 20.0), trial("adamw", 1, 40.0), short, trial("adamw", 3)])
    axes = axes_of()
    alt = figures.draw_hits(axes, only(trials), trials)
    reached = dict(axes.lines[0].get_xydata().tolist())
    assert reached[20] == pytest.approx(1 / 4)
    assert reached[40] == pytest.approx(1 - 3 / 4 / 2)
    assert axes.lines[1].get_xdata().tolist() == [30, 100]
    assert "2 of 4 seeds reached it, the first after 20, the last after 40 steps, 2 did not within 100 steps" in alt


def test_a_miss_that_diverged_early_is_not_taken_out_of_the_count_early():
    trials = table([trial("adamw", 0, 80.0), trial("adamw", 1, outcome="diverged", steps=10)])
    axes = axes_of()
    figures.draw_hits(axes, only(trials), trials)
    assert dict(axes.lines[0].get_xydata().tolist())[80] == pytest.approx(0.5)


def test_hits_against_time_choose_a_unit_that_suits():
    trials, _ = some(("adamw", "lion"))
    axes = axes_of()
    figures.draw_hits(axes, only(trials), trials, by="time")
    assert axes.get_xlabel() == "charged time (min)"
    assert 400 / 60 in axes.lines[0].get_xdata()


def test_without_a_target_or_a_hit_the_figure_says_so():
    trials, curves = some(target=None)
    board = only(trials)
    assert "no target" in figures.draw_hits(axes_of(), board, trials)
    assert "no target" in figures.draw_curves(axes_of(), board, trials, curves)
    trials = table([trial("adamw", seed) for seed in range(2)])
    assert "0 of 2 seeds" in figures.draw_hits(axes_of(), only(trials), trials)
    assert "No row" in figures.draw_pareto(axes_of(), only(trials))
    assert "No row" in figures.draw_ratios(axes_of(), only(trials))


# -- costs -----------------------------------------------------------------------------------------------------------
def three_on_two_fronts():
    """Return trials of which the cheapest in steps is not the fastest."""
    costs = {"adamw": (40.0, 300.0, 3e6), "lion": (50.0, 500.0, 2e6), "muon": (60.0, 400.0, 2.5e6)}
    return [
        trial(name, seed, steps + seed, time_to_target_interpolated_s=time_s + seed, rss_peak_bytes=int(memory))
        for name, (steps, time_s, memory) in costs.items()
        for seed in range(2)
    ]


def test_the_front_is_a_staircase_in_the_plane_of_the_board():
    trials = table(three_on_two_fronts())
    axes = axes_of()
    alt = figures.draw_pareto(axes, only(trials, "time"))
    stairs = axes.lines[-1].get_xydata().tolist()
    assert axes.get_xlabel() == "charged time to target (min)"
    assert [y for _, y in stairs[1:-1]] == pytest.approx([3, 3, 2.5, 2.5, 2])
    assert "On the front: adamw, muon and lion" in alt
    assert "adamw: 300 (" in alt
    assert "3 (3 to 3) MB" in alt
    busy = trials.assign(contended=True)
    axes = axes_of()
    alt = figures.draw_pareto(axes, only(busy, "time"))
    assert axes.get_xlabel() == "steps to target"
    assert "On the front: adamw and lion" in alt


def test_rows_that_missed_are_named_and_rows_that_missed_sometimes_are_hollow():
    trials = table([trial("adamw", 0, 40.0), trial("lion", 0, 30.0), trial("lion", 1), trial("muon", 0)])
    axes = axes_of()
    alt = figures.draw_pareto(axes, only(trials))
    faces = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() != "None"]
    assert faces.count("none") == 1
    assert "lion: 30 steps (only 1/2 reached it)" in alt
    assert alt.endswith("Not shown, for want of a cost: muon.")


def test_names_stand_at_up_to_eight_points_and_in_a_legend_beyond():
    for count in (8, 9):
        trials = table([trial(f"a{number}", 0, 40.0 + number) for number in range(count)])
        axes = axes_of(legend=count)
        figures.draw_pareto(axes, only(trials))
        assert (axes.get_legend() is None) == (count == 8)
        assert {f"a{number}" for number in range(count)} <= set(texts_of(axes))


def test_labels_of_points_on_one_spot_all_go_to_different_places():
    axes = axes_of()
    place_labels(axes, np.full((8, 2), 0.5), [f"name {number}" for number in range(8)])
    assert len({annotation.xyann for annotation in axes.texts}) == 8


def test_ratios_stand_where_they_are_with_interval_and_band_and_filled_where_told_apart():
    trials, _ = some(("adamw", "lion", "sgd", "muon"), seeds=5)
    board = only(trials)
    axes = axes_of(rows=4)
    alt = figures.draw_ratios(axes, board, "steps")
    lion = board.rows.set_index("algorithm").loc["lion"]
    height = [label.get_text().split("\n")[0] for label in axes.get_yticklabels()].index("lion")
    own = [line for line in axes.lines if set(line.get_ydata()) == {height}]
    assert own[0].get_xdata().tolist() == pytest.approx([lion["steps_ratio_low"], lion["steps_ratio_high"]])
    assert own[-1].get_xdata()[0] == pytest.approx(lion["steps_ratio"])
    assert (own[-1].get_markerfacecolor() != "none") == (lion["steps_ratio_p"] < 0.05)
    bands = [collection.get_paths()[0].vertices for collection in axes.collections]
    assert any(vertices[:, 0].max() == pytest.approx(lion["steps_detectable_ratio"]) for vertices in bands)
    assert axes.get_xscale() == "log"
    assert "adamw is the reference." in alt
    assert f"lion: {lion['steps_ratio']:.3f} ({lion['steps_ratio_low']:.3f} to {lion['steps_ratio_high']:.3f})" in alt
    assert f"smallest detectable ratio {lion['steps_detectable_ratio']:.3f}" in alt
    assert "muon: 0/5 reached the target." in alt
    assert "muon\n0/5 reached the target" in texts_of(axes)


def test_axis_of_ratios_names_its_reference_where_there_is_one():
    trials, _ = some(("adamw", "lion", "warmup-linear"), seeds=5)
    labels = []
    for references in ({"adamw"}, {"adamw", "warmup-linear"}):
        axes = axes_of(rows=3)
        figures.draw_ratios(axes, only(trials.assign(is_reference=trials["algorithm"].isin(references))), "steps")
        labels.append(axes.get_xlabel())
    assert labels == ["steps to target: ratio to adamw", "steps to target: ratio to its reference"]


def test_an_interval_far_beyond_the_others_ends_in_an_arrow_inside_the_axes():
    trials = table([trial("adamw", 0, 40.0), trial("adamw", 1, 41.0), trial("lion", 0, 2.0), trial("lion", 1, 80.0)])
    axes = axes_of(rows=2)
    figures.draw_ratios(axes, only(trials))
    low, high = axes.get_xlim()
    assert {line.get_marker() for line in axes.lines} >= {"<", ">"}
    assert all(low <= x <= high for line in axes.lines for x in line.get_xdata())


@pytest.mark.parametrize("draw", [figures.draw_curves, figures.draw_hits, figures.draw_ratios])
def test_an_unknown_measure_is_refused_with_those_that_exist(draw):
    trials, curves = some()
    more = [trials] if draw is figures.draw_hits else [trials, curves] if draw is figures.draw_curves else []
    with pytest.raises(BadValue, match=r"one of steps, time.*'speed'"):
        draw(axes_of(), only(trials), *more, "speed")


# -- over workloads --------------------------------------------------------------------------------------------------
def costs():
    return pd.DataFrame({"w1": [1.0, 2.0, math.inf], "w2": [3.0, 1.0, math.nan]}, index=["a", "b", "c"])


def test_a_profile_steps_up_at_each_ratio_and_tells_the_score():
    axes = axes_of()
    alt = figures.draw_profile(axes, costs())
    lines = {line.get_color(): line.get_xydata().tolist() for line in axes.lines}
    assert lines[style.style(0).colour] == [[1, 0.5], [2, 0.5], [3, 1], [4, 1]]
    assert lines[style.style(1).colour] == [[1, 0.5], [2, 1], [3, 1], [4, 1]]
    assert lines[style.style(2).colour] == [[1, 0], [2, 0], [3, 0], [4, 0]]
    assert "a: best on 50%, within 4 times the best on 100%, score 0.6667." in alt
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["b (0.833)", "a (0.667)", "c (0.000)"]


def test_a_profile_of_nothing_says_so():
    assert figures.draw_profile(axes_of(), costs().iloc[:0]) == "There are no costs to compare."


def standing(**changes):
    table_of = {"order": [1, 2, 3], "group": [1, 1, 0], "algorithm": ["b", "a", "c"], "score": [0.8, 0.7, 0.1]}
    table_of |= {"score_low": [0.6, 0.5, math.nan], "score_high": [0.9, 0.8, math.nan]} | changes
    return Standings(shared={}, rows=pd.DataFrame(table_of), notes=(), costs=pd.DataFrame())


def test_scores_stand_in_order_with_interval_and_group():
    axes = axes_of(rows=3)
    alt = figures.draw_scores(axes, standing())
    points = [line for line in axes.lines if line.get_marker() in style.MARKERS]
    assert [line.get_xydata().tolist() for line in points] == [[[0.8, 0]], [[0.7, 1]], [[0.1, 2]]]
    assert axes.lines[0].get_xydata().tolist() == [[0.6, 0], [0.9, 0]]
    assert points[2].get_markerfacecolor() == "none"
    assert alt.endswith("b 0.800 (0.600 to 0.900), group 1; a 0.700 (0.500 to 0.800), group 1; c 0.100, not ranked.")


def test_scores_that_nobody_has_say_so():
    assert figures.draw_scores(axes_of(), standing(score=[math.nan] * 3)) == "No algorithm has a profile score."


# -- sensitivity -----------------------------------------------------------------------------------------------------
def tuned(values, steps, name="lr"):
    return table(
        trial("adamw", 0, found, phase="tune", point=point, hyperparameters=json.dumps({name: value}))
        for point, (value, found) in enumerate(zip(values, steps, strict=True))
    )


def test_steps_stand_over_the_value_and_misses_in_a_panel_of_their_own():
    axes = axes_of()
    alt = figures.draw_sensitivity(axes, tuned([1e-4, 1e-3, 1e-2], [50.0, 30.0, None]), "lr")
    assert sorted(axes.lines[0].get_xydata().tolist()) == [[1e-4, 50], [1e-3, 30]]
    (panel,) = axes.child_axes
    assert panel.lines[0].get_xydata().tolist() == [[1e-2, 1.4]]
    assert panel.get_xlim() == axes.get_xlim()
    assert axes.get_xscale() == panel.get_xscale() == "log"
    assert "3 tuning trials against lr from 0.0001 to 0.01: 2 reached the target, 1 did not." in alt
    assert "Fewest steps to target: 30, at lr 0.001." in alt
    assert "Best loss of the misses: from 1.4 to 1.4." in alt


def test_values_within_a_decade_are_on_a_linear_axis_and_repeated_ones_are_joined_at_their_median():
    axes = axes_of()
    figures.draw_sensitivity(axes, tuned([1.0, 1.0, 1.0, 2.0], [10.0, 20.0, 60.0, 30.0]), "lr")
    assert axes.get_xscale() == "linear"
    assert axes.lines[0].get_xydata().tolist() == [[1, 20], [2, 30]]
    assert not axes.child_axes


def test_choices_stand_side_by_side():
    axes = axes_of()
    alt = figures.draw_sensitivity(axes, tuned(["b", True, None, "a"], [10.0, 20.0, 30.0, 40.0]), "lr")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "null", "true"]
    assert "one of a, b, null and true" in alt
    assert "at lr b" in alt


def test_only_misses_are_drawn_by_their_quality():
    axes = axes_of()
    figures.draw_sensitivity(axes, tuned([0, 1], [None, None]), "lr")
    assert axes.get_ylabel() == "best loss"
    assert axes.lines[0].get_ydata().tolist() == [1.4, 1.4]


@pytest.mark.parametrize("trials", [tuned([1.0], [10.0], name="other"), tuned([], [])])
def test_a_hyperparameter_that_no_trial_has_is_named(trials):
    assert "the hyperparameter $lr$" in figures.draw_sensitivity(axes_of(), trials, "$lr$")


def test_only_tuning_trials_count():
    measured = tuned([1.0, 2.0], [10.0, 20.0]).assign(phase="measure")
    assert "No tuning trial" in figures.draw_sensitivity(axes_of(), measured, "lr")


# -- the same bytes --------------------------------------------------------------------------------------------------
def every_figure(trials, curves, shuffled=None):
    """Return every kind of figure as SVG; with ``shuffled`` a generator that permutes all rows."""
    board, standings, wide = only(trials), standing(), costs()
    tuning = tuned([1e-4, 1e-3, 1e-2], [50.0, 30.0, None])
    if shuffled is not None:
        mix = lambda rows: rows.sample(frac=1.0, random_state=shuffled)  # noqa: E731
        trials, curves, wide, tuning = mix(trials), mix(curves), mix(wide)[["w2", "w1"]], mix(tuning)
        board = type(board)(shared=board.shared, rows=mix(board.rows), notes=board.notes)
        standings = (
            standing()
            if shuffled is None
            else type(standings)(shared={}, rows=mix(standings.rows), notes=(), costs=standings.costs)
        )
    drawn = {
        "curves": lambda axes: figures.draw_curves(axes, board, trials, curves),
        "curves-time": lambda axes: figures.draw_curves(axes, board, trials, curves, "time"),
        "hits": lambda axes: figures.draw_hits(axes, board, trials),
        "pareto": lambda axes: figures.draw_pareto(axes, board),
        "ratios": lambda axes: figures.draw_ratios(axes, board, "memory"),
        "profile": lambda axes: figures.draw_profile(axes, wide),
        "scores": lambda axes: figures.draw_scores(axes, standings),
        "sensitivity": lambda axes: figures.draw_sensitivity(axes, tuning, "lr"),
    }
    found = {}
    for name, draw in drawn.items():
        figure, axes = figures.new_figure(legend=3)
        found[name] = figures.figure_svg(figure, name, draw(axes), name=name)
    return found


def test_the_same_input_in_any_order_makes_the_same_bytes_and_changes_no_setting():
    before = dict(mpl.rcParams)
    first = every_figure(*some())
    assert every_figure(*some(), shuffled=np.random.default_rng(7)) == first
    assert dict(mpl.rcParams) == before


def test_files_are_the_same_bytes_twice_and_other_endings_are_refused(tmp_path):
    trials, curves = some()
    for ending, start in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        paths = [tmp_path / f"{number}{ending}" for number in range(2)]
        for path in paths:
            figures.save(figures.board_figure(only(trials), trials, curves), path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert paths[0].read_bytes().startswith(start)
    with pytest.raises(BadValue, match=r"must end in .svg, .pdf, .png"):
        figures.save(Figure(), tmp_path / "figure.bmp")
    with pytest.raises(BadValue, match="No such file"):
        figures.save(Figure(), tmp_path / "nowhere" / "figure.svg")


def test_pyplot_is_never_imported():
    code = "import sys, bench.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_algorithm_looks_alike_in_every_figure_of_its_board_by_whatever_it_is_ordered():
    trials, _ = some()
    looks = [{row.name: row.style for row in rows(only(trials, by))} for by in ("steps", "memory")]
    assert looks[0] == looks[1]
    assert [row.name for row in rows(only(trials, "steps"))] != [row.name for row in rows(only(trials, "memory"))]


# -- SVG for a page --------------------------------------------------------------------------------------------------
def test_many_svgs_on_one_page_share_no_id_and_every_reference_finds_its_own():
    drawn = every_figure(*some())
    page = ET.fromstring("<page>" + "".join(drawn.values()) + "</page>")  # noqa: S314
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 100
    for svg in page:
        own = {element.get("id") for element in svg.iter()}
        described = ET.tostring(svg, encoding="unicode")
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', described)
        assert used
        assert {one or other for one, other in used} <= own
        assert {svg.get("aria-labelledby"), svg.get("aria-describedby")} <= own


@pytest.mark.parametrize(("one", "other"), [("a b", "a-b"), ("a", "A"), ("x" * 50, "x" * 51), ("", "-"), ("é", "è")])
def test_figures_of_different_names_have_different_ids(one, other):
    assert identifier(one) != identifier(other)
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", identifier(one))
    assert identifier("board-1") == "board-1"


def test_an_svg_for_a_page_is_nothing_but_a_described_picture_in_the_pages_colours():
    trials, curves = some()
    figure, axes = figures.new_figure(legend=3)
    figures.draw_curves(axes, only(trials), trials, curves)
    svg = figures.figure_svg(figure, "Loss <1>", 'it says "a & b"\n< c', name="curves")
    root = ET.fromstring(svg)  # noqa: S314
    assert svg.startswith("<svg ")
    for unwanted in (
        "<?xml",
        "<!",
        "<metadata",
        "<style",
        "<script",
        "#000000",
        "font-family",
        "xlink",
        "matplotlib.org",
    ):
        assert unwanted not in svg
    assert root.get("role") == "img"
    assert root.get("width") == "100%"
    assert root.get("height") is None
    assert root.get("viewBox").startswith("0 0 345.6 ")
    assert [child.text for child in root[:2]] == ["Loss <1>", 'it says "a & b" < c']
    assert [child.tag.rpartition("}")[2] for child in root[:2]] == ["title", "desc"]
    assert "stroke: currentColor" in svg
    assert root.get("fill") == "currentColor"
    assert ">validation loss</text>" in svg
    background = root.findall(".//*[@id='curves-patch_1']/*")
    assert all("fill: none" in element.get("style") for element in background)


def test_hostile_names_are_shown_as_text_and_never_as_markup_or_mathematics():
    trials, curves = some(("adamw", *HOSTILE, "zero"))
    board = only(trials)
    for draw in (
        lambda axes: figures.draw_curves(axes, board, trials, curves),
        lambda axes: figures.draw_pareto(axes, board),
        lambda axes: figures.draw_ratios(axes, board),
    ):
        figure, axes = figures.new_figure(legend=8)
        alt = draw(axes)
        svg = figures.figure_svg(figure, HOSTILE[0], alt, name=HOSTILE[0])
        root = ET.fromstring(svg)  # noqa: S314
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert tags <= {"svg", "title", "desc", "defs", "g", "path", "use", "text", "clipPath", "rect"}
        shown = " ".join(element.text or "" for element in root.iter() if element.tag.endswith("text"))
        for name in ("$x^2$", "_hidden", 'a & b\' "c"', "100% \\f{"):
            assert name in shown
        assert "alert(1)" in shown
        assert "\x07" not in svg
        assert "\u202e" not in svg
        assert "y" * 90 not in shown
        assert "y" * 90 in alt
    figure, axes = figures.new_figure()
    figures.draw_sensitivity(axes, tuned(["<b>$1$</b>"], [3.0], name="$lr$<i>"), "$lr$<i>")
    assert {"<b>$1$</b>", "$lr$<i>"} <= {each.replace("\\", "") for each in texts_of(axes)}
    assert "<i>" not in figures.figure_svg(figure, "", "", name="s")


def test_a_character_that_the_font_lacks_is_left_to_the_readers_font():
    trials, curves = some(("adamw", "優化器"))
    figure, axes = figures.new_figure()
    figures.draw_curves(axes, only(trials), trials, curves)
    assert "優化器 (0/3)" in figures.figure_svg(figure, "", "", name="c")


def test_axes_of_the_users_own_keep_their_colours_and_their_size():
    with mpl.rc_context({"axes.labelcolor": "white", "axes.edgecolor": "white"}):
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
    trials, curves = some()
    figures.draw_curves(axes, only(trials), trials, curves)
    target = next(line for line in axes.lines if set(line.get_ydata()) == {1.0})
    assert to_rgb(target.get_color()) == (1, 1, 1)
    assert figure.get_size_inches().tolist() == [3, 2]


# -- style -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("background", ["#ffffff", "#111111", "#1a1f24"])
@pytest.mark.parametrize("colour", style.COLOURS)
def test_every_colour_can_be_seen_on_light_and_dark_pages(colour, background):
    assert contrast(colour, background) >= 3.0


CIELAB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
SIGHTS = {
    "common": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""How linear RGB is seen: Machado, Oliveira & Fernandes, IEEE TVCG 15 (2009), severity 1."""


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_differ_for_all_kinds_of_sight(sight):
    channels = np.array([to_rgb(colour) for colour in style.COLOURS])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.transpose(SIGHTS[sight]), 0, 1) @ CIELAB.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(lab, 2)) > 20


def test_forty_series_all_look_different_by_colour_and_marker():
    looks = [style.style(number) for number in range(40)]
    assert len({(look.colour, look.marker) for look in looks}) == 40
    assert all(one.line != other.line for one, other in zip(looks, looks[len(style.COLOURS) :], strict=False))


@pytest.mark.parametrize("count", [1, 2, 8, 9, 40])
def test_any_number_of_algorithms_is_drawn_each_named_once(count):
    trials, curves = some([f"algorithm-{number}" for number in range(count)], seeds=1)
    board = only(trials)
    for draw in (figures.draw_curves, lambda axes, board, trials, _: figures.draw_hits(axes, board, trials)):
        figure, axes = figures.new_figure(legend=count)
        alt = draw(axes, board, trials, curves)
        labels = [label.get_text() for label in axes.get_legend().get_texts()]
        assert len(set(labels)) == len(labels) == count
        assert all(f"algorithm-{number}: " in alt for number in range(count))
        assert bool(axes.collections) == (count <= style.CROWD) or draw is not figures.draw_curves
        figure.draw_without_rendering()
        frame, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
        assert legend.y1 < frame.y0
        assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
        assert frame.height > 1.5 * figure.dpi


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reached", "missed", "diverged", "error", "completed"]),
            st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=0, max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_was_measured_is_drawn_and_told(found):
    made = [
        trial("adamw", seed, 5.0 if outcome == "reached" else None, outcome=outcome)
        for seed, (outcome, _) in enumerate(found)
    ]
    lines = [line for row, (_, qualities) in zip(made, found, strict=True) for line in curve(row, qualities)]
    curves = pd.DataFrame(lines, columns=["trial_id", "step", "time_s", "quality"]).astype({"quality": float})
    board = only(table(made))
    for by in ("steps", "time"):
        axes = axes_of()
        assert "micro small" in figures.draw_curves(axes, board, table(made), curves, by)
        assert np.isfinite([axes.get_xlim(), axes.get_ylim()]).all()
        assert "micro small" in figures.draw_hits(axes_of(), board, table(made), by)


# -- words -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.12345, "0.123"),
        (99.96, "100"),
        (999.7, "1000"),
        (184.9, "185"),
        (0, "0"),
        (math.nan, "unknown"),
        (-math.inf, "minus infinity"),
    ],
)
def test_numbers_have_three_digits_and_no_needless_exponent(value, told):
    assert text.number(value) == told


def test_units_suit_the_largest_value_and_missing_ones_do_not_matter():
    assert text.time_unit([math.nan, math.inf, 100.0]) == (1.0, "s")
    assert text.time_unit([200.0]) == (60.0, "min")
    assert text.time_unit([20_000.0]) == (3600.0, "h")
    assert text.byte_unit([5.0, 2e9]) == (1e9, "GB")
    assert text.byte_unit([]) == (1.0, "B")


def test_a_long_text_keeps_its_start_and_its_end():
    assert style.plain("abcdefghij", 6) == "abcd\N{HORIZONTAL ELLIPSIS}j"
    assert style.plain(" a\n\tb\x00") == "a b\N{REPLACEMENT CHARACTER}"
    assert len(style.plain("x" * 100, 20)) == 20


@pytest.mark.parametrize(
    ("low", "high"), [(0.98, 1.02), (0.61, 1.06), (0.3, 2.0), (0.1, 9.0), (1e-5, 1e-2), (1e-8, 1e6)]
)
def test_a_log_axis_has_a_few_plain_ticks_inside(low, high):
    axes = axes_of()
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    style.log_ticks(axes.xaxis, low, high)
    ticks = axes.get_xticks()
    assert 2 <= len(ticks) <= 10
    assert ((ticks >= low) & (ticks <= high)).all()
    assert all("$" not in label.get_text() for label in axes.get_xticklabels())
