"""OPCM: the sequential rule against a naive one with full bases, and the properties that the card lists.

No package of the parity environment has it: FusionBench, which does, is a framework with a model pool and a
configuration system around it. Instead its rule is written out below with complete singular bases, in fp64.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench import Experts, Role, Run
from bench.errors import BadValue
from bench.plugins.merging.opcm import Opcm, SequentialMerger, dominant, linear_weights, opcm, orthogonal_part

pytestmark = pytest.mark.paper

SHAPES = [(9, 9), (12, 5), (5, 12)]


class Net(nn.Module):
    """Linear layers of three shapes, and weights that are no linear layer's."""

    def __init__(self, seed=0, scale=1.0):
        torch.manual_seed(seed)
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(columns, rows) for rows, columns in SHAPES)
        self.embedding = nn.Embedding(6, 5)
        self.bare = nn.Parameter(torch.randn(4, 4))
        self.norm = nn.LayerNorm(5)
        nn.init.normal_(self.norm.weight)
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            for value in self.parameters():
                value.mul_(scale)


HEADS = ["head.weight", "head.bias"]
START = Net()


def expert(seed, scale=0.1):
    """Return the start plus a small change of its own."""
    model, change = copy.deepcopy(START), Net(seed + 100, scale)
    with torch.no_grad():
        for value, step in zip(model.parameters(), change.parameters(), strict=True):
            value.add_(step)
    return model


MODELS = [expert(seed) for seed in range(5)]


def body(model):
    return {name: value.detach().double() for name, value in model.named_parameters() if name not in HEADS}


def length(vector):
    return float(torch.cat([value.flatten().double() for value in vector.values()]).norm())


def drawn(rows, columns, seed=0, dtype=torch.float64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def full_basis_part(change, merged, alpha):
    """Return the part to add, by complete bases and masks, one coefficient at a time."""
    left, values, right = torch.linalg.svd(merged, full_matrices=True)
    coefficients = left.T @ change @ right.T
    shares = values.cumsum(0) / values.sum()
    above = [position for position, share in enumerate(shares.tolist()) if share > alpha]
    r = above[0] if above and alpha < 1 else 0
    for row in range(coefficients.shape[0]):
        for column in range(coefficients.shape[1]):
            if row == column or (row < r and column < r):
                coefficients[row, column] = 0.0
    return left @ coefficients @ right


def naive(start, models, alpha):
    """Return the merged weights, λ and the mean norm after each arrival, in fp64."""
    start, matrices = body(start), {f"linears.{number}.weight" for number in range(len(SHAPES))}
    lengths, merged, scale = [], {}, 1.0
    for number, model in enumerate(models):
        change = {name: value - start[name] for name, value in body(model).items()}
        lengths.append(length(change))
        if number == 0:
            merged = change
            continue
        for name, value in merged.items():
            part = full_basis_part(change[name], value, alpha) if name in matrices else change[name]
            merged[name] = scale * value + part
        mean = sum(lengths) / len(lengths)
        scale = length(merged) / mean
        merged = {name: value / scale for name, value in merged.items()}
    return {name: value + merged[name] for name, value in start.items()}, scale, sum(lengths) / len(lengths)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_weights_scale_and_mean_norm_are_those_of_the_naive_rule(alpha):
    merger = SequentialMerger(START, alpha=alpha, heads=HEADS)
    for model in MODELS:
        merger.add(model)
    expected, scale, mean = naive(START, MODELS, alpha)
    assert merger.scale == pytest.approx(scale, rel=1e-5)
    assert merger.mean_norm == pytest.approx(mean, rel=1e-6)
    for name, value in merger.weights().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=1e-5)


def test_one_model_is_returned_to_the_bit():
    merged = opcm(START, MODELS[:1], heads=HEADS)
    assert all(torch.equal(*pair) for pair in zip(merged.parameters(), MODELS[0].parameters(), strict=True))


