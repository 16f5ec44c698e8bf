r"""MKOR's Kronecker factors: kept as inverses, renewed by one vector at a time, applied to a layer's gradient.

For an inverse factor F⁻¹ (d, d), symmetric, a vector v (d) and a decay γ there are three forms of the update, since
MKOR's paper and code disagree:

    code     J = γ F⁻¹ + (1-γ) I,   F⁻¹ ← J - (J v)(J v)ᵀ / (1 + vᵀ J v)              the authors' package
    exact    F⁻¹ ← F⁻¹/γ - (1-γ)/γ² (F⁻¹v)(F⁻¹v)ᵀ / (1 + (1-γ)/γ vᵀF⁻¹v)             the inverse of γ F + (1-γ) v vᵀ
    paper    F⁻¹ ← γ F⁻¹ + (1-γ) (F⁻¹v)(F⁻¹v)ᵀ / (γ² (1 + γ (1-γ) vᵀF⁻¹v))            as printed: it adds

"code" keeps every eigenvalue in (0, 1] and damps v strongly; "exact" grows like γ⁻ᵏ across what it never saw; "paper"
amplifies v where the other two damp it. All three keep a positive definite matrix such, and symmetric bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._base import Group

RankOneForm = Literal["code", "exact", "paper"]

LARGEST_ENTRY = 2.0
"""A factor with a larger entry sends the layer back to the identity."""


def rank_one_update(inverse: Tensor, vector: Tensor, decay: float, form: RankOneForm) -> Tensor:
    """Return the updated inverse, in the dtype of ``inverse``.

    fp16 and bf16 factors are computed in fp32: F⁻¹v is formed first, so that even entries of 100 do not overflow.
    """
    wide = torch.promote_types(inverse.dtype, torch.float32)
    old, v = inverse.to(wide), vector.to(wide)
    if form == "code":
        old = decay * old + (1.0 - decay) * torch.eye(len(v), dtype=wide, device=v.device)
        shares = (1.0, -1.0, 1.0)
    elif form == "exact":
        shares = (1.0 / decay, -(1.0 - decay) / decay**2, (1.0 - decay) / decay)
    else:
        shares = (decay, (1.0 - decay) / decay**2, decay * (1.0 - decay))
    kept, added, damped = shares
    u = old @ v
    # The outer product first: it is symmetric bit for bit, which it would not stay with a scaled factor.
    return (kept * old + torch.outer(u, u) * (added / (1.0 + damped * v.dot(u)))).to(inverse.dtype)


def refresh_factors(state: dict[str, Any], a: Tensor, g: Tensor, options: Group) -> None:
    """Bring L⁻¹ (``left``) and R⁻¹ (``right``) up to date with a layer's mean input and mean output gradient.

    An entry above 2 in L⁻¹ resets both factors at the next refresh; one in R⁻¹ resets L⁻¹ at once and R⁻¹ at the next.
    """
    dtype = torch.float16 if options["half_precision"] else torch.float32
    identities = [torch.eye(len(v), dtype=dtype, device=v.device) for v in (g, a)]
    if "left" not in state:
        state["left"], state["right"] = identities
        return
    left, right = state["left"], state["right"]
    decay, form = options["stat_decay"], options["form"]
    reset = left.abs().max() > LARGEST_ENTRY
    # torch.where and no branch: the step neither waits for the device nor needs values.
    right_reset = reset | (right.abs().max() > LARGEST_ENTRY)
    state["right"] = torch.where(right_reset, identities[1], rank_one_update(right, a, decay, form))
    left_reset = reset | (state["right"].abs().max() > LARGEST_ENTRY)
    state["left"] = torch.where(left_reset, identities[0], rank_one_update(left, g, decay, form))


def layer_directions(weight: Tensor, bias: Tensor | None, state: dict[str, Any]) -> dict[Tensor, Tensor]:
    """Return D of a layer, in the gradients' places: of its weight and, where that has a gradient, of its bias."""
    assert weight.grad is not None
    gradients = {weight: weight.grad}
    matrix = weight.grad.flatten(1).float()
    if bias is not None:
        if bias.grad is not None:
            gradients[bias] = bias.grad
        column = gradients.get(bias, matrix.new_zeros(len(matrix)))
        matrix = torch.cat([matrix, column.float().unsqueeze(1)], dim=1)
    product = state["left"].float() @ matrix @ state["right"].float()
    inputs = weight.numel() // len(weight)
    parts = dict(zip(gradients, (product[:, :inputs], product[:, inputs:]), strict=False))
    ratio = _norms(gradients.values()) / _norms(parts.values())
    keep = ratio.isfinite()
    return {
        parameter: torch.where(keep, (parts[parameter] * ratio).reshape(gradient.shape), gradient).to(gradient.dtype)
        for parameter, gradient in gradients.items()
    }


def _norms(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of the norms, in fp32."""
    return torch.stack([tensor.float().norm() for tensor in tensors]).sum()
