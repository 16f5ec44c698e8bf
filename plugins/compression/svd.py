"""Plain SVD: each weight as the product of two thin factors that is nearest to it, without any data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bench import Algorithm, Batch, Run

from ._linears import asked_ratio, hidden_linears, rank_for, with_replaced
from ._low_rank import Factors, factored, truncated_svd


@dataclass(frozen=True, kw_only=True)
class SVD(Algorithm):
    """Truncated singular value decomposition of every hidden matrix: the control of all low-rank compression.

        W = U Σ Vᵀ,    B = U_r Σ_r^{1/2},    A = Σ_r^{1/2} V_rᵀ,    r = floor(ρ m n / (m + n))

    ρ is the kept ratio that is asked for; at ρ = 1 the weight stays as it is. Factors in float64, stored in the
    weight's dtype. Embedding, norms and head stay dense.

    Source: Eckart and Young, 1936; as the control of arXiv:2403.07378 (SVD-LLM).
    """

    name = "svd"
    needs = ("kept-ratio",)
    information = "weights"

    def compress(self, model: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a copy of ``model`` with every hidden linear as two factors."""
        ratio = asked_ratio(run)
        linears = hidden_linears(model, run.roles).values()
        return with_replaced(
            model,
            {m: factored(m, compress_linear(m.weight.detach(), rank_for(ratio, *m.weight.shape))) for m in linears},
        )


def compress_linear(weight: Tensor, rank: int) -> Factors:
    """Return B (m, r) and A (r, n) of ``weight`` (m, n), the least ||W - B A||_F of ``rank``; float64.

    >>> import torch
    >>> factors = compress_linear(torch.randn(8, 12), rank=3)
    >>> tuple(factors.left.shape), tuple(factors.right.shape)
    ((8, 3), (3, 12))
    """
    return truncated_svd(weight, rank)
