"""Whatever is killed at whatever moment, the same command goes on and ends in the record of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from bench.event_log import read_events
from bench.store import Store
from bench.trial import Trial
from bench.worker_environment import DIE_WITH_PARENT

pytestmark = pytest.mark.slow

EAGER = Path(__file__).parents[1] / "support" / "eager.py"
COMMAND = ("run", "--plugin", "wanders", "--with", "blurs", "--workload", "micro", "--no-reference")

CLOCK = {"time_s", "setup_s", "data_s", "gradient_s", "step_s", "finish_s", "evaluation_s", "checkpoint_s", "warmup_s"}
CLOCK |= {"wall_s", "cpu_s", "time_to_target_s", "time_to_target_interpolated_s"}
MEMORY = {"rss_peak_bytes"}
CALIBRATION = {"calibration_matmul_s", "calibration_copy_s", "calibration_matmul_spread", "calibration_copy_spread"}
CALIBRATION |= {"calibration_readings", "contended"}
PROVENANCE = {"attempts", "started_at", "finished_at", "command_line", "git_sha", "git_dirty"}
VARYING = CLOCK | MEMORY | CALIBRATION | PROVENANCE
"""The columns of ``trials`` in which a run that was killed may differ from one that was not; no others."""

CURVE_VARYING = {"time_s", "wall_s"}


def tables(results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return ``trials`` and ``curves`` without the columns that may differ."""
    trials, curves = pd.read_parquet(results / "trials"), pd.read_parquet(results / "curves")
    assert set(trials.columns) > VARYING
    assert set(curves.columns) > CURVE_VARYING
    return trials.drop(columns=list(VARYING)), curves.drop(columns=list(CURVE_VARYING))


def same(results: Path, undisturbed: Path) -> None:
    """Fail unless two stores hold the same records, every float to its last bit."""
    for found, wanted in zip(tables(results), tables(undisturbed), strict=True):
        pd.testing.assert_frame_equal(found, wanted, check_exact=True)


def trial_folder(results: Path) -> Path:
    (folder,) = (results / "runs").iterdir()
    return folder


