"""``bench report``: from recorded trials to a page, and what is said where that cannot be."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("BENCH_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
COMPETITION = SHARED / "algoperf-v05" / "trials.csv"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, bench_in):
    """A folder with the results of one algorithm and the reference, two seeds each."""
    folder = tmp_path_factory.mktemp("recorded")
    done = bench_in(folder)("run", "--plugin", "lion", "--workload", "micro", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_report_of_real_trials_is_one_page_that_needs_nothing_else(recorded, bench_in):
    done = bench_in(recorded)("report", "--out", "report.html")
    assert (done.returncode, done.stdout) == (0, "")
    assert "report.html" in done.stderr
    text = (recorded / "report.html").read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    for part in ("adamw", "lion", "micro", "self-reported", "Kaplan", "Claims ledger", "bench run --plugin lion"):
        assert part in text
    assert re.search(r'(src|srcset)="|@import|url\((?!#)', text) is None
    again = bench_in(recorded)("report", "--out", "again.html", "--results", "results", PYTHONHASHSEED="7")
    assert again.returncode == 0
    assert (recorded / "again.html").read_bytes() == (recorded / "report.html").read_bytes()


def test_markdown_links_the_figures_that_it_wrote(recorded, bench_in):
    done = bench_in(recorded)("report", "--out", "report.md", "--figures", "figures")
    assert done.returncode == 0, done.stderr
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (recorded / "report.md").read_text("utf-8"))
    assert len(links) >= 2
    for link in links:
        assert (recorded / link).is_file()
        assert (recorded / link).with_suffix(".png").is_file()


def test_two_folders_make_one_report(recorded, bench_here):
    results = recorded / "results"
    answer = bench_here("report", "--out", "both.html", "--results", results, "--results", results)
    assert answer.code == 0
    assert "4 trials of 2 algorithms" in Path("both.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--out", "no/such/folder/report.html"], "there is no folder", "mkdir -p"),
        (["--out", "report.pdf"], "no form of a report", "--format"),
        (["--out", "."], "is a folder", "name a file"),
        (["--out", "report.html", "--results", "nowhere"], "no results in 'nowhere'", "bench run"),
        (["--out", "report.html", "--format", "pdf"], "'pdf' is not one of", "--help"),
        ([], "Missing option '--out'", "--help"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_hint(recorded, bench_here, monkeypatch, arguments, message, hint):
    monkeypatch.chdir(recorded)
    answer = bench_here("report", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert hint in answer.err
    assert "Traceback" not in answer.err


def test_a_store_without_trials_says_that_nothing_is_recorded(tmp_path, bench_here):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "store.json").write_text('{"bench": "results", "schema_version": 1}')
    answer = bench_here("report", "--out", "report.html")
    assert answer.code == 2
    assert "nothing is recorded in 'results'" in answer.err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(not COMPETITION.is_file(), reason=f"no {COMPETITION} (BENCH_SHARED_DATA names another folder)")
def test_the_whole_algoperf_competition_is_a_page_of_a_few_megabytes(tmp_path, bench_here):
    assert bench_here("import", "algoperf", COMPETITION, "--results", "algoperf").code == 0
    assert bench_here("report", "--out", "algoperf.html", "--results", "algoperf").code == 0
    page = tmp_path / "algoperf.html"
    assert 1e6 < page.stat().st_size < 6e6
    text = page.read_text("utf-8")
    for score in ("0.7784", "0.7077", "0.8542", "0.8194"):  # as published, the first two of each ruleset
        assert score in text
