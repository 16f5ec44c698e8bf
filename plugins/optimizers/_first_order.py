r"""First-order rules that step by a gradient handed to them: LAMB, SGD with momentum, AdamW.

For optimizers that change the gradient first. With weights W, gradient G, k = 1, 2, ... steps, rate η and decay λ:

    sgd      B ← μ B + G + λ W,   W ← W - η B                                     as torch.optim.SGD
    adamw    W ← W (1 - η λ),     W ← W - η A                                     as torch.optim.AdamW
    lamb     U = A + λ W,         W ← W - η (‖W‖/‖U‖) U                           the ratio is 1 where a norm is 0

with A = M/(1-β₁ᵏ) / (√(V/(1-β₂ᵏ)) + ε) of the moments M and V. State: B, or M and V, of the parameter's shape and
dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ._adam import adam_direction, adam_directions, bias_factor, corrected_eps

if TYPE_CHECKING:
    from ._base import Group

State = dict[str, Any]
FirstOrder = Literal["lamb", "sgd", "adamw"]


def start_first_order(state: State, parameter: Tensor, rule: FirstOrder) -> None:
    """Put the fresh state of ``rule`` for ``parameter`` into ``state``."""
    state["step"] = 0
    for name in ("momentum_buffer",) if rule == "sgd" else ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros_like(parameter)


def first_order_single(weight: Tensor, gradient: Tensor, state: State, options: Group) -> None:
    """Step one tensor whose ``state["step"]`` already counts this step; the readable form."""
    rule, lr, decay = options["base"], options["lr"], options["weight_decay"]
    if rule == "sgd":
        buffer = state["momentum_buffer"].mul_(options["momentum"]).add_(gradient).add_(weight, alpha=decay)
        weight.sub_(buffer, alpha=lr)
        return
    betas, step = options["betas"], state["step"]
    eps, factor = corrected_eps(options["eps"], betas, step), bias_factor(betas, step)
    direction = adam_direction(gradient, state["exp_avg"], state["exp_avg_sq"], betas, eps).mul_(factor)
    if rule == "adamw":
        weight.mul_(1.0 - lr * decay).sub_(direction, alpha=lr)
        return
    direction.add_(weight, alpha=decay)
    norms = (torch.linalg.vector_norm(tensor, dtype=_exact(tensor)) for tensor in (weight, direction))
    weight.sub_(direction.mul_(_trust_ratio(*norms)), alpha=lr)


def first_order_foreach(weights: list[Tensor], gradients: list[Tensor], states: list[State], options: Group) -> None:
    """Step tensors of one device, dtype and number of steps: :func:`first_order_single` for many at once."""
    rule, lr, decay = options["base"], options["lr"], options["weight_decay"]
    if rule == "sgd":
        buffers = [state["momentum_buffer"] for state in states]
        torch._foreach_mul_(buffers, options["momentum"])
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(buffers, weights, alpha=decay)
        torch._foreach_sub_(weights, buffers, alpha=lr)
        return
    betas, step = options["betas"], states[0]["step"]
    exp_avgs, exp_avg_sqs = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    eps = corrected_eps(options["eps"], betas, step)
    directions = adam_directions(gradients, exp_avgs, exp_avg_sqs, betas, eps)
    torch._foreach_mul_(directions, bias_factor(betas, step))
    if rule == "adamw":
        torch._foreach_mul_(weights, 1.0 - lr * decay)
    else:
        torch._foreach_add_(directions, weights, alpha=decay)
        exact = _exact(weights[0])
        norms = (torch._foreach_norm(tensors, dtype=exact) for tensors in (weights, directions))  # noqa: SLF001 - as in torch
        torch._foreach_mul_(directions, [_trust_ratio(*pair) for pair in zip(*norms, strict=True)])
    torch._foreach_sub_(weights, directions, alpha=lr)


def _exact(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which norms of ``tensor`` are taken: at least fp32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _trust_ratio(weight_norm: Tensor, direction_norm: Tensor) -> Tensor:
    """Return ‖W‖/‖U‖, and 1 where either is 0, without a look at the values."""
    ratio = weight_norm / direction_norm
    return torch.where((weight_norm > 0) & (direction_norm > 0), ratio, torch.ones_like(ratio))
