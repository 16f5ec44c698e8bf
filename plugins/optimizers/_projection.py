r"""Low-rank projections of gradient matrices, and the functions that find their bases.

For a gradient G of shape (m, n) and rank r a projection is a basis P of shape (m, r) on the left, Q of shape (n, r) on
the right, or both, each with orthonormal columns:

    left   R = Pᵀ G    (r, n)    back  P R
    right  R = G Q     (m, r)    back  R Qᵀ
    both   R = Pᵀ G Q  (r, r)    back  P R Qᵀ

:class:`Projection` stores the side; the shape of R never decides it, since a very thin matrix makes R look like the
other case. Every function takes one matrix or a batch of equal shapes, (..., m, n).

:func:`svd_basis` is the specification. Median times of one refresh at rank s/4 on one thread of an AMD EPYC 9004,
torch 2.13, the functions interleaved (milliseconds):

    shape (m, n)     svd    gram fp64   gram fp32   subspace, 2 sweeps
    (128, 128)       1.7        1.6         1.0         0.6
    (512, 512)        43         45          20           7
    (512, 1376)      140         59          27          16
    (1376, 512)       80         58          25          16
    (1024, 2736)    2556        825         403         210

The Gram matrix squares the singular values, and in the gradients of a LLaMA of width 512 the 128th is only 5e-5 to 7e-4
of the first. There, against an SVD in fp64, fp32 Gram and subspace iteration capture the same energy to 5e-7, yet 64 to
89 of the 128 vectors are wrong (cosine below 0.99); of the fp32 SVD's at most 2 are, of fp64 Gram's none (worst
1 - cosine 8e-9). Adam makes equally large steps along all of them, so they count: hence fp64. Subspace iteration is an
approximation to choose knowingly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Side = Literal["left", "right", "both"]
ProjectionType = Literal["std", "reverse_std", "left", "right", "full"]


class Projection(NamedTuple):
    """Orthonormal bases of a projection: ``left`` (..., m, r), ``right`` (..., n, r); ``None``: that side is kept."""

    left: Tensor | None
    right: Tensor | None

    def down(self, gradient: Tensor) -> Tensor:
        """Return R, the coordinates of ``gradient`` (..., m, n)."""
        reduced = gradient if self.left is None else self.left.mT @ gradient
        return reduced if self.right is None else reduced @ self.right

    def up(self, reduced: Tensor) -> Tensor:
        """Return the matrix (..., m, n) whose coordinates are ``reduced``."""
        full = reduced if self.left is None else self.left @ reduced
        return full if self.right is None else full @ self.right.mT

    def add_up(self, weights: list[Tensor], reduced: Tensor, factor: float) -> None:
        """Add ``factor`` times :meth:`up` of ``reduced`` (k, ...) to the k ``weights`` (m, n), without temporaries."""
        left = reduced if self.left is None else self.left
        right = reduced if self.right is None else self.right.mT
        left = left @ reduced if self.left is not None and self.right is not None else left
        for weight, one, other in zip(weights, left.unbind(), right.unbind(), strict=True):
            weight.addmm_(one, other, alpha=factor)


BasisFunction = Callable[[Tensor, int, Side, Projection | None], Projection]
"""``(gradient (..., m, n), rank, side, previous) -> Projection``; ``previous`` is the one before, ``None`` at first."""


def side_of(shape: torch.Size, projection_type: ProjectionType) -> Side:
    """Return the side that ``projection_type`` projects in a matrix of ``shape`` (m, n).

    ``"std"`` projects the short side, ``"reverse_std"`` the long one; a square matrix counts as tall in both.
    """
    tall = shape[-2] >= shape[-1]
    if projection_type == "std":
        return "right" if tall else "left"
    if projection_type == "reverse_std":
        return "left" if tall else "right"
    return "both" if projection_type == "full" else projection_type


def svd_basis(gradient: Tensor, rank: int, side: Side, previous: Projection | None = None) -> Projection:  # noqa: ARG001
    """Return the leading singular vectors by a thin SVD in fp32: the rule as published, signs as LAPACK gives them."""
    left, _, right = torch.linalg.svd(gradient.to(_at_least_fp32(gradient)), full_matrices=False)
    return _projection(left[..., :rank], right[..., :rank, :].mT, side, gradient.dtype)


def gram_basis(
    gradient: Tensor,
    rank: int,
    side: Side,
    previous: Projection | None = None,  # noqa: ARG001 - a direct method needs no start
    *,
    dtype: torch.dtype = torch.float64,
) -> Projection:
    """Return the leading singular vectors by an eigendecomposition of the short side's Gram matrix in ``dtype``.

    The vectors are those of :func:`svd_basis` except for their signs, which are fixed: the entry of largest magnitude
    of each vector on the short side is positive. So one gradient gives one trajectory whatever the LAPACK.
    """
    matrix = gradient.to(dtype)
    wide = matrix if gradient.shape[-2] < gradient.shape[-1] else matrix.mT
    _, vectors = torch.linalg.eigh(wide @ wide.mT)
    short = _with_fixed_signs(vectors[..., -rank:].flip(-1))
    if side == side_of(gradient.shape, "std"):
        return _projection(short, short, side, gradient.dtype)
    long = _partners(wide, short)
    left, right = (short, long) if wide is matrix else (long, short)
    return _projection(left, right, side, gradient.dtype)


def subspace_basis(
    gradient: Tensor, rank: int, side: Side, previous: Projection | None = None, *, sweeps: int = 2
) -> Projection:
    """Return an approximation by ``sweeps`` subspace iterations from the previous basis, with QR after each.

    A Rayleigh-Ritz step orders the basis like singular vectors. Without a previous basis this is :func:`gram_basis`.
    """
    matrix = gradient.to(_at_least_fp32(gradient))
    if previous is not None and previous.left is not None:
        rows, basis = matrix, previous.left.to(matrix.dtype)
    elif previous is not None and previous.right is not None:
        rows, basis = matrix.mT, previous.right.to(matrix.dtype)
    else:
        return gram_basis(gradient, rank, side)
    for _ in range(sweeps):
        basis = torch.linalg.qr(rows @ (rows.mT @ basis)).Q
    reduced = basis.mT @ rows
    _, rotation = torch.linalg.eigh(reduced @ reduced.mT)
    basis = _with_fixed_signs(basis @ rotation.flip(-1))
    if side == "both":
        return _projection(basis, _partners(rows, basis), side, gradient.dtype)
    return _projection(basis, basis, side, gradient.dtype)


def undefined_projection(gradient: Tensor, rank: int, side: Side) -> Projection:
    """Return bases of NaN: what a gradient that is not finite has."""
    *batch, rows, columns = gradient.shape
    left, right = (gradient.new_full((*batch, size, rank), torch.nan) for size in (rows, columns))
    return _projection(left, right, side, gradient.dtype)


def _projection(left: Tensor, right: Tensor, side: Side, dtype: torch.dtype) -> Projection:
    return Projection(
        left=None if side == "right" else left.to(dtype).contiguous(),
        right=None if side == "left" else right.to(dtype).contiguous(),
    )


def _at_least_fp32(gradient: Tensor) -> torch.dtype:
    return torch.promote_types(gradient.dtype, torch.float32)


def _with_fixed_signs(vectors: Tensor) -> Tensor:
    """Return the columns of ``vectors`` with the entry of largest magnitude made positive."""
    largest = vectors.gather(-2, vectors.abs().argmax(dim=-2, keepdim=True))
    return vectors * largest.sign()


def _partners(matrix: Tensor, left: Tensor) -> Tensor:
    """Return the right singular vectors (l, r) that belong to the ``left`` ones (s, r) of ``matrix`` (s, l).

    QR instead of a division by the singular values: its columns stay orthonormal where those are zero.
    """
    right, triangle = torch.linalg.qr(matrix.mT @ left)
    diagonal = triangle.diagonal(dim1=-2, dim2=-1)
    signs = torch.where(diagonal < 0, -1.0, 1.0).to(matrix.dtype).unsqueeze(-2)
    return torch.mul(right, signs)
