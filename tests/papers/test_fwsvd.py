"""FWSVD: the weighted optimum in the paper's own layout, and Fisher information by samples. No package has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Point, Role, Run
from bench.errors import BadValue
from bench.plugins.compression.fwsvd import FWSVD, compress_linear, fisher_importance
from bench.plugins.compression.svd import compress_linear as plain

pytestmark = pytest.mark.paper


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def importance(width, seed=1):
    return gaussian(width, seed=seed).square() * torch.logspace(0, -4, width).double()


def in_the_paper_s_layout(weight, weights, rank):
    """Return the product for W of shape (inputs, outputs): rows scaled by the root of their importance."""
    matrix = weight.T
    scale = weights.sqrt().diag()
    u, sigma, vt = torch.linalg.svd(scale @ matrix, full_matrices=False)
    a = torch.linalg.inv(scale) @ u[:, :rank] @ sigma[:rank].diag()
    return (a @ vt[:rank]).T


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
@pytest.mark.parametrize("rank", [1, 4])
def test_product_is_that_of_the_paper_and_the_inputs_are_what_is_scaled(shape, rank):
    weight, weights = gaussian(*shape), importance(shape[1])
    expected = in_the_paper_s_layout(weight, weights, rank)
    torch.testing.assert_close(compress_linear(weight, weights, rank, floor=0.0).product(), expected)


def test_equal_importances_give_the_plain_svd():
    weight = gaussian(8, 12)
    found = compress_linear(weight, torch.full((12,), 0.3), 4).product()
    torch.testing.assert_close(found, plain(weight, 4).product(), rtol=0, atol=1e-12)


def test_weighted_error_is_that_of_the_discarded_singular_values_and_below_that_of_the_plain_svd():
    weight, weights = gaussian(8, 12), importance(12)
    for rank in range(9):
        found = compress_linear(weight, weights, rank, floor=0.0).product()
        error = float((weights * (weight - found).square()).sum())
        least = float(torch.linalg.svdvals(weight * weights.sqrt())[rank:].square().sum())
        assert error == pytest.approx(least, rel=1e-9, abs=1e-12)
        assert error <= float((weights * (weight - plain(weight, rank).product()).square()).sum()) + 1e-12


@pytest.mark.parametrize("factor", [1e-12, 7.0, 1e9])
def test_the_scale_of_the_loss_does_not_matter(factor):
    weight, weights = gaussian(8, 12), importance(12)
    expected = compress_linear(weight, weights, 4).product()
    torch.testing.assert_close(compress_linear(weight, factor * weights, 4).product(), expected)


def test_full_rank_gives_the_weight():
    weight = gaussian(8, 12)
    torch.testing.assert_close(compress_linear(weight, importance(12), 8).product(), weight)


@pytest.mark.parametrize("floor", [0.0, 1e-8, 1e-5])
def test_features_without_importance_stay_finite(floor):
    weight, weights = gaussian(8, 12), importance(12)
    weights[[0, 5]] = 0.0
    factors = compress_linear(weight, weights, 4, floor=floor)
    assert all(bool(factor.isfinite().all()) for factor in factors)
    nothing = compress_linear(weight, torch.zeros(12), 4).product()
    torch.testing.assert_close(nothing, plain(weight, 4).product())


def test_a_large_floor_is_the_plain_svd_and_none_that_is_reached_changes_nothing():
    weight, weights = gaussian(8, 12), 0.5 + importance(12)
    free = compress_linear(weight, weights, 4, floor=0.0).product()
    torch.testing.assert_close(compress_linear(weight, weights, 4, floor=1e-3).product(), free)
    flat = compress_linear(weight, weights, 4, floor=1 - 1e-12).product()
    torch.testing.assert_close(flat, plain(weight, 4).product())


# -- Fisher information ----------------------------------------------------------------------------------------------
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(6, 9)
        self.dropout = nn.Dropout(0.5)
        self.two = nn.Linear(9, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, inputs):
        return self.head(torch.tanh(self.two(self.dropout(torch.tanh(self.one(inputs))))))


ROLES = {"one.weight": Role.MLP, "two.weight": Role.MLP, "head.weight": Role.CLASSIFIER}


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])


def data(*sizes):
    x = gaussian(sum(sizes), 6).float()
    x[:, 2] = 0.0
    y = torch.arange(sum(sizes)) % 4
    return [{"inputs": a, "labels": b} for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]


def information(model, batches):
    linears = {"one": model.one, "two": model.two}
    return fisher_importance(model, linears, batches, loss)


def test_importance_is_the_mean_over_single_samples_of_their_squared_gradients():
    model = Net().eval()
    sums = {"one": torch.zeros(6).double(), "two": torch.zeros(9).double()}
    (batch,) = data(10)
    for i in range(10):
        model.zero_grad()
        loss(model, {key: value[i : i + 1] for key, value in batch.items()}).backward()
        for name, total in sums.items():
            total.add_(model.get_submodule(name).weight.grad.double().square().sum(0))
    model.zero_grad()
    for name, found in information(model, [batch]).items():
        torch.testing.assert_close(found, sums[name] / 10, rtol=1e-5, atol=0)
    assert information(model, [batch])["one"][2] == 0.0


def test_the_size_of_the_batches_does_not_matter():
    model = Net()
    one, other = information(model, data(10)), information(model, data(3, 1, 6))
    for name, found in one.items():
        torch.testing.assert_close(found, other[name], rtol=1e-5, atol=0)


def test_the_model_keeps_its_gradients_its_mode_and_what_is_frozen():
    model = Net()
    model.one.weight.requires_grad_(False)
    model.two.weight.grad = torch.ones(6, 9)
    with torch.no_grad():
        found = information(model, data(4))
    assert found["one"].sum() > 0
    assert model.training
    assert not model.one.weight.requires_grad
    assert torch.equal(model.two.weight.grad, torch.ones(6, 9))
    assert model.one.weight.grad is None


def run_of(**changes):
    return Run(**{"seed": 0, "steps": 1, "roles": ROLES, "loss": loss, "point": Point(kept_ratio=0.6)} | changes)


def test_the_plugin_compresses_every_hidden_linear_by_its_importance():
    model, batches = Net(), data(6, 4)
    result = FWSVD(floor=1e-6).compress(model, batches, run_of())
    for name, weights in information(model, batches).items():
        weight = model.get_submodule(name).weight.detach().double()
        floored = weights.clamp(min=1e-6 * float(weights.max()))
        expected = in_the_paper_s_layout(weight, floored, int(0.6 * 54 / 15))
        torch.testing.assert_close(result.get_submodule(name).dense().double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(result.head.weight, model.head.weight)
    x = data(5)[0]["inputs"]
    same = FWSVD().compress(model, batches, run_of(point=Point(kept_ratio=1.0)))
    torch.testing.assert_close(same.eval()(x), model.eval()(x), rtol=0, atol=1e-5)


def test_a_run_without_a_loss_batches_or_finite_gradients_is_refused():
    with pytest.raises(BadValue, match="no loss"):
        FWSVD().compress(Net(), data(2), run_of(loss=None))
    with pytest.raises(BadValue, match="no calibration batches"):
        FWSVD().compress(Net(), [], run_of())
    with pytest.raises(BadValue, match="gradients of one, two are not all finite"):
        FWSVD().compress(Net(), data(2), run_of(loss=lambda model, batch: loss(model, batch) * float("nan")))
