"""The page on parity leaves no algorithm out and says what the tests and tox.ini say."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from bench import Registry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
TRACKS = {"optimizer", "schedule", "data-selection", "peft", "parameterization", "compression", "merging"}
ALGORITHMS = sorted(entry.name for entry in Registry().algorithms.values() if entry.track in TRACKS)
PAPERS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "papers").glob("test_*.py")}


def pinned(text):
    return dict(re.findall(r"^\s*([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def parity_environment():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    section = parser["testenv:parity"]
    return pinned(section["deps"]) | pinned(section["commands_pre"])


PARITY = parity_environment()
PINS = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8")) | PARITY


def cells(title):
    """Return the rows of the table under the heading ``title``, without its head."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def linked(cell):
    """Return name and test file of a cell ``[name](../tests/papers/file)``."""
    return re.fullmatch(r"\[([\w-]+)\]\(\.\./tests/papers/(\w+\.py)\)", cell).groups()


class Compared(NamedTuple):
    name: str
    file: str
    package: str
    cls: str
    version: str
    what: str
    tolerance: str

    @property
    def limit(self):
        return self.what.startswith("*limit*")


COMPARED = [Compared(*linked(algorithm), *rest) for algorithm, *rest in cells("Compared with a package")]
ALONE = [(*linked(algorithm), why, instead) for algorithm, why, instead in cells("No package has it")]
every_row = pytest.mark.parametrize("row", COMPARED, ids=lambda row: f"{row.name}-{row.package}")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_compared_as_a_whole_or_the_page_says_why_not(name):
    whole = [row for row in COMPARED if row.name == name and not row.limit]
    alone = [row for row in ALONE if row[0] == name]
    assert bool(whole) != bool(alone)
    assert len(alone) <= 1


def test_no_row_is_there_twice_or_of_an_algorithm_that_does_not_exist_and_rows_are_in_order():
    for keys in ([(row.name, row.package) for row in COMPARED], [row[0] for row in ALONE]):
        assert keys == sorted(set(keys))
    assert {row.name for row in COMPARED} | {row[0] for row in ALONE} <= set(ALGORITHMS)


@every_row
def test_versions_are_those_that_the_environment_installs(row):
    assert row.version == PINS[row.package]
    assert row.package in PARITY or row.package == "torch"


@every_row
def test_the_test_of_a_row_uses_the_package_its_class_and_its_tolerance(row):
    source = PAPERS[row.file]
    assert row.file == f"test_{row.name.replace('-', '_')}.py"
    assert f'"{row.package}"' in source or row.package == "torch"
    class_name = row.cls.strip("`").split(".")[-1]
    assert re.search(rf"\b{class_name}\b", source)
    for number in re.findall(r"\d[\d.]*(?:e-\d+)?", row.tolerance):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", source), number


@pytest.mark.parametrize("file", sorted(PAPERS))
def test_every_package_that_a_test_asks_for_has_a_row(file):
    asked = {package for package in PARITY if f'"{package}"' in PAPERS[file]}
    assert asked == {row.package for row in COMPARED if row.file == file} - {"torch"}


@pytest.mark.parametrize("file", sorted(PAPERS))
def test_a_package_is_asked_for_by_a_name_that_the_environment_installs(file):
    calls = [node for node in ast.walk(ast.parse(PAPERS[file])) if isinstance(node, ast.Call)]
    asked = [call.args[1] for call in calls if getattr(call.func, "id", "") in {"package", "module_alone"}]
    assert {node.value for node in asked if isinstance(node, ast.Constant)} <= set(PARITY)


@pytest.mark.parametrize("package", sorted(PARITY))
def test_the_page_names_every_package_that_is_installed_for_it(package):
    assert re.search(rf"(?<![\w-]){re.escape(package)}(?![\w-])", PAGE)


@pytest.mark.parametrize(("name", "file", "why", "instead"), ALONE, ids=[row[0] for row in ALONE])
def test_where_parity_is_impossible_the_tests_say_so_and_hold_what_the_page_claims(name, file, why, instead):
    assert re.search(r"\b(package|implements|Parity)\b", ast.get_docstring(ast.parse(PAPERS[file])) or "")
    assert why, name
    assert instead, name
    assert all(number in PAPERS[file] for number in re.findall(r"\((\d+e-\d+)\)", instead))
