"""Wanda: score and comparison group against loops, and the limits in which it is magnitude pruning. No package here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Point, Role, Run
from bench.plugins.compression.magnitude_pruning import kept as by_magnitude
from bench.plugins.compression.wanda import Wanda, kept

pytestmark = pytest.mark.paper


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.3])
def test_in_each_row_the_largest_products_of_weight_and_input_norm_stay(ratio):
    weight, norms = gaussian(6, 10), gaussian(10, seed=1).abs()
    mask = kept(weight, norms, kept_ratio=ratio)
    for i in range(6):
        best = sorted(range(10), key=lambda j, i=i: -abs(float(weight[i, j])) * float(norms[j]))[: int(ratio * 10)]
        assert [j for j in range(10) if mask[i, j]] == sorted(best)


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 4)])
def test_in_each_group_along_the_inputs_the_best_stay(pattern):
    weight, norms = gaussian(5, 16), gaussian(16, seed=1).abs()
    mask = kept(weight, norms, pattern=pattern)
    for i in range(5):
        for start in range(0, 16, pattern[1]):
            places = range(start, start + pattern[1])
            best = sorted(places, key=lambda j, i=i: -abs(float(weight[i, j])) * float(norms[j]))[: pattern[0]]
            assert [j for j in places if mask[i, j]] == sorted(best)


def test_equal_norms_give_magnitude_row_by_row_which_is_not_magnitude_of_the_matrix():
    weight = gaussian(6, 10) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[:, None]
    mask = kept(weight, torch.full((10,), 3.0), kept_ratio=0.5)
    rows = [by_magnitude({"row": row}, 0.5)["row"] for row in weight.split(1)]
    assert torch.equal(mask, torch.cat(rows))
    assert not torch.equal(mask, by_magnitude({"all": weight}, 0.5)["all"])


def test_the_plugin_takes_the_norms_of_what_each_linear_reads_and_changes_no_weight_that_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
    run = Run(
        seed=0,
        steps=1,
        roles={"0.weight": Role.EMBEDDING, "1.weight": Role.MLP, "3.weight": Role.MLP},
        point=Point(kept_ratio=0.5),
    )
    tokens = torch.arange(20).view(4, 5)
    result = Wanda(propagation="parallel").compress(model, [{"tokens": part} for part in tokens.split(2)], run)
    with torch.no_grad():
        x = model[0](tokens).flatten(0, 1)
        for place in (1, 3):
            weight = model[place].weight
            mask = kept(weight, x.norm(dim=0), kept_ratio=0.5)
            assert torch.equal(result[place].weight, weight * mask)
            x = torch.tanh(model[place](x))
