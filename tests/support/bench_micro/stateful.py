"""Algorithms that carry a state of their own, drawn from a generator of the run."""

# ruff: noqa: ARG002, ARG005 - a slot takes its contract's arguments, used or not

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import Algorithm, Batch, Run

from .moments import meet


class Walk:
    """Weighs the examples of a batch by a random walk: each step depends on all draws before it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._position = 0.0
        self._steps = 0

    def __call__(self, batch: Batch, model: nn.Module) -> Batch:
        meet(f"selection {self._steps}")
        self._steps += 1
        self._position += float(torch.randn((), generator=self._run.rng("walk")))
        rows = len(batch["labels"])
        draws = torch.rand(rows, generator=self._run.rng("weights")) + torch.from_numpy(np.random.rand(rows)).float()  # noqa: NPY002
        return {**batch, "weights": 0.5 + 0.5 * draws * (1 + 0.2 * np.tanh(self._position))}

    def state_dict(self) -> dict[str, Any]:
        meet(f"save {self._steps}")
        return {"position": self._position, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position, self._steps = state["position"], state["steps"]


@dataclass(frozen=True, kw_only=True)
class Wanders(Algorithm):
    """A selector with a state, which draws from two named generators and from numpy's global one."""

    name = "wanders"

    def selector(self, run: Run) -> Callable[[Batch, nn.Module], Batch]:
        return Walk(run)


@dataclass(frozen=True, kw_only=True)
class Blurs(Algorithm):
    """Evaluates the weights with noise on them: a finish slot that draws from a generator of its own."""

    name = "blurs"

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        blurred = deepcopy(model)
        with torch.no_grad():
            for parameter in blurred.parameters():
                noise: Tensor = torch.randn(parameter.shape, generator=run.rng("noise"))
                parameter.add_(1e-3 * noise)
        return blurred


@dataclass(frozen=True, kw_only=True)
class LacksMicroBatches(Algorithm):
    """Needs what the workload does not offer."""

    name = "lacks-micro-batches"
    needs = ("single-micro-batch",)

    def schedule(self, run: Run) -> Callable[[int], float]:
        return lambda step: 1.0
