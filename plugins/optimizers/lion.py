"""Lion: every weight moves by plus or minus the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ._base import BaseOptimizer, Group, bucketed, cut, gradients_of

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class Lion(Algorithm):
    """Lion, for all parameters alike.

    See :class:`LionOptimizer` for the rule. Wants a learning rate 3 to 10 times smaller and a weight decay 3 to 10
    times larger than AdamW's, and large batches.

    Source: arXiv:2302.06675, google/automl ``lion/lion_pytorch.py``.
    Deviations: none.
    """

    name = "lion"

    lr: Annotated[float, Gt(0)] = hyper(1e-4, search=Log(1e-5, 3e-3), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9, search=Choice((0.9, 0.95)), help="interpolation of momentum and gradient in the update, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.99, search=Choice((0.98, 0.99)), help="decay of the momentum, β₂")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, search=Log(1e-2, 10.0), help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> LionOptimizer:
        """Return Lion over all parameters."""
        return LionOptimizer(
            list(named_parameters), lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


class LionOptimizer(BaseOptimizer):
    r"""Lion for any parameters.

    With weights W, gradient G and momentum M (zero at first):

        W ← W (1 - η λ)
        W ← W - η sign(β₁ M + (1-β₁) G)          sign(0) = 0
        M ← β₂ M + (1-β₂) G

    η is ``lr``, (β₁, β₂) are ``betas``, λ is ``weight_decay``. State: M, of the parameter's shape and dtype.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = LionOptimizer(model.parameters(), lr=1e-4, weight_decay=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time; the results are the same bits. Bad values raise
    :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:2302.06675. Deviations: none.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        foreach: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        Lion.check(lr=options["lr"], beta1=beta1, beta2=beta2, weight_decay=options["weight_decay"])
        super().add_param_group(param_group)

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        options = {key: group[key] for key in ("lr", "betas", "weight_decay")}
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
        for bucket in bucketed(parameters, lambda parameter: (parameter.device, parameter.dtype)):
            momenta = [self.state[parameter]["exp_avg"] for parameter in bucket]
            if group["foreach"]:
                for piece in cut(bucket, gradients_of(bucket), momenta):
                    lion_foreach(*piece, **options)
            else:
                for tensors in zip(bucket, gradients_of(bucket), momenta, strict=True):
                    lion_single(*tensors, **options)


def lion_single(
    weight: Tensor, gradient: Tensor, momentum: Tensor, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> None:
    """Step one tensor; the readable form."""
    beta1, beta2 = betas
    weight.mul_(1.0 - lr * weight_decay)
    direction = momentum.mul(beta1).add_(gradient, alpha=1.0 - beta1).sign_()
    weight.add_(direction, alpha=-lr)
    momentum.mul_(beta2).add_(gradient, alpha=1.0 - beta2)


def lion_foreach(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """Step many tensors of one device and dtype: :func:`lion_single` with an operation less for each interpolation."""
    beta1, beta2 = betas
    directions = torch._foreach_lerp(momenta, gradients, 1.0 - beta1)  # noqa: SLF001 - as in torch
    torch._foreach_sign_(directions)
    if weight_decay:
        torch._foreach_mul_(weights, 1.0 - lr * weight_decay)
    torch._foreach_add_(weights, directions, alpha=-lr)
    torch._foreach_lerp_(momenta, gradients, 1.0 - beta2)
