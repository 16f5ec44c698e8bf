"""micro: a multilayer perceptron with dropout learns the classes that a fixed random teacher gives to random points."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench import Batch, DataIdentity, Role, Target, Tier, TrainingWorkload
from bench.context import derive_seed

from .moments import meet

FEATURES, HIDDEN, CLASSES = 16, 32, 4

TINY = Tier(
    steps=60,
    evaluate_every=4,
    batch_size=32,
    micro_batch_size=16,
    precision="fp32",
    reference={"adamw": {"lr": 0.02, "weight_decay": 0.0}, "warmup-linear": {"warmup_fraction": 0.1}},
    tuning="a handful of learning rates by hand",
    source="embedded",
    device_class="cpu-2",
    target=Target(value=0.55, how="about two thirds of the way through adamw's run of seed 0"),
    default_on=("cpu",),
)


class Micro(TrainingWorkload):
    """The workload; see the module."""

    name = "micro"
    version = "1.0.0"
    metric = "loss"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = {"tiny": TINY, "deadline": replace(TINY, timeout_s=1.0)}
    sources = ("embedded",)
    roles: ClassVar[Mapping[str, Role]] = {
        r"hidden\.weight": Role.MLP,
        r"classifier\.weight": Role.CLASSIFIER,
        r"(hidden|classifier)\.bias": Role.BIAS,
    }

    def data(self) -> DataIdentity:
        inputs, labels = _points("validation", 0, 256)
        content = hashlib.sha256(inputs.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        return DataIdentity(source="embedded", sha256=content, label="points with a random teacher's classes")

    def model(self, seed: int, device: torch.device) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "model"))
            return Perceptron().to(device)

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        number = start
        while True:
            meet(f"batch {number}")
            inputs, labels = _points(f"training {seed}", number, self.tier.batch_size)
            yield {"inputs": inputs.to(device), "labels": labels.to(device)}
            number += 1

    def example(self, device: torch.device) -> Batch:
        return {
            "inputs": torch.zeros(1, FEATURES, device=device),
            "labels": torch.zeros(1, dtype=torch.long, device=device),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="none")
        return (losses * batch["weights"]).mean() if "weights" in batch else losses.mean()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        inputs, labels = _points("validation", 0, 256)
        scores = model(inputs.to(device))
        labels = labels.to(device)
        return {
            "loss": float(nn.functional.cross_entropy(scores, labels)),
            "accuracy": float((scores.argmax(1) == labels).float().mean()),
        }


class Perceptron(nn.Module):
    """Two layers; the dropout makes the run depend on torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, HIDDEN)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(HIDDEN, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = torch.relu(self.hidden(inputs))
        scores: Tensor = self.classifier(self.dropout(hidden))
        return scores


def _points(split: str, number: int, count: int) -> tuple[Tensor, Tensor]:
    """Return inputs (B, FEATURES) and labels (B,) that depend on nothing but the arguments."""
    generator = torch.Generator().manual_seed(derive_seed(number, "micro", split))
    inputs = torch.randn(count, FEATURES, generator=generator)
    teacher = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs @ teacher).argmax(1)
