"""GaLore with 8-bit moments: the same projection, a quarter of the moments' memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge

from bench import hyper

from ._adam import bias_factor, corrected_eps
from ._base import gradients_of
from ._projection import BasisFunction, ProjectionType, gram_basis
from ._quantized import quantized_adam_direction, start_moments
from .galore import GaLore, GaLoreAdamW

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

    from ._base import Group


@dataclass(frozen=True, kw_only=True)
class GaLore8bit(GaLore):
    """GaLore with block-wise 8-bit moments; see :class:`GaLoreAdamW8bit` for the rule.

    Source: arXiv:2403.03507, jiaweizzhao/GaLore ``galore_torch/adamw8bit.py``.
    Deviations: see ``deviations``.
    """

    name = "galore-8bit"
    deviations = (
        *GaLore.deviations,
        "The default weight decay is 0, as in the published runs; the default of the reference class is 1e-2.",
        "Weight decay follows the update in every group; bitsandbytes decays first where nothing is projected.",
        "The direction is rounded to the gradient's dtype once; the reference rounds the displacement η N.",
    )

    eps: Annotated[float, Ge(0)] = hyper(1e-8, help="ε, added to the corrected root of the second moment")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> GaLoreAdamW8bit:
        """Return one optimizer with a projected group per rank and a group of plain Adam, both with 8-bit moments."""
        return self._build(GaLoreAdamW8bit, named_parameters, run)


class GaLoreAdamW8bit(GaLoreAdamW):
    r"""GaLore whose moments, projected or not, are stored in block-wise 8-bit.

    The rule of :class:`~bench.plugins.optimizers.galore.GaLoreAdamW` with two differences. M and V are rounded to 8
    bits after each step, one fp32 scale per 256 elements; where R has fewer than 4096 elements they stay fp32. And ε is
    added to the corrected root, as in torch.optim.Adam:

        N = M / (√V + ε √(1-β₂ᵏ))

    State of a projected matrix: the basis in the gradient's dtype, and 2 r l bytes and 8 ceil(r l / 256) bytes for the
    moments.

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 50))
        >>> matrix, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
        >>> optimizer = GaLoreAdamW8bit([{"params": [matrix], "rank": 4}, {"params": rest}], lr=0.01)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.arange(50)).square().mean().backward()
        ...     optimizer.step()

    Source: jiaweizzhao/GaLore ``galore_torch/adamw8bit.py``; arXiv:2110.02861 for the 8-bit states.
    Deviations: those of :class:`GaLore8bit`.
    """

    algorithm = GaLore8bit

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = None,
        update_gap: int = 200,
        scale: float = 0.25,
        projection_type: ProjectionType = "std",
        basis: BasisFunction = gram_basis,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            rank=rank,
            update_gap=update_gap,
            scale=scale,
            projection_type=projection_type,
            basis=basis,
            foreach=foreach,
        )

    def _update_plain(self, group: Group, parameters: list[Tensor]) -> None:
        directions, size = self._directions(group, parameters, gradients_of(parameters))
        torch._foreach_add_(parameters, directions, alpha=-size)

    def _directions(
        self, group: Group, parameters: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[Tensor], float]:
        states = [self.state[parameter] for parameter in parameters]
        for state, gradient in zip(states, gradients, strict=True):
            if "step" not in state:
                start_moments(state, gradient)
            state["step"] = state.get("step", 0) + 1
        betas, step = group["betas"], states[0]["step"]
        eps = corrected_eps(group["eps"], betas, step)
        directions = [
            quantized_adam_direction(gradient, state, betas, eps).to(gradient.dtype)
            for gradient, state in zip(gradients, states, strict=True)
        ]
        return directions, group["lr"] * bias_factor(betas, step)
