"""MiSS: parity with peft, and the properties that the card lists."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.errors import BadValue
from bench.plugins.peft.miss import MissLinear

pytestmark = pytest.mark.paper


def layer(rows=6, columns=12, rank=3):
    torch.manual_seed(0)
    made = MissLinear(nn.Linear(columns, rows).double(), rank=rank)
    with torch.no_grad():
        made.shard.normal_(generator=torch.Generator().manual_seed(1))
    return made


@pytest.mark.parametrize("shapes", [((12, 8), (8, 12)), ((10, 7), (7, 10)), ((4, 4), (4, 4))])
def test_twenty_steps_are_those_of_peft_whether_or_not_the_rank_divides_the_inputs(shapes, package, beside_peft):
    peft = package("peft", "peft")
    config = peft.MissConfig(r=4, init_weights=True, miss_dropout=0.0, target_modules=["0", "2"])
    pairs = {"shard": lambda peer: peer.miss_block["default"]}
    ours, theirs, distance = beside_peft(config, lambda base: MissLinear(base, rank=4), pairs, shapes)
    assert distance < 1e-10
    for i in (0, 2):
        weight = ours[i].weight.detach()
        wanted = theirs[i].get_delta_weight_miss("default", theirs[i].get_base_layer().weight.detach().clone())
        assert torch.allclose(weight, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("columns", "rank"), [(12, 3), (13, 3), (5, 5), (7, 6)])
def test_the_update_is_the_shard_transposed_and_tiled(columns, rank):
    made, x = layer(columns=columns, rank=rank), torch.randn(4, 2, columns).double()
    delta = made.delta().detach()
    for column in range(columns):
        assert torch.equal(delta[:, column], made.shard[column % rank])
    torch.testing.assert_close(made(x) - made.base(x), x @ delta.T)


def test_rank_of_the_update_is_that_of_the_shard():
    assert int(torch.linalg.matrix_rank(layer(20, 24, rank=4).delta())) == 4


def test_groups_of_inputs_may_be_exchanged_but_not_inputs_of_different_places():
    made, x = layer(rank=3), torch.randn(5, 12).double()
    update = lambda given: made(given) - made.base(given)  # noqa: E731
    exchanged = x.unflatten(-1, (4, 3))[:, [2, 0, 3, 1]].flatten(-2)
    torch.testing.assert_close(update(exchanged), update(x))
    assert not torch.allclose(update(x[:, torch.randperm(12, generator=torch.Generator().manual_seed(0))]), update(x))


@pytest.mark.parametrize("columns", [12, 13])
def test_gradient_is_the_folded_input_times_that_of_the_output(columns):
    made, x, y = layer(columns=columns), torch.randn(7, columns).double(), torch.randn(7, 6).double()
    output = made(x)
    (0.5 * (output - y).square().sum()).backward()
    folded = torch.stack([x[:, place::3].sum(1) for place in range(3)], dim=1)
    torch.testing.assert_close(made.shard.grad, folded.T @ (output - y).detach())


def test_it_has_r_times_m_parameters():
    assert layer(rows=20, columns=24, rank=4).shard.numel() == 4 * 20


def test_a_rank_above_the_inputs_is_refused():
    with pytest.raises(BadValue, match=r"rank = 13 \(int\) is not allowed for a weight of shape \(6, 12\)"):
        layer(rank=13)
