"""Packed language modelling: sequences are consecutive pieces of one long stream of tokens, with no padding.

A sequence of T positions is a window of T + 1 tokens: ``input_ids`` are its first T, ``targets`` its last T. Windows of
a shard follow one another, T tokens apart, so every token but the first is a target once; what is left at the end of a
shard is dropped. Documents begin anywhere in a window, and a position sees all that stands before it in its window, of
whichever document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch

from bench.errors import BadData, BadValue

from ._batches import SHUFFLE_BUFFER, shuffled
from ._tokenizers import EOS, ByteTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench import Batch

    from ._corpus import Split
    from ._documents import Embedded
    from ._tokenizers import Tokens

_SHARD_DOCUMENTS: Final = 2_000


class TokenSource(Protocol):
    """Where tokens come from."""

    @property
    def name(self) -> str:
        """``embedded``, ``local`` or ``fineweb``."""

    @property
    def content(self) -> str:
        """SHA-256 (hexadecimal) of what decides the tokens."""

    @property
    def label(self) -> str:
        """One line for people."""

    def prepare(self, split: Split, tokens: int) -> None:
        """Make the first ``tokens`` tokens of a split ready, so that reading them does not wait for a network."""

    def shards(self, split: Split) -> Iterator[Tokens]:
        """Yield the tokens of one shard of a split after the other, always in the same order."""


@dataclass(frozen=True)
class EmbeddedTokens:
    """The bytes of the generated corpus, each document after a separator, as real shards have it.

    Args:
        documents: the corpus and its size; 2,000 documents make a shard.
    """

    documents: Embedded
    name = "embedded"

    @property
    def content(self) -> str:
        """SHA-256 of the corpus's own and of how bytes are made of it."""
        return sha256(f"{self.documents.content} {ByteTokenizer.identity} {_SHARD_DOCUMENTS}".encode()).hexdigest()

    @property
    def label(self) -> str:
        """Version and size of the corpus."""
        return f"{self.documents.label} in bytes"

    def prepare(self, split: Split, tokens: int) -> None:
        """Do nothing: documents are generated as they are read."""

    def shards(self, split: Split) -> Iterator[Tokens]:
        """Yield the tokens of 2,000 documents at a time."""
        documents, tokenizer = self.documents.documents(split), ByteTokenizer()
        separator = np.array([EOS], dtype=np.uint16)
        while texts := list(islice(documents, _SHARD_DOCUMENTS)):
            yield np.concatenate([part for tokens in tokenizer.encode(texts) for part in (separator, tokens)])


def windows(source: TokenSource, split: Split, length: int) -> Iterator[Tokens]:
    """Yield the windows of T + 1 tokens of a split in order; ``length`` is T."""
    for tokens in source.shards(split):
        for start in range(0, len(tokens) - length, length):
            yield tokens[start : start + length + 1]


def as_batch(rows: Sequence[Tokens] | Tokens, device: torch.device) -> Batch:
    """Return ``input_ids`` and ``targets``, int64 (B, T), of B windows."""
    matrix = np.asarray(rows).astype(np.int64)
    parts = {"input_ids": torch.from_numpy(matrix[:, :-1].copy()), "targets": torch.from_numpy(matrix[:, 1:].copy())}
    if device.type == "cpu":
        return parts
    return {key: part.pin_memory().to(device, non_blocking=True) for key, part in parts.items()}


class PackedBatches(Iterator["list[Tokens]"]):
    """Endless training batches, each a list of B windows, epoch after epoch in new orders.

    Args:
        source: where the tokens come from.
        length: positions per sequence, T.
        batch_size: windows per batch, B. A batch may span the end of an epoch, so that none is smaller.
        steps: how many batches will be read from the first one on; their tokens are made ready at once.
        seed: sets the order: windows are drawn from a buffer of 10,000 that runs through the shards.
        start: number of the first batch; what follows is exactly what follows the first ``start`` batches otherwise.

    The first window is drawn at once, so that missing and damaged data show here and not in the first step.

    Raises:
        BadValue: ``length`` or ``batch_size`` is not positive, or ``steps``, ``seed`` or ``start`` negative.
        BadData: the training data is missing, damaged or without a single window.
    """

    def __init__(
        self, source: TokenSource, *, length: int, batch_size: int, steps: int = 0, seed: int = 0, start: int = 0
    ) -> None:
        if min(length, batch_size) < 1:
            raise BadValue(f"length {length!r} or batch_size {batch_size!r} is not positive", hint="at least 1 each")
        if min(steps, seed, start) < 0:
            raise BadValue(f"steps {steps!r}, seed {seed!r} or start {start!r} is negative", hint="all count from 0")
        source.prepare("train", (steps * batch_size + SHUFFLE_BUFFER) * length if steps else 0)
        self._batch_size = batch_size
        stream = self._endless(source, length, seed)
        first = next(islice(stream, start * batch_size, None))
        self._stream = chain([first], stream)

    def __next__(self) -> list[Tokens]:
        """Return the next batch."""
        return list(islice(self._stream, self._batch_size))

    @staticmethod
    def _endless(source: TokenSource, length: int, seed: int) -> Iterator[Tokens]:
        for epoch in count():
            empty = True
            for window in shuffled(windows(source, "train", length), seed=seed, epoch=epoch):
                empty = False
                yield window
            if empty:
                raise _no_window(source, "train", length)


def validation_windows(source: TokenSource, *, length: int, tokens: int) -> Tokens:
    """Return the first windows (N, T + 1) of the validation split, N T = ``tokens`` (rounded down to whole windows).

    A split with fewer is taken whole.

    Raises:
        BadData: the validation data is missing, damaged or without a single window.
    """
    found = list(islice(windows(source, "validation", length), tokens // length))
    if not found:
        raise _no_window(source, "validation", length)
    return np.stack(found)


def _no_window(source: TokenSource, split: Split, length: int) -> BadData:
    return BadData(
        f"the {split} split of {source.label} has no sequence",
        hint=f"a shard needs at least {length + 1} tokens for one sequence of {length}",
    )
