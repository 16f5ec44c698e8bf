"""Distributed Shampoo: the gradient between inverse roots of its covariances, with the length of Adam's step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ..optimizers._base import BaseOptimizer, Group, gradients_of  # noqa: TID252 - a sibling
from ._kronecker import contract, gram, inverse_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

Graft = Literal["adam", "sgd", "none"]
Block = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class Shampoo(Algorithm):
    """Distributed Shampoo for all parameters alike, as the winner of AlgoPerf's external tuning ruleset.

    See :class:`ShampooOptimizer` for the rule. The defaults are the first of the five published points. The roots are
    renewed every 100 steps there; ``precondition_frequency=None`` means that, or a thirtieth of a shorter run, and
    ``start_preconditioning_step=None`` means the frequency. On one device nothing is distributed.

    Source: arXiv:2309.06497, facebookresearch/optimizers; AlgoPerf v0.5 submissions for the setting.
    Deviations: see ``deviations``.
    """

    name = "shampoo"
    deviations = (
        "The default frequency is at most a thirtieth of the run, so that short runs are preconditioned too.",
        "A decay β₂ of 1, AdaGrad's plain sums, which is the default of the authors' class, is refused.",
        (
            "Neither a second momentum over the preconditioned step nor another exponent of the roots is offered; the "
            "third and the fourth of the published points use one or both."
        ),
        "All state is fp32 for bf16 parameters.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1.749e-3, search=Log(1e-4, 1e-2), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9327, search=Choice((0.85, 0.9, 0.95, 0.99)), help="decay of the momentum, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.99552, search=Choice((0.95, 0.99, 0.999)), help="decay of the statistics, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the eigenvalues of the corrected factors")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0812, search=Log(5e-3, 1.0), help="decoupled weight decay λ")
    nadam: bool = hyper(True, help="look ahead: β₃ = β₁² in the place of β₁")
    graft: Graft = hyper("adam", help="whose step the length is taken from")
    graft_eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε of the grafted Adam")
    precondition_frequency: Annotated[int, Ge(1)] | None = hyper(
        None, help="steps between two roots, f; none: min(100, steps / 30)"
    )
    start_preconditioning_step: Annotated[int, Ge(1)] | None = hyper(
        None, help="first step that uses the roots; none: f"
    )
    max_preconditioner_dim: Annotated[int, Ge(1)] = hyper(1024, help="largest side of a block")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> ShampooOptimizer:
        """Return Shampoo over all parameters."""
        return ShampooOptimizer(
            list(named_parameters),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            nadam=self.nadam,
            graft=self.graft,
            graft_eps=self.graft_eps,
            precondition_frequency=self.precondition_frequency or min(100, max(1, run.steps // 30)),
            start_preconditioning_step=self.start_preconditioning_step,
            max_preconditioner_dim=self.max_preconditioner_dim,
        )


OPTIONS = (
    *("lr", "eps", "weight_decay", "nadam", "graft", "graft_eps"),
    *("precondition_frequency", "start_preconditioning_step", "max_preconditioner_dim"),
)


class ShampooOptimizer(BaseOptimizer):
    r"""Shampoo for any parameters.

    A parameter is seen without its dimensions of size 1 and with neighbouring dimensions merged as long as their
    product is at most ``max_preconditioner_dim``, and is cut into blocks of at most that side. With t = 1, 2, ... steps
    and, for each block of a weight W (m, n), gradient G and L, R, M, V zero at first:

        L ← β₂ L + (1-β₂) G Gᵀ,   R ← β₂ R + (1-β₂) Gᵀ G
        if t = s, or t > s and t mod f = 0:   P_L = (L/(1-β₂ᵗ) + ε I)^(-1/4),   P_R alike
        M̂ = (β₃ M + (1-β₃) G)/(1 - β₃ β₁ᵗ⁻¹)           M as it was; β₃ = β₁² with ``nadam``, otherwise β₁
        M ← β₁ M + (1-β₁) G,   V ← β₂ V + (1-β₂) G²
        D = M̂/(√(V/(1-β₂ᵗ)) + ε_g)                      "adam";   "sgd": D = M̂
        P = P_L M̂ P_R
        S = P ‖D‖/(‖P‖ + 10⁻¹⁶)   if t >= s, otherwise D; "none": S = P, otherwise M̂
        W ← W - η (S + λ W)

    A block of k dimensions has k factors and the exponent -1/(2k): a vector is multiplied by (L + ε I)^(-1/2). η is
    ``lr``, (β₁, β₂) are ``betas``, ε is ``eps``, ε_g is ``graft_eps``, λ is ``weight_decay``, f is
    ``precondition_frequency`` and s ``start_preconditioning_step``, f where that is None. State in fp32: M (none with
    β₁ = 0), V (with "adam" only), and L, R and their roots for each block: 2mn + 2(m² + n²) elements of one block.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = ShampooOptimizer(model.parameters(), lr=1e-3, precondition_frequency=1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    Bad values raise :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:2309.06497, facebookresearch/optimizers. Deviations: those of :class:`Shampoo`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.749e-3,
        betas: tuple[float, float] = (0.9327, 0.99552),
        eps: float = 1e-8,
        weight_decay: float = 0.0812,
        *,
        nadam: bool = True,
        graft: Graft = "adam",
        graft_eps: float = 1e-8,
        precondition_frequency: int = 100,
        start_preconditioning_step: int | None = None,
        max_preconditioner_dim: int = 1024,
    ) -> None:
        roots = (precondition_frequency, start_preconditioning_step, max_preconditioner_dim)
        options = (lr, eps, weight_decay, nadam, graft, graft_eps, *roots)
        super().__init__(params, dict(zip(OPTIONS, options, strict=True)) | {"betas": betas})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        Shampoo.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in OPTIONS})
        super().add_param_group(param_group)

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients_of(parameters), strict=True):
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            shape = merged_shape(parameter.shape, group["max_preconditioner_dim"])
            exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).reshape(shape)
            direction = _direction(exact, state, group).reshape(parameter.shape).to(parameter.dtype)
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])


