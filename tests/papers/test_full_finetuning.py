"""Full fine-tuning is torch's AdamW over what the workload leaves trainable."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.plugins.peft.full_finetuning import FullFineTuning

pytestmark = pytest.mark.paper

ROLES = {"0.weight": Role.MLP, "0.bias": Role.BIAS, "2.weight": Role.CLASSIFIER, "2.bias": Role.CLASSIFIER}
RUN = Run(seed=0, steps=20, roles=ROLES)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def test_the_model_is_left_as_it_is_with_what_the_workload_froze():
    model = network()
    model[0].bias.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    assert FullFineTuning().adapt(model, RUN) is model
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_twenty_steps_are_those_of_torch_with_a_rate_for_the_head(weight_decay):
    ours, theirs = network(), copy.deepcopy(network())
    algorithm = FullFineTuning(lr=0.01, head_lr=0.03, weight_decay=weight_decay)
    optimizer = algorithm.optimizer(ours.named_parameters(), RUN)
    groups = [{"params": theirs[0].parameters()}, {"params": theirs[2].parameters(), "lr": 0.03}]
    reference = torch.optim.AdamW(groups, lr=0.01, weight_decay=weight_decay)
    for number in range(20):
        x = torch.randn(9, 6, generator=torch.Generator().manual_seed(number))
        for model, stepped in ((ours, optimizer), (theirs, reference)):
            stepped.zero_grad()
            model(x).square().mean().backward()
            stepped.step()
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-6


def test_state_is_two_moments_per_weight():
    model = network()
    optimizer = FullFineTuning().optimizer(model.named_parameters(), RUN)
    model(torch.ones(2, 6)).square().mean().backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert sum(moment.numel() for moment in moments) == 2 * sum(p.numel() for p in model.parameters())
