"""merge-permuted-digits: networks that learned the same digits from different initial weights, merged into one.

Hidden units may be renumbered without changing what a network computes,

    W_l → P_l W_l P_{l-1}ᵀ,    b_l → P_l b_l,    P_0 and P_4 the identities of pixels and classes,

so two networks may be alike and yet lie far apart; ``axes`` names the permutation that acts on each axis of each
parameter. A merging method that aligns the units first can average the networks, one that does not cannot.

The networks are perceptrons 64-w-w-w-10 with ReLU on the 8 x 8 digits that scikit-learn ships, 1,200 of them for
training and 597 for the test, divided once and for all. Network number i of seed s has initial weights and batches of
its own, which depend on s + i alone, so that the pairs of neighbouring seeds share a network. Over the test digits

    accuracy = share of the merged network's largest logits that are right
    barrier  = its mean cross-entropy minus the mean of the networks' own (nats), what merging costs

and ``training_barrier`` is the same over the training digits, ``endpoint_accuracy`` the mean of the networks' own.
With two networks and a merge at their midpoint ``barrier`` is the height there of the loss on the straight line from
one to the other, above the line between the ends' losses; the maximum over the line lies at most little higher.

Networks of the user's own (``--model-dir``, two or more files, or folders of them): state dicts of this architecture of
any one width, as ``.pt`` or ``.safetensors``; all are merged, in the order in which they were named.

Source: arXiv:2209.04836 (the algorithm), arXiv:2402.04051 (its analysis); the networks are this suite's own.
Measured tables: docs/merging-tiny.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from numpy.random import RandomState
from torch import nn

from bench import Batch, DataIdentity, Experts, MergingWorkload, Point, PostTier, Role, Target, Tier, cached
from bench.context import derive_seed
from bench.errors import BadData, BadValue
from bench.trial import digest

from ._digits import Digits
from ._merge_experts import calibration_batches, draw_linear
from ._state_files import fill, read_state, state_files, states_sha256
from ._subspace_tasks import Examples

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    Tensors = dict[str, Tensor]

KIND: Final = "merge-permuted-digits"
"""The folder of the cache, and what keeps these random streams apart from others."""

TRAINING_VERSION: Final = 1
"""Part of every recipe; raised by any change here that changes what is trained."""

TRAINING_EXAMPLES: Final = 1200


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained: its ``width``, AdamW's settings, and the ``noise`` that is added to every pixel."""

    width: int = 128
    steps: int = 1500
    batch: int = 100
    lr: float = 1e-3
    weight_decay: float = 1e-4
    noise: float = 0.05


@dataclass(frozen=True, kw_only=True)
class DigitsTier(PostTier):
    """A tier with how its networks are trained."""

    training: Training = field(default_factory=Training)


TINY = DigitsTier(
    points=(Point(count=2),),
    reference={"average": {}},
    tuning="nothing to tune",
    source="digits",
    device_class="cpu-1",
    target=Target(
        value=0.955,
        how="within 2 points of the networks' own; weight matching with 6 starts reaches 0.958 to 0.972 on five "
        "pairs, averaging 0.34 to 0.74",
    ),
    timeout_s=1800.0,
    expected_s=10.0,
    default_on=("cpu", "cuda"),
)

TINY_6 = replace(
    TINY,
    points=(Point(count=2), Point(count=3), Point(count=6)),
    target=Target(
        value=0.94,
        how="weight matching of six networks reaches 0.950 to 0.961 on each of five seeds, averaging 0.12",
    ),
    expected_s=20.0,
    default_on=(),
)


