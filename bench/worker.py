"""What one fresh process does with one trial directory: build, warm up, train, log, and derive the record."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from bench import checkpoint, loop, provenance
from bench.after_training import PostWorkload
from bench.algorithm import Algorithm
from bench.assembly import Parts, assemble, check_fit, is_out_of_memory
from bench.calibration import Calibration, pin_threads
from bench.clock import Clock
from bench.context import Run, derive_seed
from bench.devices import detect
from bench.errors import BadData, BenchError, BrokenPlugin, TrialBusy
from bench.event_log import EventLog
from bench.post import Post
from bench.probes import AllocatorPeaks, NvmlProbe
from bench.recorder import Recorder, tell, vars_of
from bench.registry import Registry
from bench.request import open_workload
from bench.source import source_sha256
from bench.store import Store
from bench.trial import Part, Trial
from bench.worker_environment import DIE_WITH_PARENT
from bench.workload import DataRequest, Limits, TrainingWorkload, Workload

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
            log, registry = EventLog(folder), Registry()
            outcome, reason, cost = _guarded(trial, folder, log, registry)
            log.write("finished", outcome=outcome, reason=reason, at=provenance.now(), cost=cost)
            row = store.finalise(trial)
            tell(registry.hooks.hook.bench_finished, trial=trial.model_dump(mode="json"), record=row)
            return row
    except Timeout:
        raise TrialBusy(f"another process runs the trial {trial.trial_id} now", hint="wait for it") from None


def _guarded(trial: Trial, folder: Path, log: EventLog, registry: Registry) -> tuple[str, str, dict[str, Any]]:
    """Run the trial; return outcome, reason and final costs, whatever happens."""
    with NvmlProbe.start(trial.device) as nvml:
        session: Session | None = None
        try:
            session = Session.open(trial, folder, log, registry, nvml)
            outcome, reason = session.work()
        except KeyboardInterrupt:
            outcome, reason = "interrupted", "Ctrl-C or a termination signal"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - every failure is an outcome of the record
            traceback.print_exc()
            outcome, reason = "out_of_memory" if is_out_of_memory(error) else "error", _one_line(error)
        cost = session.recorder.cost() if session is not None else {}
        if outcome != "interrupted":
            for name in ("checkpoint.pt", "checkpoint.tmp"):  # the second is what a kill in mid-writing leaves
                (folder / name).unlink(missing_ok=True)
        return outcome, reason, cost | vars_of(nvml.finish())


def _one_line(error: BaseException) -> str:
    text = str(error.message if isinstance(error, BenchError) else error)
    lines = text.strip().splitlines() or [""]
    return lines[0] if isinstance(error, BenchError) else f"{type(error).__name__}: {lines[0]}".rstrip(": ")


@dataclass
class Session:
    """A trial that is built and ready to begin; ``start`` is the step at which a checkpoint goes on."""

    recorder: Recorder
    workload: Workload
    start: int

    @classmethod
    def open(cls, trial: Trial, folder: Path, log: EventLog, registry: Registry, nvml: NvmlProbe) -> Session:
        """Build what the trial needs; warm up; restore the checkpoint if there is one."""
        threads = pin_threads(trial.threads).threads if trial.threads is not None else torch.get_num_threads()
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
        path = recorder.checkpoint_path
        saved = checkpoint.read(path) if path.exists() else None
        start = 0 if saved is None else int(saved["progress"]["step"])
        # Logged before anything of the plugin runs, so that a record of its failure has its facts.
        facts = _facts(trial, workload, algorithms[0]) | {"threads": threads}
        log.write("started", resumed=saved is not None, step=start, facts=facts)
        tell(registry.hooks.hook.bench_started, trial=trial.model_dump(mode="json"))
        recorder.calibration.measure()
        run = _run_of(trial, workload, device)
        if isinstance(workload, TrainingWorkload):
            with clock.set_aside("warmup"), _uncounted(allocator):
                _warm_up(algorithms, workload, run)
            parts = recorder.parts = _build(algorithms, workload, run, clock)
            if saved is not None:
                checkpoint.restore(saved, parts)
                recorder.resume(saved["progress"])
        else:
            assert isinstance(workload, PostWorkload), f"{workload.name!r} is of no known kind"
            post = recorder.post = Post(algorithms, workload, run, clock)
            with clock.set_aside("warmup"), _uncounted(allocator):
                post.rehearse()
        return cls(recorder, workload, start)

    def work(self) -> tuple[str, str]:
        """Do all the steps, or all the points; return outcome and reason."""
        recorder = self.recorder
        if recorder.post is not None:
            recorder.post.work(recorder.observe)
        else:
            assert isinstance(self.workload, TrainingWorkload), "open() made parts for nothing else"
            assert recorder.parts is not None, "open() made them"
            loop.train(recorder.parts, self.workload, recorder.clock, recorder.observe, start=self.start)
        assert self.recorder.outcome is not None, "the last evaluation always ends the trial"
        return self.recorder.outcome


def _rebuild(registry: Registry, part: Part) -> Algorithm:
    algorithm = registry.algorithm(part.name, **part.values)
    if source_sha256(type(algorithm)) != part.source_sha256:
        raise BrokenPlugin(
            f"the source of {part.name!r} changed after this trial was planned", hint="give the bench run command again"
        )
    return algorithm


def _reopen(registry: Registry, trial: Trial) -> Workload:
    directory = Path(trial.data.directory) if trial.data.directory is not None else None
    source = None if directory is not None else trial.data.source
    models = tuple(Path(folder) for folder in trial.data.models)
    request = DataRequest(source=source, directory=directory, tokenizer=trial.data.tokenizer, models=models)
    limits = Limits(budget_factor=trial.budget_factor, stop_at_target=trial.stop_at_target)
    workload = open_workload(registry, trial.workload, trial.tier, request, limits)
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


def _build(algorithms: Sequence[Algorithm], workload: TrainingWorkload, run: Run, clock: Clock | None = None) -> Parts:
    checkpoint.seed_random_state(derive_seed(run.seed, "global"))
    model: nn.Module = workload.model(run.seed, run.device)
    if run.precision == "bf16":
        model = model.to(torch.bfloat16)
    with clock.charge("setup") if clock is not None else contextlib.nullcontext():
        return assemble(algorithms, workload, run, model)


def _warm_up(algorithms: Sequence[Algorithm], workload: TrainingWorkload, run: Run) -> None:
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


def _facts(trial: Trial, workload: Workload, algorithm: Algorithm) -> dict[str, Any]:
    tier, after = workload.tier, isinstance(workload, PostWorkload)
    return vars_of(provenance.collect(trial.device)) | {
        "device_listed": detect(trial.device).listed,
        "metric": workload.metric,
        "metric_direction": workload.direction,
        "target": None if workload.target is None else workload.target.value,
        "budget_steps": tier.steps,
        "budget_s": tier.budget_s,
        "judged_from_step": workload.judged_from_step,
        "information": algorithm.information if after else None,
        "base_sha256": workload.base_sha256(trial.seed),
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