def running(process_id: int) -> bool:
    """Whether a process is there and not a zombie that nobody has reaped."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, bench_in) -> Path:
    """The results of the command when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = bench_in(folder)(*COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "results"


def moments() -> list[str]:
    """Return ten moments of a run in order: a drawn step, and one of the things that happen in it."""
    draw = random.Random(20240)
    found = []
    for number, step in enumerate(sorted(draw.sample(range(1, 60), 10))):
        kind = ("batch", "selection", "evaluation", "save")[number % 4]
        at_evaluation = min(56, -(-step // 4) * 4)  # the last one is no checkpoint: the run is over
        found.append(f"{kind} {at_evaluation if kind in {'evaluation', 'save'} else step}")
    return found


def test_ten_kills_of_the_worker_leave_the_record_of_an_undisturbed_run(bench_here, monkeypatch, undisturbed):
    monkeypatch.setattr("bench.plan.CHECKPOINT_EVERY_S", 0.0)
    for attempt, moment in enumerate(moments(), start=1):
        answer = bench_here(*COMMAND, environment={"BENCH_MICRO_ORDER": f"kill {moment}"})
        assert answer.code == 1, (moment, answer)
        assert "interrupted: the worker was killed by SIGKILL" in answer.out, (moment, answer)
        row = pd.read_parquet("results/trials").iloc[0]
        assert (row.outcome, row.attempts) == ("interrupted", attempt)
    answer = bench_here(*COMMAND)
    assert answer.code == 0, answer
    assert "goes on from step 5" in answer.out
    same(Path("results"), undisturbed)
    assert pd.read_parquet("results/trials").attempts.tolist() == [11]


def test_no_finished_evaluation_is_lost_by_a_kill(bench_here, undisturbed):
    """Without any checkpoint the run begins again; what was evaluated before the kill is recorded until then."""
    answer = bench_here(*COMMAND, environment={"BENCH_MICRO_ORDER": "kill evaluation 20"})
    assert answer.code == 1
    wanted = pd.read_parquet(undisturbed / "curves").query("step <= 20").drop(columns=list(CURVE_VARYING))
    found = pd.read_parquet("results/curves").drop(columns=list(CURVE_VARYING))
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)


def test_kill_after_the_end_loses_nothing(bench_here, undisturbed):
    answer = bench_here(*COMMAND, environment={"BENCH_MICRO_ORDER": "kill end"})
    assert answer.code == 0, answer
    same(Path("results"), undisturbed)


def test_every_way_to_end_a_command_is_recorded_and_the_same_command_goes_on(
    bench, bench_here, eventually, tmp_path, undisturbed
):
    """One after the other: kill -9 of the parent, termination of the worker, Ctrl-C, kill -9 of both; then `resume`."""
    results, sign = tmp_path / "results", tmp_path / "sign"

    def begin(moment: str) -> tuple[subprocess.Popen[str], int]:
        """Start the command and wait until its worker has come to ``moment``."""
        sign.unlink(missing_ok=True)
        orders = {"BENCH_MICRO_ORDER": f"wait {moment}", "BENCH_MICRO_SIGN": str(sign)}
        parent = bench.start(*COMMAND, program=EAGER, **orders)
        eventually(lambda: sign.exists() or parent.poll() is not None)
        assert parent.poll() is None, parent.communicate()
        return parent, int(sign.read_text())

    parent, worker = begin("batch 10")
    parent.kill()
    eventually(lambda: not running(worker))
    assert [event["event"] for event in read_events(trial_folder(results))][-1] == "saved"

    parent, worker = begin("selection 21")
    os.kill(worker, signal.SIGTERM)
    out, _ = parent.communicate()
    assert parent.returncode == 1
    assert "goes on from step 8" in out
    assert "interrupted: Ctrl-C or a termination signal" in out
    assert pd.read_parquet(results / "trials").outcome.tolist() == ["interrupted"]

    parent, worker = begin("batch 33")
    parent.send_signal(signal.SIGINT)
    out, err = parent.communicate()
    assert parent.returncode == 130
    assert "Traceback" not in out + err
    assert err.strip() == "Error: interrupted; give the same command again to go on"
    assert not running(worker)
    row = pd.read_parquet(results / "trials").iloc[0]
    assert (row.outcome, row.outcome_reason, row.attempts) == ("interrupted", "Ctrl-C or a termination signal", 3)

    parent, worker = begin("save 40")
    os.kill(worker, signal.SIGKILL)
    parent.kill()
    eventually(lambda: not running(worker))

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    answer = bench_here("resume", "--results", results)
    assert (answer.code, answer.out) == (0, "wanders on micro tiny, seed 0 ... reached\n")
    assert [event["step"] for event in read_events(trial_folder(results)) if event["event"] == "started"][-1] == 36
    same(results, undisturbed)
    assert pd.read_parquet(results / "trials").attempts.tolist() == [5]
    again = bench_here("resume", "--results", results)
    assert (again.code, again.out) == (0, "nothing to go on with: every trial has its outcome\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_worker_whose_parent_ended_while_it_started_does_nothing(bench, planned):
    folder = planned(bench.folder / "results")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = bench("worker", folder / "trial.json", **{DIE_WITH_PARENT: str(gone.pid)})
    assert done.returncode == -signal.SIGKILL
    assert read_events(folder) == []


@pytest.fixture
def planned(bench_here):
    """Make a store that holds a trial which never ran; returns the trial's folder."""
    from bench.plan import make_plan
    from bench.registry import Registry
    from bench.request import Request

    def make(results: Path) -> Path:
        plan = make_plan(Registry(), Request(plugins=["adamw"], workload="micro", reference=False))
        return Store(results, create=True).folder(plan.trials[0])

    return make


def test_run_waits_for_a_trial_that_another_process_runs(bench, planned):
    folder = planned(bench.folder / "results")
    with FileLock(folder / "lock"):
        process = bench.start("run", "--plugin", "adamw", "--workload", "micro", "--no-reference")
        lines = iter(process.stdout.readline, "")
        assert any("waiting: another process runs adamw, seed 0" in line for line in lines)
        assert read_events(folder) == []
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "adamw, seed 0: reached" in out


def test_a_trial_that_another_process_runs_is_left_alone(bench_here, planned):
    folder = planned(Path("results").absolute())
    trial = Trial.read(folder / "trial.json")
    with FileLock(folder / "lock"):
        (folder / "events.jsonl").write_text('{"event": "evaluated", "st')
        for command in (("worker", folder / "trial.json"), ("resume",)):
            answer = bench_here(*command)
            assert answer.code == 2, answer
            assert f"Error: another process runs the trial {trial.trial_id} now" in answer.err
            assert "Traceback" not in answer.out + answer.err
            assert (folder / "events.jsonl").read_text() == '{"event": "evaluated", "st', "the other one writes it"
