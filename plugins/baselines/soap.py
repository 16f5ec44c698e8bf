"""SOAP: Adam in the slowly renewed eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ..optimizers._adam import adam_direction, bias_factor  # noqa: TID252 - a sibling
from ..optimizers._base import BaseOptimizer, Group, gradients_of  # noqa: TID252 - a sibling
from ._kronecker import contract, eigh, gram

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class SOAP(Algorithm):
    """SOAP for all parameters with two or more dimensions, Adam for the rest.

    See :class:`SOAPOptimizer` for the rule. The defaults are those of the authors' class; the frequency of 10 steps is
    kept for small tiers, where it is a larger part of the run.

    Source: arXiv:2409.11321, nikhilvyas/SOAP ``soap.py``.
    Deviations: see ``deviations``.
    """

    name = "soap"
    deviations = (
        (
            "The first step, which the authors' code skips to set up the bases, is Adam's first step in the "
            "parameter's own basis; the moments start at the second step, as there."
        ),
        (
            "The first moment is kept in the eigenbasis and turned only when the basis is renewed: the same "
            "mathematics as a moment that is turned at every step."
        ),
        "All state is fp32 for bf16 parameters; the authors' code takes the parameter's dtype.",
    )

    lr: Annotated[float, Gt(0)] = hyper(3e-3, search=Log(3e-4, 1e-2), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.95, search=Choice((0.8, 0.9, 0.95, 0.98)), help="decay of the first moment, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.95, search=Choice((0.9, 0.95, 0.99)), help="decay of the second moment, β₂"
    )
    factor_decay: Annotated[float, Ge(0), Lt(1)] | None = hyper(None, help="decay of the factors; none: that of V, β₂")
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the uncorrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.01, search=Log(1e-3, 1.0), help="decoupled weight decay λ")
    precondition_frequency: Annotated[int, Ge(1)] = hyper(10, help="steps between two bases, f")
    max_precondition_dim: Annotated[int, Ge(1)] = hyper(10_000, help="larger dimensions are not rotated")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> SOAPOptimizer:
        """Return SOAP over all parameters."""
        return SOAPOptimizer(
            list(named_parameters),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            factor_decay=self.factor_decay,
            eps=self.eps,
            weight_decay=self.weight_decay,
            precondition_frequency=self.precondition_frequency,
            max_precondition_dim=self.max_precondition_dim,
        )


OPTIONS = ("lr", "factor_decay", "eps", "weight_decay", "precondition_frequency", "max_precondition_dim")


class SOAPOptimizer(BaseOptimizer):
    r"""SOAP for any parameters.

    With weight W (m, n), gradient G, β = ``factor_decay`` or β₂, the first step is

        L = (1-β) G Gᵀ,   R = (1-β) Gᵀ G              Q_L, Q_R = their eigenvectors, by descending eigenvalues
        W ← W - η G/(|G| + ε)

    and the steps k = 1, 2, ... after it, with M and V zero at first,

        G' = Q_Lᵀ G Q_R
        M ← β₁ M + (1-β₁) G',   V ← β₂ V + (1-β₂) G'²
        W ← W - η √(1-β₂ᵏ)/(1-β₁ᵏ) Q_L (M/(√V + ε)) Q_Rᵀ
        L ← β L + (1-β) G Gᵀ,   R ← β R + (1-β) Gᵀ G
        if k mod f = 0, for L with Q_L and for R with Q_R:
            order the columns of Q by diag(Qᵀ L Q), descending, and V alike
            Q ← QR(L Q), its orthogonal factor; M turns from the old basis into the new one, V does not

    each followed by W ← W (1 - η λ). A tensor of k dimensions has k factors. Vectors, and dimensions above
    ``max_precondition_dim``, are not rotated. η is ``lr``, (β₁, β₂) are ``betas``, ε is ``eps``, λ is
    ``weight_decay``, f is ``precondition_frequency``. State of a matrix: M, V, L, R, Q_L and Q_R in fp32,
    2mn + 2(m² + n²) elements, and a counter.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = SOAPOptimizer(model.parameters(), lr=3e-3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    Bad values raise :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``. For m ≠ n the larger factor is
    rank deficient and its null space is rounding noise, so trajectories depend on the linear algebra library.

    Source: arXiv:2409.11321, nikhilvyas/SOAP. Deviations: those of :class:`SOAP`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        factor_decay: float | None = None,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10_000,
    ) -> None:
        options = (lr, factor_decay, eps, weight_decay, precondition_frequency, max_precondition_dim)
        super().__init__(params, dict(zip(OPTIONS, options, strict=True)) | {"betas": betas})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        SOAP.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in OPTIONS})
        super().add_param_group(param_group)

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        decay = group["betas"][1] if group["factor_decay"] is None else group["factor_decay"]
        for parameter, gradient in zip(parameters, gradients_of(parameters), strict=True):
            state = self.state[parameter]
            exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            if state:
                direction = _direction(exact, state, group)
                size = group["lr"] * bias_factor(group["betas"], state["step"])
                _average_factors(exact, state, decay)
                if state["step"] % group["precondition_frequency"] == 0:
                    _renew_bases(state, exact.ndim)
            else:
                _set_up(exact, state, decay, group["max_precondition_dim"])
                direction, size = exact / (exact.abs() + group["eps"]).clamp(min=_smallest(exact)), group["lr"]
            parameter.add_(direction.to(parameter.dtype), alpha=-size)
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])


def _smallest(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny


def _direction(gradient: Tensor, state: Group, group: Group) -> Tensor:
    """Advance the moments by ``gradient`` and return Adam's direction, both turned; count the step."""
    bases = _bases(state, gradient.ndim)
    state["step"] += 1
    turned = contract(gradient, bases)
    direction = adam_direction(turned, state["exp_avg"], state["exp_avg_sq"], group["betas"], group["eps"])
    return contract(direction, bases, transposed=True)


def _set_up(gradient: Tensor, state: Group, decay: float, largest: int) -> None:
    """Fill an empty ``state``: no moments yet, but factors and bases of the first gradient."""
    state |= {"step": 0, "exp_avg": torch.zeros_like(gradient), "exp_avg_sq": torch.zeros_like(gradient)}
    for dimension, size in enumerate(gradient.shape):
        if gradient.ndim > 1 and size <= largest:
            factor = (1.0 - decay) * gram(gradient, dimension)
            state[f"factor_{dimension}"] = factor
            state[f"basis_{dimension}"] = eigh(factor)[1].flip(-1).contiguous()


def _bases(state: Group, dimensions: int) -> list[Tensor | None]:
    return [state.get(f"basis_{dimension}") for dimension in range(dimensions)]


def _average_factors(gradient: Tensor, state: Group, decay: float) -> None:
    for dimension in range(gradient.ndim):
        if f"factor_{dimension}" in state:
            state[f"factor_{dimension}"].lerp_(gram(gradient, dimension), 1.0 - decay)


def _renew_bases(state: Group, dimensions: int) -> None:
    """Make one step of the power iteration from each basis and turn the first moment into the new ones."""
    first_moment = contract(state["exp_avg"], _bases(state, dimensions), transposed=True)
    for dimension, basis in enumerate(_bases(state, dimensions)):
        if basis is None:
            continue
        product = state[f"factor_{dimension}"] @ basis
        order = (basis * product).sum(0).argsort(descending=True)
        state["exp_avg_sq"] = state["exp_avg_sq"].index_select(dimension, order)
        state[f"basis_{dimension}"] = torch.linalg.qr(product.index_select(1, order)).Q
    state["exp_avg"] = contract(first_moment, _bases(state, dimensions)).contiguous()
