"""The Newton-Schulz iteration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.plugins.optimizers._orthogonalize import newton_schulz, newton_schulz_batched


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_batched_form_gives_what_the_readable_one_gives(batch, rows, columns, seed):
    matrices = gaussian(batch, rows, columns, seed=seed)
    together = newton_schulz_batched(matrices, 5, torch.float32)
    for index in range(batch):
        assert torch.allclose(together[index], newton_schulz(matrices[index], 5, torch.float32), atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_batched_form_in_bfloat16_stays_within_its_rounding(shape):
    matrices = gaussian(3, *shape)
    together = newton_schulz_batched(matrices)
    assert together.dtype == torch.bfloat16
    for index in range(3):
        readable, exact = newton_schulz(matrices[index]).float(), newton_schulz(matrices[index], 5, torch.float32)
        error, allowed = (torch.linalg.norm(x - exact) for x in (together[index].float(), readable))
        assert error <= 1.2 * allowed < 0.05 * torch.linalg.norm(exact)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_transposed_input_gives_the_transposed_result(rows, columns, seed):
    matrix = gaussian(rows, columns, seed=seed)
    result = newton_schulz(matrix.T, 5, torch.float32)
    assert torch.allclose(result.T, newton_schulz(matrix, 5, torch.float32), atol=1e-5)


def test_singular_values_follow_the_scalar_polynomial():
    matrix = gaussian(12, 30)
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    x = values / values.square().sum().sqrt()
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    assert torch.allclose(newton_schulz(matrix, 3, torch.float32), (u * x) @ vt, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_stays_zero(dtype):
    assert torch.equal(newton_schulz(torch.zeros(4, 6), 5, dtype), torch.zeros(4, 6, dtype=dtype))
    assert torch.equal(newton_schulz_batched(torch.zeros(2, 6, 4), 5, dtype), torch.zeros(2, 6, 4, dtype=dtype))


@pytest.mark.parametrize("size", [1e-5, 1e12])
def test_size_of_the_input_does_not_matter_down_to_the_floor(size):
    matrix = gaussian(8, 12)
    scaled, plain = (newton_schulz(factor * matrix, 5, torch.float32) for factor in (size, 1.0))
    assert torch.allclose(scaled, plain, atol=1e-5)
    assert float(newton_schulz(1e-14 * matrix).float().abs().max()) < 1e-3


def test_one_row_of_the_batch_does_not_touch_another():
    matrices = gaussian(2, 8, 12)
    scaled = torch.stack([matrices[0], 1000 * matrices[1]])
    first, second = (newton_schulz_batched(batch, 5, torch.float32) for batch in (matrices, scaled))
    assert torch.equal(first[0], second[0])
