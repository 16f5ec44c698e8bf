"""Part of a batch by the rule of the small sources: all of theirs, and of the others as many as there is room for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench import Batch


def source_budgets(sizes: Sequence[int], total: int) -> list[int]:
    """Share ``total``, at most N = Σ n_s, among sources of n_s = ``sizes`` examples.

    Each gets floor(n_s / N total), and those that got least (of equals the first) one more until the sum is right. None
    gets more than it has.
    """
    everything = sum(sizes)
    budgets = [size * total // everything for size in sizes]
    least_first = sorted(range(len(sizes)), key=lambda place: budgets[place])
    for place in least_first[: total - sum(budgets)]:
        budgets[place] += 1
    return budgets


class SourceSelector(ABC):
    """Keeps b = floor(``ratio`` B) examples of each batch of B, in the batch's order.

    ``batch["source"]``, integers (B,), says where each example comes from; without it all have one source. A source is
    small if it gave less than ``small_share`` of all examples seen so far, this batch included (``None``: less than the
    average source, 1 / number of sources seen). All examples of small sources are kept, or the first b of them if they
    are more; from the others :meth:`choose` takes what is left of b. With b = B the batch is returned as it is.

    ``step`` counts the batches. A batch is a mapping of tensors with one row per example.
    """

    def __init__(self, *, ratio: float, small_share: float | None) -> None:
        self.ratio, self.small_share = ratio, small_share
        self.step = 0
        self.seen: Counter[int] = Counter()

    @abstractmethod
    def choose(self, batch: Batch, model: nn.Module, sources: Sequence[int], budget: int) -> list[int]:
        """Return ``budget`` different places of ``batch``, all of whose examples are of large sources.

        ``sources`` are theirs, and 0 < ``budget`` < B.
        """

    def __call__(self, batch: Batch, model: nn.Module) -> Batch:
        """Return the rows of ``batch`` to train on."""
        count = len(next(iter(batch.values())))
        sources = [int(source) for source in batch["source"].tolist()] if "source" in batch else [0] * count
        self.step += 1
        self.seen.update(sources)
        wanted = max(1, int(self.ratio * count))
        if wanted >= count:
            return batch
        small = self.small_sources()
        kept = [place for place in range(count) if sources[place] in small][:wanted]
        large = [place for place in range(count) if sources[place] not in small]
        if wanted > len(kept):
            chosen = self.choose(rows(batch, large), model, [sources[place] for place in large], wanted - len(kept))
            kept += [large[place] for place in chosen]
        return rows(batch, sorted(kept))

    def small_sources(self) -> frozenset[int]:
        """Return the sources that count as small at this step."""
        total = sum(self.seen.values())
        share = 1.0 / len(self.seen) if self.small_share is None else self.small_share
        return frozenset(source for source, count in self.seen.items() if count < share * total)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next selections depend on, besides what they are called with."""
        return {"step": self.step, "seen": dict(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.step, self.seen = int(state["step"]), Counter(state["seen"])


def by_source(sources: Sequence[int]) -> list[list[int]]:
    """Return the places of each source, sources in ascending order."""
    return [[place for place, found in enumerate(sources) if found == source] for source in sorted(set(sources))]


def rows(batch: Batch, places: Sequence[int]) -> dict[str, Tensor]:
    """Return the rows ``places`` of every tensor of ``batch``."""
    index = torch.tensor(places, dtype=torch.long, device=next(iter(batch.values())).device)
    return {key: tensor.index_select(0, index) for key, tensor in batch.items()}
