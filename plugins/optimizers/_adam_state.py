r"""Adam whose moments live in the state of each parameter: ``exp_avg``, ``exp_avg_sq`` and the integer ``step``.

All parameters of one call have made the same number of steps. ``group`` holds ``lr``, ``betas``, ``eps``,
``weight_decay`` and ``foreach``; ε is added to the corrected root, as in torch.optim.Adam, unless ``corrected=False``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ._adam import adam_direction, adam_directions, bias_factor, corrected_eps
from ._base import Group, gradients_of

State = dict[str, Any]


def advance(
    states: list[State], gradients: list[Tensor], group: Group, *, corrected: bool
) -> tuple[list[Tensor], float]:
    r"""Advance the moments in ``states`` by ``gradients``; return N of each, and √(1-β₂ᵏ)/(1-β₁ᵏ)."""
    _count(states, gradients)
    betas, step = group["betas"], states[0]["step"]
    eps = corrected_eps(group["eps"], betas, step) if corrected else group["eps"]
    exp_avgs, exp_avg_sqs = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    if group["foreach"]:
        return adam_directions(gradients, exp_avgs, exp_avg_sqs, betas, eps), bias_factor(betas, step)
    tensors = zip(gradients, exp_avgs, exp_avg_sqs, strict=True)
    return [adam_direction(*three, betas, eps) for three in tensors], bias_factor(betas, step)


def adamw_step(
    parameters: list[Tensor], states: list[State], group: Group, *, scale: float = 1.0, corrected: bool = True
) -> None:
    """Make a step of torch.optim.AdamW with ``parameters`` of one device and dtype, and of any shapes.

    It is torch's own function, with the fused kernel where that is right: it needs no temporaries, and embeddings are
    large. ``scale`` multiplies the rate of the step, and not that of the weight decay.
    """
    gradients = gradients_of(parameters)
    _count(states, parameters)
    (beta1, beta2), step, device = group["betas"], states[0]["step"], parameters[0].device
    # On the CPU the fused kernel walks through memory and pairs the wrong elements where layouts differ.
    fused = group["foreach"] and device.type in {"cpu", "cuda"}
    fused = fused and all(tensor.is_contiguous() for tensor in (*parameters, *gradients))
    # torch counts in tensors, one for each parameter and on its device for the fused kernel, and counts up first.
    counts = torch.full((len(parameters),), step - 1.0, device=device if fused else "cpu").unbind()
    adamw(
        parameters,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        list(counts),
        fused=fused,
        foreach=group["foreach"] and not fused,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"] * scale,
        weight_decay=group["weight_decay"] / scale,
        eps=group["eps"] if corrected else group["eps"] / math.sqrt(1.0 - beta2**step),
        maximize=False,
    )


def _count(states: list[State], like: list[Tensor]) -> None:
    """Count a step in ``states``, with moments of zero in the shapes of ``like`` at first."""
    for state, tensor in zip(states, like, strict=True):
        if "exp_avg" not in state:
            state |= {"exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}
        state["step"] = state.get("step", 0) + 1
