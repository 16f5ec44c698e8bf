"""The commands: what they print, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.bundle.rules import RULES
from bench.cli import main

RESULTS = Path(__file__).parents[2] / "results"


def test_pack_says_what_is_in_the_file(tmp_path, capsys):
    out = tmp_path / "sgd.zip"
    command = ["pack", "--plugin", "sgd", "--out", str(out), "--results", str(RESULTS / "cpu-2")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert re.search(r"llama-c4 tiny, default, cpu-2: 5 trials of sgd \(.*(missed|reached)\)", said)
    assert "5 trials of adamw (5 reached)" in said
    assert "source of sgd: bench.plugins.baselines.sgd" in said
    assert f"next: bench verify {out}" in said
    assert main([*command, "--tier", "60m"]) == 2
    assert "holds no trials of 'sgd' --tier 60m" in capsys.readouterr().err


def test_verify_tells_three_verdicts_by_words_and_by_exit_codes(tmp_path, honest, forge, capsys):
    assert main(["verify", str(honest["default"])]) == 0
    said = capsys.readouterr().out
    assert "accept: nothing speaks against these records" in said
    assert "note: time-not-ranked:" in said
    bundle = forge()
    bundle.set_manifest(plugin="lion")
    assert main(["verify", str(bundle.write(tmp_path / "forged.zip"))]) == 1
    said = capsys.readouterr().out
    assert "\nreject:\n  manifest: the manifest says plugin 'lion'" in said
    bundle = forge()
    for trial_id in bundle.ids():
        bundle.edit_trial(trial_id, lambda trial: trial.update(workload="a-workload-of-others"))
    assert main(["verify", str(bundle.derive().write(tmp_path / "unknown.zip"))]) == 4
    said = capsys.readouterr().out
    assert "needs reproduction:\n  workload-unknown:" in said
    assert "next: bench reproduce" in said


def test_verify_in_json_has_every_rule(tmp_path, honest, capsys):
    assert main(["verify", str(honest["default"]), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["reasons"]) == ("accept", [])
    assert [check["rule"] for check in told["checks"]] == list(RULES)
    assert told["facts"]["comparisons"][0]["entrant_trials"] == 5
    (tmp_path / "text.zip").write_text("no bundle at all, but long enough to be one")
    assert main(["verify", str(tmp_path / "text.zip"), "--format", "json"]) == 1
    results = {check["rule"]: check["result"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert results.pop("readable") == "reject"
    assert set(results.values()) == {"not looked at"}


def test_what_a_stranger_wrote_does_not_move_the_terminal(tmp_path, forge, capsys):
    bundle = forge()
    (trial_id,) = bundle.ids("sgd", seed=0)
    events = bundle.events(trial_id)
    bundle.set_events(trial_id, [*events[:9], {**events[-1], "outcome": "error", "reason": "\x1b[2J\x07 gone"}])
    main(["verify", str(bundle.derive().write(tmp_path / "hostile.zip"))])
    said = capsys.readouterr().out
    assert "failed: error" in said
    assert not {"\x1b", "\x07"} & set(said)


@pytest.mark.parametrize("verb", ["verify", "reproduce"])
def test_a_file_that_is_not_there_is_a_user_error(tmp_path, verb, capsys):
    assert main([verb, str(tmp_path / "none.zip")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_reproduce_runs_nothing_that_is_rejected(tmp_path, forge, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = forge()
    bundle.drop(bundle.ids("sgd")[0])
    path = bundle.derive().write(tmp_path / "forged.zip")
    assert main(["reproduce", str(path)]) == 1
    said = capsys.readouterr().out
    assert "not run, since verification rejects it:" in said
    assert "seeds: sgd" in said
    assert not (tmp_path / "reproduced").exists()
    assert main(["reproduce", str(path), "--trials", "3", "--seed", "1"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    (tmp_path / "text.zip").write_text("no bundle at all, but long enough to be one")
    assert main(["reproduce", "text.zip"]) == 2
    assert "is no zip file" in capsys.readouterr().err
