"""Labelled images as arrays, what their sources say of themselves, and the batches of a model's input.

The pixels of a source are bytes p = 0 .. ``scale``. A model sees x = (p / scale - mean) / std per channel.

Array names carry their shape as a suffix: B or N images, C channels, H height, W width.
"""
# The capitals of the shape suffixes are the field's convention.
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bench.context import derive_seed
from bench.errors import BadData, BadValue
from bench.workload import DataIdentity

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "validation"]
Pixels = NDArray[np.uint8]

_EVALUATED_AT_ONCE: Final = 500
"""Images per batch of the validation set; its activations bound the memory of an evaluation, nothing else."""


@dataclass(frozen=True)
class Images:
    """Images and their classes: ``pixels`` (N, C, H, W) and ``labels`` (N,), both bytes."""

    pixels: Pixels
    labels: Pixels

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the pixels of a source become inputs, and how training images are varied.

    ``scale`` is the largest pixel; ``mean`` and ``std`` are per channel, of pixels over scale. A training image is
    padded by ``pad`` pixels of 0 on every side, cut out again at a place drawn uniformly, and mirrored left to right
    with probability 1/2 where ``mirror`` is set. Validation images are only scaled.
    """

    scale: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    mirror: bool

    def inputs(self, pixels: Pixels) -> Tensor:
        """Return x, fp32 of the shape of ``pixels``."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (torch.from_numpy(pixels).float() / self.scale - mean) / std

    def varied(self, pixels_BCHW: Pixels, draws_3B: NDArray[np.uint64]) -> Pixels:
        """Return the images cut out and mirrored as ``draws_3B``, uniform in 0 .. 2³²-1, say: row, column, mirror."""
        pad, height, width = self.pad, *pixels_BCHW.shape[2:]
        padded = np.pad(pixels_BCHW, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        places = sliding_window_view(padded, (height, width), axis=(2, 3))
        rows, columns = ((draws_3B[:2] * np.uint64(2 * pad + 1)) >> np.uint64(32)).astype(np.intp)
        found = places[np.arange(len(pixels_BCHW)), :, rows, columns]
        if self.mirror:
            mirrored = draws_3B[2] >= np.uint64(1 << 31)
            found[mirrored] = found[mirrored, ..., ::-1]
        return found


class Source(Protocol):
    """Where images come from. A source never falls back to another one: what is missing or damaged is ``BadData``."""

    @property
    def name(self) -> str:
        """What a record calls the source."""

    @property
    def content(self) -> str:
        """SHA-256 (hexadecimal) of what decides the images."""

    @property
    def label(self) -> str:
        """One line for people."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H and W."""

    @property
    def preparation(self) -> Preparation:
        """How its pixels become inputs."""

    def images(self, split: Split) -> Images:
        """Read a split."""


@dataclass(frozen=True)
class Dataset:
    """The images of a source, read once, when they are first needed."""

    source: Source

    @property
    def identity(self) -> DataIdentity:
        """What decides every input: source, content and preparation; raises ``BadData`` where the data is missing."""
        source = self.source
        content, preparation = source.content, source.preparation
        return DataIdentity(
            source=source.name,
            sha256=sha256(f"{source.name} {content} {preparation!r}".encode()).hexdigest(),
            label=f"{source.label}, content {content[:12]}, {preparation!r}",
        )

    @cached_property
    def train(self) -> Images:
        """The training split."""
        return self.source.images("train")

    @cached_property
    def validation(self) -> Images:
        """The validation split, always in the same order."""
        return self.source.images("validation")

    def evaluated(self) -> Iterator[dict[str, Tensor]]:
        """Yield the validation split in batches ``{"images", "labels"}``, the last one smaller."""
        split = self.validation
        for first in range(0, len(split), _EVALUATED_AT_ONCE):
            part = slice(first, first + _EVALUATED_AT_ONCE)
            yield as_batch(self.source.preparation.inputs(split.pixels[part]), split.labels[part])


class Batches(Iterator["dict[str, Tensor]"]):
    """Endless training batches ``{"images", "labels"}``, fp32 (B, C, H, W) and int64 (B,), varied as the source says.

    Args:
        dataset: where the images come from.
        batch_size: images per batch, B. A batch may span the end of an epoch, so that none is smaller.
        seed: sets the order, a new permutation in every epoch, and the variations, which are drawn per batch.
        start: number of the first batch; what follows is exactly what follows the first ``start`` batches otherwise.

    Attributes:
        step: number of the next batch.

    Raises:
        BadValue: ``batch_size`` is not positive, or ``seed`` or ``start`` negative.
        BadData: the training data is missing or damaged.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int = 0, start: int = 0) -> None:
        if batch_size < 1:
            raise BadValue(
                f"batch_size {batch_size!r} ({type(batch_size).__name__}) is not positive", hint="at least 1"
            )
        if min(seed, start) < 0:
            raise BadValue(f"seed {seed!r} or start {start!r} is negative", hint="both count from 0")
        self.step = start
        self._images, self._preparation = dataset.train, dataset.source.preparation
        self._batch_size, self._seed = batch_size, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.intp)

    def __next__(self) -> dict[str, Tensor]:
        """Return the next batch."""
        first = self.step * self._batch_size
        chosen = self._chosen(np.arange(first, first + self._batch_size))
        draws = _draws(3 * self._batch_size, self._seed, "variations", self.step).reshape(3, -1)
        self.step += 1
        pixels = self._preparation.varied(self._images.pixels[chosen], draws >> np.uint64(32))
        return as_batch(self._preparation.inputs(pixels), self._images.labels[chosen])

    def _chosen(self, places: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the images at ``places`` of the endless sequence of permutations."""
        epochs, within = np.divmod(places, len(self._images))
        chosen = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            if epoch != self._epoch:
                draws = _draws(len(self._images), self._seed, "order", epoch)
                self._epoch, self._order = epoch, np.argsort(draws, kind="stable")
            here = epochs == epoch
            chosen[here] = self._order[within[here]]
        return chosen


def as_batch(images_BCHW: Tensor, labels_B: Pixels) -> dict[str, Tensor]:
    """Return a batch with labels as indices."""
    return {"images": images_BCHW, "labels": torch.from_numpy(labels_B.astype(np.int64))}


def checked(images: Images, classes: int, what: str) -> Images:
    """Return ``images``, unless a label of ``what`` is none of ``classes`` or there is no image at all."""
    if not len(images):
        raise BadData(f"{what} holds no image")
    if (largest := int(images.labels.max())) >= classes:
        first = int(np.argmax(images.labels >= classes))
        raise BadData(
            f"{what} is corrupt: image {first} has label {int(images.labels[first])} (largest: {largest}), "
            f"and labels are 0 to {classes - 1}"
        )
    return images


def _draws(count: int, seed: int, purpose: str, number: int) -> NDArray[np.uint64]:
    """Return raw 64-bit draws of PCG64: NumPy promises only those to be the same in every version."""
    draws: NDArray[np.uint64] = np.random.PCG64(derive_seed(seed, purpose, str(number))).random_raw(count)
    return draws
