"""Training batches drawn from several sources, each sample with the number of the source that it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from bench.context import derive_seed
from bench.errors import BadValue

from ._batches import Batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ._sequences import Sequences

_CHUNK: Final = 64
_SKIP: Final = 1 << 16


class MixtureBatches(Iterator["dict[str, Tensor]"]):
    """Endless batches ``{"input_ids", "labels", "source"}``: int64 (B, T), (B, T) and (B,).

    The source of every sample is drawn with the given weights, independently of all others; from its source it takes
    the next sequence, which come in a new order in every epoch of that source. All draws are integers of PCG64.

    Args:
        sources: the sequences of each source; ``source`` in a batch is the place in this list.
        weights: how many of all samples each source gives, relative to the others: integers of at least 1.
        batch_size: sequences per batch, B.
        seed: sets the order.
        start: number of the first batch; what follows is exactly what follows the first ``start`` batches otherwise.

    Raises:
        BadValue: ``batch_size`` or a weight is not positive, or ``seed`` or ``start`` negative, or the lists differ in
            length.
        BadData: the training data of a source is missing, damaged or without a single sequence.
    """

    def __init__(
        self, sources: Sequence[Sequences], weights: Sequence[int], *, batch_size: int, seed: int = 0, start: int = 0
    ) -> None:
        if len(sources) != len(weights) or min(weights, default=0) < 1:
            raise BadValue(f"{len(sources)} sources with weights {list(weights)!r}", hint="one weight >= 1 for each")
        if batch_size < 1 or min(seed, start) < 0:
            raise BadValue(
                f"batch_size {batch_size!r}, seed {seed!r}, start {start!r}", hint="batch_size >= 1, the others >= 0"
            )
        self._batch_size = batch_size
        self._bounds = np.cumsum(np.array(weights, dtype=np.uint64))
        self._draws = np.random.PCG64(derive_seed(seed, "mixture"))
        taken = np.zeros(len(sources), dtype=np.int64)
        for skipped in range(0, start * batch_size, _SKIP):
            taken += np.bincount(self._drawn(min(_SKIP, start * batch_size - skipped)), minlength=len(sources))
        self._rows = [
            _rows(source, derive_seed(seed, "mixture", str(place)), int(taken[place]))
            for place, source in enumerate(sources)
        ]

    def _drawn(self, count: int) -> NDArray[np.int64]:
        """Return the sources of the next ``count`` samples; raw draws, which NumPy promises to keep."""
        raw = np.atleast_1d(self._draws.random_raw(count)) >> np.uint64(32)
        places = (raw * self._bounds[-1]) >> np.uint64(32)
        found: NDArray[np.int64] = np.searchsorted(self._bounds, places, side="right").astype(np.int64)
        return found

    def __next__(self) -> dict[str, Tensor]:
        """Return the next batch."""
        drawn = self._drawn(self._batch_size)
        input_ids, labels = zip(*(next(self._rows[place]) for place in drawn), strict=True)
        return {"input_ids": torch.stack(input_ids), "labels": torch.stack(labels), "source": torch.from_numpy(drawn)}


def _rows(sequences: Sequences, seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the input ids and labels of one sequence after the other, from number ``start`` on."""
    batches = Batches(sequences, batch_size=_CHUNK, seed=seed, start=start // _CHUNK)
    rows = chain.from_iterable(zip(batch["input_ids"], batch["labels"], strict=True) for batch in batches)
    return islice(rows, start % _CHUNK, None)
