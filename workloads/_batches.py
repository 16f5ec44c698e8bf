"""From token sequences to batches: shuffling, epochs, resuming, and the fixed list of validation batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Any, Final, TypeVar, overload

import numpy as np
import torch

from bench.algorithm import Batch
from bench.errors import BadData, BadValue

from ._sequences import Sequences
from ._tokenizers import PAD, Tokens

SHUFFLE_BUFFER: Final = 10_000
IGNORED: Final = -100
"""The label that cross entropy ignores."""

_CHUNK: Final = 1_024
T = TypeVar("T")


def as_batch(matrix: Tokens) -> Batch:
    """Return `input_ids` and `labels`, both int64 (B, T); a label is its input id, and -100 at pads."""
    input_ids = torch.from_numpy(matrix.astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids.masked_fill(input_ids == PAD, IGNORED)}


def _random_below(seed: int, epoch: int) -> Iterator[int]:
    """Yield 32-bit integers of NumPy's PCG64; raw draws, because only they are promised to stay the same in every NumPy version."""
    generator = np.random.PCG64([seed, epoch])
    while True:
        yield from (generator.random_raw(_CHUNK) >> np.uint64(32)).tolist()


def shuffle(items: Iterable[T], *, seed: int, epoch: int) -> Iterator[T]:
    """Yield the items in an order set by seed and epoch, from a buffer of 10,000: fewer items than that are permuted uniformly."""
    draws = _random_below(seed, epoch)
    stream = iter(items)
    buffer = list(islice(stream, SHUFFLE_BUFFER))
    for item in stream:
        place = (next(draws) * len(buffer)) >> 32
        yield buffer[place]
        buffer[place] = item
    while buffer:
        place = (next(draws) * len(buffer)) >> 32
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        yield buffer.pop()


class Batches(Iterator[Batch]):
    """Endless training batches `{"input_ids", "labels"}`, int64 (batch_size, T), cut from epoch after epoch.

    Args:
        sequences: where the sequences come from.
        batch_size: sequences per batch; a batch may span the end of an epoch, so none is smaller and nothing is lost.
        seed: sets the order, a new one in every epoch.
        start: number of the first batch; the batches are exactly those of an iterator that has already given `start` of them.

    A small source is tokenised once and kept in memory; the first sequence is drawn at once, so that filling buffers, tokenising, and
    damaged data show here and not in the first step.

    Attributes:
        step: number of the next batch.
        epochs: epochs begun by the batches before it.

    Raises:
        BadValue: `batch_size` is not positive or `start` negative.
        BadData: the training data is missing, damaged or without a single sequence.
    """

    def __init__(self, sequences: Sequences, *, batch_size: int, seed: int = 0, start: int = 0) -> None:
        if batch_size < 1:
            raise BadValue(
                f"batch_size {batch_size!r} ({type(batch_size).__name__}) is not positive", hint="at least 1"
            )
        if seed < 0 or start < 0:
            raise BadValue(f"seed {seed!r} or start {start!r} is negative", hint="both count from 0")
        self._sequences, self._seed, self._batch_size = sequences, seed, batch_size
        self._matrix = self._in_memory() if sequences.source.small else None
        self.step, self.epochs = start, 0
        stream = self._stream()
        self._skip(islice(stream, start * batch_size))
        self._ahead = chain([next(stream)], stream)

    def __next__(self) -> Batch:
        """Return the next batch."""
        pairs = list(islice(self._ahead, self._batch_size))
        self.step, self.epochs = self.step + 1, pairs[-1][0] + 1
        items = [item for _, item in pairs]
        return as_batch(self._sequences.matrix(items) if self._matrix is None else self._matrix[items])

    def _skip(self, pairs: Iterator[tuple[int, Any]]) -> None:
        for last in deque(pairs, maxlen=1):
            self.epochs = last[0] + 1

    def _in_memory(self) -> Tokens:
        items = self._sequences.items("train", seed=self._seed)
        parts = [self._sequences.matrix(chunk) for chunk in _chunks(items)]
        return np.concatenate(parts) if parts else np.zeros((0, self._sequences.cut.length), np.uint16)

    def _epoch(self, epoch: int) -> Iterable[Any]:
        if self._matrix is not None:
            return range(len(self._matrix))
        return self._sequences.items("train", seed=self._seed, epoch=epoch)

    def _stream(self) -> Iterator[tuple[int, Any]]:
        """Yield (epoch, item) without end."""
        for epoch in count():
            items, empty = self._epoch(epoch), True
            if not self._sequences.source.shuffled:
                items = shuffle(items, seed=self._seed, epoch=epoch)
            for item in items:
                empty = False
                yield epoch, item
            if empty:
                raise _no_sequences(self._sequences, "training")


class FixedBatches(Sequence[Batch]):
    """A list of batches that is made from one matrix (N, T) of sequences when asked for; the last batch may be smaller."""

    def __init__(self, matrix: Tokens, *, batch_size: int) -> None:
        if batch_size < 1:
            raise BadValue(
                f"batch_size {batch_size!r} ({type(batch_size).__name__}) is not positive", hint="at least 1"
            )
        self._matrix, self._batch_size = matrix, batch_size

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return len(self._matrix)

    @property
    def tokens(self) -> int:
        """Number of tokens that are not pads."""
        return int(np.count_nonzero(self._matrix != PAD))

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._matrix) // self._batch_size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        """Return one batch, or those of a slice."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        start = range(len(self))[index] * self._batch_size
        return as_batch(self._matrix[start : start + self._batch_size])


def validation_batches(sequences: Sequences, *, batch_size: int, token_limit: int) -> FixedBatches:
    """Return the first sequences of the validation split, up to and with the one at which their tokens exceed `token_limit`.

    Pads do not count. The list does not depend on `batch_size` or any seed; a split with fewer tokens is taken whole.

    Raises:
        BadData: the validation data is missing, damaged or without a single sequence.
    """
    parts, room = [], token_limit
    for chunk in _chunks(sequences.items("validation")):
        matrix = sequences.matrix(chunk)
        left = room - np.cumsum(np.count_nonzero(matrix != PAD, axis=1))
        within = int(np.count_nonzero(left >= 0))
        parts.append(matrix[: within + 1])
        room = int(left[-1])
        if room < 0:
            break
    if not parts:
        raise _no_sequences(sequences, "validation")
    return FixedBatches(np.concatenate(parts), batch_size=batch_size)


def _chunks(items: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def _no_sequences(sequences: Sequences, split: str) -> BadData:
    return BadData(
        f"the {split} data of {sequences.source.label} gives no sequence",
        hint=f"documents are cut by {sequences.cut!r}: give longer or more of them",
    )
