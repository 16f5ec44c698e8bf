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
from torch import nn

from bench import checkpoint, loop, provenance
from bench.after_training import PostWorkload
from bench.algorithm import Algorithm
from bench.artifacts import cache_folder
from bench.assembly import Parts, assemble, check_fit, is_out_of_memory
from bench.calibration import Calibration, pin_threads
from bench.clock import Clock
from bench.context import Run, derive_seed
from bench.devices import detect
from bench.errors import BadData, BadValue, BenchError, BrokenPlugin, CannotWrite
from bench.event_log import EventLog, read_events
from bench.files import FULL
from bench.guards.watch import Watch
from bench.locks import locked
from bench.post import Post
from bench.probes import AllocatorPeaks, NvmlProbe
from bench.record import evaluations
from bench.recorder import Recorder, tell, vars_of
from bench.registry import Registry
from bench.request import open_workload
from bench.source import source_sha256
from bench.store import Store, read_trial
from bench.trial import Part, Trial
from bench.worker_environment import DIE_WITH_PARENT
from bench.workload import DataRequest, Limits, TrainingWorkload, Workload

WARMUP_STEPS = 2
UNWRITABLE = "unwritable"
"""What :func:`_guarded` answers where not the trial failed but the disk: no outcome of a record."""
LONGEST_REASON = 1000


def work(path: Path) -> dict[str, Any]:
    """Run the trial whose ``trial.json`` is ``path`` to its end and return its row of ``trials``.

    Continues from the checkpoint if there is one. Whatever goes wrong becomes an outcome of the record. Where the
    results cannot be written, the outcome is ``interrupted``, recorded if that much can be written, and
    :class:`~bench.errors.CannotWrite` is raised.
    """
    _die_with_parent()
    path = Path(os.path.realpath(path))  # unlike resolve() it raises nothing where links go in a circle
    folder, trial = path.parent, read_trial(path.parent, path.name)
    store = Store(folder.parent.parent)
    with locked(folder / "lock", f"another process runs the trial {trial.trial_id} now"), Watch.over_process() as watch:
        log, registry = EventLog(folder), Registry()
        outcome, reason, cost = _guarded(trial, folder, log, registry, watch)
        told = "interrupted" if outcome == UNWRITABLE else outcome
        log.write("finished", outcome=told, reason=reason, at=provenance.now(), cost=cost)
        row = store.finalise(trial)
        tell(registry.hooks.hook.bench_finished, trial=trial.model_dump(mode="json"), record=row)
    if outcome == UNWRITABLE:
        raise CannotWrite(reason, hint="see to that, then give the same command again: it goes on where it stopped")
    return row


def _guarded(
    trial: Trial, folder: Path, log: EventLog, registry: Registry, watch: Watch
) -> tuple[str, str, dict[str, Any]]:
    """Run the trial; return outcome, reason and final costs, whatever happens."""
    with NvmlProbe.start(trial.device) as nvml:
        session: Session | None = None
        try:
            watch.listed()
            session = Session.open(trial, folder, log, registry, nvml, watch)
            outcome, reason = session.work()
        except KeyboardInterrupt:
            outcome, reason = "interrupted", "Ctrl-C or a termination signal"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - every failure is an outcome of the record
            with contextlib.suppress(OSError):  # a disk without space for the worker's log
                traceback.print_exc()
            outcome, reason = _outcome_of(error), _one_line(error)
        cost = session.recorder.cost() if session is not None else {}
        if outcome not in {"interrupted", UNWRITABLE}:
            for name in ("checkpoint.pt", "checkpoint.tmp"):  # the second is what a kill in mid-writing leaves
                with contextlib.suppress(OSError):  # bench doctor finds it
                    (folder / name).unlink(missing_ok=True)
        return outcome, reason, cost | vars_of(nvml.finish())


def _outcome_of(error: BaseException) -> str:
    if is_out_of_memory(error):
        return "out_of_memory"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CannotWrite) or (isinstance(cause, OSError) and cause.errno in FULL):
            return UNWRITABLE
        cause = cause.__cause__
    return "error"


def _one_line(error: BaseException) -> str:
    text = str(error.message if isinstance(error, BenchError) else error)
    lines = text.strip().splitlines() or [""]
    line = lines[0] if isinstance(error, BenchError) else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    if isinstance(error, BadValue) and error.hint:  # what would be allowed is half of why this is not
        line += f"; {error.hint.splitlines()[0]}"
    return line[:LONGEST_REASON]


