"""Algorithms that would spoil a measurement: each ends its own trial with a reason that names it, and no other."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import bench.calibration
import bench.clock
from bench.calibration import Pinning
from bench.event_log import read_events
from bench.plan import make_plan
from bench.registry import Registry
from bench.request import Request
from bench.store import Store
from bench.trial import MEASURED
from bench.worker import work

HIDDEN = "which shows what algorithms do not see"
REASONS = {
    "sets-dtype": "sets-dtype.schedule changed torch's default dtype from torch.float32 to torch.float64",
    "sets-threads": "sets-threads.optimizer changed torch's number of threads from 1 to 3",
    "sets-device": "sets-device.adapt changed torch's stack of function modes (a default device is one of them) from 0",
    "stops-gradients": "stops-gradients.freezer changed torch's gradient mode from True to False",
    "sets-threads-in-forward": "sets-threads-in-forward changed torch's number of threads from 1 to 2",
    "stops-collector": "stops-collector changed the garbage collector from True to False",
    "takes-signals": f"takes-signals changed the handler of signal {int(signal.SIGUSR2)} from",
    "patches-clock": "patches-clock changed time.perf_counter from time.perf_counter to bench_micro.hostile.Patches",
    "turns-clock-back": "the clock went backwards, by ",
    "patches-loss": "patches-loss changed torch.nn.functional.cross_entropy from torch.nn.functional.cross_entropy to",
    "patches-defaults": "patches-defaults changed __defaults__ of torch.nn.functional.cross_entropy",
    "patches-method": "patches-method changed torch.nn.modules.linear.Linear.forward from",
    "patches-harness": "patches-harness changed bench.clock.Clock.columns from bench.clock.Clock.columns to",
    "patches-constant": "patches-constant changed bench.calibration.CONTENDED_ABOVE from 1.1 to 100.0",
    "patches-workload": "patches-workload changed bench_micro.workload.Micro.evaluate from",
    "leaves-thread": "leaves-thread.optimizer left the thread 'busy' running, in ",
    "leaves-process": "leaves-process.optimizer left the process ",
    "learns-in-evaluation": "learns-in-evaluation with adamw with warmup-linear changed the parameter 'hidden.weight'",
    "counts-in-evaluation": "counts-in-evaluation with adamw with warmup-linear changed the buffer 'seen' during an",
    "draws-from-torch": "draws-from-torch.optimizer drew from torch's global random generator, or seeded it",
    "draws-from-numpy": "draws-from-numpy.schedule drew from numpy's global random generator, or seeded it",
    "draws-from-python": "draws-from-python.freezer drew from Python's global random generator, or seeded it",
    "reseeds": "reseeds.optimizer drew from torch's global random generator, or seeded it",
    "writes-batch": "writes-batch.selector wrote into the batch: 'inputs' went from version 0 to 1",
    "adds-to-batch": "adds-to-batch.selector changed the batch itself, from the keys ['inputs', 'labels'] to",
    "writes-batch-late": "writes-batch-late.schedule wrote into the batch: 'labels' went from version 0 to 1",
    "reads-results": "reads-results.optimizer reached for '",
    "lists-results-quietly": "lists-results-quietly.optimizer looked into '",
    "reads-results-in-forward": "reads-results-in-forward with adamw with warmup-linear, in forward or backward, ",
    "reads-command": "reads-command.optimizer reached for '/proc/",
    "calls-home": "calls-home.optimizer reached for the network",
    "sees-objects": f"sees-objects.optimizer called gc.get_objects, {HIDDEN}",
    "walks-frames": f"walks-frames.optimizer called sys._getframe, {HIDDEN}",
    "walks-traceback": "walks-traceback.optimizer asked for a frame (tb_frame)",
    "traces": f"traces.optimizer called sys.settrace, {HIDDEN}",
    "listens-in": "listens-in.adapt added an audit hook",
    "writes-outside": "writes-outside.optimizer wrote to '",
    "removes-outside": "removes-outside.optimizer changed '",
}
"""What each of them does, as the record must say it."""

if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
    REASONS["moves-cores"] = "moves-cores changed the cores of the process from "

RESULTS = frozenset({"reads-results", "lists-results-quietly", "reads-results-in-forward"})
HONEST = ("joins-threads", "uses-the-library", "wanders", "blurs")
SHARED = (
    (time, "perf_counter"),
    (nn.functional, "cross_entropy"),
    (nn.Linear, "forward"),
    (bench.clock.Clock, "columns"),
    (bench.calibration, "CONTENDED_ABOVE"),
)


@pytest.fixture
def restored(micro_site, monkeypatch) -> Iterator[None]:
    """Put back what the plugins change: this is not the process of one trial."""
    monkeypatch.syspath_prepend(str(micro_site))
    workload = importlib.import_module("bench_micro.workload").Micro
    before = [(owner, name, getattr(owner, name)) for owner, name in (*SHARED, (workload, "evaluate"))]
    function = nn.functional.cross_entropy
    defaults, handler = function.__defaults__, signal.getsignal(signal.SIGUSR2)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    terminated = signal.getsignal(signal.SIGTERM)
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    gc.enable()
    for owner, name, value in before:
        setattr(owner, name, value)
    function.__defaults__ = defaults
    signal.signal(signal.SIGUSR2, handler)
    signal.signal(signal.SIGTERM, terminated)
    if cores is not None:
        os.sched_setaffinity(0, cores)


@pytest.fixture
def run_here(tmp_path, monkeypatch, restored):
    """Run a trial in this process, as the worker does in its own, but on one thread and no particular core."""
    monkeypatch.setattr("bench.worker.pin_threads", lambda _: Pinning(1, None, "a test"))

    def run(name: str) -> dict[str, object]:
        plan = make_plan(Registry(), Request(plugins=[name], workload="micro", reference=False))
        trial = Store(tmp_path / "results", create=True).folder(plan.trials[0]) / "trial.json"
        outside = tmp_path / "elsewhere"
        outside.write_text("what somebody else wrote")
        monkeypatch.setenv("BENCH_MICRO_TARGET", str(trial if name in RESULTS else outside))
        return work(trial)

    yield run
    hostile = sys.modules.get("bench_micro.hostile")
    if hostile is not None:
        hostile.GO_HOME.set()
        for thread in threading.enumerate():
            if thread.name == "busy":
                thread.join()
        hostile.GO_HOME.clear()
        for process in hostile.LEFT:
            process.kill()
            process.wait()
        hostile.LEFT.clear()


@pytest.mark.parametrize(("name", "reason"), REASONS.items(), ids=REASONS.keys())
def test_breach_ends_its_trial_with_a_reason_that_names_the_algorithm(run_here, tmp_path, name, reason):
    run_here(name)
    (row,) = pd.read_parquet(tmp_path / "results" / "trials").to_dict("records")
    assert row["outcome"] == "error"
    assert str(row["outcome_reason"]).startswith(reason)
    assert "\n" not in str(row["outcome_reason"])
    assert (tmp_path / "elsewhere").read_text() == "what somebody else wrote"


@pytest.mark.parametrize("name", HONEST)
def test_what_is_allowed_passes(run_here, name):
    row = run_here(name)
    assert row["outcome"] in {"reached", "missed"}, row["outcome_reason"]


def events_of(results: Path, row: dict[str, object]) -> list[dict[str, object]]:
    return read_events(results / "runs" / str(row["trial_id"]))


@pytest.mark.parametrize("method", ["model", "batches"])
def test_thread_that_the_workload_leaves_is_not_for_the_algorithm_to_answer(
    run_here, restored, leaving_thread, monkeypatch, method
):
    workload = importlib.import_module("bench_micro.workload").Micro
    monkeypatch.setattr(workload, method, leaving_thread(getattr(workload, method)))
    row = run_here("uses-the-library")
    assert row["outcome"] in MEASURED, row["outcome_reason"]


def test_thread_below_the_threading_module_is_found_as_well(run_here):
    row = run_here("leaves-raw-thread")
    assert row["outcome"] == "error"
    assert re.match(r"leaves-raw-thread(\.optimizer)? left the thread \d+ running, in ", str(row["outcome_reason"]))


class Jumping:
    """The module ``time``, with a clock that jumps ten seconds ahead once, as that of a machine that stood still."""

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def perf_counter(self) -> float:
        self.calls += 1
        return time.perf_counter() + (10.0 if self.calls > 60 else 0.0)


def test_clock_that_jumps_is_flagged_and_its_time_does_not_rank(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.clock.time", Jumping())
    row = run_here("adamw")
    assert row["outcome"] == "reached"
    assert row["time_s"] > 10, "the time is kept as it was charged"
    assert row["contended"] is True
    (jump,) = [event for event in events_of(tmp_path / "results", row) if event["event"] == "jumped"]
    assert re.match(r"1\d\.\d+ s were charged where the raw monotonic clock says 0\.\d+ s", str(jump["reason"]))


def test_wall_clock_that_is_set_back_changes_the_dates_and_nothing_else(run_here, tmp_path, monkeypatch):
    honest = run_here("adamw")
    (tmp_path / "results" / "runs" / str(honest["trial_id"]) / "events.jsonl").unlink()
    dates = iter(f"20{40 - number}-01-01T00:00:00Z" for number in range(40))
    monkeypatch.setattr("bench.provenance.now", lambda: next(dates))
    monkeypatch.setattr("time.time", lambda: 2e9 - 3600 * time.monotonic())  # runs backwards
    row = run_here("adamw")
    assert row["started_at"] > row["finished_at"]
    same = ("outcome", "quality", "steps_to_target", "best_quality", "trial_id")
    assert [row[name] for name in same] == [honest[name] for name in same]
    assert all(0 <= row[name] < 60 for name in ("time_s", "wall_s", "evaluation_s", "cpu_s", "warmup_s"))
    assert not any(event["event"] == "jumped" for event in events_of(tmp_path / "results", row))


# -- through the command line ------------------------------------------------------------------------------------------
def test_breaches_hurt_no_other_trial_and_the_same_command_goes_on(bench_here):
    plugins = "patches-clock,patches-at-import,adamw"
    answer = bench_here("run", "--plugin", plugins, "--workload", "micro", "--no-reference")
    assert (answer.code, answer.err) == (1, "")
    assert "Traceback" not in answer.out
    table = pd.read_parquet("results/trials").set_index("algorithm")
    assert table.outcome.to_dict() == {
        "adamw": "reached",
        "patches-at-import": "error",
        "patches-clock": "error",
    }
    assert math.isfinite(math.nan) is False, "the process of the command is as it was"
    reason = table.outcome_reason["patches-at-import"]
    assert reason.startswith(
        "importing patches-at-import changed math.isfinite from math.isfinite to bench_micro.patch"
    )
    again = bench_here("plan", "--plugin", "adamw,patches-clock", "--workload", "micro", "--format", "json")
    assert {row["algorithm"]: row["state"] for row in json.loads(again.out)} == {
        "adamw": "recorded",
        "patches-clock": "to do",
    }


def test_trial_finds_nothing_that_the_one_before_it_left(bench_here):
    """A file where temporary files go, a variable of the environment, a global of the module."""
    answer = bench_here("run", "--plugin", "leaves-traces", "--workload", "micro", "--seeds", "2", "--no-reference")
    assert answer.code == 0, answer.out
    table = pd.read_parquet("results/trials")
    assert sorted(table.seed) == [0, 1]
    assert set(table.outcome) <= {"reached", "missed"}, table.outcome_reason
