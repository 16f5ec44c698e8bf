"""SparseGPT: against the optimal brain surgeon with explicit inverses, and its limits. No package here has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Point, Role, Run
from bench.plugins.compression.magnitude_pruning import kept as by_magnitude
from bench.plugins.compression.sparsegpt import SparseGPT, prune_linear, surgeon_of
from bench.plugins.compression.wanda import kept as by_wanda

pytestmark = pytest.mark.paper

TINY = 1e-12


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(width, tokens, seed=1):
    """Return X (n, T) of correlated features."""
    return (gaussian(width, width, seed=seed) + 2 * gaussian(width, 1, seed=seed + 7)) @ gaussian(
        width, tokens, seed=seed + 1
    )


def naive(weight, moment, damping, choose, group):
    """Return the pruned weight by the surgeon's rule, a new inverse of the remaining H for every column.

    ``choose(scores)`` returns the mask of a group of columns.
    """
    weight = weight.clone()
    columns = weight.shape[1]
    hessian = moment + damping * moment.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    # costs of zeros: the first diagonal entry of the inverse over column j and all behind it
    costs = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(columns)])
    for first in range(0, columns, group):
        places = range(first, min(first + group, columns))
        mask = choose(weight[:, first : first + group] ** 2 / costs[first : first + group])
        for j in places:
            inverse = torch.linalg.inv(hessian[j:, j:])
            for i in range(len(weight)):
                if not mask[i, j - first]:
                    weight[i, j:] -= weight[i, j] / inverse[0, 0] * inverse[0]
                    weight[i, j] = 0.0
    return weight


def best(count):
    def choose(scores):
        order = scores.flatten().argsort(descending=True)
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[order[: count(scores)]] = True
        return mask.view(scores.shape)

    return choose


def best_of_each_row(count):
    return lambda scores: torch.stack([best(lambda _: count)(row) for row in scores])


@pytest.mark.parametrize("block", [4, 6, 12, 128])
@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_unstructured_it_is_the_surgeon_with_one_threshold_for_each_block(block, ratio):
    weight, x = gaussian(6, 12), inputs(12, 60)
    expected = naive(weight, x @ x.T, 0.01, best(lambda s: int(ratio * s.numel())), min(block, 12))
    found = prune_linear(weight, x @ x.T, kept_ratio=ratio, block=block)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("block", [3, 4, 8, 128])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (3, 6)])
def test_for_a_pattern_it_is_the_surgeon_with_masks_from_updated_weights_whatever_the_block(block, pattern):
    weight, x = gaussian(6, 12), inputs(12, 60)
    expected = naive(weight, x @ x.T, 0.01, best_of_each_row(pattern[0]), pattern[1])
    found = prune_linear(weight, x @ x.T, pattern=pattern, block=block)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert ((found.reshape(-1, pattern[1]) == 0).sum(1) == pattern[1] - pattern[0]).all()


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.37, 0.1])
@pytest.mark.parametrize("block", [5, 128])
def test_exactly_the_asked_number_becomes_zero(ratio, block):
    x = inputs(13, 60)
    found = prune_linear(gaussian(7, 13), x @ x.T, kept_ratio=ratio, block=block)
    assert int((found != 0).sum()) == int(ratio * 7 * 13)


@pytest.mark.parametrize("block", [4, 128])
def test_uncorrelated_inputs_give_wanda_s_score_within_a_block_and_change_no_weight(block):
    weight, powers = gaussian(6, 12), gaussian(12, seed=3).square() + 0.1
    found = prune_linear(weight, powers.diag(), kept_ratio=0.5, damping=TINY, block=block)
    assert torch.equal(found[found != 0], weight[found != 0])
    scores = weight.abs() * powers.sqrt()
    for part, score in zip(found.split(block, 1), scores.split(block, 1), strict=True):
        assert score[part == 0].max() <= score[part != 0].min()
    rows = by_wanda(weight, powers.sqrt(), kept_ratio=0.5)
    assert not torch.equal(found != 0, rows), "one threshold for the block, not one for each row"


@pytest.mark.parametrize("column", [0, 4, 10])
def test_one_pruned_column_is_refitted_by_the_later_ones_as_least_squares_does(column):
    weight, x = gaussian(5, 12), inputs(12, 200)

    def all_but(scores, first):
        mask = torch.ones_like(scores, dtype=torch.bool)
        mask[:, column - first : column - first + 1] = first > column or column >= first + scores.shape[1]
        return mask

    found = surgeon_of(x @ x.T, TINY).sweep(weight, all_but, 12, 12)
    later = torch.linalg.lstsq(x[column + 1 :].T, torch.outer(x[column], torch.ones(1).double())).solution  # (later, 1)
    expected = weight.clone()
    expected[:, column] = 0.0
    expected[:, column + 1 :] += torch.outer(weight[:, column], later[:, 0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("point", [{"kept_ratio": 0.5}, {"pattern": (2, 4)}])
def test_error_on_the_inputs_is_below_that_of_the_same_mask_without_updates_and_of_magnitude(seed, point):
    weight, x = gaussian(10, 16, seed=seed), inputs(16, 300, seed=20 + seed)
    found = prune_linear(weight, x @ x.T, **point)
    masked = weight * (found != 0)
    magnitude = weight * by_magnitude({"w": weight}, 0.5)["w"]

    def error(pruned):
        return float(((weight - pruned) @ x).norm())

    assert error(found) < error(masked)
    assert error(found) < error(magnitude)


def test_keeping_all_changes_nothing():
    weight, x = gaussian(6, 12), inputs(12, 60)
    for point in ({"kept_ratio": 1.0}, {"pattern": (4, 4)}, {}):
        assert torch.equal(prune_linear(weight, x @ x.T, **point), weight)


@pytest.mark.parametrize("point", [{"kept_ratio": 0.5}, {"pattern": (2, 4)}])
def test_dead_inputs_lose_their_columns_first_and_nothing_is_infinite(point):
    weight, x = gaussian(6, 12), inputs(12, 5)  # and fewer tokens than inputs
    x[[2, 7]] = 0.0
    found = prune_linear(weight, x @ x.T, **point)
    assert found.isfinite().all()
    assert torch.equal(found[:, [2, 7]], torch.zeros(6, 2).double())
    assert int((found != 0).sum()) == 36
    assert prune_linear(weight, torch.zeros(12, 12), **point).isfinite().all()


def test_only_the_proportions_of_the_moment_matter():
    weight, x = gaussian(6, 12), inputs(12, 60)
    x[3] = 0.0
    expected = prune_linear(weight, x @ x.T, kept_ratio=0.5)
    for factor in (1e-9, 2.0, 1e9):
        torch.testing.assert_close(prune_linear(weight, factor * x @ x.T, kept_ratio=0.5), expected)


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


def test_the_plugin_prunes_each_block_for_what_the_pruned_ones_before_it_give():
    model = Net()
    roles = {
        name: Role.MLP if "weight" in name and "blocks" in name else Role.OTHER for name, _ in model.named_parameters()
    }
    run = Run(seed=0, steps=1, roles=roles, blocks=("blocks.0", "blocks.1", "blocks.2"), point=Point(kept_ratio=0.5))
    batches = [{"tokens": torch.arange(30).view(5, 6)[i : i + 1]} for i in range(5)]
    result = SparseGPT(block=8, damping=0.05).compress(model, batches, run)
    with torch.no_grad():
        x = model.embedding(torch.arange(30))
        for block, found in zip(model.blocks, result.blocks, strict=True):
            moment = x.T.double() @ x.double()
            expected = prune_linear(block[0].weight, moment, kept_ratio=0.5, damping=0.05, block=8)
            torch.testing.assert_close(found[0].weight, expected.float(), rtol=1e-4, atol=1e-6)
            x = found(x)
    one, other = (SparseGPT().compress(model, data, run) for data in (batches, batches[::-1]))
    for left, right in zip(one.blocks, other.blocks, strict=True):
        torch.testing.assert_close(left[0].weight, right[0].weight)
