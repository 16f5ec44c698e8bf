"""Algorithms whose slots raise or return the wrong thing when the run is built."""

# ruff: noqa: ARG002 - a slot takes its contract's arguments, used or not

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from bench import Algorithm


class Faulty(Algorithm):
    """Base of the algorithms that raise; the message has two lines, of which a record keeps one."""

    def fail(self, slot: str) -> Any:
        raise RuntimeError(f"{slot} is out of order\nand here is a second line")


@dataclass(frozen=True, kw_only=True)
class RaisesInAdapt(Faulty):
    name = "raises-in-adapt"

    def adapt(self, model, run):
        return self.fail("adapt")


@dataclass(frozen=True, kw_only=True)
class RaisesInFreezer(Faulty):
    name = "raises-in-freezer"

    def freezer(self, model, run):
        return self.fail("freezer")


@dataclass(frozen=True, kw_only=True)
class RaisesInOptimizer(Faulty):
    name = "raises-in-optimizer"

    def optimizer(self, named_parameters, run):
        return self.fail("optimizer")


@dataclass(frozen=True, kw_only=True)
class RaisesInSchedule(Faulty):
    name = "raises-in-schedule"

    def schedule(self, run):
        return self.fail("schedule")


@dataclass(frozen=True, kw_only=True)
class RaisesInSelector(Faulty):
    name = "raises-in-selector"

    def selector(self, run):
        return self.fail("selector")


@dataclass(frozen=True, kw_only=True)
class RaisesInLearner(Faulty):
    name = "raises-in-learner"

    def learner(self, model, optimizer, loss, run):
        return self.fail("learner")


@dataclass(frozen=True, kw_only=True)
class RaisesInFinish(Faulty):
    name = "raises-in-finish"

    def finish(self, model, run):
        return self.fail("finish")


@dataclass(frozen=True, kw_only=True)
class ExitsInOptimizer(Algorithm):
    name = "exits-in-optimizer"

    def optimizer(self, named_parameters, run):
        sys.exit("a plugin must not end the process")


@dataclass(frozen=True, kw_only=True)
class ReturnsNoModel(Algorithm):
    name = "returns-no-model"

    def adapt(self, model, run):
        return None


@dataclass(frozen=True, kw_only=True)
class ReturnsNoFreezer(Algorithm):
    name = "returns-no-freezer"

    def freezer(self, model, run):
        return 3


@dataclass(frozen=True, kw_only=True)
class ReturnsNoOptimizer(Algorithm):
    name = "returns-no-optimizer"

    def optimizer(self, named_parameters, run):
        return {"lr": 0.1}


@dataclass(frozen=True, kw_only=True)
class ReturnsNoSchedule(Algorithm):
    name = "returns-no-schedule"

    def schedule(self, run):
        return 0.5


@dataclass(frozen=True, kw_only=True)
class ReturnsNoSelector(Algorithm):
    name = "returns-no-selector"

    def selector(self, run):
        return [1, 2, 3]


@dataclass(frozen=True, kw_only=True)
class ReturnsNoLearner(Algorithm):
    name = "returns-no-learner"

    def learner(self, model, optimizer, loss, run):
        return "learned"


@dataclass(frozen=True, kw_only=True)
class ReturnsNoFinishedModel(Algorithm):
    name = "returns-no-finished-model"

    def finish(self, model, run):
        return model.state_dict()


@dataclass(frozen=True, kw_only=True)
class ForgetsParameters(Algorithm):
    name = "forgets-parameters"

    def optimizer(self, named_parameters, run):
        return torch.optim.SGD([parameter for name, parameter in named_parameters if "bias" not in name], lr=0.1)
