"""A/A: the reference registered under a second name ties with itself on board, in comparison and in report."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, bench_in):
    """Five seeds of the reference beside five seeds of its twin, at the reference's tuned values."""
    folder = tmp_path_factory.mktemp("twin")
    bench = bench_in(folder)
    tuned = ("--set", "lr=0.02", "--set", "weight_decay=0")
    done = bench("run", "--protocol", "default", "--plugin", "adamw-twin", *tuned, "--workload", "micro")
    assert done.returncode == 0, done.stderr
    return bench


def test_the_twin_ties_on_the_board(recorded):
    shown = recorded("leaderboard", "--by", "steps", "--format", "json")
    rows = {row["algorithm"]: row for row in json.loads(shown.stdout)}
    assert [row["group"] for row in rows.values()] == [1, 1]
    assert all(row["ranked"] and row["replicates"] == 5 for row in rows.values())
    twin = rows["adamw-twin"]
    assert (twin["reference"], twin["is_reference"]) == ("adamw", False)
    assert twin["steps_to_target"] == rows["adamw"]["steps_to_target"], "same weights, same data, same steps"
    assert twin["steps_ratio"] == 1.0
    assert twin["steps_ratio_low"] <= 1 <= twin["steps_ratio_high"]
    assert twin["steps_ratio_p"] == 1.0


def test_the_twin_ties_in_the_comparison(recorded):
    said = recorded("compare", "adamw-twin", "adamw", "--workload", "micro", "--by", "steps")
    assert said.returncode == 0, said.stderr
    assert "cannot be told apart" in said.stdout


def test_the_twin_ties_in_the_report(recorded):
    done = recorded("report", "--out", "report.html")
    assert done.returncode == 0, done.stderr
    page = (recorded.folder / "report.html").read_text(encoding="utf-8")
    assert "adamw-twin: 1.000" in page
    assert "not told apart from the reference (p 1)" in page
    matrix = page[page.index('id="matrix-board') : page.index('id="claims"')]
    cells = [unescape(re.sub(r"<[^>]+>", " ", cell)) for cell in re.findall(r"<td.*?</td>", matrix, re.DOTALL)]
    marks = [mark for cell in cells for mark in cell if mark in "●○"]
    assert "○" in marks
    assert "●" not in marks, "nothing is told apart from itself"
