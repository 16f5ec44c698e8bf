"""EoRA: a low-rank branch that repairs the outputs of a compressed linear, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bench import Algorithm, Batch, Run, hyper

from ._branch import residual, with_branch
from ._calibration import Propagation, calibrated
from ._linears import asked_rank
from ._low_rank import Factors
from ._whitening import Whitening, eigenspace_factors, whitening


@dataclass(frozen=True, kw_only=True)
class EoRA(Algorithm):
    """Eigenspace low-rank approximation of what compression took from every hidden matrix.

        ΔW = W - Ŵ,    C = mean over the tokens of x xᵀ = Q Λ Qᵀ,    S = Q Λ^{1/2}
        U Σ Vᵀ = SVD(ΔW S),    B = U_r Σ_r^{1/2},    A = Σ_r^{1/2} V_rᵀ S⁻¹,    y = Ŵ x + B (A x)

    minimises ||(ΔW - B A) X||_F over rank r, the rank of the branch that is asked for. S⁻¹ is the pseudo-inverse on the
    eigenvalues above max(Λ) n ε, ε of the dtype in which C is summed. Statistics are those of the original weights on
    the current inputs; block after block, so that later blocks see compensated ones (``propagation`` = "parallel": all
    from the original model).

    Source: arXiv:2410.21271, its formulas; GPTQModel ``gptqmodel/eora/eora.py`` for singular C.
    Deviations: the class fact ``deviations``.
    """

    name = "eora"
    deviations = (
        "C is the plain mean over the tokens; the authors' code weighs the samples geometrically.",
        "Eigenvalues that are rounding noise are left out, as by GPTQModel; the authors' code divides by zeros.",
        "C is in float64 on a CPU, so less is noise there than in GPTQModel, where it is in float32.",
    )
    needs = ("branch-rank",)
    information = "inputs"

    propagation: Propagation = hyper("sequential", help="whence the inputs of a block: repaired blocks, or dense ones")

    def compensate(self, model: nn.Module, compressed: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a copy of ``compressed`` with a branch beside every compressed linear."""
        rank = asked_rank(run)

        def replacement(name: str, linear: nn.Linear, space: Whitening) -> nn.Module:
            base = compressed.get_submodule(name)
            return with_branch(base, eigenspace_factors(residual(linear, base), space, rank))

        return calibrated(model, calibration, run, self.propagation, whitening, replacement, compressed)


def compensate_linear(weight: Tensor, compressed: Tensor, moment: Tensor, rank: int) -> Factors:
    """Return B (m, r) and A (r, n) such that ``compressed`` Ŵ + B A is near ``weight`` W (both m, n); float64.

    The least tr((W - Ŵ - B A) C (W - Ŵ - B A)ᵀ) of ``rank`` for inputs of second ``moment`` C (n, n), zero off their
    span. A multiple of C gives the same product.

    >>> import torch
    >>> inputs, weight = torch.randn(100, 12), torch.randn(8, 12)
    >>> factors = compensate_linear(weight, weight.round(), inputs.T @ inputs, rank=3)
    >>> tuple(factors.left.shape), tuple(factors.right.shape)
    ((8, 3), (3, 12))
    """
    return eigenspace_factors(weight.double() - compressed.double(), whitening(moment), rank)
