r"""Which part of a gradient gets Adam's state when the rest gets none: blocks, columns, rows, entries or a projection.

For a matrix G (m, n) and density ρ

    columns   ⌊ρ n⌋ columns      rows   ⌊ρ m⌋ rows      randk   ⌊ρ m n⌋ entries     drawn without replacement
    svd       round(ρ s) leading singular vectors of G on the short side s
    random    round(ρ s) columns of an orthonormalised Gaussian there

Blocks are whole tensors, round(ρ K) of K.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._low_rank import new_projection
from ._projection import BasisFunction, Projection, side_of

Subset = Literal["block", "columns", "rows", "randk", "svd", "random"]
Order = Literal["descending", "ascending", "mirror", "random"]


def draws(subset: Subset, order: Order) -> bool:
    """Whether the choice of the state-full part is random."""
    return subset in {"columns", "rows", "randk", "random"} or (subset == "block" and order == "random")


def block_count(blocks: int, density: float) -> int:
    """Return how many of ``blocks`` tensors are active at once."""
    return round(blocks * density)


def active_blocks(blocks: int, count: int, epoch: int, order: Order, generator: torch.Generator) -> list[int]:
    """Return which ``count`` of ``blocks`` tensors are active in the ``epoch``-th gap, 0, 1, 2, ...

    "descending" takes windows from the last tensor to the first and goes on at the last, "ascending" the other way
    round, "mirror" half of its window from each end.
    """
    if order == "random":
        found: list[int] = torch.randperm(blocks, generator=generator, device=generator.device)[:count].tolist()
        return found
    if order == "mirror":
        half, taken = blocks // 2, count // 2
        first = [(epoch * taken + i) % half for i in range(taken)]
        return first + [blocks - 1 - i for i in first]
    window = [(epoch * count + i) % blocks for i in range(count)]
    return window if order == "ascending" else [blocks - 1 - i for i in window]


def drawn_indices(shape: torch.Size, density: float, subset: Subset, generator: torch.Generator) -> Tensor:
    """Return the columns, rows or entries (of the flat matrix) that are state-full, in the order of the draw."""
    total = {"columns": shape[1], "rows": shape[0], "randk": shape.numel()}[subset]
    permutation = torch.randperm(total, generator=generator, device=generator.device)
    return permutation[: int(total * density)].clone()


def found_projection(
    gradient: Tensor, density: float, subset: Subset, basis: BasisFunction, generator: torch.Generator
) -> Projection:
    """Return the projection of ``gradient`` (m, n) on its state-full subspace; of rank 0 where ρ s rounds to 0."""
    side, short = side_of(gradient.shape, "std"), min(gradient.shape)
    rank = round(short * density)
    if rank == 0:
        empty = gradient.new_zeros(short, 0)
        return Projection(left=None, right=empty) if side == "right" else Projection(left=empty, right=None)
    if subset == "svd":
        projection = new_projection(basis, gradient.unsqueeze(0), rank, side, None)
        return Projection(*(None if vectors is None else vectors.squeeze(0) for vectors in projection))
    gaussian = torch.randn(short, rank, generator=generator, device=generator.device)
    vectors = torch.linalg.qr(gaussian).Q.to(gradient.device, gradient.dtype)
    return Projection(left=None, right=vectors) if side == "right" else Projection(left=vectors, right=None)


def taken(matrix: Tensor, indices: Tensor, subset: Subset) -> Tensor:
    """Return the columns, rows or entries ``indices`` of ``matrix``."""
    if subset == "randk":
        return matrix.flatten().index_select(0, indices)
    return matrix.index_select(1 if subset == "columns" else 0, indices)


def put(matrix: Tensor, indices: Tensor, subset: Subset, values: Tensor) -> Tensor:
    """Overwrite the columns, rows or entries ``indices`` of the contiguous ``matrix`` by ``values`` and return it."""
    if subset == "randk":
        matrix.view(-1).index_copy_(0, indices, values)
    else:
        matrix.index_copy_(1 if subset == "columns" else 0, indices, values)
    return matrix
