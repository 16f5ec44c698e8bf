"""Boards and figures of compression, merging and fine-tuning: kinds apart, quality first, sizes drawn."""

from __future__ import annotations

import hashlib
import math

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

from bench import figures
from bench.board import boards
from bench.figures.rows import rows
from bench.figures.sizes import plane
from bench.protocol import Protocol
from bench.record import TRIALS
from bench.report.board_tables import board_tables
from bench.report.evidence import View
from bench.report.last_metrics import last_metrics
from bench.standings import standings

RULES = Protocol(name="default", version="1.0", summary="", seeds=3, ranked=True)
KNOWN = {RULES.sha256: RULES}
FACTS = {
    "algorithm_version": "1",
    "algorithm_source_sha256": "a",
    "hyperparameters": "{}",
    "fillers": "[]",
    "workload": "squeeze",
    "workload_version": "1.0.0",
    "tier": "tiny",
    "precision": "fp32",
    "data_source": "drawn",
    "data_sha256": "d",
    "protocol": "default",
    "protocol_version": "1.0",
    "protocol_sha256": RULES.sha256,
    "phase": "measure",
    "study": 0,
    "point": 0,
    "reference": "plain",
    "device_class": "cpu-1",
    "device_listed": True,
    "outcome": "completed",
    "metric": "loss",
    "metric_direction": "min",
    "budget_steps": 2,
    "steps": 2,
    "rss_peak_bytes": 1_000_000,
    "contended": False,
}


def trial(name, seed, quality, **changes):
    row = dict.fromkeys(TRIALS.names) | FACTS | {"algorithm": name, "seed": seed, "is_reference": name == "plain"}
    row |= {"quality": quality + 0.001 * seed, "best_quality": quality, "time_s": 3.0 + seed} | changes
    row["trial_id"] = hashlib.sha256(repr(sorted(row.items(), key=str)).encode()).hexdigest()[:20]
    return row


def after(name, seed, quality, information="weights", **changes):
    return trial(name, seed, quality, **({"information": information, "stored_bytes": 2000} | changes))


def table(*found):
    return pa.Table.from_pylist(list(found), schema=TRIALS).to_pandas()


def three(make, name, quality, *facts, **changes):
    return [make(name, seed, quality, *facts, **changes) for seed in range(3)]


KINDS = [
    *three(after, "plain", 1.0),
    *three(after, "other", 2.0),
    *three(after, "seeing", 0.5, "inputs"),
    *three(after, "knowing", 0.1, "labels"),
]


def only(trials, by="time"):
    (board,) = boards(trials, by, KNOWN)
    return board


def points(row, sizes, losses, across="stored_bytes", up="perplexity"):
    """Return the curve of a trial: one evaluation per point."""
    return [
        {
            "trial_id": row["trial_id"],
            "step": number,
            "time_s": 1.0 * number,
            "quality": loss,
            "metrics": [(across, float(size)), (up, float(loss))],
        }
        for number, (size, loss) in enumerate(zip(sizes, losses, strict=True), start=1)
    ]


# -- boards ----------------------------------------------------------------------------------------------------------
def test_kinds_of_information_are_ordered_and_grouped_apart():
    board = only(table(*KINDS))
    assert list(board.rows["algorithm"]) == ["plain", "other", "seeing", "knowing"], "not by quality across kinds"
    assert list(board.rows["group"]) == [1, 2, 1, 1]
    assert list(board.rows["information"]) == ["weights", "weights", "inputs", "labels"]
    assert any("ordered and grouped apart" in note for note in board.notes)


def test_a_board_of_one_kind_says_nothing_of_kinds():
    board = only(table(*KINDS[:6]))
    assert not any("grouped apart" in note for note in board.notes)


def test_after_training_quality_decides_whatever_was_asked_for():
    for by in ("time", "steps"):
        board = only(table(*KINDS, *three(after, "x", 0.2, target=0.5, outcome="missed")), by)
        assert board.shared["by"] == "quality"
    assert any("nothing is trained here" in note for note in board.notes)
    assert only(table(*KINDS), "memory").shared["by"] == "memory"


