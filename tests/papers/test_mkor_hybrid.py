"""MKOR-H: MKOR before the switch, the base rule after it, and a switch that follows from the losses alone.

There is no package, and the authors' code holds a flag that nothing sets; so the rule of the switch is checked against
its own statement, and what happens before and after against MKOR and the base rule.
"""

from __future__ import annotations

import doctest
import importlib
import io

import pytest
import torch
from torch import nn

from bench import Role, Run
from bench.errors import BadValue
from bench.memory import estimate
from bench.plugins.optimizers._taps import tap_of
from bench.plugins.optimizers.mkor import MKOROptimizer, tap_layers
from bench.plugins.optimizers.mkor_hybrid import MKORHybrid, MKORHybridOptimizer

pytestmark = pytest.mark.paper

OPTIONS = {"lr": 0.05, "base": "sgd", "update_gap": 2}


def net(*, tapped=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    if tapped:
        tap_layers(model)
    return model


def train(model, optimizer, losses, first=0):
    """Train by drawn data while telling the optimizer ``losses``; return the weights after each step."""
    path = []
    for number, told in enumerate(losses, start=first):

        def closure(number=number, told=told):
            optimizer.zero_grad()
            x = torch.randn(6, 5, generator=torch.Generator().manual_seed(number))
            model(x).square().sum(1).mean().backward()
            return told

        assert optimizer.step(closure) is told
        path.append([parameter.detach().clone() for parameter in model.parameters()])
    return path


def equal(left, right):
    return all(torch.equal(*pair) for pair in zip(left, right, strict=True))


def switched_at(optimizer):
    (group,) = optimizer.param_groups
    return group["switched_at"]


def test_it_is_mkor_before_the_switch_and_the_base_rule_after_it():
    losses = [8.0, 8.0, 4.0, 4.0, 3.99, 3.99, 1.0, 0.5, 0.2, 0.1]  # the third pair lies too little below the second
    hybrid_model, mkor_model, base_model = net(), net(), net(tapped=False)
    hybrid = MKORHybridOptimizer(hybrid_model.parameters(), switch_window=2, switch_threshold=0.01, **OPTIONS)
    path = train(hybrid_model, hybrid, losses)
    assert switched_at(hybrid) == 6
    mkor = MKOROptimizer(mkor_model.parameters(), **OPTIONS)
    expected = train(mkor_model, mkor, losses[:6])
    assert all(equal(*pair) for pair in zip(path, expected, strict=False))
    for parameter, other in zip(base_model.parameters(), mkor_model.parameters(), strict=True):
        parameter.data.copy_(other.data)
    base = MKOROptimizer(base_model.parameters(), **OPTIONS)  # of untapped layers: the base rule
    state = mkor.state_dict()
    for entry in state["state"].values():
        entry.pop("left", None)
        entry.pop("right", None)
    base.load_state_dict(state)
    assert all(equal(*pair) for pair in zip(path[6:], train(base_model, base, losses[6:], first=6), strict=True))
    assert not equal(path[-1], train(mkor_model, mkor, losses[6:], first=6)[-1])


def test_the_switch_drops_the_factors_and_silences_the_taps_for_good():
    model = net()
    optimizer = MKORHybridOptimizer(model.parameters(), switch_window=1, **OPTIONS)
    train(model, optimizer, [1.0])
    assert "left" in optimizer.state[model[0].weight]
    train(model, optimizer, [1.0, 0.1, 0.01, 0.001], first=1)
    assert switched_at(optimizer) == 2
    for layer in (model[0], model[2]):
        assert set(optimizer.state[layer.weight]) == {"step", "momentum_buffer"}
        assert not tap_of(layer.weight).active


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([4.0, 2.0, 1.0, 0.5, 0.25, 0.1], None),  # halves from window to window
        ([4.0, 4.0, 4.0], 2),  # at the first window that has one before it
        ([4.0, 5.0], 2),  # a loss that rises falls too slowly
        ([4.0, 3.61, 3.2, 2.89], 2),  # by 0.0975 of itself, below a tenth
        ([4.0, 3.59, 3.2, 2.89], 4),  # by 0.1025, by 0.109, and then by 0.097
        ([-1.0, -2.0, -2.1], 3),  # relative to the size of a negative loss
        ([4.0, float("nan"), 4.0, 4.0], 4),  # what is no number decides nothing
    ],
)
def test_the_switch_follows_from_the_losses_alone(losses, expected):
    model = net()
    optimizer = MKORHybridOptimizer(model.parameters(), switch_window=1, switch_threshold=0.1, **OPTIONS)
    train(model, optimizer, losses)
    assert switched_at(optimizer) == expected


