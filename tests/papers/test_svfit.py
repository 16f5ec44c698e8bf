"""SVFit: no package has it, so its closed forms: the start, the gradient, and what it can and cannot reach."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.errors import BadValue
from bench.plugins.peft.svfit import SVFitLinear

pytestmark = pytest.mark.paper

SHAPES = [(6, 10), (10, 6), (8, 8)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def layer(shape=(6, 10), rank=None, dtype=torch.float64):
    torch.manual_seed(0)
    return SVFitLinear(nn.Linear(shape[1], shape[0]).to(dtype), rank=rank)


def distance(made, target):
    return 0.5 * (made.weight - target).square().sum()


@every_shape
@pytest.mark.parametrize("rank", [1, 3, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_at_the_start_has_the_bits_of_the_base(shape, rank, dtype):
    made, x = layer(shape, rank, dtype), torch.randn(4, 3, shape[1], dtype=dtype)
    assert torch.equal(made(x), made.base(x))
    assert made.singular_values.dtype == torch.float32


@every_shape
def test_with_all_values_nothing_is_left_of_the_weight(shape):
    made = layer(shape, dtype=torch.float32)
    assert len(made.singular_values) == min(shape)
    rest = made.base.weight - (made.left * made.singular_values) @ made.right.T
    assert float(rest.detach().norm() / made.base.weight.norm()) < 1e-5


@every_shape
@pytest.mark.parametrize("rank", [2, None])
def test_gradient_is_the_diagonal_of_the_weight_s_gradient_in_the_singular_basis(shape, rank):
    made = layer(shape, rank)
    x, y = torch.randn(7, shape[1]).double(), torch.randn(7, shape[0]).double()
    output = made(x)
    (0.5 * (output - y).square().sum()).backward()
    error = (output - y).detach()
    gradient = error.T @ x
    torch.testing.assert_close(made.singular_values.grad, (made.left.T @ gradient @ made.right).diagonal())
    torch.testing.assert_close(made.singular_values.grad, ((x @ made.right) * (error @ made.left)).sum(0))
    full = torch.linalg.svd(made.base.weight.detach(), full_matrices=False)
    in_basis = (full.U.T @ gradient @ full.Vh.T).diagonal()[: rank or min(shape)]
    torch.testing.assert_close(made.singular_values.grad, in_basis)


@every_shape
def test_one_step_of_sgd_with_rate_1_lands_on_the_projection_of_the_target(shape):
    made, target = layer(shape), torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    distance(made, target).backward()
    torch.optim.SGD([made.singular_values], lr=1.0).step()
    expected = (made.left.T @ target @ made.right).diagonal()
    torch.testing.assert_close(made.singular_values.detach(), expected)


def test_other_values_of_the_same_basis_are_reached_exactly():
    made = layer()
    values = torch.tensor([3.0, -1.0, 0.5, 0.0, 2.0, 1.0]).double()
    target = (made.left * values) @ made.right.T
    optimizer = torch.optim.SGD([made.singular_values], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        distance(made, target).backward()
        optimizer.step()
    assert float(distance(made, target).detach()) < 1e-20
    torch.testing.assert_close(made.singular_values.detach(), values)


def test_a_rotated_weight_stays_out_of_reach_by_what_lies_off_the_diagonal():
    made = layer((8, 8))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()).Q
    target = made.base.weight.detach() @ rotation
    optimizer = torch.optim.SGD([made.singular_values], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        distance(made, target).backward()
        optimizer.step()
    core = made.left.T @ target @ made.right
    floor = 0.5 * (core - core.diagonal().diag()).square().sum()
    assert float(floor.detach()) > 0.1
    torch.testing.assert_close(distance(made, target).detach(), floor)


@every_shape
def test_a_change_of_the_values_changes_the_weight_by_its_norm(shape):
    made = layer(shape)
    change = torch.randn(min(shape), generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        made.singular_values.add_(change)
    torch.testing.assert_close((made.weight - made.base.weight).norm(), change.norm())


def test_equal_singular_values_do_no_harm():
    base = nn.Linear(6, 6, bias=False).double()
    nn.init.orthogonal_(base.weight)
    x = torch.randn(4, 6).double()
    made = SVFitLinear(base, rank=3)
    assert torch.equal(made(x), base(x))
    with torch.no_grad():
        made.singular_values.mul_(2.0)
    values = torch.linalg.svdvals(made.weight.detach())
    torch.testing.assert_close(values, torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0, 1.0]).double())


def test_roberta_base_has_18432_values_a_sixteenth_of_lora_at_rank_8():
    layers = [SVFitLinear(nn.Linear(768, 768, device="meta")) for _ in range(24)]
    number = sum(made.singular_values.numel() for made in layers)
    assert number == 18_432 == 294_912 // 16


def test_a_rank_above_the_smaller_side_is_refused():
    with pytest.raises(BadValue, match=r"rank = 7 \(int\) is not allowed for a weight of shape \(6, 10\)"):
        layer(rank=7)
