"""Algorithms whose slots return something plausible that fails, or returns the wrong thing, in a step."""

# ruff: noqa: ARG002, ARG005 - a slot takes its contract's arguments, used or not

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bench import Algorithm

FAILS_AT = 5


def fails(*_: Any) -> Any:
    raise ZeroDivisionError("a divisor was zero\nand here is a second line")


@dataclass(frozen=True, kw_only=True)
class FreezesWrongly(Algorithm):
    name = "freezes-wrongly"

    def freezer(self, model, run):
        return lambda step: fails() if step == FAILS_AT else None


class BrokenSGD(torch.optim.SGD):
    """Fails in its step."""

    def step(self, closure=None):
        fails()


@dataclass(frozen=True, kw_only=True)
class StepsWrongly(Algorithm):
    name = "steps-wrongly"

    def optimizer(self, named_parameters, run):
        return BrokenSGD(named_parameters, lr=0.1)


@dataclass(frozen=True, kw_only=True)
class ClosesWrongly(Algorithm):
    name = "closes-wrongly"
    closure = True

    def optimizer(self, named_parameters, run):
        return BrokenSGD(named_parameters, lr=0.1)


@dataclass(frozen=True, kw_only=True)
class SchedulesWrongly(Algorithm):
    name = "schedules-wrongly"

    def schedule(self, run):
        return lambda step: fails() if step == FAILS_AT else 1.0


@dataclass(frozen=True, kw_only=True)
class SelectsWrongly(Algorithm):
    name = "selects-wrongly"

    def selector(self, run):
        return fails


@dataclass(frozen=True, kw_only=True)
class LearnsWrongly(Algorithm):
    name = "learns-wrongly"

    def learner(self, model, optimizer, loss, run):
        return fails


@dataclass(frozen=True, kw_only=True)
class ReturnsNoBatch(Algorithm):
    name = "returns-no-batch"

    def selector(self, run):
        return lambda batch, model: None


@dataclass(frozen=True, kw_only=True)
class ReturnsNoFactor(Algorithm):
    name = "returns-no-factor"

    def schedule(self, run):
        return lambda step: "fast"


@dataclass(frozen=True, kw_only=True)
class ReturnsNoLoss(Algorithm):
    name = "returns-no-loss"

    def learner(self, model, optimizer, loss, run):
        return lambda batch: None


class SilentSGD(torch.optim.SGD):
    """Forgets to return the closure's loss."""

    def step(self, closure=None):
        super().step(closure)


@dataclass(frozen=True, kw_only=True)
class ReturnsNoClosureLoss(Algorithm):
    name = "returns-no-closure-loss"
    closure = True

    def optimizer(self, named_parameters, run):
        return SilentSGD(named_parameters, lr=0.1)
