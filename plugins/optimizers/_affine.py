r"""Affine quantization by groups: unsigned codes of b bits, and a scale and a whole zero point for each group.

For a group of values w with range [low, high], which is extended to hold 0,

    s = (high - low) / (2ᵇ-1)          1 where that is 0: such a group is zero
    z = round(-low / s)
    code = round(w / s) + z            or  ⌊w / s + u⌋ + z  with u uniform in [0, 1): stochastic rounding
    value = s (code - z)

clamped to [0, 2ᵇ-1]. Because the range holds 0, z lies in the codes, zero is exact, a group of one sign is not clipped
and padding with zeros changes nothing. Values on the grid of their own group come back as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Quantized(NamedTuple):
    """Codes (..., g), uint8, of groups of g values; ``scales`` (..., 1), fp32; ``zeros`` (..., 1), uint8."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor


def quantize(groups: Tensor, bits: int, noise: Tensor | None = None) -> Quantized:
    """Return the codes of ``groups`` (..., g): the nearest, or by stochastic rounding with ``noise`` in [0, 1)."""
    whole, scales, zeros = _rounded(groups, bits, noise)
    return Quantized(whole.add_(zeros).to(torch.uint8), scales, zeros.to(torch.uint8))


def dequantize(quantized: Quantized) -> Tensor:
    """Return the values (..., g), fp32."""
    codes, scales, zeros = quantized
    return codes.float().sub_(zeros.float()).mul_(scales)


def rounded(groups: Tensor, bits: int, noise: Tensor | None = None) -> Tensor:
    """Return the values (..., g), fp32, that ``groups`` have as codes: dequantize(quantize(...)) without the codes."""
    whole, scales, _ = _rounded(groups, bits, noise)
    return whole.mul_(scales)


def _rounded(groups: Tensor, bits: int, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return code - z (..., g), s and z (..., 1), in fp32."""
    values, largest = groups.float(), 2**bits - 1
    low, high = values.amin(dim=-1, keepdim=True).clamp_(max=0.0), values.amax(dim=-1, keepdim=True).clamp_(min=0.0)
    scales = (high - low) / largest
    scales = torch.where(scales == 0, 1.0, scales)
    zeros = (-low / scales).round_()
    whole = values / scales
    whole = whole.round_() if noise is None else whole.add_(noise).floor_()
    return whole.add_(zeros).clamp_(0, largest).sub_(zeros), scales, zeros


def noise_for(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise for ``groups``: (i + 1/2) / 2¹⁶ with i uniform in 0, ..., 2¹⁶-1, fp32, drawn where the generator is.

    Four 16-bit numbers come from one draw, in a third of the time of torch.rand on the CPU. On the meta device, where
    estimates are made, nothing is drawn.
    """
    if groups.is_meta:
        return torch.empty_like(groups, dtype=torch.float32)
    draws = torch.empty(-(-groups.numel() // 4), dtype=torch.int64, device=generator.device)
    numbers = draws.random_(-(2**63), None, generator=generator).view(torch.int16)[: groups.numel()]
    return numbers.to(groups.device).float().mul_(2.0**-16).add_(0.5 + 2.0**-17).view_as(groups)


def grouped(values: Tensor, size: int) -> Tensor:
    """Return ``values`` of any shape in consecutive groups (N, ``size``); the last one is filled up with zeros."""
    flat = values.reshape(-1)
    return pad(flat, (0, -flat.numel() % size)).view(-1, size)


def ungrouped(groups: Tensor, shape: torch.Size) -> Tensor:
    """Return the tensor of ``shape`` that :func:`grouped` was given."""
    return groups.reshape(-1)[: shape.numel()].view(shape)


def packed(codes: Tensor) -> Tensor:
    """Return codes (..., g) of 4 bits two to a byte, (..., ⌈g/2⌉): the even places in the lower half."""
    even = pad(codes, (0, codes.shape[-1] % 2))
    return even[..., ::2].bitwise_or(even[..., 1::2] << 4)


def unpacked(pairs: Tensor, size: int) -> Tensor:
    """Return the ``size`` codes of 4 bits, (..., ``size``), that :func:`packed` was given."""
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)[..., :size]
