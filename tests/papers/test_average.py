"""The plain average: its definition, and parity with torch's averaged model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench import Experts, Role, Run
from bench.plugins.merging.average import Average, average

pytestmark = pytest.mark.paper


def network(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    model[1].running_var.uniform_(0.5, 2.0)
    return model.to(dtype)


def difference(left, right):
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return max(float((one.double() - other.double()).abs().max()) for one, other in pairs)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 2e-7), (torch.bfloat16, 4e-3)]
)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_every_weight_is_the_mean_of_the_models(dtype, tolerance, count):
    models = [network(seed, dtype) for seed in range(count)]
    merged = average(models)
    for name, value in merged.named_parameters():
        mean = torch.stack([model.get_parameter(name).detach().double() for model in models]).mean(dim=0)
        assert value.dtype == dtype
        torch.testing.assert_close(value.detach().double(), mean, rtol=tolerance, atol=tolerance)


def test_weights_and_buffers_are_those_of_torch_s_averaged_model():
    models = [network(seed) for seed in range(5)]
    theirs = torch.optim.swa_utils.AveragedModel(models[0], use_buffers=True)
    for model in models:
        theirs.update_parameters(model)
    assert difference(average(models), theirs.module) <= 2e-7


def test_the_order_of_the_models_does_not_matter():
    models = [network(seed) for seed in range(6)]
    assert difference(average(models), average(models[::-1])) <= 3e-7


@pytest.mark.parametrize("count", [1, 3, 6])
def test_of_equal_models_it_is_that_model_to_the_bit(count):
    model = network(0)
    assert difference(average([model] * count), model) == 0.0


def test_of_linear_networks_with_one_differing_layer_the_outputs_are_averaged():
    models = [network(0).eval() for _ in range(3)]
    for seed, model in enumerate(models):
        model[3] = network(seed)[3]
    inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(9))
    expected = torch.stack([model(inputs) for model in models]).mean(dim=0)
    torch.testing.assert_close(average(models)(inputs), expected, rtol=0, atol=1e-6)


def test_named_heads_and_integer_buffers_stay_those_of_the_first_model():
    models = [network(seed) for seed in range(3)]
    for count, model in enumerate(models):
        model[1].num_batches_tracked.fill_(10 + count)
    merged = average(models, heads=["3.weight"])
    assert torch.equal(merged[3].weight, models[0][3].weight)
    assert not torch.equal(merged[3].bias, models[0][3].bias)
    assert int(merged[1].num_batches_tracked) == 10


def test_the_plugin_leaves_out_what_the_roles_call_a_head():
    models = [network(seed) for seed in range(3)]
    before = copy.deepcopy(models)
    roles = {name: Role.CLASSIFIER if name.startswith("3.") else Role.MLP for name, _ in models[0].named_parameters()}
    merged = Average().merge(Experts(3, models.__getitem__), [[], [], []], Run(seed=0, steps=1, roles=roles))
    assert difference(merged, average(models, heads=["3.weight", "3.bias"])) == 0.0
    assert all(difference(*pair) == 0.0 for pair in zip(models, before, strict=True))
