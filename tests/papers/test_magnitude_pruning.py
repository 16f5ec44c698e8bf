"""Magnitude pruning: the masks of torch's, LAMP against its definition, groups along the inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured, l1_unstructured

from bench import Point, Role, Run
from bench.errors import BadValue
from bench.plugins.compression.magnitude_pruning import MagnitudePruning, kept, lamp_scores

pytestmark = pytest.mark.paper


def model_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16), nn.Linear(16, 5))
    with torch.no_grad():
        model[2].weight.mul_(0.7)
    roles = {name: Role.BIAS if name.endswith("bias") else Role.MLP for name, _ in model.named_parameters()}
    return model, roles | {"3.weight": Role.LM_HEAD}


def pruned(allocation="layer", **point):
    model, roles = model_of()
    run = Run(seed=0, steps=1, roles=roles, point=Point(**point))
    return model, MagnitudePruning(allocation=allocation).compress(model, [], run)


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.3, 0.2])
def test_bits_are_those_of_torch_per_layer(ratio):
    model, result = pruned(kept_ratio=ratio)
    for place in (0, 2):
        l1_unstructured(model[place], "weight", amount=384 - int(ratio * 384))
        assert torch.equal(result[place].weight, model[place].weight)
        assert torch.equal(result[place].bias, model[place].bias)
    assert torch.equal(result[3].weight, model[3].weight)


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.3])
def test_bits_are_those_of_torch_over_all_layers(ratio):
    model, result = pruned("global", kept_ratio=ratio)
    parameters = [(model[0], "weight"), (model[2], "weight")]
    global_unstructured(parameters, pruning_method=L1Unstructured, amount=768 - int(ratio * 768))
    for place in (0, 2):
        assert torch.equal(result[place].weight, model[place].weight)


@pytest.mark.parametrize("allocation", ["layer", "global", "lamp"])
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.37, 0.1])
def test_exactly_the_asked_number_becomes_zero_and_the_others_stay_as_they_are(allocation, ratio):
    model, result = pruned(allocation, kept_ratio=ratio)
    weights = [(model[place].weight, result[place].weight) for place in (0, 2)]
    counts = [int((after != 0).sum()) for _, after in weights]
    assert sum(counts) == (int(ratio * 768) if allocation != "layer" else 2 * int(ratio * 384))
    assert counts[0] == counts[1] or allocation != "layer"
    for before, after in weights:
        assert torch.equal(after[after != 0], before[after != 0])
        assert before[after == 0].abs().max() <= min(before[after != 0].abs(), default=torch.inf)


@pytest.mark.parametrize("allocation", ["layer", "global", "lamp"])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
def test_of_every_group_along_the_input_axis_the_largest_stay(allocation, pattern):
    model, result = pruned(allocation, pattern=pattern)
    for place in (0, 2):
        before, after = (m[place].weight.detach().reshape(-1, pattern[1]) for m in (model, result))
        assert ((after == 0).sum(1) == pattern[1] - pattern[0]).all()
        for row, left in zip(before, after, strict=True):
            assert sorted(row.abs())[-pattern[0] :] == sorted(left[left != 0].abs())
        columns = result[place].weight.T.reshape(-1, pattern[1])
        assert not ((columns == 0).sum(1) == pattern[1] - pattern[0]).all(), "along the outputs there is no pattern"


def test_lamp_is_its_definition():
    weight = model_of()[0][0].weight.detach()
    flat = weight.flatten().double()
    naive = [w**2 / sum(v**2 for v in flat if v.abs() >= w.abs()) for w in flat[:60]]
    torch.testing.assert_close(lamp_scores(weight).flatten()[:60], torch.stack(naive))
    assert lamp_scores(weight).max() == 1.0, "the largest weight of a layer is never pruned"


def test_lamp_on_one_layer_is_magnitude():
    weights = {"one": model_of()[0][0].weight.detach()}
    for ratio in (0.9, 0.5, 0.1):
        assert torch.equal(kept(weights, ratio, "lamp")["one"], kept(weights, ratio, "layer")["one"])


def test_lamp_does_not_change_with_the_scale_of_a_layer_and_global_does():
    weights = {str(place): model_of()[0][place].weight.detach() for place in (0, 2)}
    scaled = weights | {"2": 100 * weights["2"]}
    for name in weights:
        assert torch.equal(kept(weights, 0.4, "lamp")[name], kept(scaled, 0.4, "lamp")[name])
    assert not torch.equal(kept(weights, 0.4, "global")["0"], kept(scaled, 0.4, "global")["0"])


def test_lamp_scores_of_zeros_are_zero_and_ties_still_give_the_asked_number():
    assert torch.equal(lamp_scores(torch.zeros(2, 3)), torch.zeros(2, 3, dtype=torch.float64))
    masks = kept({"a": torch.ones(3, 4), "b": -torch.ones(4, 4)}, 0.5, "lamp")
    assert sum(int(mask.sum()) for mask in masks.values()) == 14


def test_keeping_all_changes_nothing():
    model, result = pruned(kept_ratio=1.0)
    assert all(torch.equal(result[place].weight, model[place].weight) for place in (0, 2))


def test_a_point_with_neither_ratio_nor_pattern_is_refused():
    model, roles = model_of()
    with pytest.raises(BadValue, match="no kept ratio"):
        MagnitudePruning().compress(model, [], Run(seed=0, steps=1, roles=roles, point=Point(rank=3)))
