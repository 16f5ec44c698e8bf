"""Two thin factors in place of a weight: the truncated SVD, and the module that multiplies by its factors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._linears import with_weight


class Factors(NamedTuple):
    """The product B A of rank at most r: ``left`` B of shape (m, r), ``right`` A of shape (r, n)."""

    left: Tensor
    right: Tensor

    def product(self) -> Tensor:
        """Return B A, of shape (m, n)."""
        return self.left @ self.right


def truncated_svd(matrix: Tensor, rank: int) -> Factors:
    """Return the best factors of ``rank`` (at most min(m, n)) in the Frobenius norm, in float64.

    matrix = U Σ Vᵀ,    B = U_r Σ_r^{1/2},    A = Σ_r^{1/2} V_rᵀ,    error² = Σ_{i > r} σ_i²

    Source: Eckart and Young, 1936.
    """
    u, sigma, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = sigma[:rank].sqrt()
    return Factors(u[:, :rank] * root, root[:, None] * vt[:rank])


class LowRankLinear(nn.Module):
    """y = B (A x) + bias: a linear (in, out) as two factors.

    ``left`` is B (out, r), ``right`` is A (r, in), ``bias`` (out) or ``None``. Stored are r (in + out) values, and the
    bias. ``torch.save`` carries the module; a state dict fits a module of the same sizes and rank. Rank 0 gives the
    bias alone.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.left = nn.Parameter(torch.zeros(out_features, rank, **options))  # type: ignore[arg-type]
        self.right = nn.Parameter(torch.zeros(rank, in_features, **options))  # type: ignore[arg-type]
        self.bias = nn.Parameter(torch.zeros(out_features, **options)) if bias else None  # type: ignore[arg-type]

    @classmethod
    def of(cls, linear: nn.Linear, factors: Factors) -> LowRankLinear:
        """Return ``linear`` with its weight replaced by ``factors``, in the weight's dtype; its bias is copied."""
        (rows, rank), columns, weight = factors.left.shape, factors.right.shape[1], linear.weight
        bias = linear.bias is not None
        result = cls(columns, rows, rank, bias=bias, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            result.left.copy_(factors.left)
            result.right.copy_(factors.right)
            if result.bias is not None:
                result.bias.copy_(linear.bias)
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., out) of ``x`` (..., in)."""
        return nn.functional.linear(nn.functional.linear(x, self.right), self.left, self.bias)

    def dense(self) -> Tensor:
        """Return the weight B A, of shape (out, in)."""
        return self.left @ self.right

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"in={self.right.shape[1]}, out={self.left.shape[0]}, rank={self.left.shape[1]}"


def factored(linear: nn.Linear, factors: Factors) -> nn.Module:
    """Return ``linear`` as two factors; a copy of it where they do not save anything because their rank is full."""
    if factors.left.shape[1] >= min(linear.weight.shape):
        return with_weight(linear, linear.weight.detach().clone())
    return LowRankLinear.of(linear, factors)
