"""A compressed linear with a low-rank branch beside it that repairs a part of what was lost."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ._linears import dense_weight
from ._low_rank import Factors


class BranchLinear(nn.Module):
    """y = base(x) + B (A x).

    ``base`` is the compressed linear, stored as it was; ``left`` is B (out, r), ``right`` is A (r, in): r (in + out)
    values more. ``torch.save`` carries the module.
    """

    def __init__(self, base: nn.Module, factors: Factors) -> None:
        super().__init__()
        self.base = base
        dtype = dense_weight(base).dtype
        self.left = nn.Parameter(factors.left.to(dtype).contiguous())
        self.right = nn.Parameter(factors.right.to(dtype).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., out) of ``x`` (..., in)."""
        y: Tensor = self.base(x)
        return y + nn.functional.linear(nn.functional.linear(x, self.right), self.left)

    def dense(self) -> Tensor:
        """Return the weight base + B A, of shape (out, in)."""
        return dense_weight(self.base) + self.left @ self.right


def with_branch(base: nn.Module, factors: Factors) -> nn.Module:
    """Return a copy of ``base`` with the branch beside it; of rank 0, the copy alone."""
    base = copy.deepcopy(base)
    return BranchLinear(base, factors) if factors.left.shape[1] else base


def residual(linear: nn.Linear, compressed: nn.Module) -> Tensor:
    """Return ΔW = W - Ŵ in float64."""
    with torch.no_grad():
        return linear.weight.detach().double() - dense_weight(compressed).double()
