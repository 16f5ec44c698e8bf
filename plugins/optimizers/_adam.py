r"""Adam's moments and direction, shared by every optimizer of this folder that contains an Adam.

With moments M, V, decays β₁, β₂ and k steps made, the direction and the factor of its step are

    N = M / (√V + ε)            factor(k) = √(1-β₂ᵏ) / (1-β₁ᵏ)

Adding ε to the uncorrected root is the order of the GaLore authors' code. torch.optim.Adam adds it to the corrected
root, which is the same formula with ε·√(1-β₂ᵏ) in the place of ε: :func:`corrected_eps`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bias_factor(betas: tuple[float, float], step: int) -> float:
    """Return √(1-β₂ᵏ)/(1-β₁ᵏ) for ``step`` k = 1, 2, ..."""
    return math.sqrt(1.0 - betas[1] ** step) / (1.0 - betas[0] ** step)


def corrected_eps(eps: float, betas: tuple[float, float], step: int) -> float:
    """Return the ε that gives torch.optim.Adam's placement, inside the corrected denominator."""
    return eps * math.sqrt(1.0 - betas[1] ** step)


def adam_direction(
    gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, betas: tuple[float, float], eps: float
) -> Tensor:
    """Update the moments in place and return N; the readable form, one tensor at a time."""
    beta1, beta2 = betas
    exp_avg.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    return exp_avg / exp_avg_sq.sqrt().add_(eps)


def adam_directions(
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """Update the moments in place and return N of each tensor: :func:`adam_direction` for many tensors at once."""
    beta1, beta2 = betas
    torch._foreach_mul_(exp_avgs, beta1)
    torch._foreach_add_(exp_avgs, gradients, alpha=1.0 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, value=1.0 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)  # noqa: SLF001 - as in torch
    torch._foreach_add_(denominators, eps)
    return list(torch._foreach_div(exp_avgs, denominators))  # noqa: SLF001 - as in torch