@dataclass
class Session:
    """A trial that is built and ready to begin; ``start`` is the step at which a checkpoint goes on."""

    recorder: Recorder
    workload: Workload
    start: int
    watch: Watch

    @classmethod
    def open(
        cls, trial: Trial, folder: Path, log: EventLog, registry: Registry, nvml: NvmlProbe, watch: Watch
    ) -> Session:
        """Build what the trial needs; warm up; restore the checkpoint if there is one."""
        threads = pin_threads(trial.threads).threads if trial.threads is not None else torch.get_num_threads()
        workload = _reopen(registry, trial)
        watch.opened(type(workload))  # before any algorithm is imported
        algorithms = [_rebuild(registry, part) for part in (trial.algorithm, *trial.fillers)]
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
        saved = _saved(recorder.checkpoint_path)
        start = 0 if saved is None else int(saved["progress"]["step"])
        # Logged before anything of the plugin runs, so that a record of its failure has its facts.
        facts = _facts(trial, workload, algorithms[0]) | {"threads": threads}
        log.write("started", resumed=saved is not None, step=start, facts=facts)
        tell(registry.hooks.hook.bench_started, trial=trial.model_dump(mode="json"))
        recorder.calibration.measure()
        run = _run_of(trial, workload, device)
        watch.begin(algorithms[0].name, _packages(algorithms), _hidden(trial, folder))
        if isinstance(workload, TrainingWorkload):
            with clock.set_aside("warmup"), _uncounted(allocator):
                _warm_up(algorithms, workload, run, watch)
            parts = recorder.parts = _build(algorithms, workload, run, watch, clock)
            if saved is not None:
                checkpoint.restore(saved, parts)
                recorder.resume(saved["progress"])
        else:
            assert isinstance(workload, PostWorkload), f"{workload.name!r} is of no known kind"
            post = recorder.post = Post(algorithms, workload, run, clock, watch=watch)
            with clock.set_aside("warmup"), _uncounted(allocator):
                post.rehearse()
        return cls(recorder, workload, start, watch)

    def work(self) -> tuple[str, str]:
        """Do all the steps, or all the points; return outcome and reason."""
        recorder = self.recorder
        if recorder.post is not None:
            recorder.post.work(recorder.observe)
        else:
            assert isinstance(self.workload, TrainingWorkload), "open() made parts for nothing else"
            assert recorder.parts is not None, "open() made them"
            loop.train(recorder.parts, self.workload, recorder.clock, recorder.observe, start=self.start)
        self.watch.look()
        assert self.recorder.outcome is not None, "the last evaluation always ends the trial"
        return self.recorder.outcome


def _saved(path: Path) -> dict[str, Any] | None:
    """Return the checkpoint to go on from: one beyond the evaluations in the log would leave a gap in the curve."""
    saved = checkpoint.read(path) if path.exists() else None
    logged = {event["step"] for event in evaluations(read_events(path.parent))} if saved is not None else set()
    return saved if saved is not None and saved["progress"]["step"] in logged else None


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


def _packages(algorithms: Sequence[Algorithm]) -> list[str]:
    """Return the packages that the algorithms come from, a dot behind each."""
    modules = [type(algorithm).__module__ for algorithm in algorithms]
    return ["bench.plugins." if name.startswith("bench.plugins.") else f"{name.split('.')[0]}." for name in modules]


def _hidden(trial: Trial, folder: Path) -> list[Path]:
    """Return what algorithms do not see: the results, the data, and what is kept of both."""
    named = [trial.data.directory, *trial.data.models, os.environ.get("HF_HOME", "~/.cache/huggingface")]
    return [folder.parent.parent, cache_folder(), *(Path(path).expanduser() for path in named if path is not None)]


def _build(
    algorithms: Sequence[Algorithm], workload: TrainingWorkload, run: Run, watch: Watch, clock: Clock | None = None
) -> Parts:
    checkpoint.seed_random_state(derive_seed(run.seed, "global"))
    model: nn.Module = watch.workload(workload.model, run.seed, run.device)
    if run.precision == "bf16":
        model = model.to(torch.bfloat16)
    with clock.charge("setup") if clock is not None else contextlib.nullcontext():
        return assemble(algorithms, workload, run, model, watch)


def _warm_up(algorithms: Sequence[Algorithm], workload: TrainingWorkload, run: Run, watch: Watch) -> None:
    """Rehearse two steps on a model that is thrown away, so that no kernel is loaded or tuned on the clock.

    Weights, states, generators and the data position are untouched because the trial builds its own afterwards.
    """
    before = checkpoint.random_state()
    parts = _build(algorithms, workload, run, watch)
    clock = Clock(run.device)
    batches = watch.workload(workload.batches, run.seed, 0, run.device)
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
