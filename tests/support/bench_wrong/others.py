"""Freezers, learners and finishes, and ways to get them wrong."""

# ruff: noqa: ARG002 - slots take their contract's arguments
from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from bench import Algorithm


@dataclass(frozen=True, kw_only=True)
class GoodFreezer(Algorithm):
    """Trains every second layer in turn.

    Source: none, it is for tests.
    """

    name = "good-freezer"

    def freezer(self, model, run):
        def freeze(step):
            for number, layer in enumerate(model.layers):
                layer.requires_grad_(number % 2 == step % 2)

        return freeze


@dataclass(frozen=True, kw_only=True)
class AddsParameters(GoodFreezer):
    """Source: none."""

    name = "adds-parameters"

    def freezer(self, model, run):
        def freeze(step):
            model.spare = nn.Parameter(torch.zeros(step + 1), requires_grad=False)

        return freeze


@dataclass(frozen=True, kw_only=True)
class Answers(GoodFreezer):
    """Source: none."""

    name = "answers"

    def freezer(self, model, run):
        return lambda step: step


@dataclass(frozen=True, kw_only=True)
class FreezerCounts(GoodFreezer):
    """Source: none."""

    name = "freezer-counts"

    def freezer(self, model, run):
        freeze, calls = super().freezer(model, run), count()
        return lambda _: freeze(next(calls) // 5)


@dataclass(frozen=True, kw_only=True)
class FreezerDraws(GoodFreezer):
    """Source: none."""

    name = "freezer-draws"

    def freezer(self, model, run):
        model.embedding.register_forward_hook(lambda *_: random.random() and None)  # past the guard of the slot
        return super().freezer(model, run)


@dataclass(frozen=True, kw_only=True)
class FreezerRemembers(GoodFreezer):
    """Source: none."""

    name = "freezer-remembers"

    def freezer(self, model, run):
        object.__setattr__(self, "run", run)
        return super().freezer(model, run)


@dataclass(frozen=True, kw_only=True)
class GoodLearner(Algorithm):
    """Back-propagation and the optimizer's step.

    Source: none, it is for tests.
    """

    name = "good-learner"

    def learner(self, model, optimizer, loss, run):
        def learn(batch):
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            optimizer.step()
            return self.told(value.detach())

        return learn

    def told(self, value):
        return value


@dataclass(frozen=True, kw_only=True)
class NoLoss(GoodLearner):
    """Source: none."""

    name = "no-loss"

    def told(self, value):
        return torch.full_like(value, torch.nan)


@dataclass(frozen=True, kw_only=True)
class LearnerDraws(GoodLearner):
    """Source: none."""

    name = "learner-draws"

    def told(self, value):
        torch.rand(())
        return value


@dataclass(frozen=True, kw_only=True)
class LearnerRemembers(GoodLearner):
    """Source: none."""

    name = "learner-remembers"

    def told(self, value):
        object.__setattr__(self, "value", value)
        return value


@dataclass(frozen=True, kw_only=True)
class GoodFinish(Algorithm):
    """A copy.

    Source: none, it is for tests.
    """

    name = "good-finish"

    def finish(self, model, run):
        return copy.deepcopy(model)


@dataclass(frozen=True, kw_only=True)
class ShrinksModel(GoodFinish):
    """Source: none."""

    name = "shrinks-model"

    def finish(self, model, run):
        with torch.no_grad():
            model.norm.weight.mul_(0.99)
        return model


@dataclass(frozen=True, kw_only=True)
class FinishDraws(GoodFinish):
    """Source: none."""

    name = "finish-draws"

    def finish(self, model, run):
        torch.rand(())
        return copy.deepcopy(model)


@dataclass(frozen=True, kw_only=True)
class FinishRemembers(GoodFinish):
    """Source: none."""

    name = "finish-remembers"

    def finish(self, model, run):
        object.__setattr__(self, "run", run)
        return super().finish(model, run)
