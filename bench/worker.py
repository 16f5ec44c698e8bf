"""What one fresh process does with one trial directory: build, warm up, train, log, and derive the record."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from bench import checkpoint, loop, provenance
from bench.algorithm import Algorithm
from bench.assembly import Parts, assemble, check_fit, is_out_of_memory
from bench.calibration import Calibration, pin_threads
from bench.clock import Clock
from bench.devices import detect
from bench.errors import BadData, BenchError, BrokenPlugin, TrialBusy
from bench.plan import build_part, open_workload
from bench.probes import AllocatorPeaks, EnergyMeter, NvmlProbe, optimizer_state_bytes, rss_peak_bytes
from bench.registry import Registry
from bench.run import Run, derive_seed
from bench.store import EventLog, Store
from bench.trial import Trial
from bench.worker_environment import DIE_WITH_PARENT
from bench.workload import DataRequest, Workload

WARMUP_STEPS = 2


def work(path: Path) -> dict[str, Any]:
    """Run the trial whose ``trial.json`` is ``path`` to its end and return its row of ``trials``.

    Continues from the checkpoint if there is one. Whatever goes wrong becomes an outcome of the record.
    """
    _die_with_parent()
    trial = Trial.read(path)
    folder = path.resolve().parent
    store = Store(folder.parent.parent)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        with lock:
            log = EventLog(folder)
            outcome, reason, cost = _guarded(trial, folder, log)
            log.write("finished", outcome=outcome, reason=reason, at=provenance.now(), cost=cost)
            row = store.finalise(trial)
            Registry().hooks.hook.bench_finished(trial=trial.model_dump(mode="json"), record=row)
            return row
    except Timeout:
        raise TrialBusy(f"another process runs the trial {trial.trial_id} now", hint="wait for it") from None


def _guarded(trial: Trial, folder: Path, log: EventLog) -> tuple[str, str, dict[str, Any]]:
    """Run the trial; return outcome, reason and final costs, whatever happens."""
    with NvmlProbe.start(trial.device) as nvml:
        session: Session | None = None
        try:
            session = Session.open(trial, folder, log, nvml)
            outcome, reason = session.train()
        except KeyboardInterrupt:
            outcome, reason = "interrupted", "Ctrl-C or a termination signal"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - every failure is an outcome of the record
            traceback.print_exc()
            outcome, reason = "out_of_memory" if is_out_of_memory(error) else "error", _one_line(error)
        cost = session.recorder.cost() if session is not None else {}
        (folder / "checkpoint.pt").unlink(missing_ok=True) if outcome != "interrupted" else None
        return outcome, reason, cost | vars_of(nvml.finish())


def vars_of(reading: Any) -> dict[str, Any]:
    """Return the fields of a reading as record columns."""
    return {name: getattr(reading, name) for name in reading.__dataclass_fields__}


def _one_line(error: BaseException) -> str:
    text = str(error.message if isinstance(error, BenchError) else error)
    lines = text.strip().splitlines() or [""]
    return lines[0] if isinstance(error, BenchError) else f"{type(error).__name__}: {lines[0]}".rstrip(": ")


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
    started: float = field(default_factory=time.monotonic)
    wall_before_s: float = 0.0
    saved: float = field(default_factory=time.monotonic)
    hit_step: int | None = None
    outcome: tuple[str, str] | None = None

    def observe(self, evaluation: loop.Evaluation) -> bool:
        """Log one evaluation; return whether the trial ends here."""
        self.calibration.measure()
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
        self.hooks.bench_evaluated(trial=self.trial.model_dump(mode="json"), evaluation=event)
        self.outcome = self._judge(evaluation.step, quality)
        due = time.monotonic() - self.saved >= self.trial.checkpoint_every_s
        if self.outcome is None and due and evaluation.step > 0:  # before the first step there is nothing to keep
            self._save(evaluation.step)
        return self.outcome is not None

    def _judge(self, step: int, quality: float) -> tuple[str, str] | None:
        tier = self.workload.tier
        sign = 1.0 if self.workload.direction == "min" else -1.0
        finite = math.isfinite(quality)
        if finite and tier.target is not None and self.hit_step is None and sign * quality <= sign * tier.target.value:
            self.hit_step = step
        ended = step >= tier.steps
        if not finite:
            return (
                ("reached", "") if self.hit_step is not None else ("diverged", f"{self.workload.metric} is {quality}")
            )
        if tier.budget_s is not None and self.clock.total_s > tier.budget_s:
            ended = True
        if self.hit_step is not None and tier.patience_steps is not None:
            ended = ended or step >= self.hit_step + tier.patience_steps
        if ended:
            if self.hit_step is not None:
                return "reached", ""
            return ("missed", "") if tier.target is not None else ("completed", "this tier has no target yet")
        if self.wall_s() > self.trial.timeout_s:
            return "timeout", f"over {self.trial.timeout_s:g} s of wall-clock time"
        return None

    def wall_s(self) -> float:
        """Seconds since the trial's first start, without the time between a kill and a resume."""
        return self.wall_before_s + time.monotonic() - self.started

    def cost(self) -> dict[str, Any]:
        """Return the cost columns as they stand."""
        cost: dict[str, Any] = {**self.clock.columns(), "wall_s": self.wall_s(), "rss_peak_bytes": rss_peak_bytes()}
        cost |= self.calibration.columns() | vars_of(self.allocator.read())
        if self.parts is not None:
            cost |= {"optimizer_state_bytes": optimizer_state_bytes(self.parts.optimizer)}
            cost |= loop.parameter_counts(self.parts.model)
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
            checkpoint.save(self.checkpoint_path, self.parts, progress)
        self.log.write("saved", step=step)
        self.saved = time.monotonic()

    def resume(self, progress: dict[str, Any]) -> int:
        """Take over the state of a checkpoint; return the step to go on from."""
        self.hit_step = progress["hit_step"]
        self.wall_before_s = float(progress["wall_s"])
        self.clock.load_state_dict(progress["clock"])
        self.calibration.load_state_dict(progress["calibration"])
        self.energy.load_state_dict(progress["energy"])
        return int(progress["step"])


