"""NAdamW: AdamW that looks ahead, stepping by the momentum as it will be if the gradient stays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ..optimizers._base import BaseOptimizer, Group, bucketed, cut, gradients_of  # noqa: TID252 - a sibling

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class NAdamW(Algorithm):
    """NAdamW for all parameters alike, as AlgoPerf's baseline.

    See :class:`NAdamWOptimizer` for the rule. The defaults are the point with which AlgoPerf runs it under self-tuning
    rules; they are not scaled for small tiers.

    Source: arXiv:2306.07179, mlcommons/algorithmic-efficiency. Deviations: none.
    """

    name = "nadamw"

    lr: Annotated[float, Gt(0)] = hyper(1.749e-3, search=Log(1e-4, 1e-2), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9327, search=Choice((0.9, 0.95, 0.98, 0.996)), help="decay of the first moment, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.99552, search=Choice((0.95, 0.99, 0.999)), help="decay of the second moment, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0812, search=Log(5e-3, 1.0), help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> NAdamWOptimizer:
        """Return NAdamW over all parameters."""
        return NAdamWOptimizer(
            list(named_parameters),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
        )


class NAdamWOptimizer(BaseOptimizer):
    r"""NAdamW for any parameters.

    With weights W, gradient G, moments M, V (zero at first) and k = 1, 2, ... steps:

        W ← W (1 - η λ)
        M ← β₁ M + (1-β₁) G,   V ← β₂ V + (1-β₂) G²
        W ← W - η/(1-β₁ᵏ) (β₁ M + (1-β₁) G) / (√(V/(1-β₂ᵏ)) + ε)

    η is ``lr``, (β₁, β₂) are ``betas``, ε is ``eps``, λ is ``weight_decay``. State: M and V, of the parameter's shape
    and dtype, and a counter. This is not torch.optim.NAdam, whose momentum follows a schedule of its own.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = NAdamWOptimizer(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time. Bad values raise :class:`~bench.errors.BadValue`, sparse gradients
    ``RuntimeError``.

    Source: arXiv:2306.07179, mlcommons/algorithmic-efficiency. Deviations: none.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.749e-3,
        betas: tuple[float, float] = (0.9327, 0.99552),
        eps: float = 1e-8,
        weight_decay: float = 0.0812,
        *,
        foreach: bool = True,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        NAdamW.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in ("lr", "eps", "weight_decay")})
        super().add_param_group(param_group)

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            state["step"] += 1
        for bucket in bucketed(parameters, lambda p: (p.device, p.dtype, self.state[p]["step"])):
            self._step(group, bucket)

    def _step(self, group: Group, parameters: list[Tensor]) -> None:
        """Step ``parameters`` of one device, dtype and number of steps."""
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        options["step"] = self.state[parameters[0]]["step"]
        exp_avgs, exp_avg_sqs = ([self.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq"))
        gradients = gradients_of(parameters)
        if group["foreach"]:
            for piece in cut(parameters, gradients, exp_avgs, exp_avg_sqs):
                nadamw_foreach(*piece, **options)
        else:
            for tensors in zip(parameters, gradients, exp_avgs, exp_avg_sqs, strict=True):
                nadamw_single(*tensors, **options)


def nadamw_single(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Step one tensor; the readable form."""
    beta1, beta2 = betas
    weight.mul_(1.0 - lr * weight_decay)
    exp_avg.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    ahead = exp_avg.mul(beta1).add_(gradient, alpha=1.0 - beta1)
    denominator = exp_avg_sq.sqrt().div_(math.sqrt(1.0 - beta2**step)).add_(eps)
    weight.addcdiv_(ahead, denominator, value=-lr / (1.0 - beta1**step))


def nadamw_foreach(
    weights: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Step many tensors of one device and dtype: :func:`nadamw_single`, operation by operation."""
    beta1, beta2 = betas
    torch._foreach_mul_(weights, 1.0 - lr * weight_decay)
    torch._foreach_mul_(exp_avgs, beta1)
    torch._foreach_add_(exp_avgs, gradients, alpha=1.0 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, value=1.0 - beta2)
    ahead = torch._foreach_mul(exp_avgs, beta1)  # noqa: SLF001 - as in torch
    torch._foreach_add_(ahead, gradients, alpha=1.0 - beta1)
    denominators = torch._foreach_sqrt(exp_avg_sqs)  # noqa: SLF001 - as in torch
    torch._foreach_div_(denominators, math.sqrt(1.0 - beta2**step))
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(weights, ahead, denominators, value=-lr / (1.0 - beta1**step))
