"""Magnitude pruning: the smallest weights become zero, without any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench import Algorithm, Batch, Run, hyper

from ._linears import asked_ratio, hidden_linears, kept_count, with_replaced, with_weight
from ._masks import largest, largest_per_group

Allocation = Literal["layer", "global", "lamp"]


@dataclass(frozen=True, kw_only=True)
class MagnitudePruning(Algorithm):
    """Keep the weights w of the largest |w| of the hidden matrices and set the others to zero.

    ``allocation`` says among which weights a fraction ρ, the kept ratio that is asked for, is the largest:

        layer     |w| within each matrix, every matrix at the same ratio
        global    |w| over all matrices
        lamp      w² / Σ w'² over all matrices, the sum over the w' of its matrix with |w'| >= |w|

    A pattern N:M keeps the N largest of each M consecutive weights along the input axis, whatever the allocation.

    Source: arXiv:2301.00774 and 2306.11695, their baseline "magnitude"; LAMP: arXiv:2010.07611.
    Deviations: the class fact ``deviations``.
    """

    name = "magnitude-pruning"
    deviations = (
        "Exactly the asked number of weights becomes zero; the code of the pruning papers takes one more.",
        "The allocations by layer sizes (ERK, Uniform+) are left out: they are made for convolutions.",
    )
    information = "weights"

    allocation: Allocation = hyper("layer", help="which weights are compared: of a matrix, of all, or by LAMP's score")

    def compress(self, model: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a copy of ``model`` with zeros in every hidden matrix."""
        linears = hidden_linears(model, run.roles)
        weights = {name: linear.weight.detach() for name, linear in linears.items()}
        pattern = None if run.point is None else run.point.pattern
        if pattern is not None:
            masks = {name: largest_per_group(weight.abs(), pattern) for name, weight in weights.items()}
        else:
            masks = kept(weights, asked_ratio(run), self.allocation)
        return with_replaced(
            model, {linear: with_weight(linear, weights[name] * masks[name]) for name, linear in linears.items()}
        )


def kept(weights: Mapping[str, Tensor], kept_ratio: float, allocation: Allocation = "layer") -> dict[str, Tensor]:
    """Return the mask of each of ``weights``: true where the weight stays, for floor(ρ count) of them."""
    if allocation == "layer":
        return {name: largest(weight.abs(), kept_count(kept_ratio, weight.numel())) for name, weight in weights.items()}
    score = lamp_scores if allocation == "lamp" else Tensor.abs
    flat = torch.cat([score(weight).flatten().double() for weight in weights.values()])
    mask = largest(flat, kept_count(kept_ratio, len(flat)))
    parts = torch.split(mask, [weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def lamp_scores(weight: Tensor) -> Tensor:
    """Return w² / Σ w'² for each w of ``weight``, the sum over the w' that are not smaller in magnitude; float64.

    Of equal magnitudes an earlier one counts as larger, so that scores decrease strictly; zeros score zero.
    """
    squares = weight.detach().double().square().flatten()
    order = squares.argsort(descending=True, stable=True)
    sums = squares[order].cumsum(0)
    scores = torch.zeros_like(squares)
    scores[order] = torch.where(sums > 0, squares[order] / sums, sums)
    return scores.view(weight.shape)
