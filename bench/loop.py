"""The one training loop: data, gradient, step, and an evaluation outside the clock now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.algorithm import Batch
from bench.assembly import Parts
from bench.checkpoint import random_state, set_random_state
from bench.clock import Clock
from bench.context import autocast
from bench.errors import SlotFault
from bench.guards.fence import FENCE
from bench.guards.opaque import Opaque
from bench.guards.tensors import BatchMarks, TrainingMarks
from bench.workload import TrainingWorkload


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the loop reports each time it evaluates; the clock stands still meanwhile."""

    step: int
    metrics: dict[str, float]
    train_loss: float | None
    learning_rate: float


Observer = Callable[[Evaluation], bool]
"""Called at every evaluation; returns whether to stop."""


def train(parts: Parts, workload: TrainingWorkload, clock: Clock, observe: Observer, *, start: int = 0) -> None:
    """Train from step ``start`` until the budget is used or ``observe`` says stop.

    Evaluates at step 0, every ``tier.evaluate_every`` steps and at the last one.
    """
    run, tier = parts.run, workload.tier
    batches = parts.watch.workload(workload.batches, run.seed, start, run.device)
    if start == 0 and observe(
        Evaluation(step=0, metrics=_evaluate(parts, workload, clock), train_loss=None, learning_rate=0.0)
    ):
        return
    losses: list[Tensor] = []
    clock.resume("data")
    try:
        for step in range(start, run.steps):
            losses.append(take_step(parts, workload, clock, batches, step))
            if (step + 1) % tier.evaluate_every == 0 or step + 1 == run.steps:
                rate = float(parts.optimizer.param_groups[0]["lr"])
                clock.enter("finish")
                evaluation = Evaluation(
                    step=step + 1,
                    metrics=_evaluate(parts, workload, clock),
                    train_loss=float(torch.stack(losses).mean()),
                    learning_rate=rate,
                )
                losses.clear()
                if observe(evaluation):
                    return
                clock.resume("data")
    finally:
        if clock.running:
            clock.pause()


def take_step(parts: Parts, workload: TrainingWorkload, clock: Clock, batches: Iterator[Batch], step: int) -> Tensor:
    """Do one step and return its training loss, on the device, without waiting for it."""
    clock.enter("data")
    batch = parts.watch.workload(next, batches)
    marks = BatchMarks(batch)
    if parts.select is not None:
        batch = _call(parts, marks, "selector", parts.select, batch, parts.model)
        if not isinstance(batch, Mapping):
            raise SlotFault(f"{parts.owners['selector']}.selector returned {type(batch).__name__}, which is no batch")
    clock.enter("step")
    if parts.freeze is not None:
        _call(parts, marks, "freezer", parts.freeze, step)
    factor = _call(parts, marks, "schedule", lambda: float(parts.schedule(step)))
    for group, rate in zip(parts.optimizer.param_groups, parts.base_rates, strict=True):
        group["lr"] = rate * factor
    if parts.learn is not None:
        return _scalar(parts, "learner", _call(parts, marks, "learner", parts.learn, batch))
    gradient = _closure(parts, workload, clock, batch)
    if parts.closure:
        return _scalar(parts, "optimizer", _call(parts, marks, "optimizer", parts.optimizer.step, Opaque(gradient)))
    loss = gradient()
    marks.check(parts.in_passes)
    _call(parts, marks, "optimizer", parts.optimizer.step)
    return loss


def _call(parts: Parts, marks: BatchMarks, slot: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what ``slot`` returned, which must leave the batch of the step as it is."""
    result = parts.call(slot, function, *arguments)
    marks.check(parts.label(slot))
    return result


def _closure(parts: Parts, workload: TrainingWorkload, clock: Clock, batch: Batch) -> Callable[[], Tensor]:
    """Return the function that computes loss and gradient of ``batch``, charged to ``gradient``."""

    def gradient() -> Tensor:
        clock.enter("gradient")
        with FENCE.around(parts.in_passes), torch.enable_grad():
            parts.optimizer.zero_grad(set_to_none=True)
            micro_batches = split(batch, workload.tier.micro_batch_size)
            total: Tensor | None = None
            for micro_batch in micro_batches:
                with autocast(parts.run):
                    loss = workload.loss(parts.model, micro_batch) / (rows(batch) / rows(micro_batch))
                loss.backward()  # type: ignore[no-untyped-call]
                total = loss.detach() if total is None else total + loss.detach()
        clock.enter("step")
        assert total is not None, "a batch has at least one row"
        return total

    return gradient


def split(batch: Batch, size: int) -> list[Batch]:
    """Split ``batch`` along its first dimension into micro-batches of at most ``size`` rows."""
    if rows(batch) <= size:
        return [batch]
    return [{key: value[i : i + size] for key, value in batch.items()} for i in range(0, rows(batch), size)]


def rows(batch: Batch) -> int:
    """Return how many sequences or examples ``batch`` holds."""
    return next(iter(batch.values())).shape[0]


def _evaluate(parts: Parts, workload: TrainingWorkload, clock: Clock) -> dict[str, float]:
    """Evaluate with the clock paused; what makes the model ready for it is charged to ``finish``."""
    if not clock.running:
        clock.resume("finish")
    _switch(parts, "eval")
    model = parts.finish(parts.model) if parts.finish is not None else parts.model
    clock.pause()
    parts.watch.look()
    marks = TrainingMarks(parts.model, parts.optimizer)
    before, training = random_state(), [module for module in model.modules() if module.training]
    model.eval()
    with clock.set_aside("evaluation"), torch.no_grad(), autocast(parts.run):
        metrics = workload.evaluate(model, parts.run.device)
    marks.check(parts.owner)
    for module in training:  # one by one: an algorithm may keep some of them in evaluation mode
        module.training = True
    set_random_state(before)
    with clock.charge("finish"):
        _switch(parts, "train")
    return metrics


def _switch(parts: Parts, mode: str) -> None:
    """Call ``optimizer.train()`` or ``.eval()`` where the optimizer has one (schedule-free methods)."""
    switch = getattr(parts.optimizer, mode, None)
    if callable(switch):
        parts.call("optimizer", switch)


def _scalar(parts: Parts, slot: str, value: Any) -> Tensor:
    """Return as a tensor the loss that a learner, or a step with a closure, must return."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, (int, float)):
        return torch.tensor(float(value))
    raise SlotFault(
        f"{parts.owners[slot]}.{slot}: its step returned {type(value).__name__}; "
        "it must return the loss, a number or a scalar tensor"
    )


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Return the columns that count parameters."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in parameters),
    }
