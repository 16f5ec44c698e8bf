"""The control of EoRA: the truncated SVD of the residual. No package adds such a branch to any compressed model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Point, Role, Run
from bench.plugins.compression.magnitude_pruning import MagnitudePruning
from bench.plugins.compression.svd_compensation import SVDCompensation

pytestmark = pytest.mark.paper


def model_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16), nn.Linear(16, 5))
    roles = {name: Role.BIAS if name.endswith("bias") else Role.MLP for name, _ in model.named_parameters()}
    return model, roles | {"3.weight": Role.LM_HEAD}


@torch.no_grad()
def repaired(rank):
    model, roles = model_of()
    run = Run(seed=0, steps=1, roles=roles, point=Point(pattern=(1, 4)))
    base = MagnitudePruning().compress(model, [], run)
    run = Run(seed=0, steps=1, roles=roles, point=Point(rank=rank))
    return model, base, SVDCompensation().compensate(model, base, [], run)


@pytest.mark.parametrize("rank", [1, 4, 15])
@torch.no_grad()
def test_what_is_left_is_what_the_discarded_singular_values_say(rank):
    model, base, result = repaired(rank)
    for place in (0, 2):
        lost = (model[place].weight - base[place].weight).double()
        left = (model[place].weight - result[place].dense()).double()
        least = torch.linalg.svdvals(lost)[rank:].square().sum()
        assert float(left.square().sum()) == pytest.approx(float(least), rel=1e-4)
        u, sigma, vt = torch.linalg.svd(lost, full_matrices=False)
        branch = (result[place].left @ result[place].right).double()
        torch.testing.assert_close(branch, (u[:, :rank] * sigma[:rank]) @ vt[:rank], rtol=0, atol=1e-6)
        assert torch.equal(result[place].base.weight, base[place].weight)
        assert torch.equal(result[place].base.bias, model[place].bias)


def test_full_rank_restores_the_model_and_the_head_is_not_touched():
    model, _, result = repaired(16)
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(result(x), model(x), rtol=0, atol=1e-5)
    assert type(result[3]) is nn.Linear
