"""GaLore inside the backward pass: the same trajectory, with one gradient at a time.

galore-torch has no class for it, only hooks in a training script; so it is compared, to the bit, with our GaLore, which
has parity with that package.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.plugins.optimizers.galore import GaLore, GaLoreAdamW
from bench.plugins.optimizers.galore_per_layer import GaLoreAdamWPerLayer, GaLorePerLayer

pytestmark = pytest.mark.paper


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 16), nn.Linear(16, 30))


ROLES = {"0.weight": Role.EMBEDDING, "4.weight": Role.LM_HEAD, "4.bias": Role.BIAS}
ROLES |= {f"{layer}.{kind}": role for layer in (1, 3) for kind, role in (("weight", Role.MLP), ("bias", Role.BIAS))}


def build(algorithm, model):
    return algorithm.optimizer(model.named_parameters(), Run(seed=0, steps=100, roles=ROLES))


def loss(model, step=0):
    tokens = torch.randint(30, (8, 6), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1, dims=1).flatten())


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1) / (first + steps)
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_trajectory_is_that_of_galore_bit_for_bit():
    options = {"rank": 4, "update_gap": 3, "weight_decay": 0.1}
    together, apart = network(), network()
    first = train(together, build(GaLore(**options), together), 10)
    second = train(apart, build(GaLorePerLayer(**options), apart), 10)
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
    assert not torch.equal(first[1], network()[1].weight)


def test_at_most_one_gradient_lives_at_a_time_and_none_after_backward():
    model = network()
    living = []
    optimizer = build(GaLorePerLayer(), model)
    for parameter in model.parameters():
        # Hooks run in the order of registration, so these see the gradients after the optimizer's hook.
        parameter.register_post_accumulate_grad_hook(
            lambda _: living.append(sum(p.grad is not None for p in model.parameters()))
        )
    loss(model).backward()
    assert len(living) == len(list(model.parameters()))
    assert max(living) == 0
    optimizer.step()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_second_backward_before_step_is_refused_with_the_parameters_name():
    model = network()
    optimizer = build(GaLorePerLayer(), model)
    loss(model).backward()
    with pytest.raises(RuntimeError, match=r"second gradient of '4\.\w+' of shape .*cannot accumulate"):
        loss(model, 1).backward()
    optimizer.step()
    optimizer.zero_grad()
    loss(model, 1).backward()


def test_run_needs_a_single_micro_batch():
    assert GaLorePerLayer.needs == ("single-micro-batch",)


def test_step_handles_gradients_put_there_by_hand_and_parameters_unfrozen_later():
    model = network()
    model[1].weight.requires_grad_(False)
    optimizer = build(GaLorePerLayer(lr=0.1), model)
    model[1].weight.requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss(model).backward()
    assert model[1].weight.grad is not None
    assert torch.equal(model[1].weight, before["1.weight"])
    optimizer.step()
    assert not torch.equal(model[1].weight, before["1.weight"])

    plain, layered = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    for kind, parameter in ((GaLoreAdamW, plain), (GaLoreAdamWPerLayer, layered)):
        parameter.grad = torch.arange(16.0).view(4, 4)
        kind([{"params": [parameter], "rank": 2}]).step()
    assert torch.equal(plain, layered)


def test_closure_makes_the_step(drive):
    model = network()
    optimizer = build(GaLorePerLayer(), model)
    before = model[1].weight.detach().clone()

    def closure():
        value = loss(model)
        value.backward()
        return float(value.detach())

    assert optimizer.step(closure) == pytest.approx(float(loss(network()).detach()))
    assert not torch.equal(model[1].weight, before)


def test_resumed_run_ends_in_the_same_bits():
    options = {"rank": 4, "update_gap": 3}
    model = network()
    optimizer = build(GaLorePerLayer(**options), model)
    train(model, optimizer, 5)
    saved = model.state_dict(), optimizer.state_dict()
    resumed = network()
    fresh = build(GaLorePerLayer(**options), resumed)
    resumed.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    expected = train(model, optimizer, 5, first=5)
    assert all(torch.equal(*pair) for pair in zip(train(resumed, fresh, 5, first=5), expected, strict=True))


def test_optimizer_that_is_gone_steps_nothing():
    model = network()
    optimizer = build(GaLorePerLayer(), model)
    del optimizer
    gc.collect()
    before = model[1].weight.detach().clone()
    loss(model).backward()
    assert torch.equal(model[1].weight, before)
    assert model[1].weight.grad is not None


def test_state_is_that_of_galore():
    together, apart = network(), network()
    first, second = build(GaLore(rank=4), together), build(GaLorePerLayer(rank=4), apart)
    train(together, first, 1)
    train(apart, second, 1)
    sizes = [
        [sum(t.numel() for t in state.values() if isinstance(t, torch.Tensor)) for state in o.state.values()]
        for o in (first, second)
    ]
    assert sorted(sizes[0]) == sorted(sizes[1])
