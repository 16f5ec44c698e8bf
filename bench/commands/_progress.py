"""Progress of trials: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from bench.commands._print import seconds_text

if TYPE_CHECKING:
    from bench.plan import Plan
    from bench.trial import Trial

LINES_PER_TRIAL = 10


class Progress:
    """Shows one line per trial: loss, metric, distance to the target, time left."""

    def __init__(self, plan: Plan) -> None:
        self._tier = plan.workload.tier
        self._workload = plan.workload
        self._console = Console(highlight=False)
        self._total = plan.size
        self._searched = plan.protocol.search != "published"
        self._number = 0
        self._task: TaskID | None = None
        self._started = 0.0
        self._first: tuple[float, int] | None = None
        self._printed = -1
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[state]}"))
        self._bars = Bars(*columns, console=self._console, disable=not self._console.is_terminal)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def skip(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """Say that a trial is recorded already."""
        self._number += 1
        self._console.print(escape(f"{self._name(trial)}: recorded already ({row['outcome']})"))

    def start(self, trial: Trial) -> None:
        """A trial begins."""
        self._number += 1
        self._started, self._first, self._printed = time.monotonic(), None, -1
        self._task = self._bars.add_task(escape(self._name(trial)), total=self._tier.steps, state="starting")
        if not self._console.is_terminal:
            self._console.print(escape(f"{self._name(trial)}: starting"))

    def event(self, event: Mapping[str, Any]) -> None:
        """Show an event of the running trial."""
        if event["event"] == "started" and event["resumed"]:
            self._console.print(f"  goes on from step {event['step']}")
        if event["event"] == "unsaved":
            self._console.print(escape(f"  goes on without a new checkpoint: {event['reason']}"), soft_wrap=True)
        if event["event"] != "evaluated" or self._task is None:
            return
        state = self._state(event)
        self._bars.update(self._task, completed=event["step"], state=escape(state))
        tenth = LINES_PER_TRIAL * event["step"] // self._tier.steps
        if not self._console.is_terminal and tenth > self._printed:
            self._printed = tenth
            where = f"{self._workload.unit} {event['step']}/{self._tier.steps}"
            self._console.print(escape(f"  {where}  {state}"), soft_wrap=True)

    def end(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """A trial ended with ``row``."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        reason = f": {row['outcome_reason']}" if row["outcome_reason"] else ""
        took = seconds_text(time.monotonic() - self._started)
        self._console.print(escape(f"{self._name(trial)}: {row['outcome']}{reason} ({took})"), soft_wrap=True)

    def wait(self, trial: Trial) -> None:
        """Another process runs a trial of this plan, and nothing else is left to do."""
        self._console.print(escape(f"waiting: another process runs {trial.algorithm.name}, seed {trial.seed}"))

    def _name(self, trial: Trial) -> str:
        where = f"study {trial.study}, point {trial.point}, " if self._searched else ""
        again = ", repeated" if trial.phase == "rerun" else ""
        return f"[{self._number}/{self._total}] {trial.algorithm.name}, {where}seed {trial.seed}{again}"

    def _state(self, event: Mapping[str, Any]) -> str:
        quality, train_loss = float(event["quality"]), event["train_loss"]
        words = [self._workload.at(event["step"])] if event["step"] else []
        words += [] if train_loss is None else [f"train {float(train_loss):.3f}"]
        words.append(f"{self._workload.metric} {quality:.3f}")
        if self._workload.target is not None and event["step"] >= self._workload.judged_from_step:
            sign = 1.0 if self._workload.direction == "min" else -1.0
            distance = sign * (quality - self._workload.target.value)
            words.append(f"target {distance:+.3f}" if distance > 0 else "target reached")
        left = self._seconds_left(event["step"])
        words.append("" if math.isnan(left) else f"{seconds_text(left)} left")
        return "  ".join(word for word in words if word)

    def _seconds_left(self, step: int) -> float:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, step)
        then, first = self._first
        if step <= first:
            return math.nan
        return (self._tier.steps - step) * (now - then) / (step - first)
