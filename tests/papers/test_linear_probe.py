"""Linear probing trains the head, whatever the workload froze, and is torch's AdamW over it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.errors import SlotMismatch
from bench.plugins.peft.linear_probe import LinearProbe

pytestmark = pytest.mark.paper

BODY = {"0.weight": Role.MLP, "0.bias": Role.BIAS}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def run(head, bias=Role.BIAS):
    return Run(seed=0, steps=20, roles=BODY | {"2.weight": head, "2.bias": bias})


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("head", [Role.CLASSIFIER, Role.LM_HEAD])
def test_the_head_alone_is_trained_with_its_bias_whatever_was_frozen_before(head, frozen):
    model = LinearProbe().adapt(network().requires_grad_(not frozen), run(head))
    assert trainable(model) == {"2.weight", "2.bias"}


def test_a_classifier_goes_before_a_language_model_head():
    roles = {"0.weight": Role.LM_HEAD, "0.bias": Role.BIAS, "2.weight": Role.CLASSIFIER, "2.bias": Role.BIAS}
    model = LinearProbe().adapt(network(), Run(seed=0, steps=1, roles=roles))
    assert trainable(model) == {"2.weight", "2.bias"}


def test_a_model_without_a_head_is_refused():
    with pytest.raises(SlotMismatch, match="no parameter with the role 'classifier' or 'lm_head'"):
        LinearProbe().adapt(network(), run(Role.MLP))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_twenty_steps_are_those_of_torch_and_features_never_move(weight_decay):
    ours, theirs = network(), copy.deepcopy(network())
    algorithm, facts = LinearProbe(lr=0.02, weight_decay=weight_decay), run(Role.CLASSIFIER)
    ours = algorithm.adapt(ours, facts)
    named = [(name, parameter) for name, parameter in ours.named_parameters() if parameter.requires_grad]
    optimizer = algorithm.optimizer(named, facts)
    reference = torch.optim.AdamW(theirs[2].parameters(), lr=0.02, weight_decay=weight_decay)
    for number in range(20):
        x = torch.randn(9, 6, generator=torch.Generator().manual_seed(number))
        for model, stepped in ((ours, optimizer), (theirs, reference)):
            stepped.zero_grad()
            model(x).square().mean().backward()
            stepped.step()
        pairs = zip(ours[2].parameters(), theirs[2].parameters(), strict=True)
        assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-6
    assert torch.equal(ours[:2](x), network()[:2](x))
