from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bench.errors import BadValue
from bench.workloads._llama import Attention, LlamaConfig, RMSNorm, rotation


@pytest.mark.parametrize("name", ["vocabulary_size", "hidden", "ffn", "layers", "heads", "max_positions"])
def test_a_size_below_one_is_refused_by_name(name):
    sizes = {"vocabulary_size": 61, "hidden": 32, "ffn": 44, "layers": 2, "heads": 4, name: 0}
    with pytest.raises(BadValue, match=f"{name} is 0"):
        LlamaConfig(**sizes)


@pytest.mark.parametrize(("hidden", "heads"), [(30, 4), (12, 4)])
def test_heads_of_uneven_or_odd_size_are_refused_with_the_multiple_to_choose(hidden, heads):
    with pytest.raises(BadValue, match=f"multiple of {2 * heads}"):
        LlamaConfig(vocabulary_size=61, hidden=hidden, ffn=44, layers=2, heads=heads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_divides_by_the_root_of_the_mean_square_in_fp32(dtype):
    norm, x = norm_and_input(dtype)
    found = norm(x)
    assert found.dtype == dtype
    quotient = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = quotient * norm.weight.double()
    torch.testing.assert_close(found.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.paper
def test_rms_norm_in_bf16_rounds_before_and_after_the_weight_unlike_torchs_own():
    norm, x = norm_and_input(torch.bfloat16)
    x32 = x.float()
    quotient = (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-6)).to(torch.bfloat16)
    assert torch.equal(norm(x), norm.weight * quotient)
    assert not torch.equal(norm(x), nn.functional.rms_norm(x, (48,), norm.weight, 1e-6))


def norm_and_input(dtype: torch.dtype) -> tuple[RMSNorm, Tensor]:
    """A norm with uneven weights, and rows of mean squares from far below ε to far above it, one of them zero."""
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(48, 1e-6).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5, generator=generator)
    x = (torch.randn(64, 48, generator=generator) * torch.logspace(-4, 2, 64)[:, None]).to(dtype)
    x[5] = 0.0
    return norm, x


def scores(query: Tensor, key: Tensor, positions: int) -> Tensor:
    """Scores (T, T) of one query and one key vector, each placed at every position."""
    rotary = rotation(positions, query.numel(), 10_000.0, query.device)
    return rotary.rotate(query.expand(positions, -1)) @ rotary.rotate(key.expand(positions, -1)).T


@pytest.mark.paper
def test_rotary_scores_depend_on_the_difference_of_positions_only():
    query, key = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    found = scores(query, key, 40)
    for difference in range(-39, 40):
        diagonal = found.diagonal(difference)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert float(found[0].std()) > 0.1
    torch.testing.assert_close(found[0, 0], query @ key)


def test_rotary_turns_each_half_split_pair_by_the_published_angle():
    positions, size = 7, 8
    x = torch.randn(positions, size, generator=torch.Generator().manual_seed(0))
    found = rotation(positions, size, 10_000.0, x.device).rotate(x)
    for t in range(positions):
        for i in range(size // 2):
            angle = t * 10_000.0 ** (-2 * i / size)
            first, second = float(x[t, i]), float(x[t, i + size // 2])
            assert float(found[t, i]) == pytest.approx(first * math.cos(angle) - second * math.sin(angle), abs=1e-5)
            assert float(found[t, i + 4]) == pytest.approx(second * math.cos(angle) + first * math.sin(angle), abs=1e-5)


def test_attention_is_the_causal_softmax_of_rotated_scores_written_out():
    config = LlamaConfig(vocabulary_size=8, hidden=12, ffn=4, layers=1, heads=2)
    generator = torch.Generator().manual_seed(0)
    attention = Attention(config).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, generator=generator)
    x = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for head in (slice(0, 6), slice(6, 12)):
        q, k, v = (x @ part.weight[head].T for part in (attention.q, attention.k, attention.v))
        q, k = (torch.view_as_real(as_pairs(part) * turns(5, 6)) for part in (q, k))
        weights = torch.einsum("tip,sip->ts", q, k) / math.sqrt(6)
        weights = weights.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        expected += weights.softmax(-1) @ v @ attention.o.weight[:, head].T
    found = attention(x[None], rotation(5, 6, 10_000.0, x.device))[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)  # the angles are fp32


def as_pairs(x: Tensor) -> Tensor:
    """The half-split pairs (i, i + H/2) as complex numbers (T, H/2)."""
    first, second = x.chunk(2, -1)
    return torch.complex(first, second)


def turns(positions: int, size: int) -> Tensor:
    """cos + i sin of t base^(-2j/H), for each position t and pair j."""
    angles = torch.arange(positions).double()[:, None] * 10_000.0 ** (-torch.arange(0, size, 2).double() / size)
    return torch.polar(torch.ones_like(angles), angles)
