"""``bench list``: what there is, without loading anything heavy, whatever is broken."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

MODULES_OF = Path(__file__).parents[1] / "support" / "modules_of.py"
HEAVY = {"torch", "pandas", "matplotlib", "numpy", "pyarrow", "scipy", "pydantic", "rich", "pynvml", "datasets"}
KINDS = {
    "plugins": ("adamw", {"name", "track", "paper", "package", "claims", "summary"}),
    "workloads": ("micro", {"name", "tiers", "package", "summary"}),
    "protocols": ("quick", {"name", "version", "ranked", "summary"}),
    "devices": ("cpu-2", {"name", "kind", "description"}),
}


def parsed(form: str, out: str) -> list[dict[str, str]]:
    """Return the rows of an answer in one of the formats."""
    if form == "json":
        rows: list[dict[str, str]] = json.loads(out)
        return rows
    if form == "csv":
        return list(csv.DictReader(io.StringIO(out)))
    mark = "|" if form == "md" else None
    lines = [line.strip("|").split(mark) for line in out.splitlines()]
    keys = [word.strip() for word in lines[0]]
    return [dict(zip(keys, [cell.strip() for cell in line], strict=False)) for line in lines[2:]]


@pytest.mark.parametrize("form", ["table", "json", "csv", "md"])
@pytest.mark.parametrize("what", KINDS)
def test_list_shows_what_there_is_in_every_format(bench_here, what, form):
    answer = bench_here("list", what, "--format", form)
    assert (answer.code, answer.err) == (0, "")
    rows = parsed(form, answer.out)
    name, columns = KINDS[what]
    assert name in {row["name"] for row in rows}
    assert set(rows[0]) == columns
    assert len(rows) == len(parsed("json", bench_here("list", what, "--format", "json").out))


def test_plugins_are_what_is_listed_by_default_and_a_track_selects(bench_here):
    assert bench_here("list").out == bench_here("list", "plugins").out
    every = json.loads(bench_here("list", "--format", "json").out)
    schedules = json.loads(bench_here("list", "--track", "schedule", "--format", "json").out)
    assert schedules == [row for row in every if row["track"] == "schedule"]
    assert 0 < len(schedules) < len(every)


def test_every_algorithm_and_workload_that_is_listed_can_be_shown(bench_here):
    for what in ("plugins", "workloads"):
        for row in json.loads(bench_here("list", what, "--format", "json").out):
            answer = bench_here("show", row["name"])
            assert (answer.code, answer.err) == (0, ""), answer
            assert row["summary"] in answer.out
            assert answer.out.count("\nClaim: ") == row.get("claims", 0)
            assert row["package"] in answer.out


@pytest.mark.parametrize("what", [*KINDS, "plugins --format json", "plugins --format md", "plugins --track optimizer"])
def test_listing_imports_nothing_heavy(bench, what):
    done = bench("list", *what.split(), program=MODULES_OF)
    assert done.returncode == 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("modules: ")
    assert "bench" in last.split()
    assert HEAVY & set(last.split()) == set()


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("leaderboard", "--help"), ("plan", "--help")])
def test_help_imports_nothing_heavy(bench, arguments):
    """Also ``run --help`` is answered before torch is loaded."""
    done = bench(*arguments, program=MODULES_OF)
    assert done.returncode == 0
    assert (HEAVY - {"pydantic"}) & set(done.stderr.splitlines()[-1].split()) == set()


BROKEN = {
    "raises": "RuntimeError: this plugin wants a compiler that is not here",
    "exits": "SystemExit: this plugin does not run on this day of the week",
    "raises-in-hook": "KeyError: 'entries'",
    "returns-texts": "bench_algorithms returned 'lion' (str), not Entry objects",
    "unknown-hook": "unknown hook 'bench_algorithm'",
    "takes-a-name": "the name 'adamw' is taken already, by the package 'bench-training'",
    "no-target": "there is no module 'bench_broken.absent'",
    "no-module": "No module named 'bench_broken.there_is_no_such_module'",
}


def test_broken_plugins_are_listed_with_their_reasons_and_stop_nothing(bench_here, monkeypatch, broken_site):
    whole = bench_here("list", "--format", "json")
    monkeypatch.syspath_prepend(str(broken_site))
    answer = bench_here("list", "--format", "json")
    assert answer.code == 0
    reasons = {}
    for line in answer.err.splitlines():
        head, _, reason = line.partition(" (package bench-broken): ")
        reasons[head.removeprefix("broken: ")] = reason
    assert set(reasons) == set(BROKEN)
    for name, reason in BROKEN.items():
        assert reason in reasons[name]
    named = {row["name"] for row in json.loads(answer.out)}
    assert named == {row["name"] for row in json.loads(whole.out)} | {
        *("raises-late", "misnamed", "idle", "no-class", "no-attribute")
    }


def test_broken_plugins_stop_no_other_command(bench_here, monkeypatch, broken_site):
    monkeypatch.syspath_prepend(str(broken_site))
    for arguments in (
        ("show", "adamw"),
        ("plan", "--plugin", "sgd", "--workload", "micro"),
        ("memory", "--plugin", "sgd", "--workload", "micro"),
        ("list", "workloads"),
    ):
        answer = bench_here(*arguments)
        assert answer.code == 0, answer


def test_doctor_names_broken_plugins_and_fails(bench_here, monkeypatch, broken_site):
    fine = bench_here("doctor")
    assert fine.code == 0, fine
    monkeypatch.syspath_prepend(str(broken_site))
    answer = bench_here("doctor")
    assert answer.code == 1
    for name in (*BROKEN, "misnamed", "idle", "no-class", "no-attribute"):
        assert any(line.startswith("bad ") and name in line for line in answer.out.splitlines()), name


def test_pinned_plugins_are_the_only_ones(bench_here):
    answer = bench_here("list", "--format", "json", environment={"BENCH_PLUGINS": "baselines, micro"})
    packages = {row["package"] for row in json.loads(answer.out)}
    names = {row["name"] for row in json.loads(answer.out)}
    assert packages == {"bench-training", "bench-micro"}
    assert "adamw" in names
    assert "lion" not in names
