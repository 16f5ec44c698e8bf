"""Facility location: the few elements of a set to which all others are most similar, chosen greedily."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["l1", "euclidean", "cosine"]


def similarities(features: Tensor, metric: Metric) -> Tensor:
    """Return the similarities S (n, n) of the rows of ``features`` (n, h).

    S_ij = max(d) - d_ij for the l1 or the Euclidean distance d; for ``cosine``, the cosine of the two rows, 0 where one
    of them is zero.
    """
    if metric == "cosine":
        unit = torch.nn.functional.normalize(features, dim=1)
        return unit @ unit.T
    exact = "donot_use_mm_for_euclid_dist"  # close rows would lose their distance in a difference of squares
    distances = torch.cdist(features, features, p=1.0 if metric == "l1" else 2.0, compute_mode=exact)
    return distances.max() - distances


def value(similarity: Tensor, chosen: list[int]) -> float:
    """Return F(A) = Σ_i max_{j ∈ A} S_ij of the columns A = ``chosen``, not empty."""
    return float(similarity[:, chosen].amax(dim=1).sum())


TIE = 1e-6
"""Gains that differ by less than this part of n (max S - min S) count as equal."""


def greedy(similarity: Tensor, count: int) -> list[int]:
    """Return ``count`` different columns of ``similarity`` (n, n), each the one that raises F most; ties: the first.

    F(A) = Σ_i max_{j ∈ A} S_ij, so the first one has the largest column sum and every other one gains

        Σ_i max(0, S_ij - max_{k ∈ A} S_ik)

    The value reached is at least 1 - 1/e of the best one where no S is negative. A constant added to S changes no
    choice. Ties are common, since S is symmetric: two elements that would cover each other and nothing else gain the
    same, and on a line both middle ones of an even number are central. So what differs by rounding alone is a tie, on
    every device. n is the number of examples of one source in one batch, so all gains are computed anew: n² operations
    in one call, where a priority queue would save a part of them and cost more in Python.
    """
    similarity = similarity.double().cpu()
    tie = TIE * len(similarity) * float(similarity.max() - similarity.min())
    chosen: list[int] = []
    covered: Tensor | None = None
    free = torch.ones(len(similarity), dtype=torch.bool)
    for _ in range(min(count, len(similarity))):
        added = similarity if covered is None else (similarity - covered[:, None]).clamp_min(0.0)
        gains = added.sum(dim=0).masked_fill(~free, -torch.inf)
        best = int((gains >= gains.max() - tie).nonzero()[0])
        chosen.append(best)
        free[best] = False
        covered = similarity[:, best] if covered is None else torch.maximum(covered, similarity[:, best])
    return chosen
