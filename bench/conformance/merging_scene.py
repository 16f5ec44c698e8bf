"""Perceptrons with a head of their own each, all started from one network, and the data that may be seen."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.after_training import Axes, Point
from bench.algorithm import Batch
from bench.conformance.check import Subject
from bench.context import Run
from bench.experts import Experts
from bench.roles import Role

COUNT = 3
HEADS = ("head.weight", "head.bias")
AXES: Axes = {
    "backbone.0.weight": ("one", None),
    "backbone.0.bias": ("one",),
    "backbone.2.weight": ("two", "one"),
    "backbone.2.bias": ("two",),
    "backbone.4.weight": (None, "two"),
}


class Perceptron(nn.Module):
    """A backbone that is merged and a head of its own; inputs (B, 12), logits (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.backbone(inputs))
        return logits


def network(seed: int) -> Perceptron:
    """Return a perceptron drawn from ``seed``, and the global generators as they were."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = Perceptron().eval()
    torch.set_rng_state(state)
    return model


def tuned(start: nn.Module, seed: int, scale: float = 0.05) -> nn.Module:
    """Return ``start`` after a small change of its own, with a head of its own."""
    model, generator = copy.deepcopy(start), torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_((1.0 if name in HEADS else scale) * torch.randn(value.shape, generator=generator))
    return model


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of the classes."""
    return nn.functional.cross_entropy(model(batch["inputs"]).float(), batch["labels"])


class Scene:
    """Some experts, calibration data and an algorithm, and what it makes of them."""

    def __init__(
        self,
        subject: Subject,
        count: int = COUNT,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        experts: Sequence[nn.Module] = (),
    ) -> None:
        start = network(0)
        self.models = [model.to(dtype) for model in experts or [tuned(start, seed) for seed in range(count)]]
        self.start = start.to(dtype)
        self.experts = Experts(len(self.models), self.models.__getitem__, lambda: self.start)
        self.algorithm, self.seed = subject.algorithm(), seed
        self.inputs = torch.randn(6, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
        keys = {"weights": (), "optimizer-state": (), "inputs": ("inputs",)}.get(
            self.algorithm.information, ("inputs", "labels")
        )
        batch = {"inputs": self.inputs, "labels": torch.arange(6) % 4}
        seen = [{key: batch[key] for key in keys}] * 2 if keys else []
        self.calibration = [copy.deepcopy(seen) for _ in self.models]
        self.run = self.fresh_run()

    def fresh_run(self) -> Run:
        """Return the facts of the run, with generators that have not been used."""
        roles = {
            key: Role.CLASSIFIER if key in HEADS else Role.MLP if value.ndim == 2 else Role.BIAS
            for key, value in self.start.named_parameters()
        }
        return Run(
            seed=self.seed,
            steps=1,
            roles=roles,
            axes=AXES,
            algorithm=self.algorithm.name,
            point=Point(count=len(self.models)),
            loss=loss_of if self.algorithm.information == "labels" else None,
        )

    def merge(self) -> nn.Module:
        """Return the merged model."""
        return self.algorithm.merge(self.experts, self.calibration, self.run)


def farthest(left: nn.Module, right: nn.Module) -> float:
    """Return the largest difference of any weight that is merged."""
    names = [name for name, _ in left.named_parameters() if name not in HEADS]
    gaps = [(left.get_parameter(name).float() - right.get_parameter(name).float()).detach() for name in names]
    return max(float(gap.abs().max()) for gap in gaps)
