"""TIES: its three steps against a naive reference, parity with peft where that trims alike, and limits.

Parity with peft is limited to one tensor: peft trims each tensor by itself, TIES the whole vector. No other package of
the parity environment has it.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from bench import Experts, Role, Run
from bench.errors import BadValue
from bench.plugins.merging.task_arithmetic import task_arithmetic
from bench.plugins.merging.ties import Ties, kth_largest, ties, trimmed

pytestmark = pytest.mark.paper


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def layer(*values):
    """Return a layer of one output whose weights are ``values``."""
    model = nn.Linear(len(values), 1, bias=False)
    model.weight.data = torch.tensor([values], dtype=torch.float32)
    return model


def flat(model):
    return parameters_to_vector(model.parameters()).detach()


START, MODELS = network(0), [network(seed) for seed in range(1, 6)]


def naive(start, models, scale, density, aggregate):
    """Stack all task vectors and follow the paper's three steps entry by entry."""
    changes = [(flat(model) - flat(start)).tolist() for model in models]
    kept = round(density * len(changes[0]))
    trimmed_changes = []
    for change in changes:
        largest = sorted(range(len(change)), key=lambda number: -abs(change[number]))[:kept]
        trimmed_changes.append([value if number in largest else 0.0 for number, value in enumerate(change)])
    merged = []
    for values in zip(*trimmed_changes, strict=True):
        positive = sum(values) > 0
        agree = [value for value in values if value and (value > 0) == positive] if sum(values) else []
        total = sum(agree) / (max(1, len(agree)) if aggregate == "mean" else 1)
        merged.append(total)
    return flat(start) + scale * torch.tensor(merged)


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 1.0])
def test_weights_are_those_of_the_naive_reference(density, aggregate):
    merged = ties(START, MODELS, scale=0.7, density=density, aggregate=aggregate)
    torch.testing.assert_close(flat(merged), naive(START, MODELS, 0.7, density, aggregate), rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_on_one_tensor_it_is_peft_s(density, package):
    theirs = package("peft.utils.merge_utils", "peft")
    start, *models = (nn.Linear(20, 10, bias=False) for _ in range(5))
    changes = [(model.weight - start.weight).detach() for model in models]
    expected = start.weight.detach() + theirs.ties(changes, torch.full((4,), 0.6), density)
    merged = ties(start, models, scale=0.6, density=density, aggregate="mean")
    torch.testing.assert_close(merged.weight.detach(), expected, rtol=0, atol=1e-6)


def test_the_steps_on_an_example_by_hand():
    # Kept are two of four: (4, -3, 0, 0), (-1, 0, 0, 5) and (2, 0, -6, 0); the first weight elects +, the others have
    # one voter each.
    models = [layer(4, -3, 1, 0), layer(-1, 0.5, 0.25, 5), layer(2, 1, -6, 1)]
    options = {"scale": 1.0, "density": 0.5}
    start = layer(0, 0, 0, 0)
    assert ties(start, models, aggregate="mean", **options).weight.tolist() == [[3.0, -3.0, -6.0, 5.0]]
    assert ties(start, models, aggregate="sum", **options).weight.tolist() == [[6.0, -3.0, -6.0, 5.0]]


def test_what_cancels_exactly_stays_where_it_started():
    assert ties(layer(1, 0), [layer(3, 2), layer(-1, 2)], scale=1.0, density=1.0).weight.tolist() == [[1.0, 4.0]]


def test_trimming_is_over_the_whole_vector_not_by_tensor():
    vector = {"large": torch.tensor([9.0, -8.0, 7.0]), "small": torch.tensor([1.0, -2.0, 3.0])}
    threshold = kth_largest(vector, 0.5)
    assert threshold == 7.0
    assert {name: value.tolist() for name, value in trimmed(vector, threshold).items()} == {
        "large": [9.0, -8.0, 7.0],
        "small": [0.0, 0.0, 0.0],
    }


@pytest.mark.parametrize("density", [0.1, 0.25, 0.999])
def test_exactly_the_share_is_kept_and_at_least_one(density):
    vector = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    assert int(trimmed(vector, kth_largest(vector, density))["w"].count_nonzero()) == round(1000 * density)
    assert int(trimmed(vector, kth_largest(vector, 1e-6))["w"].count_nonzero()) == 1


def test_a_large_change_of_one_task_outweighs_many_small_ones_in_the_other_direction():
    models = [layer(10), *[layer(-1)] * 5]
    assert ties(layer(0), models, scale=1.0, density=1.0, aggregate="mean").weight.item() == 10.0


def test_without_trimming_and_conflict_the_sum_is_task_arithmetic():
    models = [network(seed) for seed in range(3)]
    with torch.no_grad():
        for model in models:
            for value, start in zip(model.parameters(), START.parameters(), strict=True):
                value.copy_(start + value.abs())
    expected = flat(task_arithmetic(START, models, scale=0.3))
    torch.testing.assert_close(flat(ties(START, models, scale=0.3, density=1.0)), expected, rtol=0, atol=1e-6)


def test_one_model_untrimmed_at_scale_one_is_that_model():
    merged = ties(START, MODELS[:1], scale=1.0, density=1.0)
    torch.testing.assert_close(flat(merged), flat(MODELS[0]), rtol=0, atol=1e-7)


def test_the_mean_of_equal_models_does_not_depend_on_their_number():
    one, many = (ties(START, [MODELS[0]] * count, scale=1.0, aggregate="mean") for count in (1, 5))
    torch.testing.assert_close(flat(many), flat(one), rtol=0, atol=1e-6)


def test_the_order_of_the_models_does_not_matter():
    torch.testing.assert_close(flat(ties(START, MODELS)), flat(ties(START, MODELS[::-1])), rtol=0, atol=1e-6)


def test_the_plugin_passes_its_fields_on_and_heads_take_no_part():
    roles = {name: Role.CLASSIFIER if name.startswith("2.") else Role.MLP for name, _ in START.named_parameters()}
    experts = Experts(5, MODELS.__getitem__, lambda: START)
    merged = Ties(scale=0.5, density=0.3, aggregate="mean").merge(experts, [[]] * 5, Run(seed=0, steps=1, roles=roles))
    expected = ties(START[:2], [model[:2] for model in MODELS], scale=0.5, density=0.3, aggregate="mean")
    assert torch.equal(flat(merged[:2]), flat(expected))
    assert torch.equal(flat(merged[2]), flat(MODELS[0][2]))


@pytest.mark.parametrize("options", [{"density": 0.0}, {"density": 1.5}, {"scale": -1.0}, {"aggregate": "max"}])
def test_values_outside_their_domains_are_refused_outside_the_suite_too(options):
    with pytest.raises(BadValue, match=next(iter(options))):
        ties(START, MODELS, **options)
