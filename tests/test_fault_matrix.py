"""The table of faults in the documentation names tests that exist, and every test of a fault stands in it once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
MATRIX = PAGE.partition("\n## The matrix\n")[2]
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split(" | "))
    for line in MATRIX.splitlines()
    if line.startswith("| ") and not line.startswith(("| Fault |", "| --- |"))
]
TESTS = [row[-1].strip("|` ") for row in ROWS]
FAULT_FILES = (
    ROOT / "tests" / "endtoend" / "test_faults.py",
    ROOT / "tests" / "endtoend" / "test_kill.py",
    *sorted((ROOT / "tests" / "endtoend" / "faults").glob("test_*.py")),
    *sorted((ROOT / "tests" / "faults").glob("test_*.py")),
)


def functions(path: Path) -> set[str]:
    """Return the node ids of a file's tests, without their parameters."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    return {f"{path.relative_to(ROOT).as_posix()}::{name}" for name in found}


def bare(test: str) -> str:
    return test.partition("[")[0]


def test_there_are_at_least_forty_rows_of_three_cells():
    assert len(ROWS) >= 40
    assert all(len(row) == 3 and all(row) for row in ROWS)


def test_no_fault_and_no_test_stands_in_two_rows():
    for values in ([row[0] for row in ROWS], TESTS):
        assert sorted({value for value in values if values.count(value) > 1}) == []
    whole = {test for test in TESTS if "[" not in test}
    assert sorted({test for test in TESTS if "[" in test and bare(test) in whole}) == []


@pytest.mark.parametrize("path", FAULT_FILES, ids=lambda path: path.stem)
def test_every_test_of_a_fault_is_in_the_matrix(path):
    assert sorted(functions(path) - set(map(bare, TESTS))) == []


def test_every_row_names_a_test_that_exists():
    files = {test.partition("::")[0] for test in TESTS}
    known = {name for file in files if (ROOT / file).exists() for name in functions(ROOT / file)}
    assert sorted(set(map(bare, TESTS)) - known) == []


def test_every_row_names_parameters_that_exist():
    named = [test for test in TESTS if "[" in test]
    files = sorted({test.partition("::")[0] for test in named})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "--collect-only", "-q", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    collected = {re.sub(r"\s+", " ", line) for line in done.stdout.splitlines() if "::" in line}
    assert sorted(set(named) - collected) == []