class DigitsNet(nn.Module):
    """A perceptron with three hidden layers: pixels / 16 (B, 64) in, logits (B, 10) out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.layers.append(nn.Linear(width, width)).append(nn.ReLU()).append(nn.Linear(width, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits


class MergePermutedDigits(MergingWorkload):
    """Perceptrons without a common start to one; see the module."""

    name = "merge-permuted-digits"
    version = "1.0.0"
    metric = "accuracy"
    direction = "max"
    takes_models = None
    has_pretrained = False
    labels = ("labels",)
    tiers: ClassVar[Mapping[str, Tier]] = {"tiny": TINY, "tiny-6": TINY_6}
    sources = ("digits",)
    roles: ClassVar[Mapping[str, Role]] = {
        r"layers\.[024]\.weight": Role.MLP,
        r"layers\.6\.weight": Role.OTHER,  # the classes are the same for all networks, so their head is merged, too
        r"layers\.[0246]\.bias": Role.BIAS,
    }
    axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "layers.0.weight": ("hidden1", None),
        "layers.0.bias": ("hidden1",),
        "layers.2.weight": ("hidden2", "hidden1"),
        "layers.2.bias": ("hidden2",),
        "layers.4.weight": ("hidden3", "hidden2"),
        "layers.4.bias": ("hidden3",),
        "layers.6.weight": (None, "hidden3"),
        "layers.6.bias": (None,),
    }

    def __post_init__(self) -> None:
        """Refuse a tokenizer, and a single model."""
        super().__post_init__()
        if self.request.tokenizer is not None:
            raise BadValue(
                f"tokenizer is {self.request.tokenizer!r}, but {self.name} reads images", hint="leave out --tokenizer"
            )
        if len(self.files) == 1:
            raise BadData(f"--model-dir names one model, {self.files[0]}", hint="merging needs two or more")

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files of the networks that the user named; none: the workload's own networks."""
        return state_files(self.request.models)

    @property
    def tier(self) -> DigitsTier:
        """The tier's definition; with networks of the user's own its one point is to merge them all."""
        tier = super().tier
        assert isinstance(tier, DigitsTier)
        return replace(tier, points=(Point(count=len(self.files)),)) if self.files else tier

    @cached_property
    def _splits(self) -> tuple[Examples, Examples]:
        """The digits for training and for the test."""
        parts = [Digits().images("train"), Digits().images("validation")]
        pixels = np.concatenate([part.pixels for part in parts]).reshape(-1, 64)
        labels = np.concatenate([part.labels for part in parts]).astype(np.int64)
        order = RandomState(0).permutation(len(labels))
        inputs, classes = torch.from_numpy(pixels[order]).float() / 16, torch.from_numpy(labels[order])
        cut = TRAINING_EXAMPLES
        return Examples(inputs[:cut], classes[:cut]), Examples(inputs[cut:], classes[cut:])

    def data(self) -> DataIdentity:
        """Return the identity of the digits and of how the networks came about."""
        facts: dict[str, Any] = {
            "version": TRAINING_VERSION,
            "digits": Digits().content,
            "training": asdict(self.tier.training),
        }
        if self.files:
            facts["models"] = states_sha256(self.files)
        label = Digits().label + (", networks of the user's own" if self.files else "")
        return DataIdentity(source=self.source, sha256=digest(facts), label=label)

    def base_sha256(self, seed: int) -> str:
        """Return the hash of all networks."""
        if self.files:
            return states_sha256(self.files)
        count = max(point.count or 0 for point in self.points)
        return digest([self._trained(seed + number)[1] for number in range(count)])

    @cached_property
    def width(self) -> int:
        """The width of the hidden layers: the tier's, or that of the first network that the user named."""
        if not self.files:
            return self.tier.training.width
        first = read_state(self.files[0]).get("layers.0.weight")
        if first is None or first.ndim != 2:
            raise BadData(
                f"{self.files[0]} has no matrix 'layers.0.weight'", hint="all models have this workload's architecture"
            )
        return len(first)

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return a network before training: the merged ones have no common start."""
        if device.type == "meta":
            with device:
                return DigitsNet(self.width)
        model = self._empty()
        rng = torch.Generator().manual_seed(derive_seed(seed, KIND, "weights"))
        for layer in model.layers:
            if isinstance(layer, nn.Linear):
                draw_linear(layer, rng)
        return model.to(device)

    def _empty(self) -> DigitsNet:
        # Built without storage: torch's own initialisation would use up the global generator.
        with torch.device("meta"):
            model = DigitsNet(self.width)
        return model.to_empty(device="cpu")

    def experts(self, seed: int, device: torch.device, count: int) -> Experts:
        """Return the first ``count`` networks; those not in the cache are trained first."""
        for number in range(count):
            self._network(seed, number)
        return Experts(count, lambda number: self._network(seed, number).to(device))

    def _network(self, seed: int, number: int) -> nn.Module:
        if self.files:
            return fill(self._empty(), read_state(self.files[number]), self.files[number])
        network = self._empty()
        network.load_state_dict(self._trained(seed + number)[0])
        return network

    def _trained(self, number: int) -> tuple[Tensors, str]:
        training = self.tier.training
        recipe = {"version": TRAINING_VERSION, "digits": Digits().content, "seed": number, "training": asdict(training)}
        return cached(KIND, recipe, lambda: self._train(number))

    @torch.enable_grad()  # a caller may have switched gradients off
    def _train(self, number: int) -> Tensors:
        training, (examples, _) = self.tier.training, self._splits
        model = self.model(number, torch.device("cpu"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=training.weight_decay)
        rng = torch.Generator().manual_seed(derive_seed(number, KIND, "batches"))
        for _ in range(training.steps):
            chosen = torch.randint(len(examples), (training.batch,), generator=rng)
            inputs = examples.inputs[chosen] + training.noise * torch.randn(training.batch, 64, generator=rng)
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(model, {"inputs": inputs, "labels": examples.labels[chosen]}))
            optimizer.step()
        return dict(model.state_dict())

    def calibration(self, seed: int, device: torch.device, count: int) -> Sequence[Sequence[Batch]]:
        """Return the first training digits, ``inputs`` (B, 64) and ``labels`` (B,); all networks learned the same."""
        return [calibration_batches(self._splits[0], device)] * count

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per digit."""
        losses = nn.functional.cross_entropy(model(batch["inputs"]).float(), batch["labels"], reduction="none")
        weights = batch.get("weights")
        return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()

    @torch.no_grad()
    def examine(
        self, model: nn.Module, point: Point, history: Sequence[Mapping[str, float]], device: torch.device, seed: int
    ) -> dict[str, float]:
        """Return the metrics of the module's page; they depend on no other point."""
        training, test = self._splits
        count = point.count or 0
        networks = [self._network(seed, number).to(device) for number in range(count)]
        found = self._loss_and_accuracy(model, test, device)
        endpoints = [self._loss_and_accuracy(network, test, device) for network in networks]
        trained = [self._loss_and_accuracy(network, training, device)[0] for network in networks]
        return {
            "accuracy": found[1],
            "barrier": found[0] - fmean(loss for loss, _ in endpoints),
            "training_barrier": self._loss_and_accuracy(model, training, device)[0] - fmean(trained),
            "endpoint_accuracy": fmean(accuracy for _, accuracy in endpoints),
        }

    def _loss_and_accuracy(self, model: nn.Module, examples: Examples, device: torch.device) -> tuple[float, float]:
        inputs, labels = examples.inputs.to(device), examples.labels.to(device)
        right = model(inputs).argmax(-1) == labels
        return float(self.loss(model, {"inputs": inputs, "labels": labels})), float(right.double().mean())
