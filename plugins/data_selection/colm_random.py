"""The control of CoLM: the same rule for rare sources, the same share of every other one, chosen by lot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Le

from bench import Algorithm, Linear, hyper

from ._source_selector import SourceSelector, by_source, source_budgets

if TYPE_CHECKING:
    from torch import nn

    from bench import Batch, Run


@dataclass(frozen=True, kw_only=True)
class CoLMRandom(Algorithm):
    """Keep all examples of small sources, and of each large one a share drawn by lot.

    What ``colm`` has beyond this is which examples of a large source it takes. Most of its gain over training on whole
    batches may come from what both do: rare sources count for more than their share. So a comparison of ``colm`` needs
    this one beside it. With b = floor(``ratio`` B) of B examples, N of large sources and n_s of large source s,

        b' = b - number of small ones;    k_s = floor(n_s / N b'), and 1 more for the smallest k_s until Σ k_s = b'

    It costs no pass, so a step takes ``ratio`` of the time.

    Source: arXiv:2407.19580, the budgets and the rule of small sources; as a control by no paper.
    Deviations: see ``deviations``.
    """

    name = "colm-random"
    deviations = (
        "Which sources are small follows from the examples seen so far; the authors name them for each data set.",
    )

    ratio: Annotated[float, Gt(0), Le(1)] = hyper(0.5, search=Linear(0.25, 0.75), help="part of each batch that trains")
    small_share: Annotated[float, Ge(0), Le(1)] | None = hyper(
        None, help="sources with less than this share of the examples are kept whole; none: 1 / number of sources"
    )

    def selector(self, run: Run) -> RandomSelector:
        """Return the selector, which draws from a generator of the run."""
        return RandomSelector(run.rng("examples"), ratio=self.ratio, small_share=self.small_share)


class RandomSelector(SourceSelector):
    """Draws from each large source without replacement; see :class:`CoLMRandom`.

    The state of ``generator`` is its owner's to save.
    """

    def __init__(self, generator: torch.Generator, *, ratio: float = 0.5, small_share: float | None = None) -> None:
        CoLMRandom.check(ratio=ratio, small_share=small_share)
        super().__init__(ratio=ratio, small_share=small_share)
        self.generator = generator

    def choose(self, batch: Batch, model: nn.Module, sources: Sequence[int], budget: int) -> list[int]:
        chosen: list[int] = []
        groups = by_source(sources)
        for group, share in zip(groups, source_budgets([len(group) for group in groups], budget), strict=True):
            order = torch.randperm(len(group), generator=self.generator, device=self.generator.device)
            chosen += [group[place] for place in order[:share].tolist()]
        return chosen
