r"""Adam moments in block-wise 8-bit: one byte per element and one fp32 scale per block of 256.

A block is divided by its largest magnitude and each element replaced by the nearest of 256 values in [-1, 1] (first
moment) or [0, 1] (second moment). The values are those of the dynamic data type: a leading run of e zero bits means
10⁻ᵉ, the bits after it divide [0.1, 1] evenly, so that small numbers keep their order of magnitude and large ones their
precision; 0 and 1 are exact. Source: arXiv:2110.02861.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._adam import adam_direction
from ._base import piece_elements

BLOCK = 256
"""Elements that share one scale."""

SMALLEST = 4096
"""Tensors with fewer elements keep fp32 moments, as published: they cost nothing and are the sensitive ones."""

EXPONENTS = 7
"""Orders of magnitude of the dynamic data type, 10⁰ to 10⁻⁶."""


@lru_cache(maxsize=8)
def dynamic_values(signed: bool, device: torch.device) -> Tensor:
    """Return the 256 values of the dynamic data type in ascending order, fp32."""
    positive: list[float] = []
    for exponent in range(EXPONENTS):
        fractions = 2 ** (EXPONENTS - 1 - exponent + (0 if signed else 1))
        edges = torch.linspace(0.1, 1.0, fractions + 1, dtype=torch.float32)
        centres = (edges[:-1] + edges[1:]) / 2
        positive += (10.0**-exponent * centres).tolist()
    negative = [-value for value in positive] if signed else []
    return torch.tensor(sorted([*negative, 0.0, *positive, 1.0]), dtype=torch.float32, device=device)


@lru_cache(maxsize=8)
def _midpoints(signed: bool, device: torch.device) -> Tensor:
    """Return what separates neighbouring values (255,), and infinity above the last."""
    values = dynamic_values(signed, device)
    return torch.cat([(values[:-1] + values[1:]) / 2, values.new_tensor([torch.inf])])


@lru_cache(maxsize=8)
def _first_codes(signed: bool, device: torch.device) -> Tensor:
    """Return the smallest code (65536,) among the floats that share their upper 16 bits, by those bits."""
    upper = torch.arange(2**16, dtype=torch.int32, device=device) << 16
    floats = torch.stack([upper.view(torch.float32), (upper | 0xFFFF).view(torch.float32)])
    return nearest_codes(floats.nan_to_num().amin(dim=0).clamp(-1.0, 1.0), signed=signed)


def nearest_codes(unit: Tensor, *, signed: bool) -> Tensor:
    """Return the uint8 code of the nearest value for each of ``unit`` in [-1, 1], fp32; the readable form."""
    return torch.bucketize(unit, _midpoints(signed, unit.device)[:-1]).to(torch.uint8)


def nearest_codes_by_table(unit: Tensor, *, signed: bool) -> Tensor:
    """Return :func:`nearest_codes` of ``unit``, several times faster.

    Floats that share their upper 16 bits (sign, exponent, 7 bits of mantissa) lie closer together than any two
    midpoints, so the code is the table's or the next one.
    """
    upper = (unit.view(torch.int32) >> 16).bitwise_and_(0xFFFF)
    codes = torch.index_select(_first_codes(signed, unit.device), 0, upper)
    return codes.add_(unit > torch.index_select(_midpoints(signed, unit.device), 0, codes.int()))


def blocks_of(elements: int) -> int:
    """Return how many blocks, and so scales, ``elements`` have."""
    return -(-elements // BLOCK)


def quantize(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Return the uint8 codes (N,) and fp32 scales (ceil(N/256),) of ``values`` (N,), fp32."""
    blocks = pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    unit = blocks / torch.where(scales > 0, scales, 1.0).unsqueeze(1)
    codes = nearest_codes_by_table(unit.view(-1), signed=signed)
    return codes[: values.numel()], scales


def dequantize(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """Return the fp32 values (N,) of ``codes`` (N,) and ``scales`` (ceil(N/256),)."""
    unit = torch.index_select(dynamic_values(signed, codes.device), 0, codes.int())
    blocks = pad(unit, (0, -codes.numel() % BLOCK)).view(-1, BLOCK) * scales.unsqueeze(1)
    return blocks.view(-1)[: codes.numel()]


def start_moments(state: dict[str, Any], gradient: Tensor) -> None:
    """Put zero moments for ``gradient`` into ``state``: two fp32 tensors if it is small, else codes and scales."""
    elements = gradient.numel()
    for name in ("exp_avg", "exp_avg_sq"):
        if elements < SMALLEST:
            state[name] = torch.zeros_like(gradient, dtype=torch.float32)
        else:
            # A block whose scale is zero is zero whatever its codes say.
            state[f"{name}_codes"] = torch.zeros(elements, dtype=torch.uint8, device=gradient.device)
            state[f"{name}_scales"] = torch.zeros(blocks_of(elements), dtype=torch.float32, device=gradient.device)


def quantized_adam_direction(gradient: Tensor, state: dict[str, Any], betas: tuple[float, float], eps: float) -> Tensor:
    """Update the moments in ``state`` and return Adam's N in fp32, of the shape of ``gradient``.

    N comes from the moments before they are rounded to 8 bits again.
    """
    if "exp_avg" in state:
        return adam_direction(gradient.float(), state["exp_avg"], state["exp_avg_sq"], betas, eps)
    flat = gradient.reshape(-1)
    direction = torch.empty_like(flat, dtype=torch.float32)
    piece = piece_elements(gradient.device)  # bounds the fp32 temporaries; whole blocks, so no result depends on it
    for start in range(0, flat.numel(), piece):
        here = slice(start, start + piece)
        blocks = slice(start // BLOCK, (start + piece) // BLOCK)
        exp_avg, exp_avg_sq = (
            dequantize(state[f"{name}_codes"][here], state[f"{name}_scales"][blocks], signed=signed)
            for name, signed in (("exp_avg", True), ("exp_avg_sq", False))
        )
        direction[here] = adam_direction(flat[here].float(), exp_avg, exp_avg_sq, betas, eps)
        for name, signed, moment in (("exp_avg", True, exp_avg), ("exp_avg_sq", False, exp_avg_sq)):
            codes, scales = quantize(moment, signed=signed)
            state[f"{name}_codes"][here] = codes
            state[f"{name}_scales"][blocks] = scales
    return direction.view_as(gradient)
