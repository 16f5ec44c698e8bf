"""A linear layer whose weight is a magnitude times a normalised direction, the direction whole or low-rank.

With direction V (m, n), or V = W₀ + a I J of a frozen W₀ and factors I (m, r_a), J (r_a, n), and magnitudes M, one per
output (row of V) or per input (column of V),

    W = M V / ‖V‖                             ‖V‖ over the row or column, at least ``SMALLEST``
    ∂_M = <∂_W, V/‖V‖>                        one sum per row or column
    ∂_V = M/‖V‖ (∂_W - (∂_W · V/‖V‖) V/‖V‖)   the radial part is removed, so ∂_V is orthogonal to V

M starts as ‖V‖, so that W starts as V.

Source: arXiv:1602.07868 (weight normalisation), arXiv:2402.09353 (DoRA, the low-rank direction).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

Axis = Literal["output", "input"]

SMALLEST = 1e-6
"""Added to ‖V‖ in quadrature: far below any row that is in use, and a row of zeros has a direction as soon as it moves.
"""


def norms(direction: Tensor, axis: Axis) -> Tensor:
    """Return ‖V‖ of ``direction`` (m, n) in fp32 or better: (m, 1) per ``"output"``, (1, n) per ``"input"``."""
    dtype = torch.promote_types(direction.dtype, torch.float32)
    dim = 1 if axis == "output" else 0
    length = torch.linalg.vector_norm(direction, dim=dim, keepdim=True, dtype=dtype)
    return torch.hypot(length, torch.full_like(length, SMALLEST))


def normalized(direction: Tensor, magnitude: Tensor, axis: Axis) -> Tensor:
    """Return W = M V / ‖V‖ (m, n) in the dtype of ``direction``; ``magnitude`` is (m,) or (n,)."""
    lengths = norms(direction, axis)
    return (direction * (magnitude.reshape(lengths.shape) / lengths)).to(direction.dtype)


class NormalizedLinear(nn.Module):
    """A linear layer made of another one, computing the same at first.

    ``weight`` and ``bias`` are the parameters of ``linear`` themselves. Without an ``adapter_rank`` r_a the weight is V
    and is trained; with one it is W₀, no longer requires a gradient, and ``left`` I (zeros) and ``right`` J
    (Kaiming-uniform from ``generator``) are new parameters, ``adapter_scale`` being a. ``magnitude`` is new in both.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        axis: Axis = "output",
        adapter_rank: int | None = None,
        adapter_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.axis: Axis = axis
        self.adapter_scale = adapter_scale
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        with torch.no_grad():
            self.magnitude = nn.Parameter(norms(self.weight, axis).flatten().to(self.weight.dtype))
        self.left: nn.Parameter | None = None
        self.right: nn.Parameter | None = None
        if adapter_rank is not None:
            rows, columns = self.weight.shape
            self.weight.requires_grad_(False)
            bound = 1.0 / math.sqrt(columns)  # Kaiming-uniform with a = √5, the start of LoRA's first factor
            right = self.weight.new_empty(adapter_rank, columns)
            self.left = nn.Parameter(self.weight.new_zeros(rows, adapter_rank))
            self.right = nn.Parameter(right.uniform_(-bound, bound, generator=generator))

    def direction(self) -> Tensor:
        """Return V (m, n)."""
        if self.left is None or self.right is None:
            return self.weight
        return torch.addmm(self.weight, self.left, self.right, alpha=self.adapter_scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``features`` Wᵀ + b; W is formed outside autocast."""
        kind = features.device.type
        # The meta device has no autocast, not even one to switch off.
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            weight = normalized(self.direction(), self.magnitude, self.axis)
        return nn.functional.linear(features, weight, self.bias)


def replace_linears(model: nn.Module, chosen: set[int], make: Callable[[nn.Linear], nn.Module]) -> int:
    """Replace by ``make(linear)`` each linear layer of ``model`` whose weight has its ``id`` in ``chosen``.

    Returns how many there were; a layer that stands in several places is made once. ``model`` itself is never replaced.
    """
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and id(child.weight) in chosen:
                if child not in made:
                    made[child] = make(child)
                setattr(parent, name, made[child])
    return len(made)
