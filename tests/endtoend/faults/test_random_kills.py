"""kill -9 at random times, of the worker, of its parent, of both: the same command ends in the undisturbed record."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from bench.inspection import inspect
from bench.store import Store

COMMAND = ("run", "--plugin", "wanders", "--with", "blurs", "--workload", "micro", "--no-reference", "--results")
ROUNDS = 8


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> tuple[Path, float]:
    """The results of the command when nobody disturbs it, and how long it took."""
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    started = time.monotonic()
    done = server(*COMMAND, results, eager=True)
    assert done.code == 0, done.text
    return results, time.monotonic() - started


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def strike(pid: int) -> None:
    """Kill a process that may have ended at this very moment."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("victims", ["worker", "parent", "both"])
def test_killed_at_random_times_it_ends_in_the_undisturbed_record(
    forks, tmp_path, undisturbed, same, sound, soon, victims
):
    wanted, took_s = undisturbed
    results = tmp_path / "results"
    draw = random.Random(f"kills of {victims}")
    kills = 0
    for _ in range(ROUNDS):
        command = forks.start(*COMMAND, results, eager=True)
        time.sleep(draw.uniform(0.05, 0.6) * took_s)
        workers = command.workers()
        if victims != "parent":
            for worker in workers:
                strike(worker)
        if victims != "worker":
            strike(command.pid)
        ended = forks.wait(command)
        kills += ended.code != 0
        assert "Traceback" not in ended.text
        soon(lambda pids=tuple(workers): not any(map(alive, pids)))
        if (results / "store.json").exists():
            rows = sound(results, "missing", "stale", "row")
            assert set(rows["outcome"] if len(rows) else ()) <= {"interrupted", "reached"}
    done = forks(*COMMAND, results, eager=True)
    assert done.code == 0, done.text
    same(results, wanted)
    assert kills > 0
    assert [finding for finding in inspect(results) if finding.kind not in {"stale", "note"}] == []


def test_a_repair_killed_at_random_times_can_be_given_again(forks, tmp_path, undisturbed):
    wanted, _ = undisturbed
    draw = random.Random("kills of a repair")
    results = tmp_path / "results"
    results.mkdir()
    for path in sorted(wanted.rglob("*")):
        target = results / path.relative_to(wanted)
        target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    before = repr(Store(results).table("trials").to_pylist())
    for _ in range(6):
        (row,) = (results / "trials").glob("*.parquet") if (results / "trials").exists() else [None]
        if row is not None:
            row.write_bytes(row.read_bytes()[: draw.randrange(9000)])
        (results / "store.json").unlink(missing_ok=True)
        command = forks.start("repair", "--results", results)
        time.sleep(draw.uniform(0, 0.25))
        strike(command.pid)
        assert forks.wait(command).code in {0, -signal.SIGKILL}
        done = forks("repair", "--results", results)
        assert done.code == 0, done.text
        assert [finding for finding in inspect(results) if finding.damaged] == []
        assert repr(Store(results).table("trials").to_pylist()) == before
