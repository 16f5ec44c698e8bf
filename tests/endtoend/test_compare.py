"""``bench compare`` and ``bench leaderboard`` over a store of known trials."""

from __future__ import annotations

import csv
import io
import json
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.protocol import protocol
from bench.record import TRIALS
from bench.store import Store

DEFAULTS = {
    "algorithm_version": "1",
    "algorithm_source_sha256": "a",
    "hyperparameters": '{"lr": 0.1}',
    "fillers": "[]",
    "workload": "micro",
    "workload_version": "1.0.0",
    "tier": "tiny",
    "precision": "fp32",
    "data_source": "embedded",
    "data_sha256": "d" * 64,
    "protocol": "default",
    "protocol_version": "1.0",
    "phase": "measure",
    "study": 0,
    "point": 0,
    "reference": "adamw",
    "device_class": "cpu-2",
    "device_listed": True,
    "metric": "loss",
    "metric_direction": "min",
    "target": 1.0,
    "quality": 0.9,
    "budget_steps": 500,
    "steps": 500,
    "time_s": 50.0,
    "rss_peak_bytes": 250_000_000,
    "contended": False,
    "trust_tier": "self-reported",
}


def cell(name, steps, **changes):
    """Return one trial per seed; ``None`` is a miss."""
    rules = protocol(changes.get("protocol", "default"))
    for seed, reach in enumerate(steps):
        row = dict.fromkeys(TRIALS.names) | DEFAULTS | {"algorithm": name, "seed": seed, "outcome": "missed"}
        row |= {"protocol_sha256": rules.sha256, "is_reference": name == "adamw"}
        if reach is not None:
            row |= {"outcome": "reached", "steps_to_target": reach, "time_to_target_s": reach / 10}
        row |= changes
        yield row | {"trial_id": f"{name}-{seed}-{sorted(changes.items())}"}


def put(folder, *cells):
    """Make a store of these trials."""
    store = Store(folder / "results", create=True)
    (store.root / "trials").mkdir()
    rows = [row for rows in cells for row in rows]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRIALS), store.root / "trials" / "all.parquet")


ADAMW = (230, 215, 241, 228, 233)
GALORE = (186, 175, 196, 181, 187)


def both(by="steps"):
    return ("compare", "galore", "adamw", "--workload", "micro", "--by", by)


def test_a_comparison_has_a_verdict_intervals_and_tests(bench_here, tmp_path):
    put(tmp_path, cell("galore", GALORE), cell("adamw", ADAMW))
    answer = bench_here(*both())
    assert (answer.code, answer.err) == (0, "")
    assert "galore needs 0.81x the steps of adamw [0.76, 0.86]; 5 and 5 seeds; separable" in answer.out
    lines = {line[:14].strip(): re.split(r"  +", line[14:].strip()) for line in answer.out.splitlines()}
    assert lines["steps"][:3] == ["184.9 [175.5, 194.8]", "229.2 [217.7, 241.4]", "0.81 [0.76, 0.86]"]
    assert lines["steps"][4] == "9%"
    assert lines["memory"] == ["250 MB [250 MB, 250 MB]"] * 2 + ["1.00 [1.00, 1.00]", "1", "0%"]
    assert lines["reached"][:2] == ["5/5 [57%, 100%]"] * 2
    assert "energy" not in lines, "nobody measured it"
    assert "steps over 5 pairs of seeds (same weights, same data): 0.81 [" in answer.out
    assert "sign flips 0.062" in answer.out


def test_json_and_csv_have_every_figure_as_a_number(bench_here, tmp_path):
    put(tmp_path, cell("galore", GALORE), cell("adamw", ADAMW))
    (row,) = json.loads(bench_here(*both(), "--format", "json").out)
    assert row["steps_ratio"] == pytest.approx(0.8064, abs=1e-4)
    assert row["steps_ratio_low"] < row["steps_ratio"] < row["steps_ratio_high"]
    assert (row["hits_a"], row["hits_b"], row["energy_ratio"], row["by"]) == (5, 5, None, "steps")
    (text,) = csv.DictReader(io.StringIO(bench_here(*both(), "--format", "csv").out))
    assert float(text["steps_ratio"]) == row["steps_ratio"]
    assert text["verdict"] == row["verdict"]


