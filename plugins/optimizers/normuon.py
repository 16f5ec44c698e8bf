"""NorMuon: Muon whose orthogonalised step is evened out over the neurons, the rows of the matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Linear, Log, hyper

from ._base import Group, gradients_of
from ._hidden_matrices import (
    HiddenMatrixOptimizer,
    Scratch,
    aspect_factor,
    matrices_and_rest,
    nesterov_mix,
    stacked_matrices,
    subtract,
)
from ._orthogonalize import newton_schulz, newton_schulz_batched

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

Scale = Literal["rms", "preserve"]

STEP_RMS = 0.2
"""The RMS of a step over the learning rate with ``scale="rms"``: about that of AdamW's steps."""


@dataclass(frozen=True, kw_only=True)
class NorMuon(Algorithm):
    """NorMuon for the matrices and convolutions of hidden roles, AdamW for everything else.

    See :class:`NorMuonOptimizer` for the rule. The defaults are the paper's form, plain momentum and a step of fixed
    RMS; ``scale="preserve", nesterov=True, lr=0.02`` is the authors' code, made for speed runs. The two forms share no
    learning rate: the search range of ``lr`` belongs to "rms", which is made to take AdamW's rates.

    The same setting serves every size, small tiers included, since the step's RMS does not depend on the shape. No
    learning rate of the paper's form is known from the code: 1e-3 is AdamW's on the published LLaMA runs, for the
    matrices and, as their steps are of AdamW's size, for everything else. The rest is from the authors' code and, for
    AdamW, from Muon's.

    Source: arXiv:2510.05491, zichongli5/NorMuon ``normuon.py``.
    Deviations: see ``deviations``.
    """

    name = "normuon"
    deviations = (
        (
            "The default is the paper's algorithm, plain momentum and a fixed RMS; the authors' code mixes the "
            "gradient in again (Nesterov) and keeps the Frobenius norm, times √max(1, m/n)."
        ),
        (
            "A convolution is normalised over its (out, in*kh*kw) view; the authors' code normalises over the last "
            "dimension of its kernel alone."
        ),
        "The row statistic is computed and kept in fp32; the authors' code leaves it in the parameter's dtype.",
        (
            "The norm before Newton-Schulz is taken in fp32 and floored at 1e-7; the authors' code takes it in "
            "bfloat16 and adds 1e-7."
        ),
        "The gradient is left as it is; the authors' code overwrites it.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-4, 1e-2), help="peak learning rate η of the matrices")
    momentum: Annotated[float, Ge(0), Lt(1)] = hyper(0.95, help="decay of the momentum, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.95, search=Linear(0.9, 0.99), help="decay of the rows' second moments, β₂"
    )
    eps: Annotated[float, Gt(0)] = hyper(1e-10, help="ε, added to the root of a row's second moment")
    nesterov: bool = hyper(False, help="orthogonalise (1-β₁) G + β₁ M instead of M")
    newton_schulz_steps: Annotated[int, Ge(1), Lt(100)] = hyper(5, help="iterations of the orthogonalisation")
    scale: Scale = hyper("rms", help="what fixes the size of a step: its RMS, or the norm before the rows were evened")
    weight_decay: Annotated[float, Ge(0)] = hyper(
        0.0, search=Linear(0.0, 0.2), help="decoupled weight decay λ of the matrices"
    )
    adamw_lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-4, 1e-2), help="peak learning rate of AdamW")
    adamw_beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="first decay of AdamW")
    adamw_beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.95, help="second decay of AdamW")
    adamw_eps: Annotated[float, Ge(0)] = hyper(1e-10, help="AdamW's ε")
    adamw_weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay of AdamW")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> NorMuonOptimizer:
        """Return one optimizer with a NorMuon group and an AdamW group."""
        return NorMuonOptimizer(
            matrices_and_rest(self, named_parameters, run),
            lr=self.lr,
            momentum=self.momentum,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            eps=self.eps,
            nesterov=self.nesterov,
            newton_schulz_steps=self.newton_schulz_steps,
            scale=self.scale,
        )


