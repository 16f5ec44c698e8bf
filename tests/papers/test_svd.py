"""Plain SVD: the least error of its rank, and the rank that a kept ratio allows. No package prunes ranks so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Point, Role, Run
from bench.plugins.compression._low_rank import LowRankLinear
from bench.plugins.compression.svd import SVD, compress_linear

pytestmark = pytest.mark.paper


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
@pytest.mark.parametrize("rank", [0, 1, 4, 7])
def test_error_is_that_of_the_discarded_singular_values(shape, rank):
    weight = gaussian(*shape)
    sigma = torch.linalg.eigvalsh(weight @ weight.T).flip(0).clamp(min=0)  # squared singular values, another way
    error = (weight - compress_linear(weight, rank).product()).square().sum()
    assert float(error) == pytest.approx(float(sigma[rank:].sum()), rel=1e-9, abs=1e-11)


def test_no_other_product_of_that_rank_is_nearer():
    weight = gaussian(7, 12)
    least = (weight - compress_linear(weight, 3).product()).norm()
    for seed in range(200):
        axes = torch.linalg.qr(gaussian(12, 3, seed=seed)).Q  # the best product with a random row space
        assert (weight - weight @ axes @ axes.T).norm() >= least


def model_of(*, bias=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24, bias=bias), nn.Tanh(), nn.Linear(24, 16, bias=bias), nn.Linear(16, 5))
    roles = {name: Role.BIAS if name.endswith("bias") else Role.MLP for name, _ in model.named_parameters()}
    return model, roles | {"3.weight": Role.LM_HEAD}


def compressed(model, roles, ratio):
    return SVD().compress(model, [], Run(seed=0, steps=1, roles=roles, point=Point(kept_ratio=ratio)))


@pytest.mark.parametrize("ratio", [0.9, 0.6, 0.4, 0.2])
def test_every_hidden_matrix_gets_the_rank_of_the_kept_ratio_and_the_head_stays(ratio):
    model, roles = model_of()
    result = compressed(model, roles, ratio)
    rank = int(ratio * 16 * 24 / 40)
    for place in (0, 2):
        u, sigma, vt = torch.linalg.svd(model[place].weight.double(), full_matrices=False)
        expected = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
        assert isinstance(result[place], LowRankLinear)
        assert result[place].left.shape[1] == rank
        torch.testing.assert_close(result[place].dense().double(), expected, rtol=0, atol=1e-6)
        assert torch.equal(result[place].bias, model[place].bias)
    assert torch.equal(result[3].weight, model[3].weight)


def test_at_ratio_one_the_model_computes_what_it_did():
    model, roles = model_of(bias=False)
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(compressed(model, roles, 1.0)(x), model(x), rtol=0, atol=1e-5)


def test_error_of_the_model_falls_as_more_is_kept():
    model, roles = model_of()
    errors = [
        sum((model[i].weight - compressed(model, roles, ratio)[i].dense()).norm() for i in (0, 2))
        for ratio in (0.2, 0.4, 0.6, 0.9)
    ]
    assert errors == sorted(errors, reverse=True)
