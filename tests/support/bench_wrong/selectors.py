"""Selectors: the first half of every batch, and ways to get it wrong."""

# ruff: noqa: ARG002, ARG005 - slots take their contract's arguments
from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch

from bench import Algorithm

CALLS = count()


def half(batch, first=0):
    """Return every second row of ``batch``, beginning with the first or the second one."""
    return {key: value[first % 2 :: 2] for key, value in batch.items()}


@dataclass(frozen=True, kw_only=True)
class Good(Algorithm):
    """The first half of every batch.

    Source: none, it is for tests.
    """

    name = "good-selector"

    def selector(self, run):
        return lambda batch, model: half(batch)


@dataclass(frozen=True, kw_only=True)
class InventsRows(Good):
    """Source: none."""

    name = "invents-rows"

    def selector(self, run):
        return lambda batch, model: half(batch) | {"input_ids": half(batch)["input_ids"].flip(1)}


@dataclass(frozen=True, kw_only=True)
class SquareWeights(Good):
    """Source: none."""

    name = "square-weights"

    def selector(self, run):
        return lambda batch, model: half(batch) | {"weights": torch.ones(len(half(batch)["labels"]), 1)}


@dataclass(frozen=True, kw_only=True)
class SpoilsBatches(Good):
    """Source: none."""

    name = "spoils-batches"

    def selector(self, run):
        def select(batch, model):
            chosen = {key: value.clone() for key, value in half(batch).items()}
            batch["source"].add_(1)
            return chosen

        return select


@dataclass(frozen=True, kw_only=True)
class CountsSelections(Good):
    """Source: none."""

    name = "counts-selections"

    def selector(self, run):
        return lambda batch, model: half(batch) | {"weights": 1 + 1e-2 * next(CALLS) * torch.arange(4.0)}


@dataclass(frozen=True, kw_only=True)
class SelectorSeedsItself(Good):
    """Source: none."""

    name = "selector-seeds-itself"

    def selector(self, run):
        return lambda batch, model: half(batch, first=run.seed)


@dataclass(frozen=True, kw_only=True)
class ForgetsPosition(Good):
    """Source: none."""

    name = "forgets-position"

    def selector(self, run):
        calls = count()
        return lambda batch, model: half(batch, first=next(calls) // 2)


@dataclass(frozen=True, kw_only=True)
class SelectorRemembers(Good):
    """Source: none."""

    name = "selector-remembers"

    def selector(self, run):
        object.__setattr__(self, "run", run)
        return super().selector(run)
