"""Statistics of a gradient with one symmetric factor per dimension, and what SOAP and Shampoo make of them.

For a gradient G of shape (d₁, ..., d_k) the factor of dimension i is the (d_i, d_i) matrix of inner products of its
slices, G Gᵀ and Gᵀ G for a matrix. :func:`contract` multiplies such matrices back onto the dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def gram(gradient: Tensor, dimension: int) -> Tensor:
    """Return the inner products (d, d) of the d slices of ``gradient`` along ``dimension``."""
    slices = gradient.movedim(dimension, 0).reshape(gradient.shape[dimension], -1)
    return slices @ slices.T


def contract(tensor: Tensor, matrices: Sequence[Tensor | None], *, transposed: bool = False) -> Tensor:
    """Return ``tensor`` with its dimension i multiplied by ``matrices[i]`` transposed, or as it is where that is None.

    For a matrix X and (A, B) this is Aᵀ X B, and with ``transposed`` A X Bᵀ.
    """
    for matrix in matrices:  # each turn moves the first dimension to the end, so that all are back in place at last
        if matrix is None:
            tensor = tensor.movedim(0, -1)
        else:
            tensor = torch.tensordot(tensor, matrix, dims=([0], [1 if transposed else 0]))
    return tensor


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ascending eigenvalues and the eigenvectors of the symmetric ``matrix``, in its dtype.

    Where the solver does not converge it is tried again in fp64. A matrix that is not finite has eigenvectors of NaN: a
    run that diverges must end as every optimizer lets it end, in weights that are not finite.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if not matrix.isfinite().all():
            return matrix.new_full(matrix.shape[:1], torch.nan), torch.full_like(matrix, torch.nan)
        values, vectors = torch.linalg.eigh(matrix.double())
    return values.to(matrix.dtype), vectors.to(matrix.dtype)


def inverse_root(matrix: Tensor, order: int, eps: float) -> Tensor:
    """Return (``matrix`` + ε I)^(-1/``order``) of a positive semi-definite ``matrix``.

    Negative eigenvalues, which only rounding makes, count as zero.
    """
    values, vectors = eigh(matrix)
    powers = (values.clamp(min=0.0) + eps) ** (-1.0 / order)
    return vectors * powers @ vectors.T
