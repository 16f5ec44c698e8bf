"""Block-wise 8-bit moments."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.plugins.optimizers import _quantized as module
from bench.plugins.optimizers._adam import adam_direction
from bench.plugins.optimizers._quantized import (
    BLOCK,
    SMALLEST,
    blocks_of,
    dequantize,
    dynamic_values,
    nearest_codes,
    nearest_codes_by_table,
    quantize,
    quantized_adam_direction,
    start_moments,
)

CPU = torch.device("cpu")


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("signed", [True, False])
def test_values_are_256_ascending_with_exact_zero_and_one(signed):
    values = dynamic_values(signed, CPU)
    assert values.numel() == 256
    assert (values.diff() > 0).all()
    assert 0.0 in values
    assert values[-1] == 1.0
    assert float(values[0]) == pytest.approx(-0.9929688 if signed else 0.0)


@pytest.mark.parametrize(("signed", "magnitude"), [(True, 64), (False, 128)])
def test_every_order_of_magnitude_has_half_as_many_values_as_the_one_above(signed, magnitude):
    values = dynamic_values(signed, CPU)
    for exponent in range(7):
        low, high = 0.1 * 10.0**-exponent, 10.0**-exponent
        assert int(((values > low) & (values < high)).sum()) == magnitude // 2**exponent


@pytest.mark.parametrize("signed", [True, False])
def test_values_are_those_of_bitsandbytes(signed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional = pytest.importorskip("bitsandbytes.functional", reason="parity needs the package bitsandbytes")
    assert torch.equal(dynamic_values(signed, CPU), functional.create_dynamic_map(signed))


@pytest.mark.parametrize("signed", [True, False])
def test_table_finds_the_nearest_value_everywhere_and_next_to_every_midpoint(signed):
    uniform = torch.rand(400_000, generator=torch.Generator().manual_seed(0))
    values = dynamic_values(signed, CPU)
    midpoints = (values[:-1] + values[1:]) / 2
    around = [torch.nextafter(midpoints, torch.tensor(end)) for end in (-2.0, 2.0)]
    unit = torch.cat([uniform, uniform * 10 ** (-8 * uniform.flip(0)), values, midpoints, *around])
    unit = torch.cat([unit, -unit]).clamp(-1, 1) if signed else unit.clamp(0, 1)
    codes = nearest_codes_by_table(unit, signed=signed)
    assert torch.equal(codes, nearest_codes(unit, signed=signed))
    distances = (unit[::37].unsqueeze(1) - values).abs()
    assert torch.allclose(distances.gather(1, codes[::37].long().unsqueeze(1)).squeeze(1), distances.amin(dim=1))


@given(st.integers(1, 1500), st.booleans(), st.integers(0, 99))
def test_rounding_keeps_signs_largest_values_and_small_relative_errors(elements, signed, seed):
    values = gaussian(elements, seed=seed)
    values = values if signed else values.square()
    codes, scales = quantize(values, signed=signed)
    assert (codes.shape, codes.dtype) == (values.shape, torch.uint8)
    assert (scales.shape, scales.dtype) == ((blocks_of(elements),), torch.float32)
    restored = dequantize(codes, scales, signed=signed)
    scale = scales.repeat_interleave(BLOCK)[:elements]
    assert ((restored - values).abs() <= scale * 0.0071).all()
    assert (restored * values >= 0).all()
    # Rounding again changes nothing while the largest magnitude of the block is a value of the data type.
    if not signed:
        again, same = quantize(restored, signed=signed)
        assert torch.equal(again, codes)
        assert torch.equal(same, scales)


def test_block_without_a_nonzero_element_stays_zero():
    codes, scales = quantize(torch.zeros(300), signed=True)
    assert torch.equal(dequantize(codes, scales, signed=True), torch.zeros(300))


def test_blocks_do_not_touch_each_other():
    values = gaussian(2 * BLOCK)
    louder = torch.cat([values[:BLOCK], 1e6 * values[BLOCK:]])
    assert torch.equal(quantize(values, signed=True)[0][:BLOCK], quantize(louder, signed=True)[0][:BLOCK])


@pytest.mark.parametrize("elements", [1, SMALLEST - 1, SMALLEST, SMALLEST + 1, 9000])
def test_moments_take_one_byte_an_element_and_a_scale_a_block_from_4096_elements_on(elements):
    state = {}
    start_moments(state, torch.zeros(elements, dtype=torch.bfloat16))
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert size == (8 * elements if elements < SMALLEST else 2 * elements + 8 * math.ceil(elements / 256))


@pytest.mark.parametrize("shape", [(64, 64), (5000,), (70, 90)])
def test_direction_is_adams_on_the_rounded_moments_and_no_result_depends_on_the_pieces(shape, monkeypatch):
    whole, parts, betas = {}, {}, (0.9, 0.99)
    for state in (whole, parts):
        start_moments(state, torch.zeros(shape))
    for seed in range(4):
        gradient = gaussian(*shape, seed=seed)
        moments = [
            dequantize(whole[f"{name}_codes"], whole[f"{name}_scales"], signed=name == "exp_avg").view(shape)
            for name in ("exp_avg", "exp_avg_sq")
        ]
        expected = adam_direction(gradient, *moments, betas, 1e-8)
        assert torch.equal(quantized_adam_direction(gradient, whole, betas, 1e-8), expected)
        monkeypatch.setattr(module, "piece_elements", lambda _: 4 * BLOCK)
        assert torch.equal(quantized_adam_direction(gradient, parts, betas, 1e-8), expected)
        monkeypatch.undo()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_zero_gradient_gives_a_zero_direction():
    state = {}
    start_moments(state, torch.zeros(5000))
    assert torch.equal(quantized_adam_direction(torch.zeros(5000), state, (0.9, 0.999), 1e-8), torch.zeros(5000))
