"""Run trials, one fresh process each, on this machine. Any other executor starts the same command: ``bench worker``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import event_log, provenance
from bench.errors import BenchError, CannotWrite
from bench.event_log import EventLog, read_events
from bench.files import writing
from bench.guards.place import sweep
from bench.locks import locked
from bench.store import Store
from bench.trial import Trial
from bench.worker_environment import DIE_WITH_PARENT

POLL_S = 0.2
GRACE_S = 60.0
"""How long a worker may overrun its own timeout (a hanging step) before it is killed, and may take to stop."""
STOP_AGAIN_S = 5.0
CANNOT_WRITE = 2
"""The exit code of a worker that had to stop because the results cannot be written, as every command's."""

OnEvent = Callable[[Mapping[str, Any]], None]


def run_trial(trial: Trial, store: Store, on_event: OnEvent = lambda _: None) -> dict[str, Any]:
    """Run ``trial`` in a fresh process and return its row; ``on_event`` sees each event as it is logged.

    A trial whose process dies, hangs or is interrupted still ends in a row: outcome ``interrupted`` or ``timeout``.
    Ctrl-C stops the worker, derives the row of what was measured, and is raised again. Raises
    :class:`~bench.errors.TrialBusy` where another process runs the trial, of which nothing is touched then, and
    :class:`~bench.errors.CannotWrite` where the results cannot be written, so that the next trial is not even begun.
    """
    folder = store.folder(trial)
    seen = _Seen(len(read_events(folder)))
    process = _start(folder)
    started = time.monotonic()
    reason = ""
    try:
        while process.poll() is None:
            _report(folder, seen, on_event)
            if time.monotonic() - started > trial.timeout_s + GRACE_S:
                reason = f"no end {GRACE_S:g} s after the timeout of {trial.timeout_s:g} s; killed"
                process.kill()
            time.sleep(POLL_S)
    except BaseException:  # Ctrl-C above all; but nothing that ends this process may leave the worker behind
        _stop(process)
        _clear_up(process)
        with contextlib.suppress(BenchError):  # the row can be derived later; what ended this process is told now
            store.finalise(trial)
        raise
    _clear_up(process)
    _report(folder, seen, on_event)
    ended = _ended(folder)
    if not ended:
        outcome = "timeout" if reason else "interrupted"
        reason = reason or f"the worker {_how_it_ended(process.returncode)}; see runs/{trial.trial_id}/worker.log"
        with locked(folder / "lock", f"another process runs the trial {trial.trial_id} now"):
            EventLog(folder).write("finished", outcome=outcome, reason=reason, at=provenance.now(), cost={})
    row = store.finalise(trial)
    if ended and process.returncode == CANNOT_WRITE and row["outcome"] == "interrupted":
        raise CannotWrite(str(row["outcome_reason"]), hint="see to that, then give the same command again: it goes on")
    return row


def _start(folder: Path) -> subprocess.Popen[bytes]:
    path = folder / "worker.log"
    with writing(path):
        output = path.open("ab")
    with output:
        try:
            return subprocess.Popen(  # noqa: S603 - our own program
                # -P: a folder named bench in the working directory (a clone of this project) must not be imported
                [sys.executable, "-P", "-m", "bench", "worker", str(folder / "trial.json")],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {DIE_WITH_PARENT: str(os.getpid())},
                start_new_session=True,  # Ctrl-C reaches this process, which then stops the worker in order
            )
        except OSError as error:  # too many processes, no memory for another one
            raise BenchError(
                f"cannot start a worker: {error.strerror}", hint="give the same command again when there is room"
            ) from error


@dataclass
class _Seen:
    """How many events were told, and how long the log was then."""

    events: int
    log_bytes: int = -1


def _report(folder: Path, seen: _Seen, on_event: OnEvent) -> None:
    """Tell of each new event; a log that has not grown is not read, so that looking costs the worker nothing."""
    with contextlib.suppress(OSError):
        log_bytes = (folder / event_log.NAME).stat().st_size
        if log_bytes == seen.log_bytes:
            return
        seen.log_bytes = log_bytes
    events = read_events(folder)
    for event in events[seen.events :]:
        on_event(event)
    seen.events = len(events)


def _ended(folder: Path) -> bool:
    events = read_events(folder)
    return bool(events) and events[-1]["event"] == "finished"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the worker to end, more than once: some imports swallow the exception that a signal becomes."""
    end = time.monotonic() + GRACE_S
    while process.poll() is None and time.monotonic() < end:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_AGAIN_S)
    process.kill()
    process.wait()


def _clear_up(process: subprocess.Popen[bytes]) -> None:
    """End what an ended worker left running, so that it costs the next trial nothing, and remove its private folder."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    sweep()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (perhaps the system ran out of memory)" if name == "SIGKILL" else "")