def test_after_every_arrival_the_merged_vector_has_the_mean_length():
    merger, lengths = SequentialMerger(START), []
    for seed in range(6):
        model = expert(seed, scale=0.02 * (seed + 1))
        merger.add(model)
        start = dict(START.named_parameters())
        lengths.append(length({name: (value - start[name]).detach() for name, value in model.named_parameters()}))
        assert length(merger.vector) == pytest.approx(sum(lengths) / len(lengths), rel=1e-6)
        assert merger.mean_norm == pytest.approx(sum(lengths) / len(lengths), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_what_is_added_is_orthogonal_to_what_is_there(rows, columns, alpha):
    change, merged = drawn(rows, columns, 1), drawn(rows, columns, 2)
    part = orthogonal_part(change, merged, alpha)
    assert abs(float((part * merged).sum())) <= 1e-12 * float(part.norm() * merged.norm())
    assert float(part.norm()) > 0.3 * float(change.norm())


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_thin_and_full_bases_agree(rows, columns, alpha):
    change, merged = drawn(rows, columns, 3), drawn(rows, columns, 4)
    torch.testing.assert_close(
        orthogonal_part(change.float(), merged.float(), alpha).double(),
        full_basis_part(change, merged, alpha),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_both_ends_of_alpha_only_the_diagonal_is_removed(alpha):
    change, merged = drawn(7, 5, 5), drawn(7, 5, 6)
    left, _, right = torch.linalg.svd(merged, full_matrices=False)
    before = left.T @ change @ right.T
    after = left.T @ orthogonal_part(change, merged, alpha) @ right.T
    torch.testing.assert_close(after, before - before.diagonal().diag_embed(), rtol=0, atol=1e-12)


def test_r_is_a_position_not_a_count():
    values = torch.tensor([5.0, 3.0, 1.0, 1.0])  # shares .5, .8, .9, 1
    assert [dominant(values, alpha) for alpha in (0.0, 0.49, 0.5, 0.79, 0.85, 0.95, 1.0)] == [0, 0, 1, 1, 2, 3, 0]


def test_of_the_same_matrix_again_nothing_is_left():
    matrix = drawn(8, 6, 7)
    assert float(orthogonal_part(2.0 * matrix, matrix, 0.5).abs().max()) <= 1e-12


def test_the_same_model_twice_leaves_the_direction_of_its_linear_layers():
    merger = SequentialMerger(START)
    merger.add(MODELS[0])
    first = {name: value.clone() for name, value in merger.vector.items()}
    merger.add(MODELS[0])
    for name in merger.matrices:
        cosine = torch.cosine_similarity(merger.vector[name].flatten(), first[name].flatten(), dim=0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-6)


def test_disjoint_row_and_column_spaces_are_added_up():
    # Linear layers alone, each task in its own corner: nothing is in the way of anything.
    start = nn.Sequential(nn.Linear(40, 40, bias=False))
    models = [copy.deepcopy(start) for _ in range(4)]
    for number, model in enumerate(models):
        corner = slice(10 * number, 10 * number + 10)
        change = drawn(10, 10, number, torch.float32)
        model[0].weight.data[corner, corner] += change / change.norm()
    merger = SequentialMerger(start)
    for model in models:
        merger.add(model)
    assert merger.scale == pytest.approx(4**0.5, rel=1e-3)
    total = sum((model[0].weight - start[0].weight).detach() for model in models)
    torch.testing.assert_close(merger.vector["0.weight"], total / merger.scale, rtol=0, atol=1e-3)


def test_a_null_space_keeps_its_diagonal():
    merged = torch.zeros(6, 6, dtype=torch.float64)
    merged[0, 0] = 1.0
    change = torch.eye(6, dtype=torch.float64)
    expected = torch.eye(6, dtype=torch.float64)
    expected[0, 0] = 0.0
    torch.testing.assert_close(orthogonal_part(change, merged, 0.5), expected, rtol=0, atol=1e-12)


def test_layers_that_did_not_change_and_models_that_never_left_are_no_division_by_zero():
    merged = opcm(START, [START, START, START])
    assert all(torch.equal(*pair) for pair in zip(merged.parameters(), START.parameters(), strict=True))
    frozen = [copy.deepcopy(START) for _ in range(3)]
    for number, model in enumerate(frozen):
        model.linears[0].weight.data.add_(drawn(9, 9, number, torch.float32))
    merged = opcm(START, frozen)
    assert all(bool(value.isfinite().all()) for value in merged.parameters())
    assert torch.equal(merged.bare, START.bare)


def test_only_the_weights_of_linear_layers_are_projected():
    assert linear_weights(START) == {*(f"linears.{number}.weight" for number in range(3)), "head.weight"}
    merger = SequentialMerger(START, heads=HEADS)
    merger.add(MODELS[0])
    before = {name: value.clone() for name, value in merger.vector.items()}
    scale = merger.scale
    merger.add(MODELS[1])
    for name in before.keys() - merger.matrices:
        change = (MODELS[1].get_parameter(name) - START.get_parameter(name)).detach()
        torch.testing.assert_close(merger.vector[name] * merger.scale, scale * before[name] + change, rtol=0, atol=1e-6)


def test_the_scale_grows_like_the_root_of_the_number_of_models_and_early_ones_do_not_fade():
    # A sum that forgets λ shrinks what is there at every arrival: the first of eight would keep 1/11 of the last.
    start = nn.Linear(48, 48, bias=False)
    changes = [drawn(48, 48, seed, torch.float32) for seed in range(8)]
    merger = SequentialMerger(start)
    for change in changes:
        model = copy.deepcopy(start)
        model.weight.data.add_(change)
        merger.add(model)
    assert merger.scale == pytest.approx(8**0.5, rel=0.1)
    shares = [float((change * merger.vector["weight"]).sum() / change.square().sum()) for change in changes]
    assert max(shares) < 1.6 * min(shares)


def test_what_is_kept_does_not_grow_with_the_models():
    def kept(merger):
        tensors = [*merger.start.values(), *merger.vector.values()]
        return sum(tensor.numel() for tensor in tensors), len(vars(merger))

    merger, sizes = SequentialMerger(START), set()
    for model in MODELS:
        merger.add(model)
        sizes.add(kept(merger))
    assert len(sizes) == 1


def test_the_plugin_takes_the_models_in_order_and_leaves_heads_alone():
    roles = {name: Role.CLASSIFIER if name in HEADS else Role.MLP for name, _ in START.named_parameters()}
    experts = Experts(5, MODELS.__getitem__, lambda: START)
    merged = Opcm(alpha=0.3).merge(experts, [[]] * 5, Run(seed=0, steps=1, roles=roles))
    merger = SequentialMerger(START, alpha=0.3, heads=HEADS)
    for model in MODELS:
        merger.add(model)
    assert all(torch.equal(merged.get_parameter(name).detach(), value) for name, value in merger.weights().items())
    assert torch.equal(merged.head.weight, MODELS[0].head.weight)


def test_an_alpha_outside_its_domain_is_refused_outside_the_suite_too():
    with pytest.raises(BadValue, match="alpha"):
        opcm(START, MODELS, alpha=1.5)
