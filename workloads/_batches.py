"""From token sequences to batches: shuffling, epochs, resuming, and the fixed list of validation batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import numpy as np
import torch

from bench.errors import BadData, BadValue

from ._tokenizers import PAD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from ._sequences import Sequences
    from ._tokenizers import Tokens

SHUFFLE_BUFFER: Final = 10_000
IGNORED: Final = -100
"""The label that cross entropy ignores."""

_CHUNK: Final = 1_024
_Item = TypeVar("_Item")


def as_batch(matrix: Tokens) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``labels``, int64 (B, T); a label is its input id, and -100 at pads."""
    input_ids = torch.from_numpy(matrix.astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids.masked_fill(input_ids == PAD, IGNORED)}


def _draws(seed: int, epoch: int) -> Iterator[int]:
    """Yield 32-bit integers of PCG64: raw draws, because NumPy promises only those to be the same in every version."""
    generator = np.random.PCG64([seed, epoch])
    while True:
        yield from (generator.random_raw(_CHUNK) >> np.uint64(32)).tolist()


def shuffled(items: Iterable[_Item], *, seed: int, epoch: int) -> Iterator[_Item]:
    """Yield the items in an order set by seed and epoch, from a buffer of 10,000; fewer are permuted uniformly."""
    draws, stream = _draws(seed, epoch), iter(items)
    buffer = list(islice(stream, SHUFFLE_BUFFER))
    for item in stream:
        place = (next(draws) * len(buffer)) >> 32
        yield buffer[place]
        buffer[place] = item
    while buffer:
        place = (next(draws) * len(buffer)) >> 32
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        yield buffer.pop()


class Batches(Iterator["dict[str, Tensor]"]):
    """Endless training batches ``{"input_ids", "labels"}``, int64 (B, T), epoch after epoch.

    Args:
        sequences: where the sequences come from.
        batch_size: sequences per batch, B. A batch may span the end of an epoch, so that none is smaller.
        seed: sets the order, which is a new one in every epoch.
        start: number of the first batch; what follows is exactly what follows the first ``start`` batches otherwise.

    A small source is tokenised once and kept in memory. The first sequence is drawn at once, so that tokenising,
    filling buffers, and damaged data show here and not in the first step.

    Attributes:
        step: number of the next batch.
        epochs: epochs begun by the batches before it.

    Raises:
        BadValue: ``batch_size`` is not positive, or ``seed`` or ``start`` negative.
        BadData: the training data is missing, damaged or without a single sequence.
    """

    def __init__(self, sequences: Sequences, *, batch_size: int, seed: int = 0, start: int = 0) -> None:
        _check_batch_size(batch_size)
        if min(seed, start) < 0:
            raise BadValue(f"seed {seed!r} or start {start!r} is negative", hint="both count from 0")
        self.step, self.epochs = start, 0
        self._sequences, self._seed, self._batch_size = sequences, seed, batch_size
        self._matrix = self._in_memory() if sequences.source.small else None
        stream = self._endless()
        for epoch, _ in deque(islice(stream, start * batch_size), maxlen=1):
            self.epochs = epoch + 1
        self._stream = chain([next(stream)], stream)

    def __next__(self) -> dict[str, Tensor]:
        """Return the next batch."""
        pairs = list(islice(self._stream, self._batch_size))
        self.step += 1
        self.epochs = pairs[-1][0] + 1
        items = [item for _, item in pairs]
        return as_batch(self._sequences.matrix(items) if self._matrix is None else self._matrix[items])

    def _in_memory(self) -> Tokens:
        parts = [self._sequences.matrix(chunk) for chunk in _chunks(self._sequences.items("train"))]
        if not parts:
            raise _no_sequence(self._sequences, "training")
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> Iterable[Any]:
        if self._matrix is not None:
            items: Iterable[Any] = range(len(self._matrix))
        else:
            items = self._sequences.items("train", seed=self._seed, epoch=epoch)
        return items if self._sequences.source.shuffled else shuffled(items, seed=self._seed, epoch=epoch)

    def _endless(self) -> Iterator[tuple[int, Any]]:
        """Yield (epoch, item)."""
        for epoch in count():
            empty = True
            for item in self._epoch(epoch):
                empty = False
                yield epoch, item
            if empty:
                raise _no_sequence(self._sequences, "training")


class FixedBatches(Sequence["dict[str, Tensor]"]):
    """A list of batches that are made, when asked for, from one matrix (N, T) of sequences; the last may be smaller."""

    def __init__(self, matrix: Tokens, *, batch_size: int) -> None:
        _check_batch_size(batch_size)
        self._matrix, self._batch_size = matrix, batch_size

    @property
    def sequences(self) -> int:
        """Number of sequences, N."""
        return len(self._matrix)

    @property
    def tokens(self) -> int:
        """Number of tokens that are not pads."""
        return int(np.count_nonzero(self._matrix != PAD))

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(range(0, len(self._matrix), self._batch_size))

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return one batch, or those of a slice."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        start = range(0, len(self._matrix), self._batch_size)[index]
        return as_batch(self._matrix[start : start + self._batch_size])


def validation_batches(sequences: Sequences, *, batch_size: int, token_limit: int) -> FixedBatches:
    """Return the first sequences of the validation split, up to the one with which tokens exceed ``token_limit``.

    Pads do not count. The list depends on no seed and not on ``batch_size``; a split with fewer tokens is taken whole.

    Raises:
        BadValue: ``batch_size`` is not positive.
        BadData: the validation data is missing, damaged or without a single sequence.
    """
    _check_batch_size(batch_size)
    parts, room = [], token_limit
    for chunk in _chunks(sequences.items("validation")):
        matrix = sequences.matrix(chunk)
        left = room - np.cumsum(np.count_nonzero(matrix != PAD, axis=1))
        parts.append(matrix[: np.count_nonzero(left >= 0) + 1])
        room = int(left[-1])
        if room < 0:
            break
    if not parts:
        raise _no_sequence(sequences, "validation")
    return FixedBatches(np.concatenate(parts), batch_size=batch_size)


def _chunks(items: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise BadValue(f"batch_size {batch_size!r} ({type(batch_size).__name__}) is not positive", hint="at least 1")


def _no_sequence(sequences: Sequences, split: str) -> BadData:
    return BadData(
        f"the {split} split of {sequences.source.label} gives no sequence",
        hint=f"it is empty, or every document is too short for {sequences.cut!r}",
    )
