"""Masks: which weights stay. Exactly as many as were asked for, ties by position, groups along the input axis."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import BadValue


def largest(scores: Tensor, count: int) -> Tensor:
    """Return a mask, of the shape of ``scores``, of the ``count`` largest; among equals the first ones stay."""
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.view(scores.shape)


def largest_per_row(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` largest of each row of ``scores`` (m, n)."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :count], True)


def largest_per_group(scores: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Return a mask of the N largest of each M consecutive ``scores`` (m, n) along the input axis; pattern (N, M).

    Raises :class:`~bench.errors.BadValue` where M does not divide n.
    """
    kept, group = pattern
    if scores.shape[-1] % group:
        raise BadValue(
            f"a weight of {scores.shape[-1]} inputs cannot be cut into groups of {group}, pattern {kept}:{group}",
            hint="choose a pattern whose group divides the inputs of every compressed linear",
        )
    groups = scores.reshape(*scores.shape[:-1], -1, group)
    return largest_per_row(groups, kept).flatten(-2)
