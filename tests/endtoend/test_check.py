"""``bench check``: what it prints in every form, and what it answers to a plugin that fails."""

from __future__ import annotations

import json

import pytest

FACTS = ("check", "adamw", "--only", "facts/*")


def test_a_plugin_that_passes_is_printed_as_lines_that_fit_a_narrow_terminal(bench_here):
    answer = bench_here(*FACTS, environment={"COLUMNS": "50"})
    assert (answer.code, answer.err) == (0, "")
    assert "adamw: conformance, 11 passed, 0 failed, 0 skipped" in answer.out
    assert "passed   facts/listing-is-light" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 52


def test_the_whole_answer_as_json_has_every_section(bench_here):
    answer = bench_here("check", "linear-decay", "--format", "json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    assert found.keys() == {"name", "conformance", "diagnostics", "overhead", "review"}
    assert {row["result"] for row in found["conformance"]} <= {"passed", "skipped"}
    assert found["diagnostics"] == []  # it is no optimizer
    assert {row["name"] for row in found["overhead"]} == {"training step", "schedule call"}
    review = found["review"]
    assert review["package"] == "bench-training"
    assert (review["slots"], review["track"]) == (["schedule"], "schedule")
    assert all(len(file["sha256"]) == 64 and file["lines"] > 10 for file in review["sources"])


def test_an_optimizer_is_shown_beside_torch_s_own(bench_here):
    answer = bench_here("check", "sgd", "--format", "json", "--no-overhead")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert "overhead" not in found
    rows = {row["diagnostic"]: row for row in found["diagnostics"]}
    assert rows["scale"]["value"] == rows["scale"]["SGD"] == "inf"
    assert rows["rotation"]["value"] == pytest.approx(1.0, abs=0.05)
    assert 0 < rows["scale"]["AdamW"] < 1e-3


def test_markdown_has_headings_and_tables(bench_here):
    answer = bench_here("check", "average", "--format", "md", "--no-overhead")
    assert answer.code == 0
    assert answer.out.lstrip().startswith("## average: conformance")
    assert "| merging/heads-are-not-merged" in answer.out
    assert "- **class**: bench.plugins.merging.average:Average" in answer.out


def test_a_plugin_that_fails_is_told_why_and_the_command_answers_one(bench_here):
    answer = bench_here("check", "raises-in-optimizer", "--only", "optimizer/closure")
    assert answer.code == 1
    assert "failed   optimizer/closure" in answer.out
    assert "it raised" in answer.out
    assert "Traceback" not in answer.out + answer.err
    assert "Traceback" in bench_here("check", "raises-in-optimizer", "--only", "optimizer/closure", "--debug").err


@pytest.mark.parametrize("form", ["table", "md"])
def test_what_strangers_wrote_commands_no_terminal_and_no_page(form, capsys):
    from bench.commands._check_text import echo_text

    bad = "\x1b[31m<script>alert(1)</script>"
    row = {"check": "a/b", "result": "failed", "reason": bad, "what": "A sentence."}
    review = dict.fromkeys(("track", "class", "package", "version", "paper", "source_sha256", "information"), bad)
    review |= {key: [bad] for key in ("slots", "imports", "needs", "deviations", "documentation")}
    review |= {"adapter_roles": {bad: bad}, "searched": {bad: bad}, "hyperparameters": {bad: bad}}
    review |= {"claims": 1, "docstring_lines": 1, "closure": False, "passes": 1}
    review |= {"sources": [{"module": bad, "file": bad, "lines": 1, "sha256": "0" * 64}]}
    echo_text(bad, {"conformance": [row], "review": review}, form)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b" in out
    assert form == "table" or "<script>" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "adamm"), "did you mean 'adamw'"),
        (("check", "llama-c4"), "no plugin named 'llama-c4'"),
        (("check", "adamw", "--only", "nothing/*"), "--only 'nothing/*' matches none of"),
        (("check", "adamw", "--format", "csv"), "csv"),
        (("check",), "NAME"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_message(bench_here, arguments, said):
    answer = bench_here(*arguments)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
