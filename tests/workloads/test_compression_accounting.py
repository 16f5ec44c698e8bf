"""What a compressed model stores, in values and bytes, for every format that a method may return."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from bench import Point, Role
from bench.errors import SlotFault
from bench.roles import assign_roles
from bench.workloads._compression_accounting import Layout, account
from bench.workloads._llama import Llama, LlamaConfig

ROLES = {
    "embedding.weight": Role.EMBEDDING,
    r"first\.weight": Role.MLP,
    r"second\.weight": Role.MLP,
    r"norm\.weight": Role.NORM,
    r"head\.weight": Role.LM_HEAD,
}
FIRST, SECOND, REST = 12 * 8, 8 * 12, 5 * 8 + 8 + 5 * 8


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.first = nn.Linear(8, 12, bias=False)
        self.second = nn.Linear(12, 8, bias=False)
        self.norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 5, bias=False)


class Factored(nn.Module):
    def __init__(self, rows, columns, rank):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.ones(rows, rank)), nn.Parameter(torch.ones(rank, columns))


class Branch(nn.Module):
    def __init__(self, base, rank):
        super().__init__()
        self.base, self.branch = base, Factored(base.out_features, base.in_features, rank)


class Reports(nn.Linear):
    """Says what it stores; its own tensors are not looked at."""

    def __init__(self, values, size_bytes=None):
        super().__init__(8, 12)
        self.stored_values = lambda: values
        if size_bytes is not None:
            self.stored_bytes = lambda: size_bytes


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def layout(toy):
    return Layout.of(toy, assign_roles((name for name, _ in toy.named_parameters()), ROLES))


def sparse(linear, zeros):
    """A copy of ``linear`` with its first ``zeros`` weights zero."""
    result = copy.deepcopy(linear)
    with torch.no_grad():
        result.weight.fill_(1.0).view(-1)[:zeros] = 0.0
    return result


def patterned(linear, kept, of):
    """A copy of ``linear`` with ``kept`` of each ``of`` consecutive weights of a row."""
    result = copy.deepcopy(linear)
    with torch.no_grad():
        result.weight.fill_(1.0).unflatten(1, (-1, of))[..., kept:] = 0.0
    return result


def test_the_dense_model_keeps_everything_at_two_bytes_a_value(toy, layout):
    found = account(toy, layout)
    assert (found.kept_ratio, found.whole_model_ratio) == (1.0, 1.0)
    assert found.linear_bytes == 2 * (FIRST + SECOND)
    assert found.stored_bytes == 2 * (FIRST + SECOND + REST) == 2 * layout.values


def test_a_factored_layer_stores_rank_times_the_sum_of_its_sides(toy, layout):
    toy.first = Factored(12, 8, rank=3)
    found = account(toy, layout)
    assert found.linears.values == 3 * (12 + 8) + SECOND
    assert found.kept_ratio == (60 + SECOND) / (FIRST + SECOND)
    assert found.whole_model_ratio == (60 + SECOND + REST) / layout.values
    toy.first = nn.Sequential(nn.Linear(8, 3, bias=False), nn.Linear(3, 12))
    assert account(toy, layout).linears.values == 3 * (12 + 8) + 12 + SECOND


def test_a_bias_that_a_method_adds_counts(toy, layout):
    toy.first.bias = nn.Parameter(torch.zeros(12))
    assert account(toy, layout).linears.values == FIRST + 12 + SECOND


def test_unstructured_zeros_cost_a_mask_bit_for_each_weight(toy, layout):
    toy.first = sparse(toy.first, FIRST // 2)
    found = account(toy, layout)
    assert found.linears.values == FIRST // 2 + SECOND
    assert found.linears.bits - 16 * SECOND == 16 * FIRST // 2 + FIRST
    assert (found.linears.bits - 16 * SECOND) / (16 * FIRST) == 9 / 16


def test_a_layer_with_hardly_a_zero_is_never_stored_in_more_bytes_than_a_dense_one(toy, layout):
    toy.first = sparse(toy.first, 1)
    found = account(toy, layout)
    assert found.linears.values == FIRST - 1 + SECOND
    assert found.linear_bytes == 2 * (FIRST + SECOND)


@pytest.mark.parametrize(("pattern", "share"), [((2, 4), 9 / 16), ((1, 4), 9 / 32), ((4, 8), (4 * 19) / (8 * 16))])
def test_a_pattern_costs_the_bits_of_each_position(toy, layout, pattern, share):
    toy.first = patterned(toy.first, *pattern)
    found = account(toy, layout, pattern)
    assert found.linears.values == FIRST * pattern[0] // pattern[1] + SECOND
    assert (found.linears.bits - 16 * SECOND) / (16 * FIRST) == share


def test_a_pattern_that_one_group_breaks_is_unstructured(toy, layout):
    toy.first = patterned(toy.first, 2, 4)
    with torch.no_grad():
        toy.first.weight[5, 3] = 1.0
    found = account(toy, layout, (2, 4))
    assert found.linears.values == FIRST // 2 + 1 + SECOND
    assert found.linears.bits - 16 * SECOND == 16 * (FIRST // 2 + 1) + FIRST


def test_a_pattern_is_counted_along_the_input_axis(toy, layout):
    toy.first.weight = nn.Parameter(torch.ones(12, 8).unflatten(0, (-1, 4)).clone())
    with torch.no_grad():
        toy.first.weight[:, 2:] = 0.0  # two of each four along the output axis: whole rows are empty or full
    toy.first.weight = nn.Parameter(toy.first.weight.flatten(0, 1))
    found = account(toy, layout, (2, 4))
    assert found.linears.bits - 16 * SECOND == 16 * FIRST // 2 + FIRST


def test_a_branch_adds_its_two_factors_to_a_base_that_stays_sparse(toy, layout):
    toy.first = Branch(patterned(toy.first, 1, 4), rank=2)
    found = account(toy, layout, (1, 4))
    assert found.linears.values == FIRST // 4 + 2 * (12 + 8) + SECOND
    assert found.linears.bits == FIRST // 4 * 18 + 16 * 2 * (12 + 8) + 16 * SECOND


def test_a_shared_tensor_counts_once(toy, layout):
    toy.first = Factored(12, 8, rank=2)
    toy.second = Factored(8, 12, rank=2)
    toy.second.right = toy.first.left
    assert account(toy, layout).linears.values == 2 * (12 + 8) + 2 * 8


def test_what_is_put_elsewhere_in_the_tree_counts_too(toy, layout):
    toy.first = Factored(12, 8, rank=3)
    toy.extra = nn.Parameter(torch.zeros(7))
    toy.register_buffer("scales", torch.zeros(4))
    toy.register_buffer("scratch", torch.zeros(100), persistent=False)
    assert account(toy, layout).linears.values == 60 + SECOND + 7 + 4


def test_integers_count_at_their_own_width_and_masks_by_the_bit(toy, layout):
    toy.first = nn.Module()
    toy.first.register_buffer("codes", torch.zeros(12, 8, dtype=torch.int8))
    toy.first.register_buffer("mask", torch.zeros(12, 8, dtype=torch.bool))
    toy.first.register_buffer("scale", torch.zeros(12, dtype=torch.float64))
    found = account(toy, layout)
    assert found.linears.values == FIRST + 12 + SECOND
    assert found.linears.bits == 8 * FIRST + FIRST + 16 * 12 + 16 * SECOND


def test_a_module_that_reports_is_believed_and_not_looked_into(toy, layout):
    toy.first = Reports(30)
    found = account(toy, layout)
    assert (found.linears.values, found.linear_bytes) == (30 + SECOND, 60 + 2 * SECOND)
    toy.first = Reports(30, 21)
    assert account(toy, layout).linear_bytes == 21 + 2 * SECOND


@pytest.mark.parametrize("report", [Reports(1.5), Reports(-1), Reports(3, "many")])
def test_a_report_that_is_no_whole_number_is_a_fault(toy, layout, report):
    toy.first = report
    with pytest.raises(SlotFault, match="Reports at 'first' says that it stores"):
        account(toy, layout)


def test_pruning_by_torch_s_own_tools_counts_the_weight_that_is_used(toy, layout):
    from torch.nn.utils import prune

    prune.l1_unstructured(toy.first, "weight", amount=FIRST // 2)
    found = account(toy, layout)
    assert found.linears.values == FIRST // 2 + SECOND
    assert found.linears.bits - 16 * SECOND == 16 * FIRST // 2 + FIRST
    prune.remove(toy.first, "weight")
    assert account(toy, layout).linears == found.linears


def test_zeros_in_the_head_and_a_smaller_head_gain_nothing(toy, layout):
    dense = account(toy, layout)
    with torch.no_grad():
        toy.head.weight.zero_()
    assert account(toy, layout) == dense
    toy.head = Factored(5, 8, rank=1)
    assert account(toy, layout).kept_ratio > 1.0


def test_a_block_that_is_left_out_stores_nothing(toy, layout):
    toy.second = nn.Identity()
    assert account(toy, layout).linears.values == FIRST


def test_a_saved_and_loaded_model_has_the_same_account(toy, layout):
    toy.first = Branch(patterned(toy.first, 2, 4), rank=2)
    file = io.BytesIO()
    torch.save(toy, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert account(loaded, layout, (2, 4)) == account(toy, layout, (2, 4))


@pytest.mark.parametrize(
    ("point", "allowed"),
    [
        (Point(kept_ratio=0.5), 0.5 * 192 + 2),
        (Point(pattern=(1, 4)), 48 + 2),
        (Point(pattern=(1, 4), rank=2), 48 + 2 * 40 + 2),
        (Point(count=3), None),
    ],
)
def test_a_point_allows_what_its_formula_says_and_rounding(layout, point, allowed):
    assert layout.allowed_values(point) == allowed


def test_more_than_the_point_allows_is_a_fault(toy, layout):
    toy.first, toy.second = Factored(12, 8, 2), Factored(8, 12, 2)
    account(toy, layout).check(Point(kept_ratio=0.42))
    with pytest.raises(SlotFault, match=r"store 80 values, 0\.4167 of the dense ones; at the point \(kept ratio"):
        account(toy, layout).check(Point(kept_ratio=0.4))


def test_the_page_s_numbers_for_60m_and_for_eora_s_branch():
    from bench.workloads.compress_llama import CompressLlama
    from bench.workloads.llama_c4 import TIERS

    with torch.device("meta"):
        model = Llama(TIERS["60m"].config)
    layout = Layout.of(model, assign_roles((name for name, _ in model.named_parameters()), CompressLlama.roles))
    kept = sum(int(0.6 * m * n / (m + n)) * (m + n) for m, n in layout.linears.values())
    assert (kept + sum(layout.rest.values())) / layout.values == pytest.approx(0.825, abs=1e-3)
    branch = layout.allowed_values(Point(pattern=(2, 4), rank=128)) - layout.allowed_values(Point(pattern=(2, 4)))
    assert branch / layout.linear_values == pytest.approx(0.40, abs=0.02)


def test_the_tiny_decoder_has_the_page_s_number_of_parameters():
    from bench.workloads.compress_llama import CompressLlama

    assert CompressLlama("tiny").layout.values == 130_368
    assert CompressLlama("845k").layout.values == 844_928
    assert LlamaConfig(vocabulary_size=256, hidden=64, ffn=168, layers=2, heads=2).head_size == 32
