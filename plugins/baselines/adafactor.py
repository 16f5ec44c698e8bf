"""Adafactor: a second moment kept as the averages of its rows and of its columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ..optimizers._base import BaseOptimizer, Group, bucketed, gradients_of, pieces  # noqa: TID252 - a sibling

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class Adafactor(Algorithm):
    """Adafactor for all parameters alike, in AlgoPerf's form: with momentum, an explicit learning rate and decay.

    See :class:`AdafactorOptimizer` for the rule. AlgoPerf publishes a search space and no point: the learning rate and
    the weight decay are the middle of their ranges on a logarithmic scale, β₁ is what its second space fixes. They are
    not scaled for small tiers. The learning rate is inside the momentum, so changes of the schedule arrive about
    1/(1-β₁) steps late.

    Source: arXiv:1804.04235 in the form of arXiv:2306.07179, mlcommons/algorithmic-efficiency.
    Deviations: see ``deviations``.
    """

    name = "adafactor"
    deviations = (
        (
            "As in AlgoPerf, and unlike the paper, the step is neither relative nor scaled by the size of the "
            "parameter, and the decay of the second moment tends to 0.99."
        ),
        "The averages of the second moment are fp32 for bf16 parameters; AlgoPerf trains in fp32 only.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-4, 1e-2), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9, search=Choice((0.6, 0.8, 0.9, 0.95, 0.99)), help="decay of the momentum, β₁"
    )
    beta2: Annotated[float, Gt(0), Lt(1)] = hyper(0.99, help="what the decay of the second moment tends to, β₂")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.03, search=Log(1e-3, 1.0), help="decoupled weight decay λ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> AdafactorOptimizer:
        """Return Adafactor over all parameters."""
        return AdafactorOptimizer(
            list(named_parameters), lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


FLOOR = 1e-30
"""Added to the squared gradient: the root of it is all that a zero gradient is divided by."""


class AdafactorOptimizer(BaseOptimizer):
    r"""Adafactor with momentum for any parameters.

    With weights W, gradient G, momentum M (zero at first) and t = 1, 2, ... steps:

        b = β₂ (1 - β₂ᵗ⁻¹)/(1 - β₂ᵗ)                               0 in the first step
        S = G² + 10⁻³⁰
        R ← b R + (1-b) mean of S over its last dimension           row averages, (..., m) of (..., m, n)
        C ← b C + (1-b) mean of S over its last but one             column averages, (..., n)
        D = R/mean(R) ⊗ C                                           mean over the last dimension of R
        U = G / √D,   U ← η U / max(1, RMS(U))
        M ← β₁ M + (1-β₁) U                                         no bias correction
        W ← W (1 - η λ) - M

    A parameter of fewer than two dimensions keeps D ← b D + (1-b) S itself. η is ``lr``, (β₁, β₂) are ``betas``, λ is
    ``weight_decay``. State of a matrix (m, n): M in the parameter's dtype, R and C in fp32, mn + m + n elements; of a
    vector (n): M and D, 2n.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = AdafactorOptimizer(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    Parameters of one shape are stepped as one batch, with ``foreach=False`` one by one. Bad values raise
    :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:1804.04235, mlcommons/algorithmic-efficiency. Deviations: those of :class:`Adafactor`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.03,
        *,
        foreach: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        Adafactor.check(lr=options["lr"], beta1=beta1, beta2=beta2, weight_decay=options["weight_decay"])
        super().add_param_group(param_group)

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= _fresh_state(parameter)
            self.state[parameter]["step"] += 1
        for bucket in bucketed(parameters, lambda p: (p.device, p.dtype, p.shape, self.state[p]["step"])):
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                self._step(group, piece)

    def _step(self, group: Group, parameters: list[Tensor]) -> None:
        """Step ``parameters`` of one shape, dtype, device and number of steps."""
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        gradients = torch.stack(gradients_of(parameters))  # a copy, which the updates overwrite
        averages = [name for name in ("row", "column", "full") if name in states[0]]
        means = {name: torch.stack([state[name] for state in states]) for name in averages}
        exact = gradients.to(means[averages[0]].dtype)
        adafactor_updates_(exact, means, decay_at(beta2, states[0]["step"]))
        for name in averages:
            torch._foreach_copy_([state[name] for state in states], list(means[name].unbind()))
        momenta = [state["exp_avg"] for state in states]
        torch._foreach_mul_(momenta, beta1)
        updates = list(exact.to(gradients.dtype).unbind())
        torch._foreach_add_(momenta, updates, alpha=(1.0 - beta1) * group["lr"])
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(parameters, momenta)


def _fresh_state(parameter: Tensor) -> Group:
    exact = torch.promote_types(parameter.dtype, torch.float32)
    state = {"step": 0, "exp_avg": torch.zeros_like(parameter)}
    if parameter.ndim < 2:
        return state | {"full": torch.zeros_like(parameter, dtype=exact)}
    *batch, rows, columns = parameter.shape
    row, column = (parameter.new_zeros((*batch, size), dtype=exact) for size in (rows, columns))
    return state | {"row": row, "column": column}


def decay_at(beta2: float, step: int) -> float:
    """Return b, the decay of the second moment at ``step`` t = 1, 2, ..., that makes a bias correction superfluous."""
    return beta2 * (1.0 - beta2 ** (step - 1)) / (1.0 - beta2**step)


def adafactor_updates_(gradients: Tensor, means: dict[str, Tensor], decay: float) -> None:
    """Advance ``means`` by ``gradients`` (k, *shape) of k parameters, and turn these into U / max(1, RMS(U)) of each.

    ``means`` holds R as ``row`` and C as ``column``, or D as ``full``, each with the k parameters as first dimension.
    """
    squares = gradients.square().add_(FLOOR)
    if "full" in means:
        gradients.div_(means["full"].lerp_(squares, 1.0 - decay).sqrt())
    else:
        row = means["row"].lerp_(squares.mean(-1), 1.0 - decay)
        column = means["column"].lerp_(squares.mean(-2), 1.0 - decay)
        row_factor = (row / row.mean(-1, keepdim=True)).sqrt_()
        gradients.div_(row_factor.unsqueeze(-1)).div_(column.sqrt().unsqueeze(-2))
    elements = math.prod(gradients.shape[1:])
    rms = torch.linalg.vector_norm(gradients.flatten(1), dim=1) / math.sqrt(elements)
    gradients.div_(rms.clamp_(min=1.0).reshape(-1, *[1] * (gradients.ndim - 1)))
