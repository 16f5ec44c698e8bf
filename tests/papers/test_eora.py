"""EoRA: the properties of its branch. Parity: GPTQModel, the package that has it, does not install without CUDA."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench import Point, Role, Run
from bench.plugins.compression._branch import BranchLinear, with_branch
from bench.plugins.compression._low_rank import Factors
from bench.plugins.compression.eora import EoRA, compensate_linear
from bench.plugins.compression.magnitude_pruning import MagnitudePruning
from bench.plugins.compression.svd import SVD
from bench.plugins.compression.svd import compress_linear as plain

pytestmark = pytest.mark.paper


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(width, tokens, seed=1):
    """Return X (n, T) of correlated features with a few strong ones."""
    mixing = torch.linalg.qr(gaussian(width, width, seed=seed)).Q @ torch.logspace(0.5, -1.0, width).double().diag()
    return mixing @ gaussian(width, tokens, seed=seed + 1)


def branch(weight, compressed, x, rank):
    return compensate_linear(weight, compressed, x @ x.T / x.shape[1], rank).product()


def pair(rows=8, columns=12):
    weight = gaussian(rows, columns)
    return weight, weight.round()


def test_white_inputs_give_the_truncated_svd_of_the_residual():
    weight, compressed = pair()
    found = compensate_linear(weight, compressed, torch.eye(12), 4).product()
    torch.testing.assert_close(found, plain(weight - compressed, 4).product(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_full_rank_restores_the_outputs(shape):
    weight, compressed = pair(*shape)
    x = inputs(shape[1], 100)
    torch.testing.assert_close((compressed + branch(weight, compressed, x, 8)) @ x, weight @ x)


def test_error_is_that_of_the_discarded_singular_values_and_not_above_others():
    weight, compressed = pair()
    x = inputs(12, 300)
    residual = weight - compressed
    scale = x.abs().mean(1)  # ACT-S: channels scaled by their activations
    for rank in (1, 3, 6):
        found = branch(weight, compressed, x, rank)
        error = float(((residual - found) @ x).square().sum())
        assert error == pytest.approx(float(torch.linalg.svdvals(residual @ x)[rank:].square().sum()), rel=1e-6)
        others = [plain(residual, rank).product(), plain(residual * scale, rank).product() / scale]
        left, right = compensate_linear(weight, compressed, x @ x.T, rank)
        for seed in range(200):
            size = 10.0 ** -(seed % 5)
            noise = [size * gaussian(*factor.shape, seed=seed) for factor in (left, right)]
            others.append((left + noise[0]) @ (right + noise[1]))
        assert all(float(((residual - other) @ x).square().sum()) >= error * (1 - 1e-9) for other in others)


def test_product_is_that_of_a_cholesky_factor_where_the_moment_is_regular():
    weight, compressed = pair()
    x = inputs(12, 300)
    root = torch.linalg.cholesky(x @ x.T)
    u, sigma, vt = torch.linalg.svd((weight - compressed) @ root, full_matrices=False)
    expected = u[:, :4] * sigma[:4] @ vt[:4] @ torch.linalg.inv(root)
    found = branch(weight, compressed, x, 4)
    assert (found - expected).norm() <= 1e-8 * expected.norm()


def test_fewer_tokens_than_inputs_and_dead_inputs_are_finite_and_optimal_on_the_span():
    weight, compressed = pair()
    x = inputs(12, 5)
    x[3] = 0.0
    for rank in (1, 3, 8):
        found = branch(weight, compressed, x, rank)
        assert found.isfinite().all()
        error = float(((weight - compressed - found) @ x).square().sum())
        least = torch.linalg.svdvals((weight - compressed) @ x)[rank:].square().sum()
        assert error == pytest.approx(float(least), rel=1e-6, abs=1e-4)


def test_a_change_of_the_inputs_basis_goes_through():
    weight, compressed = pair()
    x, basis = inputs(12, 300), gaussian(12, 12, seed=9) + 4 * torch.eye(12)
    inverse = torch.linalg.inv(basis)
    found = branch(weight, compressed, x, 4)
    moved = branch(weight @ inverse, compressed @ inverse, basis @ x, 4)
    torch.testing.assert_close(moved, found @ inverse, rtol=0, atol=1e-7)


def test_no_residual_gives_no_branch():
    weight, _ = pair()
    assert torch.equal(branch(weight, weight, inputs(12, 50), 4), torch.zeros(8, 12).double())


def test_the_moment_is_not_centred_and_its_scale_does_not_matter():
    weight, compressed = pair()
    x = inputs(12, 300) + 2.0
    found = branch(weight, compressed, x, 3)
    torch.testing.assert_close(compensate_linear(weight, compressed, 1e6 * x @ x.T, 3).product(), found)
    assert not torch.allclose(compensate_linear(weight, compressed, torch.cov(x), 3).product(), found, atol=1e-2)


# -- the plugin ------------------------------------------------------------------------------------------------------
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 12)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(3))

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return x


MODEL = Net()
ROLES = {
    n: Role.MLP if n.startswith("blocks") and n.endswith("weight") else Role.OTHER for n, _ in MODEL.named_parameters()
}
BATCHES = [{"tokens": torch.arange(30).view(5, 6)[i : i + 1]} for i in range(5)]


def run_of(**point):
    return Run(seed=0, steps=1, roles=ROLES, blocks=("blocks.0", "blocks.1", "blocks.2"), point=Point(**point))


@pytest.mark.parametrize("propagation", ["sequential", "parallel"])
def test_each_branch_is_made_of_the_dense_weight_and_of_what_repaired_or_dense_blocks_give(propagation):
    compressed = MagnitudePruning().compress(MODEL, [], run_of(pattern=(1, 4)))
    result = EoRA(propagation=propagation).compensate(MODEL, compressed, BATCHES, run_of(rank=3))
    with torch.no_grad():
        x = MODEL.embedding(torch.arange(30))
        for dense, pruned, found in zip(MODEL.blocks, compressed.blocks, result.blocks, strict=True):
            moment = x.T.double() @ x.double()
            expected = compensate_linear(dense[0].weight, pruned[0].weight, moment, 3).product()
            assert isinstance(found[0], BranchLinear)
            torch.testing.assert_close((found[0].left @ found[0].right).double(), expected, rtol=0, atol=1e-4)
            assert torch.equal(found[0].base.weight, pruned[0].weight), "the compressed format stays"
            x = found(x) if propagation == "sequential" else dense(x)


def test_it_repairs_factored_linears_too_and_changes_neither_model():
    compressed = SVD().compress(MODEL, [], run_of(kept_ratio=0.5))
    before = copy.deepcopy(compressed.state_dict())
    result = EoRA().compensate(MODEL, compressed, BATCHES, run_of(rank=3))
    tokens = torch.arange(30).view(5, 6)
    assert (result(tokens) - MODEL(tokens)).norm() < (compressed(tokens) - MODEL(tokens)).norm()
    assert all(torch.equal(value, before[name]) for name, value in compressed.state_dict().items())


def test_full_rank_gives_the_dense_outputs_and_rank_zero_the_compressed_ones():
    compressed = MagnitudePruning().compress(MODEL, [], run_of(pattern=(1, 4)))
    tokens = torch.arange(30).view(5, 6)
    full = EoRA().compensate(MODEL, compressed, BATCHES, run_of(rank=12))
    torch.testing.assert_close(full(tokens), MODEL(tokens), rtol=0, atol=1e-5)
    weight, base = MODEL.blocks[0][0].weight, compressed.blocks[0][0]
    nothing = compensate_linear(weight, base.weight, torch.eye(12), 0)
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_branch(base, Factors(*nothing))(x), base(x))
