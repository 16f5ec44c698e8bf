"""Run trials, one fresh process each, on this machine. Any other executor starts the same command: ``bench worker``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench import provenance
from bench.errors import TrialBusy
from bench.event_log import EventLog, read_events
from bench.store import Store
from bench.trial import Trial
from bench.worker_environment import DIE_WITH_PARENT

POLL_S = 0.2
GRACE_S = 60.0
"""How long a worker may overrun its own timeout (a hanging step) before it is killed, and may take to stop."""
STOP_AGAIN_S = 5.0

OnEvent = Callable[[Mapping[str, Any]], None]


def run_trial(trial: Trial, store: Store, on_event: OnEvent = lambda _: None) -> dict[str, Any]:
    """Run ``trial`` in a fresh process and return its row; ``on_event`` sees each event as it is logged.

    A trial whose process dies, hangs or is interrupted still ends in a row: outcome ``interrupted`` or ``timeout``.
    Ctrl-C stops the worker, derives the row of what was measured, and is raised again. Raises
    :class:`~bench.errors.TrialBusy` where another process runs the trial; nothing of it is touched then.
    """
    folder = store.folder(trial)
    seen = len(read_events(folder))
    with (folder / "worker.log").open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            # -P: a folder named bench in the working directory (a clone of this project) must not be imported instead
            [sys.executable, "-P", "-m", "bench", "worker", str(folder / "trial.json")],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {DIE_WITH_PARENT: str(os.getpid())},
            start_new_session=True,  # Ctrl-C reaches this process, which then stops the worker in order
        )
    started = time.monotonic()
    reason = ""
    try:
        while process.poll() is None:
            seen = _report(folder, seen, on_event)
            if time.monotonic() - started > trial.timeout_s + GRACE_S:
                reason = f"no end {GRACE_S:g} s after the timeout of {trial.timeout_s:g} s; killed"
                process.kill()
            time.sleep(POLL_S)
    except BaseException:  # Ctrl-C above all; but nothing that ends this process may leave the worker behind
        _stop(process)
        store.finalise(trial)
        raise
    _report(folder, seen, on_event)
    if not _ended(folder):
        outcome = "timeout" if reason else "interrupted"
        reason = reason or f"the worker {_how_it_ended(process.returncode)}; see runs/{trial.trial_id}/worker.log"
        try:
            with FileLock(folder / "lock", timeout=0):
                EventLog(folder).write("finished", outcome=outcome, reason=reason, at=provenance.now(), cost={})
        except Timeout:
            raise TrialBusy(f"another process runs the trial {trial.trial_id} now", hint="wait for it") from None
    return store.finalise(trial)


def _report(folder: Path, seen: int, on_event: OnEvent) -> int:
    events = read_events(folder)
    for event in events[seen:]:
        on_event(event)
    return len(events)


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


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (perhaps the system ran out of memory)" if name == "SIGKILL" else "")
