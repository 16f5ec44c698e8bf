"""LAMB: Adam's step of each tensor, rescaled to the length of the tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ..optimizers._adam_state import advance  # noqa: TID252 - a sibling
from ..optimizers._base import BaseOptimizer, Group, bucketed, gradients_of, pieces  # noqa: TID252 - a sibling

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class LAMB(Algorithm):
    """LAMB for all parameters alike, in AlgoPerf's form: no clamp of the ratio, no clipping, nothing excluded.

    See :class:`LAMBOptimizer` for the rule. AlgoPerf publishes a search space and no point. The learning rate is the
    upper end of its range: a step changes a tensor by the fraction η of its length, small tiers have few steps, and
    below about 4e-3 most weights in bf16 would round back to what they were. β₁ is a value inside its range, β₂ the
    one that it fixes, the weight decay the middle of its range on a logarithmic scale.

    Source: arXiv:1904.00962 in the form of arXiv:2306.07179, mlcommons/algorithmic-efficiency.
    Deviations: see ``deviations``.
    """

    name = "lamb"
    deviations = (
        "As in AlgoPerf, and unlike the paper's experiments, the trust ratio is not clamped and gradients not clipped.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-2, search=Log(1e-4, 1e-2), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9, search=Choice((0.7, 0.8, 0.9, 0.95)), help="decay of the first moment, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.999, search=Choice((0.95, 0.99, 0.999)), help="decay of the second moment, β₂"
    )
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.03, search=Log(1e-3, 1.0), help="weight decay λ, inside the ratio")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> LAMBOptimizer:
        """Return LAMB over all parameters."""
        return LAMBOptimizer(
            list(named_parameters),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
        )


class LAMBOptimizer(BaseOptimizer):
    r"""LAMB for any parameters.

    With weights W, gradient G, moments M, V (zero at first) and k = 1, 2, ... steps:

        M ← β₁ M + (1-β₁) G,   V ← β₂ V + (1-β₂) G²
        U = M/(1-β₁ᵏ) / (√(V/(1-β₂ᵏ)) + ε) + λ W
        W ← W - η φ U                           φ = ‖W‖/‖U‖, and 1 where either is 0

    with Frobenius norms of each tensor, taken in fp32. η is ``lr``, (β₁, β₂) are ``betas``, ε is ``eps``, λ is
    ``weight_decay``. State: M and V, of the parameter's shape and dtype, and a counter.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = LAMBOptimizer(model.parameters(), lr=1e-2, weight_decay=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    ``foreach=False`` steps one tensor at a time. Bad values raise :class:`~bench.errors.BadValue`, sparse gradients
    ``RuntimeError``.

    Source: arXiv:1904.00962, mlcommons/algorithmic-efficiency. Deviations: those of :class:`LAMB`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.03,
        *,
        foreach: bool = True,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        LAMB.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in ("lr", "eps", "weight_decay")})
        super().add_param_group(param_group)

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        options = {name: group[name] for name in ("lr", "weight_decay")}
        for bucket in bucketed(parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0))):
            for piece in pieces(bucket):
                states = [self.state[parameter] for parameter in piece]
                directions, factor = advance(states, gradients_of(piece), group, corrected=True)
                if group["foreach"]:
                    lamb_foreach(piece, directions, factor, **options)
                else:
                    for weight, direction in zip(piece, directions, strict=True):
                        lamb_single(weight, direction, factor, **options)


def lamb_single(weight: Tensor, direction: Tensor, factor: float, *, lr: float, weight_decay: float) -> None:
    """Step one tensor whose Adam step is ``factor`` times ``direction``; the readable form."""
    update = direction.mul_(factor).add_(weight, alpha=weight_decay)
    ratio = trust_ratio(*(torch.linalg.vector_norm(x, dtype=exact(weight)) for x in (weight, update)))
    weight.add_(update.mul_(ratio), alpha=-lr)


def lamb_foreach(
    weights: list[Tensor], directions: list[Tensor], factor: float, *, lr: float, weight_decay: float
) -> None:
    """Step many tensors of one device and dtype: :func:`lamb_single`, operation by operation."""
    torch._foreach_mul_(directions, factor)
    torch._foreach_add_(directions, weights, alpha=weight_decay)
    norms = (torch._foreach_norm(x, dtype=exact(weights[0])) for x in (weights, directions))  # noqa: SLF001 - as in torch
    ratios = trust_ratio(*(torch.stack(list(norm)) for norm in norms))
    torch._foreach_mul_(directions, list(ratios.unbind()))
    torch._foreach_add_(weights, directions, alpha=-lr)


def trust_ratio(length: Tensor, update: Tensor) -> Tensor:
    """Return φ for norms of weights and updates, elementwise."""
    return torch.where((length > 0) & (update > 0), length / update, torch.ones_like(length))


def exact(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which norms of ``tensor`` are taken: at least fp32."""
    return torch.promote_types(tensor.dtype, torch.float32)
