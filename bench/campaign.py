"""Run a plan: study by study, what is recorded already skipped, what a study selected repeated at its end.

Any number of processes may run the same plan on the same store: each takes the trials that no other one runs, and
waits for the rest before it repeats what a study selected.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bench.errors import TrialBusy
from bench.executor import run_trial
from bench.plan import Plan
from bench.store import Store
from bench.trial import Trial

WAIT_S = 2.0
"""How long to wait before asking again whether another process has finished its trial."""


class Listener(Protocol):
    """Who wants to know how a campaign goes; ``row`` is a row of ``trials``, ``event`` one of the running trial."""

    def skip(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """``trial`` is recorded already."""

    def start(self, trial: Trial) -> None:
        """``trial`` begins."""

    def event(self, event: Mapping[str, Any]) -> None:
        """The running trial logged ``event``."""

    def end(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """``trial`` ended."""

    def wait(self, trial: Trial) -> None:
        """``trial`` is being run by another process, and nothing else is left to do until it ends."""


class Silence:
    """A listener that says nothing."""

    def skip(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """Say nothing."""

    def start(self, trial: Trial) -> None:
        """Say nothing."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Say nothing."""

    def end(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """Say nothing."""

    def wait(self, trial: Trial) -> None:
        """Say nothing."""


def run_plan(plan: Plan, store: Store, listener: Listener) -> list[dict[str, Any]]:
    """Run what ``plan`` asks for and ``store`` does not have yet; return the rows of all its trials.

    Whatever stops it, the same call goes on: every finished trial is kept, and an interrupted one continues.
    """
    store.keep(plan.protocol)
    rows: list[dict[str, Any]] = []
    for number, trials in enumerate(plan.studies):
        tried = _run_all(trials, store, listener)
        rows += tried + _run_all(plan.reruns(number, tried), store, listener)
    return rows


def known_trials(plan: Plan, store: Store | None) -> list[Trial]:
    """Return the trials that can be named now: all points, and the repetitions of studies that are through."""
    found: list[Trial] = []
    for number, trials in enumerate(plan.studies):
        rows = [store.finished(trial) for trial in trials] if store is not None else [None]
        done = [row for row in rows if row is not None]
        found += [*trials, *(plan.reruns(number, done) if len(done) == len(trials) else [])]
    return found


def _run_all(trials: Sequence[Trial], store: Store, listener: Listener) -> list[dict[str, Any]]:
    """Return the rows of ``trials``; those that another process runs at the moment are asked for again later."""
    rows: dict[str, dict[str, Any]] = {}
    waiting = False
    while left := [trial for trial in trials if trial.trial_id not in rows]:
        before = len(rows)
        for trial in left:
            if not store.is_running(trial):
                try:
                    with store.claim(trial):
                        rows[trial.trial_id] = _run(trial, store, listener)
                except TrialBusy:  # it was started elsewhere at the same moment
                    continue
        if len(rows) == before:
            if not waiting:
                listener.wait(left[0])
            waiting = True
            time.sleep(WAIT_S)
    return [rows[trial.trial_id] for trial in trials]


def _run(trial: Trial, store: Store, listener: Listener) -> dict[str, Any]:
    if store.finished(trial) is not None:
        row = store.finalise(trial)
        listener.skip(trial, row)
        return row
    listener.start(trial)
    row = run_trial(trial, store, listener.event)
    listener.end(trial, row)
    return row