def test_what_cannot_be_told_apart_says_what_would_show(bench_here, tmp_path):
    put(tmp_path, cell("galore", ADAMW[::-1]), cell("adamw", ADAMW))
    answer = bench_here(*both("time"))
    assert re.search(
        r"galore and adamw cannot be told apart: galore needs 1\.00x the time of adamw \[0\.94, 1\.06\]; "
        r"5 and 5 seeds; this comparison would show \d+% or more",
        answer.out,
    )


def test_every_setting_and_every_board_is_compared_by_itself(bench_here, tmp_path):
    put(
        tmp_path,
        cell("galore", GALORE, hyperparameters='{"lr": 0.1}'),
        cell("galore", GALORE, hyperparameters='{"lr": 0.2}'),
        cell("adamw", ADAMW),
        cell("galore", GALORE, tier="small"),
        cell("adamw", ADAMW, tier="small"),
    )
    answer = bench_here(*both())
    assert answer.out.count(" separable") == 3
    assert "galore lr=0.1 needs 0.81x" in answer.out
    assert "galore lr=0.2 needs 0.81x" in answer.out
    chosen = bench_here(*both(), "--tier", "small")
    assert chosen.out.count(" separable") == 1
    own = bench_here("compare", "galore", "galore", "--workload", "micro", "--tier", "tiny")
    assert "galore lr=0.1 and galore lr=0.2 cannot be told apart" in own.out


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"workload_version": "1.1.0"}, "workload version 1.1 vs 1.0"),
        ({"tier": "60m"}, "tier 60m vs tiny"),
        ({"data_source": "c4", "data_sha256": "e" * 64}, "data c4 vs embedded"),
        ({"data_sha256": "e" * 64}, f"data hash {'e' * 12} vs {'d' * 12}"),
        ({"protocol": "quick"}, "protocol quick vs default"),
        ({"device_class": "cpu-16", "precision": "bf16"}, "precision bf16 vs fp32, device class cpu-16 vs cpu-2"),
    ],
)
def test_algorithms_that_never_share_a_board_are_told_why(bench_here, tmp_path, facts, reason):
    put(tmp_path, cell("galore", GALORE, **facts), cell("adamw", ADAMW))
    answer = bench_here(*both())
    assert answer.code == 0
    assert answer.out.splitlines() == ["galore and adamw share no board", f"not comparable: {reason}"]
    machine = bench_here(*both(), "--format", "json")
    assert json.loads(machine.out) == []
    assert f"not comparable: {reason}" in machine.err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("galor", "adamw", "--workload", "micro"), "no algorithm with trials of micro", "did you mean 'galore'"),
        (("galore", "adamw", "--workload", "micr"), "no workload in results named 'micr'", "did you mean 'micro'"),
        (("galore", "adamw", "--workload", "micro", "--tier", "7b"), "no tier in results named '7b'", "known: tiny"),
        (
            ("galore", "adamw", "--workload", "micro", "--protocol", "x"),
            "no protocol in results named 'x'",
            "known: default",
        ),
        (("adamw", "adamw", "--workload", "micro"), "'adamw' has one setting on each board", "name another"),
    ],
)
def test_unknown_names_are_user_errors(bench_here, tmp_path, arguments, message, hint):
    put(tmp_path, cell("galore", GALORE), cell("adamw", ADAMW))
    answer = bench_here("compare", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert hint in answer.err


def test_an_empty_store_has_nothing_to_compare(bench_here, tmp_path):
    Store(tmp_path / "results", create=True)
    answer = bench_here(*both())
    assert (answer.code, answer.out) == (2, "")
    assert "no workload in results named 'micro'" in answer.err


# -- leaderboard -----------------------------------------------------------------------------------------------------
def test_a_board_shows_groups_intervals_and_ratios_and_what_is_not_comparable(bench_here, tmp_path):
    put(
        tmp_path,
        cell("galore", GALORE),
        cell("adamw", ADAMW),
        cell("sgd", [400, None, None, 450, 460]),
        cell("adamw", ADAMW, tier="small"),
        cell("lion", [None], tier="small", outcome="error"),
    )
    answer = bench_here("leaderboard", "--by", "steps")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.index("tier small") < answer.out.index("tier tiny")
    rows = [re.split(r"  +", line) for line in answer.out.partition("tier tiny")[2].splitlines()]
    ranked = [row[:6] for row in rows if row[0].isdigit() or row[0] == "rank"]
    assert ranked[0] == ["rank", "group", "algorithm", "reached", "steps", "time"]
    assert ranked[1:3] == [
        ["1", "1", "galore", "5/5", "184.9 [175.5, 194.8]", "18.5 s [17.5 s, 19.5 s]"],
        ["2", "2", "adamw", "5/5", "229.2 [217.7, 241.4]", "22.9 s [21.8 s, 24.1 s]"],
    ]
    assert ranked[3][:4] == ["3", "3", "sgd", "3/5"]
    assert "0.81x [0.76, 0.86]" in answer.out
    assert "vs adamw" in answer.out
    assert "lion: 1 error" in answer.out
    assert "the 2 boards of micro differ in\n\ntier\n------\nsmall\ntiny\n" in answer.out
    assert "differ in" not in bench_here("leaderboard", "--tier", "tiny").out


def test_a_narrow_terminal_gets_every_figure_too(bench_here, tmp_path):
    put(tmp_path, cell("galore", GALORE), cell("adamw", ADAMW))
    for command in (("leaderboard",), both()):
        wide = bench_here(*command).out
        narrow = bench_here(*command, environment={"COLUMNS": "60"}).out
        figures = re.findall(r"\d+\.\d+", wide)
        assert sorted(re.findall(r"\d+\.\d+", narrow)) == sorted(figures)
        assert len(figures) > 10
        table = [line for line in narrow.splitlines() if not line.startswith(("note:", "data ", "galore "))]
        assert max(map(len, table)) <= 60


def test_json_of_a_board_keeps_all_columns_as_numbers(bench_here, tmp_path):
    from bench.board import COLUMNS

    put(tmp_path, cell("galore", GALORE), cell("adamw", ADAMW))
    rows = json.loads(bench_here("leaderboard", "--protocol", "default", "--format", "json").out)
    assert [(row["algorithm"], row["group"], row["ranked"]) for row in rows] == [
        ("galore", 1, True),
        ("adamw", 2, True),
    ]
    assert all(set(COLUMNS) <= set(row) for row in rows)
    assert rows[0]["steps_ratio"] == pytest.approx(0.8064, abs=1e-4)
    assert rows[0]["origin"] is None


def test_boards_are_written_when_asked_for_and_only_then(bench_here, tmp_path):
    put(tmp_path, cell("galore", GALORE), cell("adamw", ADAMW), cell("adamw", ADAMW, tier="small"))
    bench_here("leaderboard")
    assert not (tmp_path / "results" / "leaderboards").exists()
    answer = bench_here("leaderboard", "--tier", "small", "--write", "--format", "json")
    assert len(json.loads(answer.out)) == 1
    assert "wrote 2 boards into results" in answer.err
    assert len(pd.read_parquet(tmp_path / "results" / "leaderboards")) == 3


def test_pareto_and_unknown_protocols_are_shown_without_ranks(bench_here, tmp_path):
    put(tmp_path, cell("galore", GALORE), cell("adamw", ADAMW, protocol_sha256="0" * 64))
    pareto = bench_here("leaderboard", "--by", "pareto")
    assert "front of time x memory" in pareto.out
    assert "protocol default is not known here: shown and never ranked" in pareto.out
    assert "protocol hash" in pareto.out, "in what the two boards differ"


def test_an_empty_store_has_no_boards(bench_here, tmp_path):
    Store(tmp_path / "results", create=True)
    assert bench_here("leaderboard").out == "no trials are recorded yet\n"
    assert json.loads(bench_here("leaderboard", "--format", "json").out) == []


def test_failures_and_qualities_that_are_no_numbers_are_shown_and_never_ranked(bench_here, tmp_path):
    put(
        tmp_path,
        cell("adamw", ADAMW),
        cell("lion", [None] * 5, outcome="diverged", quality=float("nan")),
        cell("sgd", [None] * 5, outcome="error", quality=None, target=None, metric=None, metric_direction=None),
    )
    rows = json.loads(bench_here("leaderboard", "--by", "quality", "--format", "json").out)
    assert [(row["algorithm"], row["ranked"], row["quality"]) for row in rows] == [
        ("adamw", True, 0.9),
        ("lion", False, None),
        ("sgd", False, None),
    ]
    said = bench_here("leaderboard").out
    assert "lion: 5 diverged" in said
    assert "sgd: 5 error" in said
    compared = bench_here("compare", "sgd", "adamw", "--workload", "micro")
    assert "not comparable: no trial of sgd is a measurement (5 error)" in compared.out
