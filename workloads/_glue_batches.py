"""From token ids to batches: padded to the longest of each, in an order that the seed sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.context import derive_seed
from bench.errors import BadValue

if TYPE_CHECKING:
    from torch import Tensor

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Encoded:
    """A split as token ids, one array per example, with labels (N,) and the id that pads."""

    ids: Sequence[Ids]
    labels: NDArray[Any]
    pad: int

    def batch(self, chosen: Sequence[int] | NDArray[np.intp]) -> dict[str, Tensor]:
        """Return ``inputs``, int64 (B, T) with T the longest of the ``chosen`` examples, and ``labels`` (B,)."""
        longest = max(len(self.ids[place]) for place in chosen)
        inputs = np.full((len(chosen), longest), self.pad, dtype=np.int64)
        for row, place in enumerate(chosen):
            inputs[row, : len(self.ids[place])] = self.ids[place]
        return {"inputs": torch.from_numpy(inputs), "labels": torch.from_numpy(self.labels[chosen])}

    def in_batches_of(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield every example once, neighbours in length together, so that little is padded."""
        order = np.argsort([len(ids) for ids in self.ids], kind="stable")
        for first in range(0, len(order), size):
            yield self.batch(order[first : first + size])


class Batches(Iterator["dict[str, Tensor]"]):
    """Endless training batches, a new permutation of the examples in every epoch.

    Args:
        encoded: the training split.
        batch_size: examples per batch. A batch may span the end of an epoch, so that none is smaller.
        seed: sets the order.
        start: number of the first batch; what follows is exactly what follows the first ``start`` batches otherwise.

    Raises:
        BadValue: ``batch_size`` is not positive, or ``seed`` or ``start`` negative.
    """

    def __init__(self, encoded: Encoded, *, batch_size: int, seed: int = 0, start: int = 0) -> None:
        if batch_size < 1 or min(seed, start) < 0:
            raise BadValue(
                f"batch_size {batch_size!r}, seed {seed!r} or start {start!r} is out of range",
                hint="batch_size is at least 1, seed and start are at least 0",
            )
        self.step = start
        self._encoded, self._batch_size, self._seed = encoded, batch_size, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.intp)

    def __next__(self) -> dict[str, Tensor]:
        """Return the next batch."""
        first = self.step * self._batch_size
        self.step += 1
        return self._encoded.batch([self._chosen(place) for place in range(first, first + self._batch_size)])

    def _chosen(self, place: int) -> int:
        """Return the example at ``place`` of the endless sequence of permutations."""
        epoch, within = divmod(place, len(self._encoded.ids))
        if epoch != self._epoch:
            # raw draws, because NumPy promises only those to be the same in every version
            draws = np.random.PCG64(derive_seed(self._seed, "order", str(epoch))).random_raw(len(self._encoded.ids))
            self._epoch, self._order = epoch, np.argsort(draws, kind="stable")
        return int(self._order[within])
