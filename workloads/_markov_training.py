"""What the tiny fine-tuning workloads share: the pre-trained model, its roles, and the order of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import torch

from bench import Role, TrainingWorkload
from bench.context import derive_seed
from bench.errors import BadValue

from ._markov import LENGTH
from ._markov_base import BASE_SHA256, ROLES, base_model

if TYPE_CHECKING:
    from torch import Tensor

    from ._finetune_model import FinetuneModel
    from ._markov import Tokens


_AT_ONCE: Final = 128
"""Sequences per forward pass of an evaluation; small enough for the processor's cache."""


class MarkovTraining(TrainingWorkload):
    """Fine-tuning of the shipped model on sequences of Markov chains; a subclass says on which and towards what."""

    sources = ("markov",)
    roles: ClassVar[Mapping[str, Role]] = ROLES

    def __post_init__(self) -> None:
        """Refuse a tokenizer: the sequences are symbols already."""
        super().__post_init__()
        if self.request.tokenizer is not None:
            raise BadValue(
                f"tokenizer is {self.request.tokenizer!r}, but {self.name} has no text", hint="leave out --tokenizer"
            )

    @property
    def offers(self) -> frozenset[str]:
        """``pretrained``: training starts from a trained model."""
        return super().offers | {"pretrained"}

    def base_sha256(self, seed: int) -> str:
        """Return the pinned hash of the shipped tensors, whatever the seed."""
        return BASE_SHA256

    def model(self, seed: int, device: torch.device) -> FinetuneModel:
        """Return the pre-trained model; the seed changes nothing.

        Trainable are the weights of the linear maps inside the blocks: what an algorithm adapts, replaces or trains.
        """
        return base_model(device)


def shuffled(items: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Yield the indices (B,) of the endless batches from number ``start``: a new permutation in every epoch.

    ``batch_size`` divides ``items``. Raw draws order them, because NumPy promises only those to stay the same.
    """
    per_epoch = items // batch_size
    current, order = -1, np.empty(0, dtype=np.int64)
    for step in count(start):
        epoch, place = divmod(step, per_epoch)
        if epoch != current:
            draws = np.random.PCG64(derive_seed(seed, "markov", "order", str(epoch))).random_raw(items)
            current, order = epoch, np.argsort(draws, kind="stable")
        yield torch.from_numpy(order[place * batch_size : (place + 1) * batch_size])


def as_tensor(tokens: Tokens, device: torch.device) -> Tensor:
    """Return sequences (N, 32) on ``device``."""
    return torch.from_numpy(tokens).to(device)


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return ``tensor`` (N, ...) in parts for one forward pass each."""
    return tensor.chunk(-(-len(tensor) // _AT_ONCE))


def example_tokens(device: torch.device) -> Tensor:
    """Return one sequence of zeros."""
    return torch.zeros(1, LENGTH, dtype=torch.long, device=device)


def weighted_mean(losses_by_sequence: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over sequences (B,), weighted by ``weights`` (B,) where there are any."""
    if weights is None:
        return losses_by_sequence.mean()
    return (weights * losses_by_sequence).sum() / weights.sum()
