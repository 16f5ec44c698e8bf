"""Bone, the block-affine form: parity with peft's "bat", and the properties that the card lists."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.errors import BadValue
from bench.plugins.peft._adapter import merge_adapters
from bench.plugins.peft.bone import BoneLinear, block_affine, block_affine_inverse

pytestmark = pytest.mark.paper


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(weight, blocks):
    """Return dW block by block, as the card writes it."""
    rows, rank, _ = blocks.shape
    delta = torch.zeros_like(weight)
    for j in range(rows):
        for i in range(weight.shape[1] // rank):
            place = slice(j * rank, (j + 1) * rank), slice(i * rank, (i + 1) * rank)
            delta[place] = weight[place] @ blocks[j] + blocks[j]
    return delta


@pytest.mark.parametrize("shapes", [((12, 8), (8, 12)), ((16, 8), (8, 24))])
def test_twenty_steps_are_those_of_peft(shapes, package, beside_peft):
    peft = package("peft", "peft")
    config = peft.MissConfig(r=4, init_weights="bat", miss_dropout=0.0, target_modules=["0", "2"])
    pairs = {"blocks_affine": lambda peer: peer.miss_block["default"]}
    ours, theirs, distance = beside_peft(config, lambda base: BoneLinear(base, rank=4), pairs, shapes)
    assert distance < 1e-10
    for i in (0, 2):
        wanted = theirs[i].get_delta_weight("default", theirs[i].get_base_layer().weight)
        assert torch.allclose(ours[i].delta(), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(6, 12, 3), (12, 6, 2), (4, 4, 4), (5, 3, 1)])
def test_every_block_is_multiplied_from_the_right_by_the_matrix_of_its_row_which_is_added(rows, columns, rank):
    weight, blocks = drawn(rows, columns), drawn(rows // rank, rank, rank, seed=1)
    torch.testing.assert_close(block_affine(weight, blocks), by_loops(weight, blocks))


def test_multiplying_from_the_left_would_be_another_method():
    weight, blocks = drawn(4, 8), drawn(2, 2, 2, seed=1)
    left = torch.cat([blocks[j] @ weight[2 * j : 2 * j + 2] + blocks[j].repeat(1, 4) for j in range(2)])
    assert not torch.allclose(block_affine(weight, blocks), left, atol=0.1)


def test_without_a_weight_the_update_is_the_tiled_blocks():
    blocks = drawn(3, 2, 2)
    expected = torch.cat([block.repeat(1, 5) for block in blocks])
    assert torch.equal(block_affine(torch.zeros(6, 10, dtype=torch.float64), blocks), expected)


def test_one_block_gives_w_plus_w_b_plus_b():
    weight, block = drawn(5, 5), drawn(1, 5, 5, seed=1)
    torch.testing.assert_close(weight + block_affine(weight, block), weight + weight @ block[0] + block[0])


def test_gradient_of_a_block_sums_over_its_row():
    layer, x, y = BoneLinear(nn.Linear(12, 6).double(), rank=3), drawn(7, 12), drawn(7, 6, seed=1)
    with torch.no_grad():
        layer.blocks_affine.copy_(drawn(2, 3, 3, seed=2))
    output = layer(x)
    (0.5 * (output - y).square().sum()).backward()
    gradient = (output - y).detach().T @ x
    for j in range(2):
        blocks = [
            [matrix[3 * j : 3 * j + 3, 3 * i : 3 * i + 3] for matrix in (layer.base.weight.detach(), gradient)]
            for i in range(4)
        ]
        torch.testing.assert_close(layer.blocks_affine.grad[j], sum(w.T @ g + g for w, g in blocks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_can_be_undone_while_the_blocks_are_small(dtype):
    blocks = drawn(4, 3, 3, seed=1)
    blocks = (0.49 * blocks / torch.linalg.matrix_norm(blocks, ord=2)[:, None, None]).to(dtype)
    layer = BoneLinear(nn.Linear(9, 12).to(dtype), rank=3)
    with torch.no_grad():
        layer.blocks_affine.copy_(blocks)
    weight = layer.base.weight.detach().clone()
    merged = merge_adapters(nn.Sequential(layer))[0].weight
    assert not torch.allclose(merged, weight, atol=1e-2)
    torch.testing.assert_close(block_affine_inverse(merged, blocks), weight, rtol=0, atol=1e-5)


def test_blocks_that_are_minus_the_identity_cannot_be_undone():
    blocks = -torch.eye(3).expand(2, 3, 3)
    with pytest.raises(torch.linalg.LinAlgError):
        block_affine_inverse(torch.zeros(6, 9), blocks)


@pytest.mark.parametrize("rank", [5, 6, 4])
def test_a_size_that_does_not_divide_both_sides_is_refused(rank):
    with pytest.raises(BadValue, match=rf"rank = {rank} \(int\) does not divide a weight of shape \(8, 18\)"):
        BoneLinear(nn.Linear(18, 8), rank=rank)


def test_it_has_r_times_m_parameters_those_of_lora_at_half_the_rank_on_square_weights():
    layer = BoneLinear(nn.Linear(768, 768, device="meta"), rank=16)
    assert layer.blocks_affine.numel() == 16 * 768 == 8 * (768 + 768)
    assert BoneLinear(nn.Linear(64, 256), rank=8).blocks_affine.numel() == 8 * 256


def test_small_updates_of_a_bfloat16_weight_are_formed_in_fp32():
    layer = BoneLinear(nn.Linear(8, 8).to(torch.bfloat16), rank=4)
    with torch.no_grad():
        layer.blocks_affine.fill_(1e-4)
    exact = layer.base.weight.double() + block_affine(layer.base.weight.double(), layer.blocks_affine.double())
    assert layer.delta().dtype == torch.float32
    assert torch.equal(layer.weight.double(), exact.to(torch.bfloat16).double())
