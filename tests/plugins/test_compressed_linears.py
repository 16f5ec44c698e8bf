"""Modules in place of a linear: factored, with a branch, masked; how small they must be; and copies that hold them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench import Point, Role, Run
from bench.errors import BadValue
from bench.plugins.compression._branch import BranchLinear, residual, with_branch
from bench.plugins.compression._linears import (
    asked_rank,
    asked_ratio,
    dense_weight,
    hidden_linears,
    kept_count,
    rank_for,
    with_replaced,
    with_weight,
)
from bench.plugins.compression._low_rank import Factors, LowRankLinear, factored, truncated_svd
from bench.plugins.compression._masks import largest, largest_per_group, largest_per_row

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(rows=6, columns=9, *, bias=True, dtype=torch.float32):
    result = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    with torch.no_grad():
        result.weight.copy_(gaussian(rows, columns))
        if bias:
            result.bias.copy_(gaussian(rows, seed=1))
    return result


def factors(rank, rows=6, columns=9):
    return Factors(gaussian(rows, rank, seed=2).double(), gaussian(rank, columns, seed=3).double())


def values(module):
    return sum(parameter.numel() for parameter in module.parameters()) + sum(b.numel() for b in module.buffers())


def sent(module):
    """Return ``module`` saved whole and loaded."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# -- factored --------------------------------------------------------------------------------------------------------
@both_dtypes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_factored_linear_multiplies_by_its_product_and_stores_two_factors_and_the_bias(dtype, bias, rank):
    before = linear(bias=bias, dtype=dtype)
    module = LowRankLinear.of(before, factors(rank))
    x = gaussian(2, 4, 9).to(dtype)
    expected = nn.functional.linear(x, module.dense(), before.bias)
    near = 1e-6 if dtype == torch.float32 else 1e-2  # in bf16 the two orders of multiplying round apart
    assert (module(x) - expected).norm() <= near * expected.norm()
    torch.testing.assert_close(module.dense(), factors(rank).product().to(dtype), rtol=0.02, atol=0.05)
    assert module(x).dtype == module.dense().dtype == dtype
    assert values(module) == rank * (6 + 9) + 6 * bias
    assert dense_weight(module).shape == (6, 9)


def test_a_factored_linear_is_saved_whole_and_as_a_state():
    module = LowRankLinear.of(linear(), factors(2))
    x = gaussian(5, 9)
    assert torch.equal(sent(module)(x), module(x))
    empty = LowRankLinear(9, 6, 2, bias=True)
    empty.load_state_dict(sent(module.state_dict()))
    assert torch.equal(empty(x), module(x))
    assert "in=9, out=6, rank=2" in repr(module)


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (9, 6), (6, 6)])
def test_full_rank_is_stored_unfactored_with_the_same_bits(rows, columns):
    before = linear(rows, columns)
    module = factored(before, factors(6, rows, columns))
    assert type(module) is nn.Linear
    assert torch.equal(module.weight, before.weight)
    assert module.weight.data_ptr() != before.weight.data_ptr()
    assert (module.in_features, module.out_features) == (columns, rows)
    assert type(factored(before, factors(5, rows, columns))) is LowRankLinear


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
def test_a_truncated_svd_has_the_least_error_of_its_rank(rows, columns, rank):
    matrix = gaussian(rows, columns).double()
    found = truncated_svd(matrix, rank)
    sigma = torch.linalg.svdvals(matrix)
    assert float((matrix - found.product()).square().sum()) == pytest.approx(
        float(sigma[rank:].square().sum()), abs=1e-12
    )
    assert found.left.shape[1] == min(rank, rows, columns)
    assert torch.allclose(found.left.square().sum(0), found.right.square().sum(1)), "the factors are balanced"


# -- branch ----------------------------------------------------------------------------------------------------------
@both_dtypes
def test_a_branch_adds_its_product_and_leaves_the_base_as_it_was(dtype):
    base = linear(dtype=dtype)
    module = with_branch(base, factors(3))
    x = gaussian(2, 9).to(dtype)
    torch.testing.assert_close(module(x), base(x) + x @ module.right.T @ module.left.T)
    torch.testing.assert_close(module.dense(), base.weight + module.left @ module.right)
    assert isinstance(module, BranchLinear)
    assert values(module) == values(base) + 3 * 15
    assert torch.equal(module.base.weight, base.weight)
    assert module.base.weight.data_ptr() != base.weight.data_ptr()
    assert torch.equal(sent(module)(x), module(x))


def test_a_branch_of_rank_zero_is_the_base_exactly():
    base = linear()
    module = with_branch(base, factors(0))
    assert type(module) is nn.Linear
    assert torch.equal(module(gaussian(3, 9)), base(gaussian(3, 9)))


def test_a_branch_goes_beside_any_module_that_knows_its_matrix():
    base = LowRankLinear.of(linear(), factors(2))
    module = with_branch(base, factors(1))
    torch.testing.assert_close(module.dense(), base.dense() + factors(1).product().float())
    torch.testing.assert_close(residual(linear(), base), linear().weight.double() - base.dense().double())
    assert not residual(linear(), base).requires_grad


def test_a_module_that_does_not_know_its_matrix_is_refused():
    with pytest.raises(BadValue, match="Conv1d does not say which matrix"):
        dense_weight(nn.Conv1d(2, 2, 1))


