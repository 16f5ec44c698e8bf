"""Optimizers on analytic problems: gradients come from a formula, and the whole path is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.algorithm import Algorithm, NamedParameters
from bench.context import Run
from bench.roles import Role

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Contestant:
    """An optimizer that is examined: its name, how it is made, and whether it steps by a closure."""

    name: str
    make: Callable[[NamedParameters, Run], torch.optim.Optimizer]
    closure: bool = False

    @classmethod
    def of(cls, algorithm: Algorithm) -> Contestant:
        """Return the contestant that is the optimizer of ``algorithm`` with its settings."""
        return cls(algorithm.name, algorithm.optimizer, algorithm.closure)


ADAMW = Contestant("AdamW", lambda named, _: torch.optim.AdamW([p for _, p in named], lr=1e-3))
"""torch's AdamW at its default learning rate."""
SGD = Contestant("SGD", lambda named, _: torch.optim.SGD([p for _, p in named], lr=0.1))
"""torch's plain SGD, without momentum."""
YARDSTICKS = (ADAMW, SGD)
"""torch's own, with known behaviour: AdamW at its default rate of 1e-3, and plain SGD at 0.1."""


@dataclass(frozen=True)
class Problem:
    """Where parameters start, what they are for, and their gradient at the given values in a step from 0."""

    start: Mapping[str, Tensor]
    gradient: Callable[[Values, int], Values]
    role: Role = Role.MLP


class Ride:
    """A contestant on a problem, one step after the other."""

    def __init__(self, contestant: Contestant, problem: Problem, *, steps: int, seed: int = 0) -> None:
        self.problem, self.number = problem, 0
        self._closure = contestant.closure
        self.parameters = {key: nn.Parameter(value.clone()) for key, value in problem.start.items()}
        roles = dict.fromkeys(self.parameters, problem.role) | {
            key: Role.MLP for key in self.parameters if key.startswith("companion")
        }
        self.run = Run(seed=seed, steps=steps, roles=roles, algorithm=contestant.name)
        self.optimizer = contestant.make(list(self.parameters.items()), self.run)
        switch = getattr(self.optimizer, "train", None)
        if callable(switch):
            switch()

    def step(self, change: Callable[[Values], None] | None = None) -> None:
        """Do a step; ``change`` may spoil its gradients in place."""

        def gradients() -> float:
            found = self.problem.gradient(self.values(), self.number)
            if change is not None:
                change(found)
            for key, parameter in self.parameters.items():
                parameter.grad = found[key]
            return 1.0

        if self._closure:
            cast("Callable[..., Any]", self.optimizer.step)(gradients)
        else:
            gradients()
            self.optimizer.step()
        self.number += 1

    def steps(self, count: int) -> Values:
        """Do ``count`` steps and return the values after them."""
        for _ in range(count):
            self.step()
        return self.values()

    def values(self) -> Values:
        """Return a copy of the parameters."""
        return {key: parameter.detach().clone() for key, parameter in self.parameters.items()}

    def put(self, values: Values) -> None:
        """Set the parameters to ``values``."""
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(values[key])


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return a tensor of N(0, 1) from a generator of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reach(contestant: Contestant, gradient: Callable[[Values, int], Values], start: Values) -> float:
    """Return how far fifty steps as long as the first go: the size at which a problem suits a learning rate.

    It is the root mean square over all values; 1 where the first step goes nowhere, or nowhere finite.
    """
    ride = Ride(contestant, Problem(start, gradient), steps=200)
    after = ride.steps(1)
    first = torch.cat([(after[key] - start[key]).flatten() for key in start]).square().mean().sqrt()
    return 50.0 * float(first) if bool(first.isfinite()) and float(first) > 0 else 1.0
