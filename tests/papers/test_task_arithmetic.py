"""Task arithmetic: its definition, parity with peft's function of that name, and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import Experts, Role, Run
from bench.errors import BadValue
from bench.plugins.merging.average import average
from bench.plugins.merging.task_arithmetic import TaskArithmetic, task_arithmetic

pytestmark = pytest.mark.paper


def network(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)


def difference(left, right):
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


START, MODELS = network(0), [network(seed) for seed in range(1, 6)]


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])
def test_weights_are_the_start_and_the_scaled_sum_of_all_changes(scale):
    merged = task_arithmetic(START, MODELS, scale=scale)
    for name, start in START.named_parameters():
        total = sum(model.get_parameter(name).detach().double() - start.detach().double() for model in MODELS)
        expected = (start.detach().double() + scale * total).float()
        torch.testing.assert_close(merged.get_parameter(name).detach(), expected, rtol=0, atol=1e-6)


def test_the_sum_of_task_vectors_is_that_of_peft(package):
    theirs = package("peft.utils.merge_utils", "peft")
    merged = task_arithmetic(START, MODELS, scale=0.3)
    for name, start in START.named_parameters():
        changes = [(model.get_parameter(name) - start).detach() for model in MODELS]
        expected = start.detach() + theirs.task_arithmetic(changes, torch.full((len(MODELS),), 0.3))
        torch.testing.assert_close(merged.get_parameter(name).detach(), expected, rtol=0, atol=1e-6)


def test_a_scale_of_one_over_their_number_is_the_average():
    assert difference(task_arithmetic(START, MODELS, scale=1 / 5), average(MODELS)) <= 1e-6


def test_one_model_at_scale_one_is_that_model():
    assert difference(task_arithmetic(START, MODELS[:1], scale=1.0), MODELS[0]) <= 1e-7


def test_models_that_never_left_the_start_stay_there_to_the_bit():
    assert difference(task_arithmetic(START, [START] * 4, scale=0.3), START) == 0.0


def test_the_change_is_linear_in_the_scale():
    near, far = (task_arithmetic(START, MODELS, scale=scale) for scale in (0.25, 0.5))
    for one, other, start in zip(near.parameters(), far.parameters(), START.parameters(), strict=True):
        torch.testing.assert_close(other - start, 2 * (one - start), rtol=0, atol=1e-6)


def test_the_order_of_the_models_does_not_matter():
    assert difference(task_arithmetic(START, MODELS), task_arithmetic(START, MODELS[::-1])) <= 1e-6


def test_the_plugin_passes_its_scale_on_and_leaves_heads_alone():
    roles = {name: Role.CLASSIFIER if name.startswith("2.") else Role.MLP for name, _ in START.named_parameters()}
    experts = Experts(5, MODELS.__getitem__, lambda: START)
    merged = TaskArithmetic(scale=0.2).merge(experts, [[]] * 5, Run(seed=0, steps=1, roles=roles))
    assert difference(merged, task_arithmetic(START, MODELS, scale=0.2, heads=["2.weight", "2.bias"])) == 0.0
    assert difference(merged[2], MODELS[0][2]) == 0.0


def test_a_scale_outside_its_domain_is_refused_outside_the_suite_too():
    with pytest.raises(BadValue, match="scale"):
        task_arithmetic(START, MODELS, scale=0.0)
