"""What the harness costs: the same training steps in its loop, with clock and evaluations, and in a bare loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.assembly import Parts, assemble
from bench.clock import Clock
from bench.context import Run
from bench.loop import train
from bench.registry import Registry
from bench.request import Request, stacks
from bench.workload import Workload

BOUND = 1.02
PAIRS = 60
STEPS = 2
"""Steps of a block. One evaluation follows each, twice as often as in the tier; short blocks make the pairs alike."""


@pytest.fixture
def workload() -> Workload:
    """The shapes of llama-c4's tier ``tiny``: real batches, read before; an evaluation that does no work itself."""
    published = Registry().workload_class("llama-c4")
    original = published("tiny")
    ready = list(itertools.islice(original.batches(0, 0, torch.device("cpu")), 8))

    class Shapes(published):  # type: ignore[misc, valid-type]
        tiers = {"tiny": replace(original.tier, steps=STEPS + 1, evaluate_every=STEPS + 1)}  # noqa: RUF012 - read only

        def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Mapping[str, torch.Tensor]]:
            del seed, start, device
            return itertools.cycle(ready)

        def evaluate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
            del model, device
            return {self.metric: 0.0}

    return Shapes("tiny")


@pytest.fixture
def parts(workload) -> Parts:
    """The model and what the reference's slots return; both loops train this one."""
    run = Run(seed=0, steps=STEPS + 1)
    request = Request(plugins=["adamw"], workload="llama-c4", reference=False)
    (stack,) = stacks(Registry(), request, workload).values()
    return assemble(stack, workload, run, workload.model(0, run.device))


def bare(parts: Parts, workload: Workload) -> float:
    """Train for a block of steps as anyone would write it; return the mean loss."""
    batches = workload.batches(0, 0, torch.device("cpu"))
    losses = []
    for step in range(1, STEPS + 1):
        batch = next(batches)
        factor = parts.schedule(step)
        for group, rate in zip(parts.optimizer.param_groups, parts.base_rates, strict=True):
            group["lr"] = rate * factor
        parts.optimizer.zero_grad(set_to_none=True)
        loss = workload.loss(parts.model, batch)
        loss.backward()
        parts.optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def harness(parts: Parts, workload: Workload) -> float:
    """Train for a block of steps in the harness; return the mean loss."""
    seen: list[Any] = []
    train(parts, workload, Clock(torch.device("cpu")), lambda evaluation: seen.append(evaluation) or False, start=1)
    (evaluation,) = seen
    assert evaluation.step == STEPS + 1
    return float(evaluation.train_loss)


def test_harness_costs_little_over_a_bare_loop(side_by_side, parts, workload):
    def seconds(block) -> float:
        start = time.perf_counter()
        block(parts, workload)
        return time.perf_counter() - start

    ratio = side_by_side(
        lambda: seconds(harness),
        lambda: seconds(bare),
        PAIRS,
        f"harness over bare loop, {STEPS} steps of llama-c4 tiny",
    )
    assert ratio.median <= BOUND


def test_both_loops_do_the_same_work(parts, workload):
    """The comparison is fair: from the same state both loops come to the same loss and the same weights."""
    state = {name: value.clone() for name, value in parts.model.state_dict().items()}
    assert torch.get_num_threads() == 1
    wanted = bare(parts, workload)
    weights = {name: value.clone() for name, value in parts.model.state_dict().items()}
    parts.model.load_state_dict(state)
    parts.optimizer.state.clear()
    assert harness(parts, workload) == wanted
    assert all(torch.equal(value, weights[name]) for name, value in parts.model.state_dict().items())
