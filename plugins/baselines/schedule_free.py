"""Schedule-Free AdamW: an average of the iterates in the place of a decaying learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ..optimizers._base import BaseOptimizer, Group, bucketed, cut, gradients_of  # noqa: TID252 - a sibling

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class ScheduleFree(Algorithm):
    """Schedule-Free AdamW for all parameters alike, with the schedule that it wants: a warm-up and no decay.

    See :class:`ScheduleFreeAdamW` for the rule. The defaults are those of the self-tuning submission to AlgoPerf v0.5;
    they are not scaled for small tiers, but for the warm-up, which is a fraction of the run, rounded to whole steps:
    with w of them the factor of the learning rate at step t = 0, 1, 2, ... is min(1, (t+1)/w).

    Source: arXiv:2405.15682, facebookresearch/schedule_free; AlgoPerf submissions for the setting.
    Deviations: see ``deviations``.
    """

    name = "schedule-free"
    deviations = (
        (
            "The rule is that of the authors' package; the submission to AlgoPerf v0.5 averages with r = 0.75, decays "
            "at x and adds ε outside the bias correction."
        ),
        (
            "Counter and weights of the average belong to each parameter, so that one whose first gradient comes late "
            "starts as the others did; in the package they belong to the group."
        ),
        "The warm-up is a schedule like any other, not an option of the optimizer.",
        "A new optimizer is in training mode; the package wants a call of train() first.",
        "Running statistics of batch normalisation are not recomputed at the averaged weights before an evaluation.",
    )

    lr: Annotated[float, Gt(0)] = hyper(2.5e-3, search=Log(1e-3, 1e-2), help="learning rate γ after the warm-up")
    beta1: Annotated[float, Gt(0), Lt(1)] = hyper(
        0.9, search=Choice((0.9, 0.925, 0.95)), help="how far gradients are taken towards the average, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9955, search=Choice((0.95, 0.99, 0.9955, 0.999)), help="decay of the second moment, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.08, search=Log(5e-3, 1.0), help="weight decay λ, taken at y")
    r: Annotated[float, Ge(0)] = hyper(0.0, help="power of the step in the weights of the average")
    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = hyper(0.02, help="part of the run that warms up")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> ScheduleFreeAdamW:
        """Return Schedule-Free AdamW over all parameters."""
        return ScheduleFreeAdamW(
            list(named_parameters),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            r=self.r,
        )

    def schedule(self, run: Run) -> Callable[[int], float]:
        """Return ``step -> factor``: a linear warm-up, then 1."""
        warmup = max(1, round(self.warmup_fraction * run.steps))
        return lambda step: min(1.0, (step + 1) / warmup)


class ScheduleFreeAdamW(BaseOptimizer):
    r"""Schedule-Free AdamW for any parameters.

    With gradient G taken at y, V zero, x = y = z at first, k = 1, 2, ... steps and the learning rate γ of the step:

        V ← β₂ V + (1-β₂) G²
        U = G / (√(V/(1-β₂ᵏ)) + ε) + λ y
        c = w/(sum of all w so far),   w = kʳ (largest γ so far)²      0 while every γ was 0
        y ← (1-c) y + c z + γ (β₁ (1-c) - 1) U
        z ← z - γ U

    The parameter holds y while training and, between :meth:`eval` and :meth:`train`, the average x that is evaluated:

        x = y + (1 - 1/β₁) (z - y)               y = x + (1-β₁) (z - x)

    γ is ``lr``, (β₁, β₂) are ``betas``, ε is ``eps``, λ is ``weight_decay``. State: z and V, of the parameter's shape
    and dtype, the counter, the sum of the weights and the largest γ. Which of x and y the parameters hold is in the
    groups and so part of ``state_dict``. Switching there and back rounds: in bf16 prefer few evaluations. With batch
    normalisation recompute the running statistics at x before evaluating.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = ScheduleFreeAdamW(model.parameters(), lr=1e-2)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> optimizer.eval()  # evaluate here
        >>> optimizer.train()

    ``foreach=False`` steps one tensor at a time. Bad values raise :class:`~bench.errors.BadValue`, sparse gradients and
    a step in evaluation mode ``RuntimeError``.

    Source: arXiv:2405.15682, facebookresearch/schedule_free. Deviations: those of :class:`ScheduleFree`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.9955),
        eps: float = 1e-8,
        weight_decay: float = 0.08,
        *,
        r: float = 0.0,
        foreach: bool = True,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "r": r}
        super().__init__(params, options | {"foreach": foreach, "training": True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        names = ("lr", "eps", "weight_decay", "r")
        ScheduleFree.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in names})
        super().add_param_group(param_group)

    def eval(self) -> None:
        """Put the averages x into the parameters, for evaluation; nothing changes where they are there already."""
        self._switch(training=False)

    def train(self) -> None:
        """Put y back into the parameters, for training; nothing changes where it is there already."""
        self._switch(training=True)

    @torch.no_grad()
    def _switch(self, *, training: bool) -> None:
        for group in self.param_groups:
            if group["training"] == training:
                continue
            beta1, _ = group["betas"]
            for parameter in group["params"]:
                if self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["z"], 1.0 - beta1 if training else 1.0 - 1.0 / beta1)
            group["training"] = training

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        if not group["training"]:
            raise RuntimeError("schedule-free: the parameters hold the averages; call train() before the next step")
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        shares = {parameter: self._share(group, parameter) for parameter in parameters}
        buckets = bucketed(parameters, lambda p: (p.device, p.dtype, self.state[p]["step"], shares[p]))
        for bucket in buckets:
            zs, exp_avg_sqs = ([self.state[parameter][name] for parameter in bucket] for name in ("z", "exp_avg_sq"))
            tensors = (bucket, gradients_of(bucket), zs, exp_avg_sqs)
            options |= {"step": self.state[bucket[0]]["step"], "share": shares[bucket[0]]}
            if group["foreach"]:
                for piece in cut(*tensors):
                    schedule_free_foreach(*piece, **options)
            else:
                for four in zip(*tensors, strict=True):
                    schedule_free_single(*four, **options)

    def _share(self, group: Group, parameter: Tensor) -> float:
        """Count a step of ``parameter`` and return c, the share of the newest z in the average."""
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "weight_sum": 0.0, "lr_max": 0.0}
            state |= {"z": parameter.clone(), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        state["lr_max"] = max(state["lr_max"], float(group["lr"]))
        weight = state["step"] ** group["r"] * state["lr_max"] ** 2
        state["weight_sum"] += weight
        return weight / state["weight_sum"] if state["weight_sum"] else 0.0


def schedule_free_single(
    y: Tensor,
    gradient: Tensor,
    z: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    share: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Step one tensor; the readable form. ``share`` is c."""
    beta1, beta2 = betas
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    denominator = exp_avg_sq.div(1.0 - beta2**step).sqrt_().add_(eps)
    update = gradient.div(denominator).add_(y, alpha=weight_decay)
    y.lerp_(z, share).add_(update, alpha=lr * (beta1 * (1.0 - share) - 1.0))
    z.sub_(update, alpha=lr)


def schedule_free_foreach(
    ys: list[Tensor],
    gradients: list[Tensor],
    zs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    share: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Step many tensors of one device and dtype: :func:`schedule_free_single`, operation by operation."""
    beta1, beta2 = betas
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, value=1.0 - beta2)
    denominators = torch._foreach_div(exp_avg_sqs, 1.0 - beta2**step)  # noqa: SLF001 - as in torch
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    updates = torch._foreach_div(gradients, denominators)  # noqa: SLF001 - as in torch
    torch._foreach_add_(updates, ys, alpha=weight_decay)
    torch._foreach_lerp_(ys, zs, share)
    torch._foreach_add_(ys, updates, alpha=lr * (beta1 * (1.0 - share) - 1.0))
    torch._foreach_sub_(zs, updates, alpha=lr)
