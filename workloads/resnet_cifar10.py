r"""resnet-cifar10: residual networks that classify small images, from scratch.

Tier ``11m`` is ResNet-18 on CIFAR-10 as the field trains it: 3x3 stem without pooling, batch norm, batches of 128 for
200 epochs, crops of images padded by 4 pixels, mirror images. Tier ``tiny`` is a small network of the same blocks on
the 8 x 8 digits that scikit-learn ships, through the same code, with shifts by a pixel. Its norm is over groups of
channels and not over the batch, so nothing but the weights decides what the model says: an algorithm that evaluates
other weights than it trains (an average, say), or that leaves images out, is judged by its weights alone.

Validation is one fixed list of images. With z the logits and y the labels, in fp32,

    loss = Σ_i -log softmax(z_i)[y_i] / N        (nats per image)        accuracy = Σ_i [argmax z_i = y_i] / N

and neither depends on batch size or devices. The digits are split in halves by a hash of their index; CIFAR-10 is
validated on its 10,000 test images, as everywhere.

The first convolution reads pixels and not features, so its role is ``other`` and only what follows is ``conv``.

Deviations: the published recipe starts at the full learning rate, decays it per epoch and has plain momentum; here the
schedule is per step and SGD's momentum is Nesterov's. Initial convolutions are the paper's, see ``_resnet``.
Source: arXiv:1512.03385; the CIFAR-10 recipe is that of kuangliu/pytorch-cifar.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from bench import Batch, DataIdentity, Role, Target, Tier, TrainingWorkload
from bench.context import derive_seed
from bench.errors import BadValue

from ._cifar import CifarFiles
from ._cifar_hub import CifarHub
from ._digits import Digits
from ._images import Batches, Dataset
from ._resnet import ResNet, ResNetConfig, class_losses

if TYPE_CHECKING:
    from torch import Tensor

    from ._images import Source


@dataclass(frozen=True, kw_only=True)
class ResNetTier(Tier):
    """A tier with the shape of its network, whose ``channels`` follow the data where other data is named."""

    network: ResNetConfig


TINY = ResNetTier(
    network=ResNetConfig(channels=1, widths=(16, 32, 64), blocks=1, norm="group"),
    steps=160,
    evaluate_every=2,
    batch_size=64,
    micro_batch_size=64,
    precision="fp32",
    reference={
        "adamw": {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        "warmup-linear": {"warmup_fraction": 0.1, "final_factor": 0.0},
    },
    tuning="grid over learning rate 2e-3 to 2e-2 and beta2 0.95, 0.99, 0.999, the two best on five seeds: "
    "docs/resnet-cifar10-tiny.md",
    source="digits",
    device_class="cpu-1",
    target=Target(value=0.108, how="met by the reference's five seeds at 70% to 85% of its budget, 77% on average"),
    timeout_s=3600.0,
    predicted_cv=0.09,
    expected_s=3.0,
    default_on=("cpu",),
)

RESNET18 = ResNetTier(
    network=ResNetConfig(channels=3, widths=(64, 128, 256, 512), blocks=2, norm="batch"),
    steps=78_125,  # 200 epochs of 50,000 images
    evaluate_every=781,
    batch_size=128,
    micro_batch_size=128,  # one, because batch norm sees a micro-batch at a time
    precision="amp-bf16",
    reference={
        "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "warmup-cosine": {"warmup_fraction": 0.0, "final_factor": 0.0},
    },
    tuning="published (kuangliu/pytorch-cifar); not tuned here, no hardware for this tier yet",
    source="cifar10",
    device_class="none yet",
    timeout_s=7 * 24 * 3600.0,
    default_on=("cuda",),
)


class ResNetCifar10(TrainingWorkload):
    """Residual networks on small images; see the module."""

    name = "resnet-cifar10"
    version = "1.0.0"
    metric = "loss"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = {"tiny": TINY, "11m": RESNET18}
    sources = ("digits", "local", "cifar10")
    roles: ClassVar[Mapping[str, Role]] = {
        r"stem\.weight": Role.OTHER,
        r"stages\.\d+\.\d+\.(conv1|conv2|shortcut)\.weight": Role.CONV,
        r"(stem_|stages\.\d+\.\d+\.(shortcut_)?)norm[12]?\.weight": Role.NORM,
        r"((stem_|stages\.\d+\.\d+\.(shortcut_)?)norm[12]?|classifier)\.bias": Role.BIAS,
        r"classifier\.weight": Role.CLASSIFIER,
    }

    def __post_init__(self) -> None:
        """Refuse a tokenizer: images have none."""
        super().__post_init__()
        if self.request.tokenizer is not None:
            raise BadValue(
                f"tokenizer is {self.request.tokenizer!r}, but {self.name} reads images", hint="leave out --tokenizer"
            )

    @cached_property
    def dataset(self) -> Dataset:
        """The chosen images."""
        return Dataset(self._source())

    def _source(self) -> Source:
        if self.source == "local":
            assert self.request.directory is not None
            return CifarFiles(self.request.directory)
        return Digits() if self.source == "digits" else CifarHub()

    def data(self) -> DataIdentity:
        """Return the identity of images and preparation together."""
        return self.dataset.identity

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the network, its weights drawn on the CPU so that every device starts from the same ones."""
        tier = self.tier
        assert isinstance(tier, ResNetTier)
        config = replace(tier.network, channels=self.dataset.source.shape[0])
        if device.type == "meta":
            with torch.device("meta"):
                return ResNet(config)
        return ResNet(config, torch.Generator().manual_seed(derive_seed(seed, "model"))).to(device)

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[Batch]:
        """Yield batches of ``images`` (B, C, H, W) and ``labels`` (B,)."""
        stream = Batches(self.dataset, batch_size=self.tier.batch_size, seed=seed, start=start)
        return (_to(batch, device) for batch in stream)

    def example(self, device: torch.device) -> Batch:
        """Return two images of zeros: over one, batch norm has no variance where a stage leaves a single pixel."""
        labels = torch.zeros(2, dtype=torch.long, device=device)
        return {"images": torch.zeros(2, *self.dataset.source.shape, device=device), "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats per image of the micro-batch."""
        losses, weights = class_losses(model(batch["images"]), batch["labels"]), batch.get("weights")
        return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Return ``loss`` and ``accuracy``."""
        losses, right = [], []
        for cpu_batch in self.dataset.evaluated():
            batch = _to(cpu_batch, device)
            logits, labels = model(batch["images"]), batch["labels"]
            losses.append(class_losses(logits, labels).double())
            right.append(logits.argmax(-1) == labels)
        return {"loss": float(torch.cat(losses).mean()), "accuracy": float(torch.cat(right).double().mean())}


def _to(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}