class NorMuonOptimizer(HiddenMatrixOptimizer):
    r"""NorMuon for matrices, with AdamW groups for what is no hidden matrix.

    With weight W (m, n), gradient G, momentum M (m, n) and one v for each row i (zero at first):

        M ← β₁ M + (1-β₁) G
        U = (1-β₁) G + β₁ M  if nesterov else  M
        O = NewtonSchulz(U)                              approximately the polar factor of U
        v_i ← β₂ v_i + (1-β₂) mean_j O_ij²               no bias correction: the last factor takes it out
        Ō_ij = O_ij / (√v_i + ε)
        W ← W (1 - η λ)
        W ← W - η s Ō

    η is ``lr``, β₁ is ``momentum``, β₂ is ``beta2``, ε is ``eps``, λ is ``weight_decay``; ``scale`` chooses the factor

        "rms"        s = 0.2 √(m n) / ‖Ō‖_F             the RMS of a step is 0.2 η, whatever the shape
        "preserve"   s = √max(1, m/n) ‖O‖_F / ‖Ō‖_F     Muon's size and learning rates

    Rows are the first dimension, the output neurons of an nn.Linear; a parameter of more than two dimensions is seen as
    (out, rest). State: M, of the parameter's shape and dtype, and v in fp32: m n + m numbers.
    A group with ``"algorithm": "adamw"`` takes AdamW steps (torch.optim.AdamW's rule) and has the options ``lr`` 1e-3,
    ``betas`` (0.9, 0.95), ``eps`` 1e-10 and ``weight_decay`` 0; embeddings, the output head, biases and norms belong
    there:

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = NorMuonOptimizer([{"params": [matrix]}, {"params": rest, "algorithm": "adamw"}], lr=1e-3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time. Bad values and vectors in a NorMuon group raise
    :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:2510.05491, Algorithm 1, and zichongli5/NorMuon ``normuon.py``. Deviations: those of :class:`NorMuon`.
    """

    algorithm: ClassVar[type[Algorithm]] = NorMuon

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.95,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
        *,
        eps: float = 1e-10,
        nesterov: bool = False,
        newton_schulz_steps: int = 5,
        scale: Scale = "rms",
        foreach: bool = True,
    ) -> None:
        options: Group = {"lr": lr, "momentum": momentum, "beta2": beta2, "weight_decay": weight_decay, "eps": eps}
        options |= {"nesterov": nesterov, "newton_schulz_steps": newton_schulz_steps, "scale": scale}
        super().__init__(params, options | {"algorithm": "normuon", "foreach": foreach})

    def _fresh(self, matrix: Tensor, group: Group) -> Group:
        rows = torch.zeros(matrix.shape[0], 1, dtype=torch.float32, device=matrix.device)
        return {"momentum": torch.zeros_like(matrix), "row_second_moment": rows}

    def _update_matrices(self, group: Group, matrices: list[Tensor], scratch: Scratch) -> None:
        momenta, rows = ([self.state[p][name] for p in matrices] for name in ("momentum", "row_second_moment"))
        gradients = gradients_of(matrices)
        if group["foreach"]:
            normuon_batched(matrices, gradients, momenta, rows, group, scratch)
        else:
            for tensors in zip(matrices, gradients, momenta, rows, strict=True):
                normuon_single(*tensors, group)


def normuon_single(
    weight: Tensor, gradient: Tensor, momentum: Tensor, row_second_moment: Tensor, options: Group
) -> None:
    """Step one matrix; the readable form."""
    beta1, lr, eps = options["momentum"], options["lr"], options["eps"]
    momentum.lerp_(gradient, 1.0 - beta1)
    mixed = gradient.lerp(momentum, beta1) if options["nesterov"] else momentum
    polar = newton_schulz(mixed.flatten(1), options["newton_schulz_steps"]).float()
    row_second_moment.lerp_(polar.square().mean(dim=1, keepdim=True), 1.0 - options["beta2"])
    evened = polar / (row_second_moment.sqrt() + eps)
    before, after = torch.linalg.matrix_norm(polar), torch.linalg.matrix_norm(evened)
    evened *= _to_size(before, after, weight.shape, options["scale"])
    weight.mul_(1.0 - lr * options["weight_decay"])
    weight.add_(evened.reshape(weight.shape).to(weight.dtype), alpha=-lr)


def normuon_batched(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    row_second_moments: list[Tensor],
    options: Group,
    scratch: Scratch,
) -> None:
    """Step matrices of one shape, dtype and device: one pass for the norms of the rows, which give all others."""
    mixed = nesterov_mix(gradients, momenta, options["momentum"], nesterov=options["nesterov"], scratch=scratch)
    polar = newton_schulz_batched(stacked_matrices(mixed), options["newton_schulz_steps"]).float()
    rows = torch.linalg.vector_norm(polar, dim=2, keepdim=True)
    means = rows.square() / polar.shape[2]
    torch._foreach_lerp_(row_second_moments, list(means.unbind()), 1.0 - options["beta2"])
    factors = torch.stack(row_second_moments).sqrt_().add_(options["eps"]).reciprocal_()
    before, after = (torch.linalg.vector_norm(norms, dim=1, keepdim=True) for norms in (rows, rows * factors))
    factors *= _to_size(before, after, weights[0].shape, options["scale"])
    subtract(weights, polar.mul_(factors), options["lr"], options["weight_decay"])


def _to_size(before: Tensor, after: Tensor, shape: torch.Size, scale: Scale) -> Tensor:
    """Return s from ‖O‖_F ``before`` and ‖Ō‖_F ``after``; 0 for a zero matrix, which stays zero."""
    size = STEP_RMS * math.sqrt(math.prod(shape)) if scale == "rms" else before * aspect_factor(shape)
    return torch.where(after > 0.0, size / after, 0.0)