def test_losses_are_averaged_over_windows():
    model = net()
    optimizer = MKORHybridOptimizer(model.parameters(), switch_window=3, switch_threshold=0.1, **OPTIONS)
    train(model, optimizer, [5.0, 1.0, 3.0, 1.0, 4.0, 1.0, 3.0, 0.5, 2.3])  # means 3, 2, 1.933
    assert switched_at(optimizer) == 9


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_a_training_resumed_from_its_state_goes_on_bit_for_bit(stop):
    losses = [8.0, 8.0, 4.0, 4.0, 3.99, 3.99, 1.0, 0.5, 0.2, 0.1]
    models = net(), net()
    whole = MKORHybridOptimizer(models[0].parameters(), switch_window=2, **OPTIONS)
    path = train(models[0], whole, losses)
    half = MKORHybridOptimizer(models[1].parameters(), switch_window=2, **OPTIONS)
    train(models[1], half, losses[:stop])
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = MKORHybridOptimizer(models[1].parameters(), switch_window=2, **OPTIONS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert equal(train(models[1], resumed, losses[stop:], first=stop)[-1], path[-1])
    assert switched_at(resumed) == 6


def test_a_loss_that_still_has_a_graph_is_read_without_a_warning():
    model = net()
    optimizer = MKORHybridOptimizer(model.parameters(), switch_window=1, **OPTIONS)
    train(model, optimizer, [nn.Parameter(torch.tensor(2.0)) * 2, 4.0])
    assert switched_at(optimizer) == 2


def test_a_step_without_a_closure_is_refused():
    optimizer = MKORHybridOptimizer(net().parameters())
    with pytest.raises(BadValue, match="without a closure"):
        optimizer.step()


def test_a_group_that_joins_later_stands_where_the_others_stand():
    model, late = net(), nn.Parameter(torch.zeros(3))
    optimizer = MKORHybridOptimizer(model.parameters(), switch_window=1, **OPTIONS)
    train(model, optimizer, [1.0])
    optimizer.add_param_group({"params": [late]})
    first, second = optimizer.param_groups
    assert (second["switch_window"], second["switched_at"]) == (1, None)
    assert first["losses"] == 1


@pytest.mark.parametrize(("option", "value"), [("switch_window", 0), ("switch_threshold", 0.0), ("update_gap", 0)])
def test_bad_options_are_refused_with_name_value_and_type(option, value):
    group, bad = {"params": [nn.Parameter(torch.zeros(3))]}, {option: value}
    for groups, options in (([group], bad), ([group | bad], {})):
        with pytest.raises(BadValue, match=rf"mkor-hybrid: {option} = {value} \((int|float)\) is not allowed"):
            MKORHybridOptimizer(groups, **options)


@pytest.mark.parametrize(("steps", "window"), [(300, 15), (100, 10), (10_000, 500)])
def test_plugin_averages_over_a_twentieth_of_the_run(steps, window):
    named = [("w", nn.Parameter(torch.zeros(3, 3)))]
    run = Run(seed=0, steps=steps, roles={"w": Role.MLP})
    (group,) = MKORHybrid().optimizer(named, run).param_groups
    assert (group["switch_window"], group["switch_threshold"], group["base"]) == (window, 0.01, "lamb")
    (group,) = MKORHybrid(switch_window=7).optimizer(named, run).param_groups
    assert group["switch_window"] == 7


def test_a_run_of_the_suite_hands_it_the_loss(micro):
    workload = micro.workload(steps=24, evaluate_every=12)
    parts = micro.parts(MKORHybrid(base="sgd", lr=0.03, switch_window=4, switch_threshold=0.99), workload=workload)
    micro.train(parts, workload)
    assert {group["switched_at"] for group in parts.optimizer.param_groups} == {8}


def test_memory_is_estimated_with_the_factors(micro):
    factors = (8 * 8 + 6 * 6) + (3 * 3 + 9 * 9)
    found = estimate([MKORHybrid(base="sgd"), micro.Plain()], micro.workload(), "fp32")
    assert found.states_bytes == 2 * factors + 4 * found.parameters


def test_examples_in_the_documentation_run():
    results = doctest.testmod(importlib.import_module("bench.plugins.optimizers.mkor_hybrid"))
    assert results.attempted >= 3
    assert results.failed == 0
