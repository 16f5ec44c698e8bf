"""The control of EoRA: a low-rank branch that is nearest to what was lost of the weight, whatever the inputs are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bench import Algorithm, Batch, Run

from ._branch import residual, with_branch
from ._linears import asked_rank, hidden_linears, with_replaced
from ._low_rank import truncated_svd


@dataclass(frozen=True, kw_only=True)
class SVDCompensation(Algorithm):
    """Truncated SVD of what compression took from every hidden matrix.

        ΔW = W - Ŵ = U Σ Vᵀ,    B = U_r Σ_r^{1/2},    A = Σ_r^{1/2} V_rᵀ,    y = Ŵ x + B (A x)

    minimises ||ΔW - B A||_F over rank r, the rank of the branch that is asked for.

    Source: arXiv:2410.21271, the baseline "SVD" of its tables.
    """

    name = "svd-compensation"
    needs = ("branch-rank",)
    information = "weights"

    def compensate(self, model: nn.Module, compressed: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a copy of ``compressed`` with a branch beside every compressed linear."""
        rank = asked_rank(run)
        bases = {compressed.get_submodule(name): m for name, m in hidden_linears(model, run.roles).items()}
        return with_replaced(
            compressed, {base: with_branch(base, truncated_svd(residual(m, base), rank)) for base, m in bases.items()}
        )
