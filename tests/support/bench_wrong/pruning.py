"""Compression: pruning by magnitude, and ways to get it wrong."""

# ruff: noqa: ARG002 - slots take their contract's arguments
from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import count

import torch

from bench import HIDDEN_MATRICES, Algorithm, Point
from bench.errors import BadValue

CALLS = count(1)


def masked(weight, point):
    """Return ``weight`` with the smallest values at zero, as ``point`` says."""
    if point.pattern is not None:
        kept, group = point.pattern
        parts = weight.abs().unflatten(1, (-1, group))
        mask = (parts.argsort(dim=-1).argsort(dim=-1) >= group - kept).flatten(1)
    else:
        number = int(point.kept_ratio * weight.numel())
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[weight.abs().flatten().topk(number).indices] = True
        mask = mask.view_as(weight)
    return weight * mask


@dataclass(frozen=True, kw_only=True)
class Good(Algorithm):
    """Pruning by magnitude.

    Source: none, it is for tests.
    """

    name = "good-pruning"

    def compress(self, model, calibration, run):
        if run.point is None:
            raise BadValue("there is no point")
        result = copy.deepcopy(model).requires_grad_(True)
        with torch.no_grad():
            for key, value in result.named_parameters():
                if run.role(key) in HIDDEN_MATRICES:
                    value.copy_(masked(value, self.asked(run.point)))
        return self.changed(result, run)

    def asked(self, point):
        return point

    def changed(self, result, run):
        return result


@dataclass(frozen=True, kw_only=True)
class AsksTooMuch(Good):
    """Source: none."""

    name = "asks-too-much"
    needs = ("pattern", "branch-rank")


@dataclass(frozen=True, kw_only=True)
class KeepsMore(Good):
    """Source: none."""

    name = "keeps-more"

    def asked(self, point):
        return replace(point, kept_ratio=0.9, pattern=None)


@dataclass(frozen=True, kw_only=True)
class PruningWidens(Good):
    """Source: none."""

    name = "pruning-widens"

    def changed(self, result, run):
        return result.float()


@dataclass(frozen=True, kw_only=True)
class LeavesMode(Good):
    """Source: none."""

    name = "leaves-mode"

    def compress(self, model, calibration, run):
        result = super().compress(model, calibration, run)
        model.train()
        return result


@dataclass(frozen=True, kw_only=True)
class TouchesNorms(Good):
    """Source: none."""

    name = "touches-norms"

    def changed(self, result, run):
        with torch.no_grad():
            result.norm.weight.mul_(2.0)
        return result


def shifted(result, size):
    """Return ``result`` with the weights of one matrix that are not 0 changed a little."""
    with torch.no_grad():
        weight = result.layers[0].q.weight
        weight[weight != 0] += size
    return result


@dataclass(frozen=True, kw_only=True)
class PruningCounts(Good):
    """Source: none."""

    name = "pruning-counts"

    def changed(self, result, run):
        return shifted(result, 1e-3 * next(CALLS))


@dataclass(frozen=True, kw_only=True)
class PruningSeedsItself(Good):
    """Source: none."""

    name = "pruning-seeds-itself"

    def changed(self, result, run):
        return shifted(result, 1e-3 * run.seed)


@dataclass(frozen=True, kw_only=True)
class PruningRemembers(Good):
    """Source: none."""

    name = "pruning-remembers"

    def changed(self, result, run):
        object.__setattr__(self, "result", result)
        return result


@dataclass(frozen=True, kw_only=True)
class FreezesResult(Good):
    """Source: none."""

    name = "freezes-result"

    def changed(self, result, run):
        result.norm.weight.requires_grad_(False)
        return result


@dataclass(frozen=True, kw_only=True)
class GuessesPoints(Good):
    """Source: none."""

    name = "guesses-points"

    def compress(self, model, calibration, run):
        return super().compress(model, calibration, replace(run, point=run.point or Point(kept_ratio=0.5)))


@dataclass(frozen=True, kw_only=True)
class Unpicklable(Good):
    """Source: none."""

    name = "unpicklable"

    def changed(self, result, run):
        result.note = lambda: "no module holds this function"
        return result
