"""Turn the evaluations of a trial into events: what it costs so far, whether it ends here, when to save."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import checkpoint, loop
from bench.assembly import Parts
from bench.calibration import Calibration
from bench.clock import Clock
from bench.crossing import is_hit
from bench.errors import CannotWrite
from bench.event_log import EventLog
from bench.post import Post
from bench.probes import AllocatorPeaks, EnergyMeter, adapter_bytes, optimizer_state_bytes, rss_peak_bytes
from bench.trial import Trial
from bench.workload import Workload


def vars_of(reading: Any) -> dict[str, Any]:
    """Return the fields of a reading as record columns."""
    return {name: getattr(reading, name) for name in reading.__dataclass_fields__}


def tell(hook: Callable[..., Any], **facts: Any) -> None:
    """Call a hook; one that raises is told in the worker's log and ends nothing, since it only looks on."""
    try:
        hook(**facts)
    except Exception:  # noqa: BLE001 - a stranger's code
        with contextlib.suppress(OSError):  # a disk without space for the worker's log
            traceback.print_exc()


@dataclass
class Recorder:
    """Turns evaluations into events, decides when to stop, and writes checkpoints."""

    trial: Trial
    workload: Workload
    log: EventLog
    clock: Clock
    calibration: Calibration
    allocator: AllocatorPeaks
    energy: EnergyMeter
    checkpoint_path: Path
    hooks: Any
    parts: Parts | None = None
    post: Post | None = None
    started: float = field(default_factory=time.monotonic)
    wall_before_s: float = 0.0
    saved: float = field(default_factory=time.monotonic)
    hit_step: int | None = None
    outcome: tuple[str, str] | None = None

    def observe(self, evaluation: loop.Evaluation) -> bool:
        """Log one evaluation; return whether the trial ends here."""
        self.calibration.measure()
        if jump := self.clock.witness.look():
            self.log.write("jumped", step=evaluation.step, reason=jump)
        quality = evaluation.metrics[self.workload.metric]
        event = self.log.write(
            "evaluated",
            step=evaluation.step,
            quality=quality,
            metrics=evaluation.metrics,
            train_loss=evaluation.train_loss,
            learning_rate=evaluation.learning_rate,
            cost=self.cost(),
        )
        tell(self.hooks.bench_evaluated, trial=self.trial.model_dump(mode="json"), evaluation=event)
        self.outcome = self._judge(evaluation.step, quality)
        due = self.parts is not None and time.monotonic() - self.saved >= self.trial.checkpoint_every_s
        if self.outcome is None and due and evaluation.step > 0:  # before the first step there is nothing to keep
            self._save(evaluation.step)
        return self.outcome is not None

    def _judge(self, step: int, quality: float) -> tuple[str, str] | None:
        """Return outcome and reason if the trial ends with this evaluation."""
        tier = self.workload.tier
        over = tier.budget_s is not None and self.clock.total_s > tier.budget_s
        if self.hit_step is None and step >= self.workload.judged_from_step and self._is_hit(quality):
            self.hit_step = step
        patience = math.inf if tier.patience_steps is None else tier.patience_steps
        patient = self.hit_step is None or step < self.hit_step + patience
        if not math.isfinite(quality) and self.hit_step is None:
            return "diverged", f"{self.workload.metric} is {quality}"
        if math.isfinite(quality) and step < tier.steps and not over and patient:
            if self.wall_s() <= self.trial.timeout_s:
                return None
            if self.hit_step is None:
                return "timeout", f"over {self.trial.timeout_s:g} s of wall-clock time"
        if self.hit_step is not None:
            return "reached", ""
        if self.workload.target is None:
            return "completed", "no target is set for this tier and data"
        return "missed", ""

    def _is_hit(self, quality: float) -> bool:
        target = self.workload.target
        return is_hit(
            quality,
            self.clock.total_s,
            target=None if target is None else target.value,
            direction=self.workload.direction,
            budget_s=self.workload.tier.budget_s,
        )

    def wall_s(self) -> float:
        """Seconds since the trial's first start, without the time between a kill and a resume."""
        return self.wall_before_s + time.monotonic() - self.started

    def cost(self) -> dict[str, Any]:
        """Return the cost columns as they stand."""
        cost: dict[str, Any] = {**self.clock.columns(), "wall_s": self.wall_s(), "rss_peak_bytes": rss_peak_bytes()}
        cost |= self.calibration.columns() | vars_of(self.allocator.read())
        if self.clock.witness.jumps:  # a time that two clocks disagree about does not rank
            cost["contended"] = True
        if self.parts is not None:
            cost |= {"optimizer_state_bytes": optimizer_state_bytes(self.parts.optimizer)}
            cost |= loop.parameter_counts(self.parts.model)
            cost |= {"adapter_bytes": adapter_bytes(self.parts.model, self.parts.base_buffers)}
        if self.post is not None and self.post.model is not None:
            cost |= loop.parameter_counts(self.post.model)
        return cost

    def _save(self, step: int) -> None:
        assert self.parts is not None
        with self.clock.set_aside("checkpoint"):
            progress = {
                "step": step,
                "hit_step": self.hit_step,
                "wall_s": self.wall_s(),
                "clock": self.clock.state_dict(),
                "calibration": self.calibration.state_dict(),
                "energy": self.energy.state_dict(),
            }
            try:
                checkpoint.save(self.checkpoint_path, self.parts, progress)
                event: dict[str, Any] = {"event": "saved"}
            except CannotWrite as error:  # the trial is worth more than a way back to here: it goes on without
                event = {"event": "unsaved", "reason": error.message}
        self.log.write(**event, step=step)
        self.saved = time.monotonic()

    def resume(self, progress: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.hit_step = progress["hit_step"]
        self.wall_before_s = float(progress["wall_s"])
        self.clock.load_state_dict(progress["clock"])
        self.calibration.load_state_dict(progress["calibration"])
        self.energy.load_state_dict(progress["energy"])
