"""The leading singular triplets of a weight, in fp32 or better whatever dtype the weight has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._adapter import wide


class Triplets(NamedTuple):
    """W ≈ U diag(S) Vᵀ: ``left`` U (m, r), ``values`` S (r,) in descending order, ``right`` V (n, r)."""

    left: Tensor
    values: Tensor
    right: Tensor


@torch.no_grad()
def leading_triplets(weight: Tensor, rank: int) -> Triplets:
    """Return the ``rank`` leading triplets of ``weight`` (m, n) by the full decomposition, in O(m n min(m, n))."""
    left, values, right = torch.linalg.svd(weight.to(wide(weight.dtype)), full_matrices=False)
    return Triplets(left[:, :rank].contiguous(), values[:rank].clone(), right[:rank].T.contiguous())


@torch.no_grad()
def randomized_triplets(
    weight: Tensor, rank: int, iterations: int, generator: torch.Generator | None = None
) -> Triplets:
    """Return approximations of the ``rank`` leading triplets in O(m n r) per power iteration, drawn from ``generator``.

    Exact in the limit of many ``iterations``; the error falls with the ratio of the singular values at the cut, to the
    power of 2 iterations + 1.

    Source: arXiv:0909.4061, randomised subspace iteration, without oversampling.
    """
    matrix = weight.to(wide(weight.dtype))
    basis = torch.linalg.qr(matrix @ matrix.new_empty(matrix.shape[1], rank).normal_(generator=generator)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Triplets(basis @ left, values, right.T.contiguous())
