"""Optimizers: SGD with momentum, and ways to get it wrong."""

# ruff: noqa: ARG002 - slots take their contract's arguments
from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Annotated

import torch
from annotated_types import Gt

from bench import Algorithm, Log, hyper

RUNS = count(1)


class Momentum(torch.optim.Optimizer):
    """Heavy-ball momentum of 0.9."""

    def __init__(self, params, lr, run, **options):
        super().__init__(params, {"lr": lr, **options})
        self.facts = run
        self.prepare()

    def prepare(self):
        """Do what a wrong one does at first."""

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None or self.coasting:
                        self.move(p, group)
        return self.told(loss)

    coasting = False

    def told(self, loss):
        return loss

    def move(self, p, group, factor=1.0):
        momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
        if p.grad is not None:
            momentum.lerp_(p.grad, 0.1)
        p.sub_(momentum, alpha=factor * group["lr"])


@dataclass(frozen=True, kw_only=True)
class Good(Algorithm):
    """Heavy-ball momentum.

    Source: none, it is for tests.
    """

    name = "good-optimizer"

    lr: Annotated[float, Gt(0)] = hyper(0.1, search=Log(1e-3, 1.0), help="learning rate")

    kind = Momentum

    def optimizer(self, named_parameters, run):
        return self.kind([p for _, p in named_parameters], self.lr, run)


def wrong(label):
    """Return a decorator that makes an algorithm called ``label`` of an optimizer."""

    def made(kind):
        facts = {"name": label, "kind": kind, "__doc__": "Source: none.", "__module__": __name__}
        return dataclass(frozen=True, kw_only=True)(type(kind.__name__, (Good,), facts))

    return made


@wrong("idle-group")
class IdleGroup(Momentum):
    def prepare(self):
        self.add_param_group({"params": [], "lr": 0.0})


@wrong("counts-runs")
class CountsRuns(Momentum):
    def prepare(self):
        self.factor = 1 + 1e-3 * next(RUNS)

    def move(self, p, group, factor=1.0):
        super().move(p, group, self.factor)


@wrong("draws-globally")
class DrawsGlobally(Momentum):
    def move(self, p, group, factor=1.0):
        torch.rand(())
        super().move(p, group)


@wrong("seeds-itself")
class SeedsItself(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, group, 1 + 1e-3 * self.facts.seed)


@wrong("hides-state")
class HidesState(Momentum):
    def prepare(self):
        self.number = 0

    def step(self, closure=None):
        self.number += 1
        return super().step(closure)

    def move(self, p, group, factor=1.0):
        super().move(p, group, 0.999**self.number)


@wrong("keeps-fp32")
class KeepsFp32(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, group)
        self.state[p]["norm"] = p.grad.float().norm()


@dataclass(frozen=True, kw_only=True)
class Remembers(Good):
    """Source: none."""

    name = "remembers"

    def optimizer(self, named_parameters, run):
        object.__setattr__(self, "run", run)
        return super().optimizer(named_parameters, run)


@wrong("swallows-loss")
class SwallowsLoss(Momentum):
    def told(self, loss):
        return None if loss is None else float(loss)


@wrong("one-rate")
class OneRate(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, self.defaults)


@wrong("turns-around")
class TurnsAround(Momentum):
    def move(self, p, group, factor=1.0):
        number = self.state[p]["step"] = self.state[p].get("step", 0) + 1
        super().move(p, group, 1.0 if number <= 13 else -3.0)


@wrong("skips-convolutions")
class SkipsConvolutions(Momentum):
    def move(self, p, group, factor=1.0):
        if p.ndim < 3:
            super().move(p, group)


@wrong("needs-elements")
class NeedsElements(Momentum):
    def move(self, p, group, factor=1.0):
        p.grad.abs().max()
        super().move(p, group)


@wrong("divides-by-norm")
class DividesByNorm(Momentum):
    def move(self, p, group, factor=1.0):
        p.sub_(p.grad / p.grad.norm(), alpha=group["lr"])


@wrong("coasts")
class Coasts(Momentum):
    coasting = True


@wrong("halves-gradients")
class HalvesGradients(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, group)
        p.grad.mul_(0.5)


@wrong("other-foreach")
class OtherForeach(Momentum):
    def __init__(self, params, lr, run):
        super().__init__(params, lr, run, foreach=None)

    def move(self, p, group, factor=1.0):
        super().move(p, group, 0.5 if group["foreach"] else 1.0)


@wrong("state-on-cpu")
class StateOnCpu(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, group)
        self.state[p]["spare"] = torch.zeros(p.shape, dtype=p.dtype)


@wrong("forgets-on-meta")
class ForgetsOnMeta(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, group)
        if not p.is_meta:
            self.state[p]["spare"] = torch.zeros_like(p)


@wrong("forgets-models-on-meta")
class ForgetsModelsOnMeta(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, group)
        if not p.is_meta and len(group["params"]) > 12:
            self.state[p]["spare"] = torch.zeros_like(p)


@wrong("breaks-in-amp")
class BreaksInAmp(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, group, torch.nan if self.facts.precision == "amp-bf16" else 1.0)


@wrong("climbs-models")
class ClimbsModels(Momentum):
    def move(self, p, group, factor=1.0):
        super().move(p, group, -1.0 if len(group["params"]) > 12 else 1.0)
