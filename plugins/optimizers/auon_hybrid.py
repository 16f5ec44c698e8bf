"""Hybrid-AuON: AuON after a Newton-Schulz iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from bench import Algorithm, hyper

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
from .auon import BRAKE_EPS, NORM_EPS, AuON, Variant, cosh_rms

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

PUBLISHED_STEPS = {"paper": 1, "repo": 5}


@dataclass(frozen=True, kw_only=True)
class AuONHybrid(AuON):
    """Hybrid-AuON for the matrices and convolutions of hidden roles, AdamW for everything else.

    See :class:`AuONHybridOptimizer` for the rule. ``variant="paper"`` takes one Newton-Schulz iteration, ``"repo"``
    five: up to a part in a thousand the latter is Muon without its factor √max(1, m/n).

    No learning rate of the hybrid is known; the default is AuON's of the published language model. A step of "paper" is
    up to 3.4 times as large as AuON's, since the iteration stretches small singular values by that much. As with AuON
    the setting stays as published on small tiers.

    Source: arXiv:2509.24320, ryyzn9/AuON ``auon/optimizer.py``.
    Deviations: see ``deviations``.
    """

    name = "auon-hybrid"
    deviations: ClassVar[tuple[str, ...]] = (
        *AuON.deviations,
        "The paper prints the hybrid's divisor without the square root; it is taken with it, as in AuON.",
        (
            "A convolution is orthogonalised in its (out, in*kh*kw) view; the reference code takes the last two "
            "dimensions of the kernel."
        ),
    )

    newton_schulz_steps: Annotated[int, Ge(1), Lt(100)] | None = hyper(
        None, help="iterations of the orthogonalisation; none: 1 for paper, 5 for repo"
    )

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> HiddenMatrixOptimizer:
        """Return one optimizer with a hybrid group and an AdamW group."""
        return AuONHybridOptimizer(matrices_and_rest(self, named_parameters, run), **self.options())


class AuONHybridOptimizer(HiddenMatrixOptimizer):
    r"""Hybrid-AuON for matrices, with AdamW groups for what is no hidden matrix.

    With weight W (m, n), gradient G and momentum M (zero at first):

        M ← β M + (1-β) G
        C = (1-β) G + β M
        O = NewtonSchulz(C), ``newton_schulz_steps`` iterations     1 in the variant "paper", 5 in "repo"
        X = O  in "paper",   γ O / (‖O‖_F + 1e-7)  in "repo"
        r = √(mean over all entries of cosh(X)²)
        W ← W (1 - η λ)
        W ← W - η f O / (r + 1e-8)                                  f = √max(1, m/n) in "paper", 1 in "repo"

    Options, AdamW groups, views and state are those of :class:`~bench.plugins.optimizers.auon.AuONOptimizer`; the
    option ``newton_schulz_steps`` is ``None`` for the published number:

        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Linear(64, 8))
        >>> optimizer = AuONHybridOptimizer([layer.weight for layer in model], lr=0.02, variant="repo")
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.eye(16)).square().mean().backward()
        ...     optimizer.step()

    Source: arXiv:2509.24320 and ryyzn9/AuON. Deviations: those of :class:`AuONHybrid`.
    """

    algorithm: ClassVar[type[Algorithm]] = AuONHybrid

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.055,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        variant: Variant = "paper",
        gamma: float = 1.5,
        newton_schulz_steps: int | None = None,
        foreach: bool = True,
    ) -> None:
        options: Group = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "variant": variant,
            "gamma": gamma,
        }
        options |= {"newton_schulz_steps": newton_schulz_steps, "algorithm": "auon-hybrid", "foreach": foreach}
        super().__init__(params, options)

    def _fresh(self, matrix: Tensor, group: Group) -> Group:
        return {"momentum": torch.zeros_like(matrix)}

    def _update_matrices(self, group: Group, matrices: list[Tensor], scratch: Scratch) -> None:
        momenta = [self.state[parameter]["momentum"] for parameter in matrices]
        if group["foreach"]:
            auon_hybrid_batched(matrices, gradients_of(matrices), momenta, group, scratch)
        else:
            for tensors in zip(matrices, gradients_of(matrices), momenta, strict=True):
                auon_hybrid_single(*tensors, group)


def auon_hybrid_single(weight: Tensor, gradient: Tensor, momentum: Tensor, options: Group) -> None:
    """Step one matrix; the readable form."""
    beta, lr = options["momentum"], options["lr"]
    momentum.lerp_(gradient, 1.0 - beta)
    mixed = gradient.lerp(momentum, beta).flatten(1)
    step = newton_schulz(mixed, _iterations(options)).float()
    if options["variant"] == "paper":
        step *= aspect_factor(weight.shape) / (cosh_rms(step) + BRAKE_EPS)
    else:
        norm = torch.linalg.matrix_norm(step)
        step /= cosh_rms(options["gamma"] * step / (norm + NORM_EPS)) + BRAKE_EPS
    weight.mul_(1.0 - lr * options["weight_decay"])
    weight.add_(step.reshape(weight.shape).to(weight.dtype), alpha=-lr)


def auon_hybrid_batched(
    weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], options: Group, scratch: Scratch
) -> None:
    """Step matrices of one shape, dtype and device, their Newton-Schulz iterations as one batch."""
    mixed = nesterov_mix(gradients, momenta, options["momentum"], nesterov=True, scratch=scratch)
    steps = newton_schulz_batched(stacked_matrices(mixed), _iterations(options)).float()
    if options["variant"] == "paper":
        steps *= aspect_factor(weights[0].shape) / (_divisors(steps) + BRAKE_EPS)
    else:
        norms = torch.linalg.vector_norm(steps, dim=(1, 2), keepdim=True)
        steps /= _divisors(options["gamma"] * steps / (norms + NORM_EPS)) + BRAKE_EPS
    subtract(weights, steps, options["lr"], options["weight_decay"])


def _divisors(matrices: Tensor) -> Tensor:
    """Return r of each of ``matrices`` (k, m, n), of shape (k, 1, 1)."""
    return torch.stack([cosh_rms(matrix) for matrix in matrices.unbind()]).view(-1, 1, 1)


def _iterations(options: Group) -> int:
    return int(options["newton_schulz_steps"] or PUBLISHED_STEPS[options["variant"]])