# -- masks -----------------------------------------------------------------------------------------------------------
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 40), st.booleans())
def test_masks_keep_exactly_what_was_asked_and_nothing_that_is_smaller(rows, columns, count, ties):
    scores = gaussian(rows, columns).abs()
    scores = scores.round() if ties else scores
    count = min(count, scores.numel())
    mask = largest(scores, count)
    assert int(mask.sum()) == count
    if 0 < count < scores.numel():
        assert scores[mask].min() >= scores[~mask].max()
    per_row = min(count, columns)
    for row, kept in zip(scores, largest_per_row(scores, per_row), strict=True):
        assert int(kept.sum()) == per_row
        assert per_row in {0, columns} or row[kept].min() >= row[~kept].max()


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (4, 4)])
def test_groups_run_along_the_input_axis(pattern):
    scores = gaussian(3, 16).abs()
    mask = largest_per_group(scores, pattern)
    kept, group = pattern
    for i in range(3):
        for start in range(0, 16, group):
            best = sorted(range(start, start + group), key=lambda j, i=i: -float(scores[i, j]))[:kept]
            assert [j for j in range(start, start + group) if mask[i, j]] == sorted(best)


def test_ties_are_broken_by_position_and_groups_must_divide_the_inputs():
    assert largest(torch.ones(2, 3), 4).tolist() == [[True, True, True], [True, False, False]]
    assert largest_per_group(torch.ones(1, 4), (2, 4)).tolist() == [[True, True, False, False]]
    with pytest.raises(BadValue, match="10 inputs cannot be cut into groups of 4"):
        largest_per_group(torch.ones(2, 10), (2, 4))


# -- how small -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((512, 512), (230, 204, 153, 128, 102)),
        ((512, 1376), (335, 298, 223, 186, 149)),
        ((768, 768), (345, 307, 230, 192, 153)),
        ((2048, 768), (502, 446, 335, 279, 223)),
    ],
)
def test_ranks_of_kept_ratios_are_those_of_the_published_grid(shape, ranks):
    assert tuple(rank_for(ratio, *shape) for ratio in (0.9, 0.8, 0.6, 0.5, 0.4)) == ranks


@given(st.floats(0.01, 1.0), st.integers(1, 400), st.integers(1, 400))
def test_a_rank_is_the_largest_whose_factors_fit(ratio, rows, columns):
    rank = rank_for(ratio, rows, columns)
    if ratio == 1.0:
        assert rank == min(rows, columns)
        return
    budget = ratio * rows * columns
    assert rank * (rows + columns) <= budget + 1e-6
    assert (rank + 1) * (rows + columns) > budget
    assert rank < min(rows, columns)


def test_counts_are_not_spoilt_by_the_rounding_of_a_ratio():
    assert kept_count(0.7, 30) == 21  # 0.7 * 30 is 20.999999999999996
    assert kept_count(0.5, 7) == 3
    assert (kept_count(1.0, 7), kept_count(0.1, 7)) == (7, 0)


@pytest.mark.parametrize(
    ("asked", "said"), [(asked_ratio, "has no kept ratio"), (asked_rank, "has no rank of a branch")]
)
def test_a_point_that_does_not_say_what_is_needed_is_refused(asked, said):
    for point in (None, Point(pattern=(2, 4))):
        with pytest.raises(BadValue, match=said):
            asked(Run(seed=0, steps=1, point=point))


# -- copies ----------------------------------------------------------------------------------------------------------
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = linear(4, 4), linear(4, 4)
        self.alias = self.one

    def forward(self, x):
        return self.alias(self.other(self.one(x)))


def test_a_copy_holds_the_replacement_wherever_the_module_stood_and_the_model_stays():
    model = Tied().eval()
    before = copy.deepcopy(model.state_dict())
    new = with_weight(model.one, 2 * model.one.weight.detach())
    result = with_replaced(model, {model.one: new})
    x = gaussian(3, 4)
    torch.testing.assert_close(result(x), new(model.other(new(x))))
    assert result.one is result.alias is new
    assert not new.training, "it takes over the mode"
    assert result.other.weight.data_ptr() != model.other.weight.data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.one is model.alias is not new


def test_a_linear_alone_is_a_model_too():
    model = linear()
    (found,) = hidden_linears(model, {"weight": Role.MLP, "bias": Role.BIAS}).values()
    assert found is model
    assert with_replaced(model, {model: (new := linear())}) is new


def test_only_linears_with_the_role_of_a_hidden_matrix_are_found():
    model = nn.Sequential(linear(), nn.Conv1d(6, 6, 1), linear(3, 6))
    roles = {"0.weight": Role.MLP, "1.weight": Role.CONV, "2.weight": Role.CLASSIFIER}
    assert list(hidden_linears(model, roles)) == ["0"]
    with pytest.raises(BadValue, match="nothing to compress"):
        hidden_linears(model, {"2.weight": Role.CLASSIFIER})


@both_dtypes
def test_a_linear_with_another_weight_has_its_own_dtype_and_a_bias_of_its_own(dtype):
    before = linear(dtype=dtype)
    after = with_weight(before, torch.zeros(6, 9, dtype=torch.float64))
    assert after.weight.dtype == after.bias.dtype == dtype
    assert torch.equal(after.bias, before.bias)
    assert after.bias.data_ptr() != before.bias.data_ptr()
    assert after(gaussian(2, 9).to(dtype)).shape == (2, 6)
