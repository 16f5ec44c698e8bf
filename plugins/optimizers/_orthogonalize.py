r"""Approximate orthogonalisation by the quintic Newton-Schulz iteration.

For U = A diag(σ) Bᵀ the polar factor A Bᵀ is approached by

    X ← U / max(‖U‖_F, ε)        repeat:  S = X Xᵀ,   X ← a X + (b S + c S S) X

with (a, b, c) chosen for a steep slope at zero, so that after five steps the singular values of a well-conditioned
matrix lie between about 0.7 and 1.15, not at 1. Source: kellerjordan.github.io/posts/muon.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The published (a, b, c)."""

NORM_FLOOR = 1e-7
"""ε: below this Frobenius norm a matrix is scaled up no further, so that zero stays zero."""


def newton_schulz(matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the approximate polar factor of ``matrix`` (m, n), computed and returned in ``dtype``; the readable form.

    The norm is taken in fp32 before the cast, so the published range holds for bf16 too.
    """
    a, b, c = COEFFICIENTS
    norm = torch.linalg.matrix_norm(matrix.float())
    x: Tensor = (matrix / norm.clamp(min=NORM_FLOOR)).to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x  # the Gram matrix of the short side is the smaller one
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if tall else x


def newton_schulz_batched(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return :func:`newton_schulz` of each of ``matrices`` (k, m, n), with fused batched products."""
    a, b, c = COEFFICIENTS
    norms = torch.linalg.matrix_norm(matrices.float(), keepdim=True)
    x: Tensor = (matrices / norms.clamp(min=NORM_FLOOR)).to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        s = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(s, s, s, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