def test_a_row_says_what_it_stored_and_how_long_it_took_in_all():
    row = only(table(*three(after, "plain", 1.0), *three(after, "other", 2.0, stored_bytes=500))).rows.iloc[1]
    assert (row["stored_bytes"], row["time_s"]) == (500, 4.0)


def test_the_reference_is_compared_across_kinds():
    board = only(table(*KINDS))
    difference = dict(zip(board.rows["algorithm"], board.rows["quality_difference"], strict=True))
    assert difference["knowing"] == pytest.approx(-0.9)


def test_standings_leave_out_what_is_not_trained_and_keep_fine_tuning_apart():
    def reached(name, seed, workload, **facts):
        hit = {"outcome": "reached", "target": 1.0, "steps_to_target": 10, "time_to_target_s": 5.0 + seed}
        hit |= {"steps_to_target_interpolated": 9.5, "time_to_target_interpolated_s": 4.5, "evaluations_to_target": 2}
        return trial(name, seed, 0.9, workload=workload, **(hit | facts))

    scratch = [row for name in ("plain", "a") for row in three(reached, name, "pretrain")]
    tuned = [row for name in ("plain", "b") for row in three(reached, name, "finetune", base_sha256="h")]
    found = standings(table(*KINDS, *scratch, *tuned), "steps", KNOWN)
    assert [sorted(each.rows["algorithm"]) for each in found] == [["a", "plain"], ["b", "plain"]]


def test_the_tables_of_the_report_name_the_kind_and_leave_out_the_race():
    result, *_, cost = board_tables(only(table(*KINDS)), "board", {})
    heads = [column.head for column in result.columns]
    assert "Looks at" in heads
    assert not {"Steps to target", "Time to target"} & set(heads)
    heads = [column.head for column in cost.columns]
    assert {"Time", "Stored bytes"} <= set(heads)
    assert not {"Adapter", "Forgetting", "Expected steps", "Optimizer state"} & set(heads)


def test_what_fine_tuning_leaves_is_in_the_tables_where_it_was_measured():
    facts = {"adapter_bytes": 400, "forgetting": 0.25, "target": 5.0}
    *_, cost = board_tables(only(table(*three(trial, "plain", 1.0, **facts))), "board", {})
    shown = {column.head: cost.rows[0].cells[column.key].text for column in cost.columns}
    assert shown["Adapter"] == "400.0 B"
    assert shown["Forgetting"] == "0.250"
    assert "Stored bytes" not in shown


def test_the_command_shows_kinds_sizes_and_time():
    from bench.commands.leaderboard import _show

    result = CliRunner().invoke(_command(_show), env={"COLUMNS": "200"})
    assert "looks at" in result.output
    assert "2 kB" in result.output
    assert "4.0 s" in result.output


def _command(show):
    import click

    @click.command()
    def command():
        show(only(table(*KINDS)), "md")

    return command


# -- figures ---------------------------------------------------------------------------------------------------------
def sized(across="stored_bytes", up="perplexity"):
    found = [*three(after, "plain", 3.0), *three(after, "other", 5.0)]
    curves = [
        point
        for row in found
        for point in points(
            row, [3000, 1000], [2.0 + row["seed"], row["quality"] * 10 + row["seed"]], across=across, up=up
        )
    ]
    return table(*found), pd.DataFrame(curves)


def test_a_line_joins_the_medians_at_the_sizes_that_were_stored():
    trials, curves = sized()
    axes = figures.new_figure()[1]
    board = only(trials)
    told = figures.draw_sizes(axes, board, trials, curves)
    lines = {row.name: line for row, line in zip(rows(board), axes.lines, strict=True)}
    x, y = lines["plain"].get_data()
    assert list(x) == [1.0, 3.0], "in kilobytes, the smallest first"
    assert y == pytest.approx([31.01, 3.0])
    assert axes.get_xlabel() == "stored bytes (kB)"
    assert axes.get_ylabel() == "perplexity"
    assert axes.get_yscale() == "log"
    assert told.startswith("Perplexity against stored bytes on squeeze tiny.")
    assert "plain: 31 at 1 kB and 3 at 3 kB." in told


