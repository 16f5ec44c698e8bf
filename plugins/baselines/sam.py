"""SAM: AdamW with the gradient of the worst point nearby, which costs a second pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ..optimizers._adam_state import adamw_step  # noqa: TID252 - a sibling
from ..optimizers._base import (  # noqa: TID252 - a sibling
    BaseOptimizer,
    Group,
    bucketed,
    gradients_of,
    pieces,
    with_gradient,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run


@dataclass(frozen=True, kw_only=True)
class SAM(Algorithm):
    """Sharpness-aware minimisation over AdamW, for all parameters alike.

    See :class:`SAMAdamW` for the rule. AlgoPerf publishes a search space and no point: the learning rate is the middle
    of its range on a logarithmic scale, as is the weight decay, ρ is its largest value, β₁ inside its range, β₂ what it
    fixes. They are not scaled for small tiers. A step costs two passes.

    Source: arXiv:2010.01412 in the form of arXiv:2306.07179, mlcommons/algorithmic-efficiency.
    Deviations: see ``deviations``.
    """

    name = "sam"
    closure = True
    passes = 2
    deviations = (
        (
            "1e-12 is added to the norm of the gradient, as in most PyTorch code; AlgoPerf adds nothing and divides by "
            "zero where all gradients are zero."
        ),
        (
            "Running statistics of batch normalisation are updated in both passes, since an optimizer cannot tell the "
            "model which pass it is; they belong to the first one only."
        ),
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-4, 1e-2), help="peak learning rate η")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.9, search=Choice((0.6, 0.8, 0.9, 0.95)), help="decay of the first moment, β₁"
    )
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.999, help="decay of the second moment, β₂")
    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(0.045, search=Log(1e-2, 0.2), help="decoupled weight decay λ")
    rho: Annotated[float, Ge(0)] = hyper(0.05, search=Choice((0.01, 0.02, 0.05)), help="length of the climb, ρ")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> SAMAdamW:
        """Return SAM over all parameters."""
        return SAMAdamW(
            list(named_parameters),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            rho=self.rho,
        )


NORM_FLOOR = 1e-12
"""Added to the norm, so that zero gradients climb nowhere."""


class SAMAdamW(BaseOptimizer):
    r"""SAM over AdamW, for any parameters.

    With all weights W, their gradient G and its norm n = ‖G‖₂ over all groups together:

        W' = W + ρ G/(n + 10⁻¹²)
        G' = gradient at W', on the same batch
        AdamW's step from W with G'

    :meth:`step` needs a closure that clears the gradients, computes the loss and its gradients, and returns the loss;
    it is called twice, and the loss at W is returned. ρ is ``rho``; ``lr``, ``betas``, ``eps`` and ``weight_decay``
    are those of torch.optim.AdamW. State: M and V, of the parameter's shape and dtype, and a counter; a copy of W
    lives between the two passes only.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = SAMAdamW(model.parameters(), lr=1e-3, rho=0.05)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 8)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(3):
        ...     loss = optimizer.step(closure)

    ``foreach=False`` steps one tensor at a time. Bad values raise :class:`~bench.errors.BadValue`, sparse gradients and
    a step without a closure ``RuntimeError``. Under data parallelism the gradients must be averaged in both passes.

    Source: arXiv:2010.01412, mlcommons/algorithmic-efficiency. Deviations: those of :class:`SAM`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.045,
        *,
        rho: float = 0.05,
        foreach: bool = True,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rho": rho}
        super().__init__(params, options | {"foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        names = ("lr", "eps", "weight_decay", "rho")
        SAM.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in names})
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Make one step with the gradients that ``closure`` computes, at W and at W', and return its loss at W."""
        if closure is None:
            raise RuntimeError("sam: step() needs a closure that computes the gradients, since it takes two of them")

        def both_passes() -> float:
            loss = closure()
            climbing, origins = self._climb()
            try:
                closure()
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(climbing, origins)
            return loss

        return super().step(both_passes)

    @torch.no_grad()
    def _climb(self) -> tuple[list[Tensor], list[Tensor]]:
        """Move every parameter with a gradient to W'; return them, and copies of what they were."""
        groups = [(group, with_gradient(group)) for group in self.param_groups]
        climbing = [parameter for _, parameters in groups for parameter in parameters]
        origins = [parameter.clone() for parameter in climbing]
        norm = total_norm(gradients_of(climbing))
        for group, parameters in groups:
            for bucket in bucketed(parameters, lambda p: (p.device, p.dtype)):
                factor = (group["rho"] / (norm + NORM_FLOOR)).to(bucket[0].device)
                for piece in pieces(bucket):
                    if group["foreach"]:
                        torch._foreach_add_(piece, torch._foreach_mul(gradients_of(piece), factor))  # noqa: SLF001 - as in torch
                    else:
                        for parameter, gradient in zip(piece, gradients_of(piece), strict=True):
                            parameter.add_(gradient * factor)
        return climbing, origins

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        for bucket in bucketed(parameters, lambda p: (p.device, p.dtype, self.state[p].get("step", 0))):
            for piece in pieces(bucket):
                adamw_step(piece, [self.state[parameter] for parameter in piece], group)


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all ``gradients`` together, in at least fp32, on the device of the first."""
    norms: list[Tensor] = []
    for bucket in bucketed(gradients, lambda gradient: (gradient.device, gradient.dtype)):
        exact = torch.promote_types(bucket[0].dtype, torch.float32)
        norms += torch._foreach_norm(bucket, dtype=exact)  # noqa: SLF001 - as in torch
    if not norms:
        return torch.zeros(())
    together: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return together
