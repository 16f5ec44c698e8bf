"""Algorithms that use up what there is: time, memory, the range of floating point."""

# ruff: noqa: ARG002, ARG005 - a slot takes its contract's arguments, used or not

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from bench import Algorithm


@dataclass(frozen=True, kw_only=True)
class Hangs(Algorithm):
    """Never comes back from its second step."""

    name = "hangs"

    def schedule(self, run):
        return lambda step: time.sleep(3600) or 1.0 if step == 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class Dawdles(Algorithm):
    """Takes long for each step, but comes back."""

    name = "dawdles"

    def schedule(self, run):
        return lambda step: time.sleep(0.1) or 1.0


@dataclass(frozen=True, kw_only=True)
class Hoards(Algorithm):
    """Asks torch for more memory than any machine has."""

    name = "hoards"

    def freezer(self, model, run):
        return lambda step: torch.empty(2**60) if step == 5 else None


@dataclass(frozen=True, kw_only=True)
class HoardsHost(Algorithm):
    """Asks Python for more memory than any machine has."""

    name = "hoards-host"

    def optimizer(self, named_parameters, run):
        return bytearray(2**62)


@dataclass(frozen=True, kw_only=True)
class HoardsDevice(Algorithm):
    """Meets the error of a device whose memory is used up."""

    name = "hoards-device"

    def freezer(self, model, run):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")


@dataclass(frozen=True, kw_only=True)
class Diverges(Algorithm):
    """Makes the weights infinite at its eleventh step."""

    name = "diverges"

    def freezer(self, model, run):
        return lambda step: model.hidden.weight.data.mul_(torch.inf) if step == 10 else None


@dataclass(frozen=True, kw_only=True)
class Grows(Algorithm):
    """Keeps 64 MiB more with every step, until there is no more."""

    name = "grows"

    def freezer(self, model, run):
        kept = []
        return lambda step: kept.append(torch.ones(2**24))


@dataclass(frozen=True, kw_only=True)
class NanLoss(Algorithm):
    """Weighs the examples of one batch by no number."""

    name = "nan-loss"
    weight = torch.nan

    def selector(self, run):
        calls = []

        def select(batch, model):
            calls.append(1)
            return {**batch, "weights": torch.full((len(batch["labels"]),), self.weight if len(calls) == 10 else 1.0)}

        return select


@dataclass(frozen=True, kw_only=True)
class InfiniteLoss(NanLoss):
    """Weighs the examples of one batch without bound."""

    name = "infinite-loss"
    weight = torch.inf


@dataclass(frozen=True, kw_only=True)
class NanGradient(Algorithm):
    """Makes one entry of one gradient no number, once."""

    name = "nan-gradient"
    value = torch.nan

    def freezer(self, model, run):
        def spoil(gradient):
            spoiled = gradient.clone()
            spoiled.view(-1)[0] = self.value
            return spoiled

        handles = []

        def freeze(step):
            if step == 10:
                handles.append(model.hidden.weight.register_hook(spoil))
            if step == 11:
                handles.pop().remove()

        return freeze


@dataclass(frozen=True, kw_only=True)
class InfiniteGradient(NanGradient):
    """Makes one entry of one gradient infinite, once."""

    name = "infinite-gradient"
    value = torch.inf