def test_merged_models_are_drawn_against_their_number():
    trials, curves = sized("models", "normalised_accuracy")
    axes = figures.new_figure()[1]
    told = figures.draw_sizes(axes, only(trials), trials, curves)
    assert axes.get_xlabel() == "merged models"
    assert "against the number of merged models" in told


def test_without_sizes_there_is_nothing_to_draw_and_it_says_so():
    trials, curves = sized("something", "else")
    axes = figures.new_figure()[1]
    assert plane(curves, "loss") is None
    assert "do not say how large" in figures.draw_sizes(axes, only(trials), trials, curves)
    assert plane(curves.iloc[:0], "loss") is None


def test_a_point_that_is_not_a_number_is_left_out():
    trials, curves = sized()
    curves["metrics"] = [
        [(name, float("nan") if name == "perplexity" and step == 2 else value) for name, value in pairs]
        for pairs, step in zip(curves["metrics"], curves["step"], strict=True)
    ]
    axes = figures.new_figure()[1]
    figures.draw_sizes(axes, only(trials), trials, curves)
    assert all(len(line.get_xdata()) == 1 for line in axes.lines)


def test_adapters_are_points_at_their_bytes_with_the_interval_of_their_quality():
    found = [*three(trial, "plain", 1.0, adapter_bytes=4_000), *three(trial, "small", 2.0, adapter_bytes=40)]
    board = only(table(*found))
    axes = figures.new_figure()[1]
    told = figures.draw_adapters(axes, board)
    marks = [line for line in axes.lines if line.get_marker() not in {"", "None", None}]
    assert sorted((float(m.get_xdata()[0]), round(float(m.get_ydata()[0]), 3)) for m in marks) == [
        (0.04, 2.001),
        (4.0, 1.001),
    ]
    assert axes.get_xscale() == "log"
    assert "small: 2 (2 to 2) with 40 B." in told


def test_a_board_without_adapters_says_so():
    axes = figures.new_figure()[1]
    assert "No row" in figures.draw_adapters(axes, only(table(*three(trial, "plain", 1.0))))


@pytest.mark.parametrize(("trained", "adapter"), [(90, 400.0), (100, math.nan)])
def test_what_is_trained_whole_has_no_adapter(trained, adapter):
    counts = {"parameters": 100, "trainable_parameters": trained}
    (row,) = only(table(*three(trial, "plain", 1.0, adapter_bytes=400, **counts))).records()
    assert row["adapter_bytes"] == pytest.approx(adapter, abs=0, nan_ok=True)


def test_the_order_of_rows_never_shows():
    trials, curves = sized()
    mixed = curves.sample(frac=1.0, random_state=3)
    told = [
        figures.draw_sizes(figures.new_figure()[1], only(one), one, each)
        for one, each in ((trials, curves), (trials.iloc[::-1].reset_index(drop=True), mixed))
    ]
    assert told[0] == told[1]


def view_of(trials):
    return View(board=only(trials), trials=trials, label="squeeze tiny", anchor="board")


def test_all_metrics_of_the_last_point_are_in_one_table_as_means():
    found = [
        *three(after, "plain", 1.0, metrics=[("accuracy_task_10", 0.5), ("accuracy_task_9", 0.25)]),
        *three(after, "other", 2.0, metrics=[("accuracy_task_9", float("nan"))]),
    ]
    shown = last_metrics(view_of(table(*found)))
    assert [column.head for column in shown.columns] == ["Metric", "plain"], "a column without a number is left out"
    assert [row.cells["metric"].text for row in shown.rows] == ["accuracy_task_9", "accuracy_task_10"]
    assert [row.cells["0"].value for row in shown.rows] == [0.25, 0.5]


def test_where_something_was_trained_there_is_no_such_table():
    assert last_metrics(view_of(table(*three(trial, "plain", 1.0, target=5.0)))) is None
