"""diffGrad: Adam whose step is braked wherever the gradient hardly changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ._adam import adam_direction, adam_directions, bias_factor
from ._base import BaseOptimizer, Group, bucketed, cut, gradients_of

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

BUFFERS = ("exp_avg", "exp_avg_sq", "previous_grad")
"""What the state of a parameter holds, besides its number of steps."""


@dataclass(frozen=True, kw_only=True)
class DiffGrad(Algorithm):
    """diffGrad, for all parameters alike.

    See :class:`DiffGradOptimizer` for the rule. The defaults are the published ones at every size of model; the journal
    ran 80 epochs at that rate and 20 at a tenth of it, here the schedule is that of the run.

    The friction depends on the absolute size of the gradient's change: under a mean loss the changes are far below 1,
    the friction is 1/2 nearly everywhere, and diffGrad is Adam at half the rate; so ``lr`` searches twice as high as
    Adam's does, and small tiers want twice Adam's rate. Loss scaling has to be undone before the step.

    Source: arXiv:1909.11015, shivram1987/diffGrad ``diffGrad_v2.py``.
    Deviations: see ``deviations``. The first published code kept a reference to the gradient in the place of a copy,
    which makes the friction 1/2 from the second step on; the journal's numbers come from it.
    """

    name = "diffgrad"
    deviations = (
        (
            "The previous gradient is a copy, as in the authors' repaired code; the code of the journal's results "
            "aliased it and so was Adam at half the rate."
        ),
        "Coupled weight decay leaves the gradient as it is; the reference code adds it to the gradient in place.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-4, 2e-2), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9, search=Choice((0.8, 0.9, 0.95, 0.98)), help="decay of the first moment, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.999, search=Choice((0.95, 0.99, 0.999)), help="decay of the second moment, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the uncorrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, search=Log(1e-7, 1e-3), help="coupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> DiffGradOptimizer:
        """Return diffGrad over all parameters."""
        return DiffGradOptimizer(
            list(named_parameters),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
        )


class DiffGradOptimizer(BaseOptimizer):
    r"""diffGrad for any parameters.

    With weights W, gradient G, the previous gradient P, moments M, V (all zero at first) and k = 1, 2, ... steps:

        G ← G + λ W                                     coupled decay
        M ← β₁ M + (1-β₁) G,   V ← β₂ V + (1-β₂) G²
        ξ = 1 / (1 + exp(-|P - G|))                     the friction, in [1/2, 1)
        P ← G
        W ← W - η √(1-β₂ᵏ)/(1-β₁ᵏ) ξ M / (√V + ε)

    η is ``lr``, (β₁, β₂) are ``betas``, λ is ``weight_decay``. ξ brakes the step alone, M goes on unbraked; ε belongs
    to the uncorrected root. State: M, V and P, of the parameter's shape and dtype.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = DiffGradOptimizer(model.parameters(), lr=1e-3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time; the results are the same bits. Bad values raise
    :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:1909.11015, shivram1987/diffGrad ``diffGrad_v2.py``. Deviations: those of :class:`DiffGrad`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        foreach: bool = True,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "foreach": foreach}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        named = {name: options[name] for name in ("lr", "eps", "weight_decay")}
        DiffGrad.check(beta1=beta1, beta2=beta2, **named)
        super().add_param_group(param_group)

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state |= {name: torch.zeros_like(parameter) for name in BUFFERS}
            state["step"] += 1
        options = {key: group[key] for key in ("betas", "eps", "weight_decay")}
        for bucket in bucketed(parameters, lambda p: (p.device, p.dtype, self.state[p]["step"])):
            options["size"] = group["lr"] * bias_factor(group["betas"], self.state[bucket[0]]["step"])
            buffers = [[self.state[parameter][name] for parameter in bucket] for name in BUFFERS]
            if group["foreach"]:
                for lists in cut(bucket, gradients_of(bucket), *buffers):
                    diffgrad_foreach(*lists, **options)
            else:
                for tensors in zip(bucket, gradients_of(bucket), *buffers, strict=True):
                    diffgrad_single(*tensors, **options)


def diffgrad_single(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    previous: Tensor,
    *,
    size: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Step one tensor by ``size`` = η √(1-β₂ᵏ)/(1-β₁ᵏ); ``previous`` is P. The readable form."""
    if weight_decay:
        gradient = gradient.add(weight, alpha=weight_decay)
    direction = adam_direction(gradient, exp_avg, exp_avg_sq, betas, eps)
    friction = previous.sub(gradient).abs_().sigmoid_()
    previous.copy_(gradient)
    weight.sub_(direction.mul_(friction), alpha=size)


def diffgrad_foreach(
    weights: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    previous: list[Tensor],
    *,
    size: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Step many tensors of one device, dtype and number of steps: :func:`diffgrad_single`, operation by operation."""
    if weight_decay:
        gradients = list(torch._foreach_add(gradients, weights, alpha=weight_decay))  # noqa: SLF001 - as in torch
    directions = adam_directions(gradients, exp_avgs, exp_avg_sqs, betas, eps)
    torch._foreach_sub_(previous, gradients)  # the friction grows in the place that the new gradient takes afterwards
    torch._foreach_abs_(previous)
    torch._foreach_sigmoid_(previous)
    torch._foreach_mul_(directions, previous)
    torch._foreach_copy_(previous, gradients)
    torch._foreach_sub_(weights, directions, alpha=size)
