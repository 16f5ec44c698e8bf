"""FWSVD: truncated SVD with every input feature weighted by the Fisher information of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from bench import Algorithm, Batch, Log, Loss, Run, hyper
from bench.errors import BadValue

from ._calibration import evaluating
from ._linears import asked_ratio, hidden_linears, rank_for, with_replaced
from ._low_rank import Factors, factored, truncated_svd


@dataclass(frozen=True, kw_only=True)
class FWSVD(Algorithm):
    """Low rank of every hidden matrix, weighted by the squared gradients of the loss.

        Î_j = mean over the samples d of Σ_i (∂L(d)/∂W_ij)²,    D = diag(sqrt(max(Î_j, ε max Î)))
        U Σ Vᵀ = SVD(W D),    B = U_r Σ_r^{1/2},    A = Σ_r^{1/2} V_rᵀ D⁻¹,    r = floor(ρ m n / (m + n))

    minimises Σ_j Î_j ||(W - B A)_j||² over the columns j, which in torch's layout (out, in) are the input features: the
    rows of the paper, whose W is the transpose. A sample is one row of a batch, and gradients are squared one by one. ε
    is ``floor``, ρ the kept ratio that is asked for; at ρ = 1 the weight stays as it is.

    Source: arXiv:2207.00112.
    Deviations: the class fact ``deviations``.
    """

    name = "fwsvd"
    deviations = (
        "The fine-tuning that follows in the paper is left out: a method of its own information track.",
        "Importances are at least a part of the largest: the paper's D has no inverse where one is zero.",
    )
    needs = ("kept-ratio",)
    information = "labels"

    floor: Annotated[float, Ge(0), Lt(1)] = hyper(
        1e-5, search=Log(1e-8, 1e-4), help="least importance, as a part of the largest in the matrix, ε"
    )

    def compress(self, model: nn.Module, calibration: Sequence[Batch], run: Run) -> nn.Module:
        """Return a copy of ``model`` with every hidden linear as two factors."""
        ratio = asked_ratio(run)
        if run.loss is None:
            raise BadValue("the run has no loss, of which FWSVD takes gradients", hint="pass Run(loss=...)")
        linears = hidden_linears(model, run.roles)
        importance = fisher_importance(model, linears, calibration, run.loss)

        def replacement(name: str, linear: nn.Linear) -> nn.Module:
            weight = linear.weight.detach()
            rank = rank_for(ratio, *weight.shape)
            return factored(linear, compress_linear(weight, importance[name], rank, floor=self.floor))

        return with_replaced(model, {linear: replacement(name, linear) for name, linear in linears.items()})


def compress_linear(weight: Tensor, importance: Tensor, rank: int, *, floor: float = 1e-5) -> Factors:
    """Return B (m, r) and A (r, n) of ``weight`` W (m, n) for the ``importance`` Î (n) of its inputs; float64.

    The least Σ_j Î_j ||(W - B A)_j||² of ``rank``, each Î_j at least ``floor`` times the largest. A multiple of Î gives
    the same factors; where all are zero, the factors are those of the plain SVD.

    >>> import torch
    >>> factors = compress_linear(torch.randn(8, 12), torch.rand(12), rank=3)
    >>> tuple(factors.left.shape), tuple(factors.right.shape)
    ((8, 3), (3, 12))
    """
    scale = importance.double()
    scale = (scale / scale.max() if scale.max() > 0 else torch.ones_like(scale)).clamp(min=floor).sqrt()
    left, right = truncated_svd(weight.double() * scale, rank)
    return Factors(left, torch.where(scale > 0, right / scale, 0.0))


def fisher_importance(
    model: nn.Module, linears: Mapping[str, nn.Linear], batches: Iterable[Batch], loss: Loss
) -> dict[str, Tensor]:
    """Return Î (n) of each of ``linears``, in float64: the mean over all rows of ``batches``, one gradient for each.

    ``model`` keeps its gradients, its mode and what is frozen.
    """
    weights = {name: linear.weight for name, linear in linears.items()}
    sums = {name: weight.new_zeros(weight.shape[1], dtype=torch.float64) for name, weight in weights.items()}
    count = 0
    with torch.enable_grad(), evaluating(model), _trainable(weights.values()):
        for row in (row for batch in batches for row in rows(batch)):
            gradients = torch.autograd.grad(loss(model, row), list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.double().square().sum(0)
            count += 1
    if not count:
        raise BadValue("there are no calibration batches, of which gradients could be taken")
    bad = [name for name, value in sums.items() if not bool(value.isfinite().all())]
    if bad:
        raise BadValue(f"the gradients of {', '.join(bad)} are not all finite")
    return {name: value / count for name, value in sums.items()}


def rows(batch: Batch) -> Iterator[Batch]:
    """Yield every row of ``batch`` as a batch of one; what has no rows of its own goes along whole."""
    size = len(next(iter(batch.values())))
    for i in range(size):
        yield {key: value[i : i + 1] if value.ndim and len(value) == size else value for key, value in batch.items()}


@contextmanager
def _trainable(weights: Iterable[Tensor]) -> Iterator[None]:
    """Let gradients flow to ``weights``, and put it back as it was."""
    before = [(weight, weight.requires_grad) for weight in weights]
    try:
        for weight, _ in before:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, flag in before:
            weight.requires_grad_(flag)
