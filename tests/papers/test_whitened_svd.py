"""Whitened SVD: optimal for outputs, against the paper's Cholesky route written out. No package has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Point, Role, Run
from bench.plugins.compression.fwsvd import compress_linear as fisher_weighted
from bench.plugins.compression.svd import compress_linear as plain
from bench.plugins.compression.whitened_svd import WhitenedSVD, compress_linear

pytestmark = pytest.mark.paper


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(width, tokens, seed=1):
    """Return X (n, T) of correlated features with a few strong ones, as the inputs of real layers are."""
    mixing = gaussian(width, width, seed=seed) @ torch.logspace(0.5, -1.5, width).double().diag()
    return mixing @ gaussian(width, tokens, seed=seed + 1)


def cholesky_route(weight, moment, rank):
    """Return the paper's product: SVD of W L for C = L Lᵀ, and back by L⁻¹."""
    root = torch.linalg.cholesky(moment)
    u, sigma, vt = torch.linalg.svd(weight @ root, full_matrices=False)
    left = u[:, :rank] @ sigma[:rank].sqrt().diag()
    return left @ (sigma[:rank].sqrt().diag() @ vt[:rank] @ torch.linalg.inv(root))


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_product_is_that_of_the_cholesky_route(shape, rank):
    weight, x = gaussian(*shape), inputs(shape[1], 300)
    expected = cholesky_route(weight, x @ x.T, rank)
    found = compress_linear(weight, x @ x.T, rank).product()
    assert (found - expected).norm() <= 1e-8 * expected.norm()


def test_error_on_the_inputs_is_that_of_the_discarded_singular_values():
    weight, x = gaussian(8, 12), inputs(12, 300)
    for rank in range(9):
        error = ((weight - compress_linear(weight, x @ x.T, rank).product()) @ x).square().sum()
        least = torch.linalg.svdvals(weight @ x)[rank:].square().sum()
        assert float(error) == pytest.approx(float(least), rel=1e-6, abs=1e-9)


def test_white_inputs_give_the_plain_svd():
    weight = gaussian(8, 12)
    found = compress_linear(weight, torch.eye(12), 4).product()
    torch.testing.assert_close(found, plain(weight, 4).product(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_error_on_the_inputs_is_below_those_of_other_products_of_that_rank(seed):
    weight, x, rank = gaussian(10, 14, seed=seed), inputs(14, 200, seed=10 + seed), 4
    scale = x.abs().mean(1).sqrt()  # ASVD's scaling of the inputs by activations
    others = [
        plain(weight, rank).product(),
        plain(weight * scale, rank).product() / scale,
        fisher_weighted(weight, x.square().mean(1), rank).product(),
        fisher_weighted(weight, gaussian(14, seed=seed).square(), rank).product(),
        cholesky_route(weight, torch.cov(x), rank),  # centred, and the root of another matrix
    ]
    found = compress_linear(weight, x @ x.T, rank).product()
    error = ((weight - found) @ x).norm()
    assert all(((weight - other) @ x).norm() >= error for other in others)
    assert ((weight - others[0]) @ x).norm() > 1.05 * error


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 12)
        self.blocks = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.head = nn.Linear(12, 30)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)


def run_of(model, ratio):
    roles = {name: Role.MLP if name.startswith("blocks") else Role.OTHER for name, _ in model.named_parameters()}
    return Run(seed=0, steps=1, roles=roles, point=Point(kept_ratio=ratio))


def batches():
    tokens = torch.randint(0, 30, (12, 9), generator=torch.Generator().manual_seed(0))
    return [{"tokens": part} for part in tokens.split(4)]


def test_the_plugin_compresses_every_hidden_linear_on_its_own_inputs():
    model = Net()
    result = WhitenedSVD().compress(model, batches(), run_of(model, 0.6))
    with torch.no_grad():
        x = torch.cat([model.embedding(batch["tokens"]).flatten(0, 1) for batch in batches()])
        for block, found in zip(model.blocks, result.blocks, strict=True):
            moment = x.T.double() @ x.double()
            expected = cholesky_route(block.weight.double(), moment, int(0.6 * 144 / 24))
            torch.testing.assert_close(found.dense().double(), expected, rtol=0, atol=1e-5)
            x = x + torch.tanh(block(x))  # parallel: the dense block makes the next inputs
    assert torch.equal(result.head.weight, model.head.weight)


def test_the_order_of_the_calibration_data_does_not_matter():
    model = Net()
    run = run_of(model, 0.5)
    one, other = (WhitenedSVD().compress(model, data, run) for data in (batches(), batches()[::-1]))
    for left, right in zip(one.blocks, other.blocks, strict=True):
        torch.testing.assert_close(left.dense(), right.dense())


def test_at_ratio_one_the_model_computes_what_it_did():
    model = Net()
    tokens = batches()[0]["tokens"]
    result = WhitenedSVD().compress(model, batches(), run_of(model, 1.0))
    torch.testing.assert_close(result(tokens), model(tokens), rtol=0, atol=1e-5)