def merged_shape(shape: Sequence[int], largest: int) -> list[int]:
    """Return ``shape`` without ones, its neighbours merged from the left while their product is at most ``largest``."""
    merged: list[int] = []
    for size in (size for size in shape if size != 1):
        if merged and merged[-1] * size <= largest:
            merged[-1] *= size
        else:
            merged.append(size)
    return merged or [1]


def blocks(shape: Sequence[int], largest: int) -> list[Block]:
    """Return the blocks of at most ``largest`` per side that cover a tensor of ``shape``."""
    cuts = [[slice(i, min(i + largest, size)) for i in range(0, size, largest)] for size in shape]
    return list(itertools.product(*cuts))


def _direction(gradient: Tensor, state: Group, group: Group) -> Tensor:
    """Advance the state by ``gradient`` and return S, all blocks together."""
    momentum = _momentum(gradient, state, group)
    grafted = _grafted(gradient, momentum, state, group)
    step, frequency = state["step"], group["precondition_frequency"]
    start = group["start_preconditioning_step"] or frequency
    renew = step == start or (step > start and step % frequency == 0)
    result = torch.empty_like(gradient) if step >= start else grafted
    for number, block in enumerate(blocks(gradient.shape, group["max_preconditioner_dim"])):
        roots = _roots(gradient[block], state, group, number, renew=renew)
        if step >= start:
            shaped = contract(momentum[block], roots)
            if group["graft"] != "none":
                shaped *= torch.linalg.vector_norm(grafted[block]) / (torch.linalg.vector_norm(shaped) + 1e-16)
            result[block] = shaped
    return result


def _momentum(gradient: Tensor, state: Group, group: Group) -> Tensor:
    """Return M̂ and advance M."""
    beta1, _ = group["betas"]
    if beta1 == 0.0:
        return gradient
    if "exp_avg" not in state:
        state["exp_avg"] = torch.zeros_like(gradient)
    average = state["exp_avg"]
    beta3: float = beta1**2 if group["nadam"] else beta1
    momentum: Tensor = (beta3 * average).add_(gradient, alpha=1.0 - beta3)
    average.lerp_(gradient, 1.0 - beta1)
    return momentum.div_(1.0 - beta3 * beta1 ** (state["step"] - 1))


def _grafted(gradient: Tensor, momentum: Tensor, state: Group, group: Group) -> Tensor:
    """Return D and advance V."""
    if group["graft"] != "adam":
        return momentum
    _, beta2 = group["betas"]
    if "exp_avg_sq" not in state:
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    squares: Tensor = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    corrected: Tensor = squares / (1.0 - beta2 ** state["step"])
    return momentum / corrected.sqrt_().add_(group["graft_eps"])


def _roots(gradient: Tensor, state: Group, group: Group, number: int, *, renew: bool) -> list[Tensor | None]:
    """Average the factors of one block and return their roots, at first the identity."""
    _, beta2 = group["betas"]
    roots: list[Tensor | None] = []
    for dimension, size in enumerate(gradient.shape):
        place = f"{number}_{dimension}"
        if f"factor_{place}" not in state:
            state[f"factor_{place}"] = gradient.new_zeros(size, size)
            state[f"root_{place}"] = torch.eye(size, dtype=gradient.dtype, device=gradient.device)
        factor = state[f"factor_{place}"].lerp_(gram(gradient, dimension), 1.0 - beta2)
        if renew:
            corrected = factor / (1.0 - beta2 ** state["step"])
            state[f"root_{place}"] = inverse_root(corrected, 2 * gradient.ndim, group["eps"])
        roots.append(state[f"root_{place}"])
    return roots