@dataclass
class Session:
    """A trial that is built and ready to train."""

    recorder: Recorder
    workload: Workload
    parts: Parts
    start: int

    @classmethod
    def open(cls, trial: Trial, folder: Path, log: EventLog, nvml: NvmlProbe) -> Session:
        """Build model, data and slots; warm up; restore the checkpoint if there is one."""
        threads = pin_threads(trial.threads).threads if trial.threads is not None else torch.get_num_threads()
        registry = Registry()
        algorithms = [_rebuild(registry, part) for part in (trial.algorithm, *trial.fillers)]
        workload = _reopen(registry, trial)
        check_fit(algorithms, workload)
        nvml.ready()
        device = torch.device(trial.device)
        if device.type == "cuda":
            nvml.attach(str(torch.cuda.get_device_properties(device).uuid))
        allocator = AllocatorPeaks(device)
        clock = Clock(device, windows=(nvml.energy, allocator))
        recorder = Recorder(
            trial,
            workload,
            log,
            clock,
            Calibration(device),
            allocator,
            nvml.energy,
            folder / "checkpoint.pt",
            registry.hooks.hook,
        )
        recorder.calibration.measure()
        run = _run_of(trial, workload, device)
        with clock.set_aside("warmup"), _uncounted(allocator):
            _warm_up(algorithms, workload, run)
        parts = recorder.parts = _build(algorithms, workload, run, clock)
        start, resumed = 0, recorder.checkpoint_path.exists()
        if resumed:
            start = recorder.resume(checkpoint.load(recorder.checkpoint_path, parts, device))
        facts = _facts(trial, workload) | {"threads": threads}
        log.write("started", resumed=resumed, step=start, facts=facts)
        registry.hooks.hook.bench_started(trial=trial.model_dump(mode="json"))
        return cls(recorder, workload, parts, start)

    def train(self) -> tuple[str, str]:
        """Train to the end; return outcome and reason."""
        loop.train(self.parts, self.workload, self.recorder.clock, self.recorder.observe, start=self.start)
        assert self.recorder.outcome is not None, "the last evaluation always ends the trial"
        return self.recorder.outcome


def _rebuild(registry: Registry, part: Any) -> Algorithm:
    algorithm, now = build_part(registry, part.name, part.values, part.slots)
    if now.source_sha256 != part.source_sha256:
        raise BrokenPlugin(
            f"the source of {part.name!r} changed after this trial was planned", hint="give the bench run command again"
        )
    return algorithm


def _reopen(registry: Registry, trial: Trial) -> Workload:
    directory = Path(trial.data.directory) if trial.data.directory is not None else None
    source = None if directory is not None else trial.data.source
    request = DataRequest(source=source, directory=directory, tokenizer=trial.data.tokenizer)
    workload = open_workload(registry, trial.workload, trial.tier, request)
    found = workload.data().sha256
    if found != trial.data.sha256:
        raise BadData(f"the data changed after this trial was planned: {trial.data.sha256[:12]} is now {found[:12]}")
    return workload


def _run_of(trial: Trial, workload: Workload, device: torch.device) -> Run:
    tier = workload.tier
    return Run(
        seed=trial.seed,
        steps=tier.steps,
        device=device,
        precision=tier.precision,
        budget_s=tier.budget_s,
        micro_batches=-(-tier.batch_size // tier.micro_batch_size),
    )


def _build(algorithms: Sequence[Algorithm], workload: Workload, run: Run, clock: Clock | None = None) -> Parts:
    checkpoint.seed_random_state(derive_seed(run.seed, "global"))
    model: nn.Module = workload.model(run.seed, run.device)
    if run.precision == "bf16":
        model = model.to(torch.bfloat16)
    with clock.charge("setup") if clock is not None else contextlib.nullcontext():
        return assemble(algorithms, workload, run, model)


def _warm_up(algorithms: Sequence[Algorithm], workload: Workload, run: Run) -> None:
    """Rehearse two steps on a model that is thrown away, so that no kernel is loaded or tuned on the clock.

    Weights, states, generators and the data position are untouched because the trial builds its own afterwards.
    """
    before = checkpoint.random_state()
    parts = _build(algorithms, workload, run)
    clock = Clock(run.device)
    batches = workload.batches(run.seed, 0, run.device)
    clock.resume("data")
    for step in range(min(WARMUP_STEPS, run.steps)):
        loop.take_step(parts, workload, clock, batches, step)
    clock.pause()
    checkpoint.set_random_state(before)


@contextlib.contextmanager
def _uncounted(allocator: AllocatorPeaks) -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    allocator.reset()


def _facts(trial: Trial, workload: Workload) -> dict[str, Any]:
    tier = workload.tier
    return vars_of(provenance.collect(trial.device)) | {
        "device_listed": detect(trial.device).listed,
        "metric": workload.metric,
        "metric_direction": workload.direction,
        "target": None if tier.target is None else tier.target.value,
        "budget_steps": tier.steps,
        "budget_s": tier.budget_s,
    }


def _die_with_parent() -> None:
    """On Linux, let the kernel end this process when the one that started it ends; also a kill counts."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent = os.environ.get(DIE_WITH_PARENT)
    if parent is not None and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != int(parent):  # it ended while this process was starting
            os.kill(os.getpid(), signal.SIGKILL)
