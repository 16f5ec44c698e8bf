"""How to read a leaderboard: the page shows what the command prints, and explains every column and mark."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cells import TRUST
from bench.cli import cli
from bench.commands.leaderboard import _line
from bench.report import matrix
from bench.report.text import NONE
from bench.score import BASES
from bench.trial import OUTCOMES
from bench.verdicts import VERDICTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reading-a-leaderboard.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```sh\nbench (.*?)\n```\n\n```text\n(.*?)\n```", PAGE, re.DOTALL)
ROWS = re.findall(r"^\| (.+?) \| ", PAGE, re.MULTILINE)
SINGLE = {mark for row in ROWS for mark in re.findall(r"`([^`]+)`", row)}


def printed(arguments, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli, arguments.split(), catch_exceptions=False)
    return "\n".join(line.rstrip() for line in result.output.rstrip().splitlines())


@pytest.mark.parametrize(
    ("arguments", "board"), SHOWN, ids=[arguments.split("/")[1].split()[0] for arguments, _ in SHOWN]
)
def test_the_boards_of_the_page_are_what_the_command_prints_of_our_records(arguments, board, monkeypatch):
    assert board == printed(arguments, monkeypatch)


def test_the_page_has_a_searched_board_one_after_training_and_one_that_is_not_ranked():
    boards = "\n".join(board for _, board in SHOWN)
    assert len(SHOWN) >= 3
    assert all(mark in boards for mark in ("confirmed", "looks at", "(1)", "]*", "note:", "±"))


def test_every_column_of_a_board_is_explained():
    from bench.board import boards
    from bench.store import Store

    store = Store(ROOT / "results" / "cpu-1")
    board = boards(store.trials(), "steps", store.protocols())[0]
    columns = list(_line(board.records()[0], board.shared))
    assert [column for column in columns if column not in SINGLE] == []


@pytest.mark.parametrize("mark", ["*", "-", "inf", *(basis for basis in BASES if basis != "seeds")])
def test_every_mark_of_a_board_is_explained(mark):
    assert mark in SINGLE


@pytest.mark.parametrize("mark", [matrix.APART, matrix.NOT_APART, "≥", "≤", NONE, "∞"])
def test_every_mark_of_the_report_is_explained(mark):
    assert mark in SINGLE


@pytest.mark.parametrize("word", [*OUTCOMES, *VERDICTS, *TRUST])
def test_outcomes_verdicts_and_trust_tiers_are_named(word):
    assert f"`{word}`" in PAGE


def heads():
    """Yield the head of every column that a table of the report may have, as the source says it."""
    for path in sorted((ROOT / "bench" / "report").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Column":
                head = next((keyword.value for keyword in node.keywords if keyword.arg == "head"), None)
                parts = [head.body, head.orelse] if isinstance(head, ast.IfExp) else [head]
                yield from (part.value for part in parts if isinstance(part, ast.Constant))


@pytest.mark.parametrize("head", sorted(set(heads())))
def test_every_column_of_the_report_is_explained(head):
    report = PAGE[PAGE.index("## The HTML report") :]
    assert re.search(rf"\b{re.escape(head)}\b", report), head
