"""Compress and merge: at each point of a tier the slots are called once, on fresh models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from bench.after_training import CompressionWorkload, MergingWorkload, Point, PostWorkload
from bench.algorithm import INFORMATION, Algorithm, Batch
from bench.assembly import call_slot, fill
from bench.checkpoint import random_state, seed_random_state, set_random_state
from bench.clock import Clock
from bench.context import Run, derive_seed
from bench.errors import SlotFault, SlotMismatch
from bench.guards.opaque import Opaque
from bench.guards.tensors import TrainingMarks
from bench.guards.watch import Watch
from bench.loop import Evaluation, Observer
from bench.roles import assign_roles


@dataclass
class Post:
    """A trial after training; ``model`` is what the slots returned last."""

    algorithms: Sequence[Algorithm]
    workload: PostWorkload
    run: Run
    clock: Clock
    model: nn.Module | None = None
    watch: Watch = field(default_factory=Watch)

    @cached_property
    def _filled(self) -> dict[str, Algorithm]:
        """Which algorithm fills each slot; without the first one there is nothing to examine."""
        filled = fill(self.algorithms, self.workload.slots)
        if self.workload.slots[0] not in filled:
            raise SlotMismatch(f"nothing fills the slot {self.workload.slots[0]} of {self.workload.name!r}")
        return filled

    def rehearse(self) -> None:
        """Serve the first point once and throw the result away, so that no kernel is loaded or tuned on the clock."""
        before = random_state()
        other = Post(self.algorithms, self.workload, self.run, Clock(self.run.device), watch=self.watch)
        other._serve(self.workload.points[0])
        set_random_state(before)

    def work(self, observe: Observer) -> None:
        """Call the slots at every point of the tier until ``observe`` says stop."""
        history: list[Mapping[str, float]] = []
        for number, point in enumerate(self.workload.points, start=1):
            self.model = self._serve(point)
            self.watch.look()
            with self.clock.set_aside("evaluation"):
                metrics = self._examine(self.model, point, history)
            metrics = {**_asked(point), **metrics}
            history.append(metrics)
            if observe(Evaluation(step=number, metrics=metrics, train_loss=None, learning_rate=0.0)):
                return

    def _serve(self, point: Point) -> nn.Module:
        """Return what the slots make at ``point``; charged are the calibration data and the slots."""
        seed_random_state(derive_seed(self.run.seed, "global", str(point)))
        if isinstance(self.workload, CompressionWorkload):
            return self._compress(self.workload, point)
        assert isinstance(self.workload, MergingWorkload), f"{self.workload.name!r} is of no known kind"
        return self._merge(self.workload, point)

    def _compress(self, workload: CompressionWorkload, point: Point) -> nn.Module:
        result: nn.Module | None = None
        for slot, algorithm in self._filled.items():
            models = [self._model(), *([] if result is None else [result])]
            blocks = tuple(name for name, _ in models[0].named_modules() if re.fullmatch(workload.blocks, name))
            run = self._run(algorithm, point, models[0], blocks=blocks)
            self.clock.resume("data")
            try:
                batches = self.watch.workload(workload.calibration, self.run.seed, self.run.device)
                seen = self._seen(algorithm, batches)
                self.clock.enter("step")
                result = call_slot(algorithm, slot, nn.Module, *models, seen, run)
            finally:
                self.clock.pause()
        assert result is not None, "the first slot is filled"
        return result

    def _merge(self, workload: MergingWorkload, point: Point) -> nn.Module:
        algorithm = self._filled["merge"]
        if point.count is None:
            raise SlotFault(f"a point of {workload.name!r} does not say how many models are merged")
        experts = self.watch.workload(workload.experts, self.run.seed, self.run.device, point.count)
        experts = experts.behind(lambda build: Opaque(partial(self.watch.workload, build), lifted=True))
        run = self._run(algorithm, point, self._model(), axes=workload.axes)
        self.clock.resume("data")
        try:
            batches = self.watch.workload(workload.calibration, self.run.seed, self.run.device, point.count)
            seen = [self._seen(algorithm, part) for part in batches]
            self.clock.enter("step")
            result: nn.Module = call_slot(algorithm, "merge", nn.Module, experts, seen, run)
        finally:
            self.clock.pause()
        return result

    def _model(self) -> nn.Module:
        model: nn.Module = self.watch.workload(self.workload.model, self.run.seed, self.run.device)
        return model.eval()

    def _run(self, algorithm: Algorithm, point: Point, model: nn.Module, **facts: Any) -> Run:
        roles = assign_roles((name for name, _ in model.named_parameters()), self.workload.roles)
        loss = Opaque(self.workload.loss) if algorithm.information == "labels" else None
        return replace(self.run, algorithm=algorithm.name, roles=roles, loss=loss, point=point, generators={}, **facts)

    def _seen(self, algorithm: Algorithm, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return of the calibration data what ``algorithm`` says that it looks at, and nothing else."""
        kind = algorithm.information
        if kind not in INFORMATION:
            raise SlotFault(f"{algorithm.name}.information is {kind!r}; it must be one of {', '.join(INFORMATION)}")
        if kind in {"weights", "optimizer-state"}:
            return []
        if kind == "labels":
            return batches
        hidden = self.workload.labels
        return [{key: value for key, value in batch.items() if key not in hidden} for batch in batches]

    def _examine(self, model: nn.Module, point: Point, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Examine in evaluation mode; whatever the workload draws changes nothing for the points to come."""
        before = random_state()
        model.eval()
        with torch.no_grad():
            marks = TrainingMarks(model, None)
            metrics = self.workload.examine(model, point, history, self.run.device, self.run.seed)
            marks.check(" with ".join(sorted({algorithm.name for algorithm in self._filled.values()})))
        set_random_state(before)
        return metrics


def _asked(point: Point) -> dict[str, float]:
    """Return what a point asks as metrics, so that curves can be drawn against it."""
    asked = {
        "asked_kept_ratio": point.kept_ratio if point.pattern is None else point.pattern[0] / point.pattern[1],
        "asked_rank": point.rank,
        "models": point.count,
    }
    return {name: float(value) for name, value in asked.items() if value is not None}
