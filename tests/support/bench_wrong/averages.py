"""Merging: the average of the bodies with the head of the first expert, and ways to get it wrong."""

# ruff: noqa: ARG002 - slots take their contract's arguments
from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from bench import Algorithm, Role

CALLS = count(1)


@dataclass(frozen=True, kw_only=True)
class Good(Algorithm):
    """The average of the bodies.

    Source: none, it is for tests.
    """

    name = "good-average"

    def merge(self, models, calibration, run):
        experts = list(models)
        merged = copy.deepcopy(experts[0])
        with torch.no_grad():
            for key, value in merged.named_parameters():
                if run.role(key) is not Role.CLASSIFIER or self.every_role:
                    parts = torch.stack([expert.get_parameter(key).double() for expert in experts])
                    value.copy_(torch.tensordot(self.weights(experts), parts, 1))
        return self.changed(merged, run)

    every_role = False

    def weights(self, experts):
        return torch.full((len(experts),), 1 / len(experts), dtype=torch.float64)

    def changed(self, merged, run):
        return merged


@dataclass(frozen=True, kw_only=True)
class NeedsTheMoon(Good):
    """Source: none."""

    name = "needs-the-moon"
    needs = ("moon",)


@dataclass(frozen=True, kw_only=True)
class MergeLeavesMode(Good):
    """Source: none."""

    name = "merge-leaves-mode"

    def merge(self, models, calibration, run):
        merged = super().merge(models, calibration, run)
        models[0].train()
        return merged


class Wrapped(nn.Module):
    """A model inside another one, which passes everything on."""

    def __init__(self, model):
        super().__init__()
        for name, part in model.named_children():
            setattr(self, name, part)

    def forward(self, inputs):
        return self.head(self.backbone(inputs))


@dataclass(frozen=True, kw_only=True)
class OtherClass(Good):
    """Source: none."""

    name = "other-class"

    def changed(self, merged, run):
        return Wrapped(merged)


@dataclass(frozen=True, kw_only=True)
class MergeRemembers(Good):
    """Source: none."""

    name = "merge-remembers"

    def changed(self, merged, run):
        object.__setattr__(self, "merged", merged)
        return merged


def shifted(merged, size):
    with torch.no_grad():
        merged.backbone[0].bias.add_(size)
    return merged


@dataclass(frozen=True, kw_only=True)
class MergeCounts(Good):
    """Source: none."""

    name = "merge-counts"

    def changed(self, merged, run):
        return shifted(merged, 1e-9 * next(CALLS))


@dataclass(frozen=True, kw_only=True)
class MergeSeedsItself(Good):
    """Source: none."""

    name = "merge-seeds-itself"

    def changed(self, merged, run):
        return shifted(merged, 1e-9 * run.seed)


@dataclass(frozen=True, kw_only=True)
class MergesHeads(Good):
    """Source: none."""

    name = "merges-heads"
    every_role = True


@dataclass(frozen=True, kw_only=True)
class WeighsByHeads(Good):
    """Source: none."""

    name = "weighs-by-heads"

    def weights(self, experts):
        norms = torch.stack([expert.head.weight.detach().double().norm() for expert in experts])
        return norms / norms.sum()


@dataclass(frozen=True, kw_only=True)
class TakesTheFirst(Good):
    """Source: none."""

    name = "takes-the-first"

    def weights(self, experts):
        return torch.eye(len(experts), dtype=torch.float64)[0]


@dataclass(frozen=True, kw_only=True)
class CoarseInBf16(Good):
    """Source: none."""

    name = "coarse-in-bf16"

    def weights(self, experts):
        plain = super().weights(experts)
        if experts[0].head.weight.dtype == torch.bfloat16 and len(experts) > 2:
            plain[0] += 0.3
            plain[1] -= 0.3
        return plain


@dataclass(frozen=True, kw_only=True)
class Drifts(Good):
    """Source: none."""

    name = "drifts"

    def changed(self, merged, run):
        return shifted(merged, 1e-3)


@dataclass(frozen=True, kw_only=True)
class MergeUnpicklable(Good):
    """Source: none."""

    name = "merge-unpicklable"

    def changed(self, merged, run):
        merged.note = lambda: "no module holds this function"
        return merged
