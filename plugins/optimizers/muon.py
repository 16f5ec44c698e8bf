"""Muon: the momentum of each hidden matrix is orthogonalised before it becomes the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Linear, Log, hyper

from ._base import Group, gradients_of
from ._hidden_matrices import (
    HiddenMatrixOptimizer,
    Scratch,
    matrices_and_rest,
    nesterov_mix,
    stacked_matrices,
    subtract,
)
from ._orthogonalize import newton_schulz, newton_schulz_batched

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

ShapeFactor = Literal["original", "match_rms_adamw", "spectral_unclamped"]


@dataclass(frozen=True, kw_only=True)
class Muon(Algorithm):
    """Muon for the matrices and convolutions of hidden roles, AdamW for everything else.

    See :class:`MuonOptimizer` for the rule. A parameter goes to Muon if its role is in ``bench.HIDDEN_MATRICES`` and it
    has at least two dimensions; a network's first convolution belongs to AdamW, so a workload gives it another role. A
    fused QKV matrix is orthogonalised whole. The search range of ``lr`` belongs to ``shape_factor="original"``.

    Source: kellerjordan.github.io/posts/muon, KellerJordan/Muon ``muon.py``; arXiv:2502.16982 for the factor
    "match_rms_adamw".
    Deviations: see ``deviations``.
    """

    name = "muon"
    deviations = (
        (
            "The shape factor of a convolution comes from its (out, in*kh*kw) view; the reference code takes it from "
            "the last two dimensions of the 4-D gradient."
        ),
        (
            "The norm before Newton-Schulz is taken in fp32 and floored at 1e-7; the reference code takes it in "
            "bfloat16 and adds 1e-7."
        ),
        "The gradient is left as it is; the reference code overwrites it.",
    )

    lr: Annotated[float, Gt(0)] = hyper(0.02, search=Log(2e-3, 0.1), help="peak learning rate η of the matrices")
    momentum: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.95, search=Choice((0.85, 0.9, 0.95, 0.98)), help="decay of the momentum, μ"
    )
    nesterov: bool = hyper(True, help="orthogonalise (1-μ) G + μ M instead of M")
    newton_schulz_steps: Annotated[int, Ge(1), Lt(100)] = hyper(5, help="iterations of the orthogonalisation")
    shape_factor: ShapeFactor = hyper("original", help="how the step scales with the shape of the matrix")
    weight_decay: Annotated[float, Ge(0)] = hyper(
        0.0, search=Linear(0.0, 0.2), help="decoupled weight decay λ of the matrices"
    )
    adamw_lr: Annotated[float, Gt(0)] = hyper(3e-4, search=Log(1e-4, 1e-2), help="peak learning rate of AdamW")
    adamw_beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="first decay of AdamW, β₁")
    adamw_beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.95, help="second decay of AdamW, β₂")
    adamw_eps: Annotated[float, Ge(0)] = hyper(1e-10, help="AdamW's ε")
    adamw_weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="decoupled weight decay of AdamW")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> MuonOptimizer:
        """Return one optimizer with a Muon group and an AdamW group."""
        return MuonOptimizer(
            matrices_and_rest(self, named_parameters, run),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            newton_schulz_steps=self.newton_schulz_steps,
            shape_factor=self.shape_factor,
            weight_decay=self.weight_decay,
        )


class MuonOptimizer(HiddenMatrixOptimizer):
    r"""Muon for matrices, with AdamW groups for what is no hidden matrix.

    With weight W (m, n), gradient G and momentum M (zero at first):

        M ← M + (1-μ) (G - M)
        U = (1-μ) G + μ M  if nesterov else  M
        X = NewtonSchulz(U)                                    approximately the polar factor of U
        W ← W (1 - η λ)
        W ← W - η f X

    η is ``lr``, μ is ``momentum``, λ is ``weight_decay``; the factor f is

        "original"            √max(1, m/n)
        "match_rms_adamw"     0.2 √max(m, n)    the step's RMS is then about 0.2 η, so AdamW's learning rates fit
        "spectral_unclamped"  √(m/n)

    A parameter of more than two dimensions is seen as (out, rest). State: M, of the parameter's shape and dtype.
    A group with ``"algorithm": "adamw"`` takes AdamW steps (torch.optim.AdamW's rule) and has the options ``lr`` 3e-4,
    ``betas`` (0.9, 0.95), ``eps`` 1e-10 and ``weight_decay`` 0; embeddings, the output head, biases and norms belong
    there:

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = MuonOptimizer([{"params": [matrix]}, {"params": rest, "algorithm": "adamw"}], lr=0.02)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time. Bad values and vectors in a Muon group raise
    :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: KellerJordan/Muon ``muon.py``. Deviations: those of :class:`Muon`.
    """

    algorithm: ClassVar[type[Algorithm]] = Muon

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = True,
        newton_schulz_steps: int = 5,
        shape_factor: ShapeFactor = "original",
        foreach: bool = True,
    ) -> None:
        options: Group = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "newton_schulz_steps": newton_schulz_steps,
            "shape_factor": shape_factor,
        }
        super().__init__(params, options | {"algorithm": "muon", "foreach": foreach})

    def _fresh(self, matrix: Tensor, group: Group) -> Group:
        return {"momentum": torch.zeros_like(matrix)}

    def _update_matrices(self, group: Group, matrices: list[Tensor], scratch: Scratch) -> None:
        momenta = [self.state[parameter]["momentum"] for parameter in matrices]
        if group["foreach"]:
            muon_batched(matrices, gradients_of(matrices), momenta, group, scratch)
        else:
            for tensors in zip(matrices, gradients_of(matrices), momenta, strict=True):
                muon_single(*tensors, group)


def step_factor(shape: torch.Size, kind: ShapeFactor) -> float:
    """Return f for a parameter of ``shape``, seen as (rows, columns) = (out, everything else)."""
    rows, columns = shape[0], math.prod(shape[1:])
    if kind == "original":
        return math.sqrt(max(1.0, rows / columns))
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(rows / columns)


def muon_single(weight: Tensor, gradient: Tensor, momentum: Tensor, options: Group) -> None:
    """Step one matrix; the readable form."""
    mu, lr = options["momentum"], options["lr"]
    momentum.lerp_(gradient, 1.0 - mu)
    mixed = gradient.lerp(momentum, mu) if options["nesterov"] else momentum
    polar = newton_schulz(mixed.flatten(1), options["newton_schulz_steps"]).reshape(weight.shape)
    weight.mul_(1.0 - lr * options["weight_decay"])
    weight.add_(polar.to(weight.dtype), alpha=-lr * step_factor(weight.shape, options["shape_factor"]))


def muon_batched(
    weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], options: Group, scratch: Scratch
) -> None:
    """Step matrices of one shape, dtype and device, their Newton-Schulz iterations as one batch."""
    mixed = nesterov_mix(gradients, momenta, options["momentum"], nesterov=options["nesterov"], scratch=scratch)
    polar = newton_schulz_batched(stacked_matrices(mixed), options["newton_schulz_steps"]).to(weights[0].dtype)
    factor = step_factor(weights[0].shape, options["shape_factor"])
    subtract(weights, polar.mul_(factor), options["lr"], options["weight_decay"])
