"""Whitened SVD: the factors whose outputs, on calibration inputs, are nearest to those of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bench import Algorithm, Batch, Run, hyper

from ._calibration import Propagation, calibrated
from ._linears import asked_ratio, rank_for
from ._low_rank import Factors, factored
from ._whitening import output_factors


@dataclass(frozen=True, kw_only=True)
class WhitenedSVD(Algorithm):
    """Low rank of every hidden matrix that is optimal for its outputs: SVD-LLM without its fine-tuning.

        C = mean over the tokens of x xᵀ = L Lᵀ
        U Σ Vᵀ = SVD(W L),    B A = U_r Σ_r V_rᵀ L⁻¹ = U_r U_rᵀ W,    r = floor(ρ m n / (m + n))

    minimises ||(W - B A) X||_F. U_r are the leading eigenvectors of W C Wᵀ, so no root and no inverse of C is taken:
    the principal axes of the outputs, uncentred. ρ is the kept ratio that is asked for; at ρ = 1 the weight stays.

    Source: arXiv:2403.07378, AIoT-MLSys-Lab/SVD-LLM ``SVDLLM.py``.
    Deviations: the class fact ``deviations``.
    """

    name = "whitened-svd"
    deviations = (
        "By the eigenvectors of W C Wᵀ, the same product, instead of a Cholesky factor, which a singular C lacks.",
        "The fine-tuning of first A, then B is left out: a method of its own information track.",
    )
    needs = ("kept-ratio",)
    information = "inputs"

    propagation: Propagation = hyper("parallel", help="whence the inputs of a block: dense blocks, or replaced ones")

    def compress(self, model: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a copy of ``model`` with every hidden linear as two factors."""
        ratio = asked_ratio(run)

        def replacement(_name: str, linear: nn.Linear, moment: Tensor) -> nn.Module:
            weight = linear.weight.detach()
            return factored(linear, compress_linear(weight, moment, rank_for(ratio, *weight.shape)))

        return calibrated(model, calibration, run, self.propagation, lambda moment: moment, replacement)


def compress_linear(weight: Tensor, moment: Tensor, rank: int) -> Factors:
    """Return B (m, r) and A (r, n) of ``weight`` W (m, n) for inputs of second ``moment`` C (n, n); float64.

    The least tr((W - B A) C (W - B A)ᵀ) of ``rank``. A multiple of C gives the same factors.

    >>> import torch
    >>> inputs = torch.randn(100, 12)
    >>> factors = compress_linear(torch.randn(8, 12), inputs.T @ inputs, rank=3)
    >>> tuple(factors.left.shape), tuple(factors.right.shape)
    ((8, 3), (3, 12))
    """
    return output_factors(weight, moment, rank)
