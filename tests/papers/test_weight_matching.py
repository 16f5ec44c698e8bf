"""Weight matching: same functions, recovered permutations, brute force, monotone objectives, residual streams.

No package implements it: the authors' code is scripts in JAX. Instead small problems are solved by brute force, and the
search is held to what it must keep: the function of a network, its singular values, an objective that only rises.
"""

from __future__ import annotations

import copy
import itertools
from itertools import pairwise

import pytest
import torch
from torch import nn

from bench import Experts, Role, Run
from bench.errors import BadValue
from bench.plugins.merging import _permutations
from bench.plugins.merging._permutations import groups, identity, match, relative, reordered, shuffled
from bench.plugins.merging._vectors import norm, weights_of, with_values
from bench.plugins.merging.average import average
from bench.plugins.merging.weight_matching import WeightMatching, aligned_orders, weight_matching

pytestmark = pytest.mark.paper

AXES = {
    "0.weight": ("one", None),
    "0.bias": ("one",),
    "2.weight": ("two", "one"),
    "2.bias": ("two",),
    "4.weight": (None, "two"),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def perceptron(seed, width=12):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width + 3), nn.ReLU(), nn.Linear(width + 3, 4)
    )


class Residual(nn.Module):
    """A stream that two blocks add to, with norms; the stream's units are one group, each block's its own."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.embed = nn.Conv2d(2, 8, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(8, 10, 3, padding=1) for _ in range(2))
        self.downs = nn.ModuleList(nn.Conv2d(10, 8, 1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.head = nn.Linear(8, 3)
        for norm_ in self.norms:
            nn.init.normal_(norm_.weight)
            nn.init.normal_(norm_.bias)
            norm_.running_mean.normal_()
            norm_.running_var.uniform_(0.5, 2.0)

    def forward(self, images):
        stream = self.embed(images)
        for up, down, norm_ in zip(self.ups, self.downs, self.norms, strict=True):
            stream = stream + down(torch.relu(up(norm_(stream))))
        return self.head(stream.mean(dim=(2, 3)))


RESIDUAL_AXES = {
    "embed.weight": ("stream", None, None, None),
    "embed.bias": ("stream",),
    "head.weight": (None, "stream"),
}
for number in range(2):
    RESIDUAL_AXES |= {
        f"ups.{number}.weight": (f"block{number}", "stream", None, None),
        f"ups.{number}.bias": (f"block{number}",),
        f"downs.{number}.weight": ("stream", f"block{number}", None, None),
        f"downs.{number}.bias": ("stream",),
        f"norms.{number}.weight": ("stream",),
        f"norms.{number}.bias": ("stream",),
        f"norms.{number}.running_mean": ("stream",),
        f"norms.{number}.running_var": ("stream",),
    }

VECTORS, IMAGES = torch.randn(9, 6, generator=seeded(0)), torch.randn(5, 2, 6, 6, generator=seeded(0))
KINDS = {"perceptron": (perceptron, AXES, VECTORS), "residual": (Residual, RESIDUAL_AXES, IMAGES)}
every_kind = pytest.mark.parametrize("kind", KINDS)


def tensors_of(model):
    return {name: value.detach() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def scrambled(model, axes, seed=0):
    """Return ``model`` with its units in a random order, and that order."""
    orders = shuffled(identity(axes, tensors_of(model)), seeded(seed))
    return with_values(model, reordered(tensors_of(model), axes, orders)), orders


def agreement(fixed, moving):
    return sum(float((fixed[name].double() * moving[name].double()).sum()) for name in fixed)


def distance(left, right):
    one, other = weights_of(left), weights_of(right)
    return norm({name: one[name] - other[name] for name in one})


# -- what a reordering keeps -----------------------------------------------------------------------------------------
@every_kind
def test_a_reordered_network_computes_the_same(kind):
    build, axes, inputs = KINDS[kind]
    model = build(3).eval()
    other, _ = scrambled(model, axes)
    assert distance(model, other) > 1.0
    torch.testing.assert_close(other(inputs), model(inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("forgotten", ["ups.1.weight", "downs.0.weight", "norms.1.bias", "norms.0.running_mean"])
def test_a_forgotten_axis_of_the_residual_stream_breaks_the_function(forgotten):
    model = Residual(3).eval()
    axes = {name: value for name, value in RESIDUAL_AXES.items() if name != forgotten}
    other = with_values(model, reordered(tensors_of(model), axes, scrambled(model, RESIDUAL_AXES)[1]))
    assert float((other(IMAGES) - model(IMAGES)).detach().abs().max()) > 1e-3


@every_kind
def test_singular_values_stay(kind):
    build, axes, _ = KINDS[kind]
    model = build(4)
    other, _ = scrambled(model, axes)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        if one.ndim > 1:
            values = [torch.linalg.svdvals(value.detach().flatten(1).double()) for value in (one, two)]
            torch.testing.assert_close(*values, rtol=1e-5, atol=0)


def test_what_is_left_after_the_inverse_of_a_frame():
    orders, frame = ({"one": torch.randperm(9, generator=seeded(seed))} for seed in (0, 1))
    values = {"x": torch.arange(9.0)}
    axes = {"x": ("one",)}
    back = reordered(reordered(values, axes, orders), axes, {"one": frame["one"].argsort()})
    assert torch.equal(reordered(values, axes, relative(orders, frame))["x"], back["x"])
    assert torch.equal(relative(orders, orders)["one"], torch.arange(9))


# -- the search ------------------------------------------------------------------------------------------------------
@every_kind
def test_units_of_a_scrambled_copy_are_found_again_exactly(kind):
    build, axes, inputs = KINDS[kind]
    model = build(5).eval()
    other, scramble = scrambled(model, axes)
    _, orders = aligned_orders([model, other], axes, generator=seeded(0))
    for name, order in orders.items():
        assert torch.equal(scramble[name][order], torch.arange(len(order)))
    merged = weight_matching([model, other], axes, generator=seeded(0))
    torch.testing.assert_close(merged(inputs), model(inputs), rtol=0, atol=1e-5)  # the whole segment is one function
    assert distance(merged, model) <= 1e-6


def test_one_hidden_layer_is_solved_by_one_assignment_as_by_brute_force():
    axes = {"0.weight": ("units", None), "0.bias": ("units",), "2.weight": (None, "units")}
    fixed, moving = (
        weights_of(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).requires_grad_(False)) for _ in range(2)
    )
    start = identity(axes, moving)
    once, reached = match(fixed, moving, axes, start, sweeps=1)
    again, same = match(fixed, moving, axes, start)
    assert torch.equal(once["units"], again["units"])
    assert reached == same
    best = max(
        agreement(fixed, reordered(moving, axes, {"units": torch.tensor(order)}))
        for order in itertools.permutations(range(6))
    )
    assert reached == pytest.approx(best, rel=1e-9)


@every_kind
def test_the_objective_never_falls_and_the_distance_only_shrinks(kind, monkeypatch):
    build, axes, _ = KINDS[kind]
    fixed, moving = build(1), build(2)
    path = [agreement(weights_of(fixed), weights_of(moving))]
    assign = _permutations._assigned

    def watched(a, b, axes_, orders, places):
        path.append(agreement(a, reordered(b, axes_, orders)))
        return assign(a, b, axes_, orders, places)

    monkeypatch.setattr(_permutations, "_assigned", watched)
    start = identity(axes, weights_of(moving))
    orders, reached = match(weights_of(fixed), weights_of(moving), axes, start, generator=seeded(0))
    path.append(agreement(weights_of(fixed), reordered(weights_of(moving), axes, orders)))
    assert all(after >= before - 1e-9 for before, after in pairwise(path))
    assert path[-1] == pytest.approx(reached, rel=1e-9)
    assert path[-1] > path[0] + 0.1
    matched = with_values(moving, reordered(weights_of(moving), axes, orders))
    assert distance(fixed, matched) < distance(fixed, moving)


def test_a_tensor_that_one_permutation_acts_on_twice_never_lowers_the_objective():
    axes = {"w": ("units", "units")}
    for seed in range(20):
        fixed, moving = ({"w": torch.randn(7, 7, generator=seeded(100 * seed + k))} for k in range(2))
        before = agreement(fixed, moving)
        orders, reached = match(fixed, moving, axes, identity(axes, moving), generator=seeded(seed))
        assert reached >= before
        assert reached == pytest.approx(agreement(fixed, reordered(moving, axes, orders)), rel=1e-9)


def test_matching_commutes_from_the_inverse_orders():
    fixed, moving = weights_of(perceptron(1)), weights_of(perceptron(2))
    there, reached = match(fixed, moving, AXES, identity(AXES, moving), generator=seeded(0))
    back, same = match(moving, fixed, AXES, {name: order.argsort() for name, order in there.items()})
    assert same == pytest.approx(reached, rel=1e-9)
    for name, order in back.items():
        assert torch.equal(order[there[name]], torch.arange(len(order)))


def test_it_ends_where_every_order_is_as_good_and_gains_are_rounding():
    values = {"w": torch.full((12, 6), 0.1)}
    orders, _ = match(values, values, {"w": ("units", None)}, {"units": torch.arange(12)}, sweeps=10**6)
    assert torch.equal(orders["units"], torch.arange(12))


def test_more_starts_never_end_farther_away():
    models = [perceptron(1), perceptron(2)]
    found = {}
    for starts in (1, 8):
        orders = aligned_orders(models, AXES, starts=starts, generator=seeded(0))
        other = with_values(models[1], reordered(weights_of(models[1]), AXES, orders[1]))
        found[starts] = distance(models[0], other)
    assert found[8] <= found[1] < distance(*models)


# -- many models -----------------------------------------------------------------------------------------------------
def test_scrambled_copies_of_one_model_all_come_together():
    model = perceptron(7)
    models = [model, *(scrambled(model, AXES, seed)[0] for seed in range(4))]
    merged = weight_matching(models, AXES, generator=seeded(0))
    assert distance(merged, model) <= 1e-6


def test_many_models_come_closer_to_their_mean():
    models = [perceptron(seed) for seed in range(5)]
    orders = aligned_orders(models, AXES, generator=seeded(0))
    moved = [with_values(m, reordered(weights_of(m), AXES, order)) for m, order in zip(models, orders, strict=True)]
    before, after = (sum(distance(one, other) for one in group for other in group) for group in (models, moved))
    assert after < 0.95 * before
    for model, other in zip(models, moved, strict=True):
        torch.testing.assert_close(other(VECTORS), model(VECTORS), rtol=0, atol=1e-5)


def test_the_first_model_keeps_its_order_so_its_head_still_fits():
    models = [perceptron(seed) for seed in range(3)]
    orders = aligned_orders(models, AXES, generator=seeded(0))
    assert all(torch.equal(order, torch.arange(len(order))) for order in orders[0].values())
    merged = weight_matching(models, AXES, heads=["4.weight", "4.bias"], generator=seeded(0))
    assert torch.equal(merged[4].weight, models[0][4].weight)


@pytest.mark.parametrize("count", [1, 3])
def test_of_equal_models_it_is_that_model_to_the_bit(count):
    model = perceptron(0)
    merged = weight_matching([model] * count, AXES, generator=seeded(0))
    assert all(torch.equal(*pair) for pair in zip(merged.parameters(), model.parameters(), strict=True))


def test_models_fine_tuned_from_one_start_are_aligned_already():
    start = perceptron(0, width=24)
    models = [copy.deepcopy(start) for _ in range(3)]
    for seed, model in enumerate(models):
        for value in model.parameters():
            value.data.add_(0.02 * torch.randn(value.shape, generator=seeded(seed)))
    merged, plain = weight_matching(models, AXES, generator=seeded(0)), average(models)
    assert distance(merged, plain) <= 1e-6


# -- the plugin, and what it refuses ---------------------------------------------------------------------------------
def test_the_plugin_takes_axes_and_random_orders_from_the_run():
    models = [perceptron(seed) for seed in range(3)]
    roles = {name: Role.CLASSIFIER if name.startswith("4.") else Role.MLP for name, _ in models[0].named_parameters()}
    run = Run(seed=0, steps=1, roles=roles, axes=AXES, algorithm="weight-matching")
    merged = WeightMatching(starts=2).merge(Experts(3, models.__getitem__), [[]] * 3, run)
    generator = Run(seed=0, steps=1, algorithm="weight-matching").rng("orders")
    expected = weight_matching(models, AXES, starts=2, heads=["4.weight", "4.bias"], generator=generator)
    assert all(torch.equal(*pair) for pair in zip(merged.parameters(), expected.parameters(), strict=True))
    assert WeightMatching.needs == ("axes",)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"0.weight": ("one",)}, r"axes of '0\.weight' are \('one',\), its shape is \(12, 6\)"),
        ({"0.weight": ("one", None), "2.weight": ("one", None)}, r"permutation 'one' acts on axes of \[12, 15\] units"),
        ({"0.weight": ("one", None), "nothing": ("one",)}, r"axes name \['nothing'\], which the models do not have"),
        ({}, "axes name no permutation"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, said):
    with pytest.raises(BadValue, match=said):
        weight_matching([perceptron(0), perceptron(1)], axes)


def test_groups_name_every_place_of_a_permutation():
    assert groups(AXES, weights_of(perceptron(0)))["one"] == [("0.bias", 0), ("0.weight", 0), ("2.weight", 1)]


@pytest.mark.parametrize("options", [{"starts": 0}, {"sweeps": 0}, {"tolerance": -1.0}])
def test_values_outside_their_domains_are_refused_outside_the_suite_too(options):
    with pytest.raises(BadValue, match=next(iter(options))):
        weight_matching([perceptron(0), perceptron(1)], AXES, **options)
