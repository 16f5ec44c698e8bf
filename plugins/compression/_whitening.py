r"""The one solver of all that approximate a matrix by a product of low rank on the inputs that it really gets.

For D (m, n), calibration inputs X (n, T) and their second moment C = X Xᵀ / T, the factors B (m, r) and A (r, n) shall
minimise

    ||(D - B A) X||²_F / T = tr((D - B A) C (D - B A)ᵀ).

Any S with S Sᵀ = C turns this into a plain truncated SVD of D S, whose discarded squared singular values are the error:

    D S = U Σ Vᵀ,    B = U_r Σ_r^{1/2},    A = Σ_r^{1/2} V_rᵀ S⁻¹.

:func:`eigenspace_factors` takes S = Q Λ^{1/2} of C = Q Λ Qᵀ, without the eigenvalues up to max(Λ) n ε, which are
rounding noise (with fewer tokens than inputs, or dead inputs, they are zero); there B A is zero. ε is that of the dtype
in which C was summed: that of float32 for any C would cost, since inputs of trained models span more than its range.

:func:`output_factors` needs no inverse: since B A = U_r U_rᵀ D on the span of the inputs, and U are the eigenvectors of
D C Dᵀ, the second moment of the outputs, B = U_r and A = U_rᵀ D; off the span it keeps what U_r sees of D. It is the
cheaper form where m < n, and the same matrix where C is regular.

All in float64. Source: arXiv:2403.07378 (whitening), arXiv:2410.21271 (eigenspace).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._low_rank import Factors, truncated_svd


class Whitening(NamedTuple):
    """A root of C on the k eigenvalues that are kept: ``root`` S (n, k), ``inverse`` its pseudo-inverse (k, n)."""

    root: Tensor
    inverse: Tensor


def whitening(moment: Tensor) -> Whitening:
    """Return S = Q Λ^{1/2} and Λ^{-1/2} Qᵀ of ``moment`` C (n, n) on the eigenvalues above max(Λ) n ε of its dtype."""
    eigenvalues, vectors = torch.linalg.eigh(moment.double())
    cut = eigenvalues[-1].clamp(min=0.0) * len(moment) * torch.finfo(moment.dtype).eps
    kept = eigenvalues > cut
    roots, vectors = eigenvalues[kept].sqrt(), vectors[:, kept]
    return Whitening(vectors * roots, (vectors / roots).mT)


def eigenspace_factors(matrix: Tensor, space: Whitening, rank: int) -> Factors:
    """Return the best factors of ``matrix`` D (m, n), zero off the span of the inputs; see the module.

    Their rank is at most ``rank``, and smaller where m or the span is.
    """
    left, right = truncated_svd(matrix.double() @ space.root, rank)
    return Factors(left, right @ space.inverse)


def output_factors(matrix: Tensor, moment: Tensor, rank: int) -> Factors:
    """Return the best factors of ``matrix`` D (m, n) by the principal axes of its outputs; see the module."""
    matrix = matrix.double()
    outputs = matrix @ moment.double() @ matrix.mT
    _, vectors = torch.linalg.eigh((outputs + outputs.mT) / 2)
    axes = vectors.flip(1)[:, :rank]
    return Factors(axes, axes.mT @ matrix)


def output_error(difference: Tensor, moment: Tensor) -> float:
    """Return tr(E C Eᵀ), the mean squared norm of E x over the calibration inputs, for ``difference`` E (m, n)."""
    difference = difference.double()
    return float((difference @ moment.double() * difference).sum())


def discarded(matrix: Tensor, space: Whitening, rank: int) -> float:
    """Return Σ_{i > r} σ_i² of D S: the least :func:`output_error` that any product of ``rank`` can have."""
    sigma: Tensor = torch.linalg.svdvals(matrix.double() @ space.root)
    return float(sigma[rank:].square().sum())
