"""Algorithms that fail, hang or use everything up: an outcome of the record with a reason, and nothing else is hurt."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from bench.event_log import read_events
from bench.record import TRIALS
from bench.store import Store

AT_ONCE = {
    "raises-in-adapt": "raises-in-adapt.adapt raised RuntimeError: adapt is out of order",
    "raises-in-freezer": "raises-in-freezer.freezer raised RuntimeError: freezer is out of order",
    "raises-in-optimizer": "raises-in-optimizer.optimizer raised RuntimeError: optimizer is out of order",
    "raises-in-schedule": "raises-in-schedule.schedule raised RuntimeError: schedule is out of order",
    "raises-in-selector": "raises-in-selector.selector raised RuntimeError: selector is out of order",
    "raises-in-learner": "raises-in-learner.learner raised RuntimeError: learner is out of order",
    "raises-in-finish": "raises-in-finish.finish raised RuntimeError: finish is out of order",
    "exits-in-optimizer": "exits-in-optimizer.optimizer raised SystemExit: a plugin must not end the process",
    "returns-no-model": "returns-no-model.adapt returned None (NoneType); it must return a torch.nn.modules",
    "returns-no-freezer": "returns-no-freezer.freezer returned 3 (int); it must return something callable",
    "returns-no-optimizer": "returns-no-optimizer.optimizer returned {'lr': 0.1} (dict); it must return a torch.optim",
    "returns-no-schedule": "returns-no-schedule.schedule returned 0.5 (float); it must return something callable",
    "returns-no-selector": "returns-no-selector.selector returned [1, 2, 3] (list); it must return something callable",
    "returns-no-learner": "returns-no-learner.learner returned 'learned' (str); it must return something callable",
    "returns-no-finished-model": "returns-no-finished-model.finish returned OrderedDict(",
    "forgets-parameters": "forgets-parameters.optimizer must hold each trainable parameter once: it forgets ['",
}
"""Faults when the run is built, and the beginnings of the reasons that the record must give."""

IN_A_STEP = {
    "freezes-wrongly": "freezes-wrongly.freezer raised ZeroDivisionError: a divisor was zero",
    "steps-wrongly": "steps-wrongly.optimizer raised ZeroDivisionError: a divisor was zero",
    "closes-wrongly": "closes-wrongly.optimizer raised ZeroDivisionError: a divisor was zero",
    "schedules-wrongly": "schedules-wrongly.schedule raised ZeroDivisionError: a divisor was zero",
    "selects-wrongly": "selects-wrongly.selector raised ZeroDivisionError: a divisor was zero",
    "learns-wrongly": "learns-wrongly.learner raised ZeroDivisionError: a divisor was zero",
    "returns-no-batch": "returns-no-batch.selector returned NoneType",
    "returns-no-factor": "returns-no-factor.schedule raised ValueError: could not convert string to float: 'fast'",
    "returns-no-loss": "returns-no-loss.learner: its step returned NoneType; it must return the loss",
    "returns-no-closure-loss": "returns-no-closure-loss.optimizer: its step returned NoneType; it must return the loss",
}

EXHAUSTED = {
    "hoards": ("out_of_memory", "DefaultCPUAllocator: can't allocate memory"),
    "hoards-host": ("out_of_memory", "MemoryError"),
    "hoards-device": ("out_of_memory", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    "diverges": ("diverged", "loss is nan"),
    "nan-loss": ("diverged", "loss is nan"),
    "infinite-loss": ("diverged", "loss is nan"),
    "nan-gradient": ("diverged", "loss is nan"),
    "infinite-gradient": ("diverged", "loss is nan"),
}


def stored(results: Path) -> dict[str, object]:
    """Return the only row of ``trials``, as pandas reads it."""
    (row,) = pd.read_parquet(results / "trials").to_dict("records")
    return row


@pytest.mark.parametrize(("name", "reason"), (AT_ONCE | IN_A_STEP).items(), ids=(AT_ONCE | IN_A_STEP).keys())
def test_fault_is_recorded_with_algorithm_and_slot_in_one_line(run_here, tmp_path, name, reason):
    run_here(name)
    row = stored(tmp_path / "results")
    assert row["outcome"] == "error"
    assert str(row["outcome_reason"]).startswith(reason)
    assert "\n" not in str(row["outcome_reason"])


@pytest.mark.parametrize(("name", "expected"), EXHAUSTED.items(), ids=EXHAUSTED.keys())
def test_what_is_used_up_is_an_outcome_of_its_own(run_here, tmp_path, name, expected):
    run_here(name)
    row = stored(tmp_path / "results")
    outcome, reason = expected
    assert row["outcome"] == outcome
    assert reason in str(row["outcome_reason"])
    assert "\n" not in str(row["outcome_reason"])


def test_divergence_keeps_the_curve_up_to_the_number_that_is_none(run_here, tmp_path):
    run_here("diverges")
    curve = pd.read_parquet(tmp_path / "results" / "curves")
    assert curve.step.tolist() == [0, 4, 8, 12]
    assert curve.quality.isna().tolist() == [False, False, False, True]
    row = stored(tmp_path / "results")
    assert row["steps"] == 12
    assert row["best_quality"] == curve.quality.min()


def test_trial_that_takes_too_long_is_a_timeout(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.plan.default_tier", lambda *_: "deadline")
    run_here("dawdles")
    row = stored(tmp_path / "results")
    assert (row["outcome"], row["outcome_reason"]) == ("timeout", "over 1 s of wall-clock time")
    assert 0 < row["steps"] < 60


# -- through the command line ------------------------------------------------------------------------------------------
def test_value_that_only_the_model_can_refuse_is_an_error_that_says_what_is_allowed(bench_here):
    arguments = ("--plugin", "galore", "--set", "rank=4096", "--workload", "micro", "--no-reference")
    assert bench_here("run", *arguments).code == 1
    reason = pd.read_parquet("results/trials").outcome_reason.item()
    assert re.fullmatch(
        r"galore: rank = 4096 \(int\) is not allowed for 'hidden\.weight' of shape \((\d+), (\d+)\); "
        r"rank is an int, 1 <= rank <= (\1|\2), the matrix's short side",
        reason,
    )


def test_failing_algorithms_hurt_no_other_trial_of_the_command(bench_here):
    plugins = "raises-in-selector,returns-no-optimizer,hoards,diverges"
    answer = bench_here("run", "--plugin", plugins, "--workload", "micro")
    assert answer.code == 1
    assert answer.err == ""
    assert "Traceback" not in answer.out
    table = pd.read_parquet("results/trials").set_index("algorithm")
    assert table.outcome.to_dict() == {
        "adamw": "reached",
        "diverges": "diverged",
        "hoards": "out_of_memory",
        "raises-in-selector": "error",
        "returns-no-optimizer": "error",
    }
    assert list(pd.read_parquet("results/trials").columns) == TRIALS.names
    assert "error: raises-in-selector.selector raised RuntimeError: selector is out of order (" in answer.out
    assert "error: returns-no-optimizer.optimizer returned {'lr': 0.1} (dict)" in answer.out
    logs = {path.parent.name: path.read_text() for path in Path("results/runs").glob("*/worker.log")}
    assert "Traceback" in logs[table.trial_id["raises-in-selector"]], (
        "the details are kept for whoever wrote the plugin"
    )
    planned = json.loads(bench_here("plan", "--plugin", plugins, "--workload", "micro", "--format", "json").out)
    assert {row["algorithm"]: row["state"] for row in planned} == {
        "adamw": "recorded",
        "diverges": "recorded",
        "hoards": "to do",
        "raises-in-selector": "to do",
        "returns-no-optimizer": "to do",
    }
    board = bench_here("leaderboard")
    assert (board.code, board.err) == (0, "")


def test_step_that_never_ends_is_killed_and_recorded_as_timeout(bench_here, monkeypatch):
    monkeypatch.setattr("bench.executor.GRACE_S", 6.0)
    arguments = ("run", "--plugin", "hangs", "--workload", "micro", "--tier", "deadline", "--no-reference")
    answer = bench_here(*arguments)
    assert answer.code == 1
    row = stored(Path("results"))
    assert row["outcome"] == "timeout"
    assert row["outcome_reason"] == "no end 6 s after the timeout of 1 s; killed"
    again = bench_here(*arguments)
    assert "recorded already (timeout)" in again.out
    assert again.code == 1


def test_display_that_fails_leaves_no_worker_behind(bench_here, monkeypatch, tmp_path, eventually):
    """Whatever ends the parent, also a closed pipe, ends the worker first."""

    def fail(*_):
        raise SystemExit("the display is gone")

    monkeypatch.setattr("bench.commands._progress.Progress.event", fail)
    sign = tmp_path / "sign"
    with pytest.raises(SystemExit, match="the display is gone"):
        bench_here(
            *("run", "--plugin", "adamw", "--workload", "micro"),
            environment={"BENCH_MICRO_ORDER": "wait batch 20", "BENCH_MICRO_SIGN": str(sign)},
        )
    (folder,) = Path("results/runs").iterdir()
    assert read_events(folder)[-1]["outcome"] == "interrupted"


# -- damage to the files -----------------------------------------------------------------------------------------------
@pytest.fixture
def done(run_here, tmp_path):
    """A finished trial: its folder and its row."""
    row = run_here("adamw")
    assert row["outcome"] == "reached"
    return tmp_path / "results" / "runs" / str(row["trial_id"]), row


def test_cut_log_is_read_up_to_the_cut_and_the_trial_runs_again(done, run_here, tmp_path):
    folder, row = done
    log = folder / "events.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    store = Store(tmp_path / "results")
    (trial,) = store.unfinished()
    assert store.finalise(trial)["outcome"] == "interrupted"
    again = run_here("adamw")
    assert again["attempts"] == 2
    assert all(again[name] == row[name] for name in ("outcome", "quality", "steps_to_target", "trial_id"))
    assert len(pd.read_parquet(tmp_path / "results" / "curves")) == 16


def test_damaged_log_is_refused_with_file_and_line(done, bench_here):
    folder, _ = done
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join([*lines[:3], "not an event\n", *lines[3:]]))
    for arguments in (("run", "--plugin", "adamw", "--workload", "micro"), ("resume",)):
        answer = bench_here(*arguments)
        assert answer.code == 2
        assert "events.jsonl, line 4 is not an event: b'not an event'" in answer.err
        assert "Traceback" not in answer.out + answer.err


def test_damaged_checkpoint_is_an_outcome_and_the_next_run_begins_again(done, run_here, tmp_path):
    folder, row = done
    log = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(log[:6]))
    (folder / "checkpoint.pt").write_bytes(b"PK and nothing more")
    broken = run_here("adamw")
    assert broken["outcome"] == "error"
    assert "checkpoint" in str(broken["outcome_reason"])
    (folder / "checkpoint.tmp").write_bytes(b"PK")
    again = run_here("adamw")
    assert (again["outcome"], again["quality"]) == (row["outcome"], row["quality"])
    assert list(folder.glob("checkpoint*")) == []


def test_file_in_the_place_of_a_folder_is_refused(bench_here, tmp_path):
    Store(tmp_path / "results", create=True)
    (tmp_path / "results" / "runs").write_text("a file")
    answer = bench_here("run", "--plugin", "adamw", "--workload", "micro")
    assert answer.code == 2
    assert "results" in answer.err
    assert "Traceback" not in answer.out + answer.err


def test_broken_plugin_that_is_not_used_hurts_nothing(run_here, monkeypatch, broken_site):
    monkeypatch.syspath_prepend(str(broken_site))
    assert run_here("adamw")["outcome"] == "reached"
