"""Residual networks for small images: basic blocks, a 3x3 stem, no pooling before the end.

ResNet-18 for CIFAR-10 is ``ResNetConfig(channels=3, widths=(64, 128, 256, 512), blocks=2, norm="batch")``: the network
of the paper's ImageNet experiments with the stem that small images need, 3x3 with stride 1 instead of 7x7 with stride 2
and max pooling. It has the 11,173,962 parameters of ResNet18 in the widely used kuangliu/pytorch-cifar.

Tensor names carry their shape as a suffix: B images, C channels, H height, W width, K classes.

Source: arXiv:1512.03385 (blocks, option B shortcuts), arXiv:1502.01852 (initial weights), arXiv:1803.08494 (group
norm).
"""
# The capitals of the shape suffixes are the field's convention.
# ruff: noqa: N803, N806

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import BadValue


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The shape of a network.

    ``channels`` of the images, ``widths`` of the stages (every stage but the first halves the resolution), ``blocks``
    per stage, ``classes``, and the kind of ``norm``: over the batch, or over ``groups`` groups of channels.

    Raises :class:`~bench.errors.BadValue` for a size below 1 and for widths that do not divide into groups.
    """

    channels: int
    widths: tuple[int, ...]
    blocks: int
    norm: Literal["batch", "group"]
    groups: int = 4
    classes: int = 10

    def __post_init__(self) -> None:
        for name in ("channels", "blocks", "groups", "classes"):
            if (size := getattr(self, name)) < 1:
                raise BadValue(f"{name} is {size!r}, but a size is at least 1")
        if not self.widths or any(width < 1 or width % self.groups for width in self.widths):
            raise BadValue(f"widths are {self.widths!r}, but a stage's width is a positive multiple of {self.groups}")


class Block(nn.Module):
    """relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)): two 3x3 convolutions, the first one with the stride.

    The shortcut is a 1x1 convolution and a norm where the shape changes (option B of the paper), else the identity.
    """

    def __init__(self, config: ResNetConfig, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(config, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _norm(config, width)
        changes = stride != 1 or before != width
        self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if changes else None
        self.shortcut_norm = _norm(config, width) if changes else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm2(self.conv2(self.norm1(self.conv1(x_BCHW)).relu()))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x_BCHW = self.shortcut_norm(self.shortcut(x_BCHW))
        return torch.relu(h_BCHW + x_BCHW)


class ResNet(nn.Module):
    """Stem, stages of blocks, mean over the image, linear classifier: images (B, C, H, W) in, logits (B, K) out.

    A k x k convolution with n output channels starts as N(0, 2 / (k² n)), the classifier as U(±1/√n) of its n inputs,
    norms as 1 and 0. Every draw comes from ``generator``, module by module in the order of ``modules()``, so a seed
    fixes the weights whatever else used torch's global generator (``None``: draw from that one). On
    ``torch.device("meta")`` nothing is drawn or allocated.

    Deviations: kuangliu/pytorch-cifar keeps torch's default initial convolutions, U(±1/√(k² n)) of their n inputs; here
    they are those of the paper.
    """

    def __init__(self, config: ResNetConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        widths = (config.widths[0], *config.widths)
        # Built without storage: torch's own initialisation would use up the global generator.
        with torch.device("meta"):
            self.stem = nn.Conv2d(config.channels, widths[0], 3, padding=1, bias=False)
            self.stem_norm = _norm(config, widths[0])
            self.stages = nn.ModuleList(
                _stage(config, before, width, stride=1 if number == 0 else 2)
                for number, (before, width) in enumerate(pairwise(widths))
            )
            self.classifier = nn.Linear(widths[-1], config.classes)
        if device.type != "meta":
            self.to_empty(device=device)
            self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew from ``generator`` (``None``: torch's global one)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
            elif isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.in_features)
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.reset_parameters()
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits (B, K); the images, of any floating dtype, are rounded to that of the weights."""
        images_BCHW = images_BCHW.to(next(self.parameters()).dtype)
        x_BCHW = self.stem_norm(self.stem(images_BCHW)).relu()
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        logits_BK: Tensor = self.classifier(x_BCHW.mean((2, 3)))
        return logits_BK


def _stage(config: ResNetConfig, before: int, width: int, stride: int) -> nn.Sequential:
    rest = (Block(config, width, width, 1) for _ in range(config.blocks - 1))
    return nn.Sequential(Block(config, before, width, stride), *rest)


def _norm(config: ResNetConfig, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if config.norm == "batch" else nn.GroupNorm(config.groups, width)


def class_losses(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return the cross-entropy of each image in nats, -log softmax(logits)[label], fp32 (B,)."""
    return nn.functional.cross_entropy(logits_BK.float(), labels_B, reduction="none")
