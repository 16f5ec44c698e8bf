"""Schedule-Free AdamW against the rule of the card, the authors' package and a second one."""

from __future__ import annotations

import copy

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.baselines.schedule_free import ScheduleFree, ScheduleFreeAdamW

pytestmark = pytest.mark.paper

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.3}
CLASSES = [
    ("schedulefree", "schedulefree", "AdamWScheduleFree"),
    ("pytorch_optimizer", "pytorch-optimizer", "ScheduleFreeAdamW"),
]


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def path_of(optimizer, parameter, gradients, warmup):
    """Return y after each step, then x; ``warmup`` steps of a linear warm-up from outside."""
    path, lr = [], optimizer.param_groups[0]["lr"]
    optimizer.train()
    for k, gradient in enumerate(gradients):
        if warmup:
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (k + 1) / warmup)
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    optimizer.eval()
    return [*path, parameter.detach().clone()]


def ours(weights, gradients, warmup=0, **options):
    parameter = torch.nn.Parameter(weights.clone())
    return path_of(ScheduleFreeAdamW([parameter], **options), parameter, gradients, warmup)


def rule(weights, gradients, *, warmup, r, lr, betas, eps, weight_decay):
    """The formulas of the card in fp64."""
    y = z = weights.double()
    v, total, largest, path = 0.0, 0.0, 0.0, []
    for k, gradient in enumerate(gradients):
        rate = lr * min(1.0, (k + 1) / warmup) if warmup else lr
        g = gradient.double()
        v = betas[1] * v + (1 - betas[1]) * g**2
        u = g / ((v / (1 - betas[1] ** (k + 1))).sqrt() + eps) + weight_decay * y
        largest = max(largest, rate)
        weight = (k + 1) ** r * largest**2
        total += weight
        c = weight / total
        y = (1 - c) * y + c * z + rate * (betas[0] * (1 - c) - 1) * u
        z = z - rate * u
        path.append(y)
    return [*path, y + (1 - 1 / betas[0]) * (z - y)]


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("warmup", "r"), [(0, 0.0), (8, 0.0), (8, 0.75)])
def test_every_step_is_the_rule_of_the_card(foreach, warmup, r, stream, start):
    expected = rule(start(6, 5), stream(6, 5, 25), warmup=warmup, r=r, **OPTIONS)
    path = ours(start(6, 5), stream(6, 5, 25), warmup, foreach=foreach, r=r, **OPTIONS)
    assert distance(path, expected) < 3e-6


@pytest.mark.parametrize(("module", "wheel", "name"), CLASSES)
@pytest.mark.parametrize("warmup", [0, 8])
def test_parity_with_the_packages(module, wheel, name, warmup, stream, start, package):
    theirs = getattr(package(module, wheel), name)
    parameter = torch.nn.Parameter(start(6, 5))
    optimizer = theirs([parameter], warmup_steps=warmup, **OPTIONS)
    expected = path_of(optimizer, parameter, stream(6, 5, 30), 0)
    assert distance(ours(start(6, 5), stream(6, 5, 30), warmup, **OPTIONS), expected) < 1e-6


def test_at_a_constant_rate_x_is_the_plain_mean_of_the_iterates_z(stream, start):
    parameter = torch.nn.Parameter(start(6, 5))
    optimizer = ScheduleFreeAdamW([parameter], **OPTIONS)
    iterates = []
    for gradient in stream(6, 5, 20):
        parameter.grad = gradient
        optimizer.step()
        iterates.append(optimizer.state[parameter]["z"].clone())
        optimizer.eval()
        assert torch.allclose(parameter, torch.stack(iterates).mean(0), atol=3e-6)
        optimizer.train()


def test_switching_there_and_back_restores_the_weights_and_twice_is_once(stream, start):
    parameter = torch.nn.Parameter(start(6, 5))
    optimizer = ScheduleFreeAdamW([parameter], **OPTIONS)
    for gradient in stream(6, 5, 10):
        parameter.grad = gradient
        optimizer.step()
    y = parameter.detach().clone()
    optimizer.train()
    assert torch.equal(parameter, y)
    optimizer.eval()
    x = parameter.detach().clone()
    optimizer.eval()
    assert torch.equal(parameter, x)
    assert not torch.allclose(x, y, atol=1e-4)
    optimizer.train()
    assert torch.allclose(parameter, y, atol=1e-6)


def test_a_step_between_eval_and_train_is_refused_and_the_mode_is_saved():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = ScheduleFreeAdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    optimizer.eval()
    other = ScheduleFreeAdamW([torch.nn.Parameter(parameter.detach().clone())])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for waiting in (optimizer, other):
        for group in waiting.param_groups:
            group["params"][0].grad = torch.ones(3)
        with pytest.raises(RuntimeError, match=r"train\(\)"):
            waiting.step()
        waiting.train()
        waiting.step()
    assert torch.equal(parameter, other.param_groups[0]["params"][0])


def test_steps_at_a_rate_of_zero_change_nothing_and_do_not_divide_by_zero():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = ScheduleFreeAdamW([parameter])
    optimizer.param_groups[0]["lr"] = 0.0
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(3))


def test_a_parameter_that_joins_late_starts_as_the_others_did(stream, start):
    alone = ours(start(6, 5), stream(6, 5, 5), **OPTIONS)
    first, late = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(start(6, 5))
    optimizer = ScheduleFreeAdamW([first, late], **OPTIONS)
    for gradient in [None, None, *stream(6, 5, 5)]:
        first.grad, late.grad = torch.ones(2), gradient
        optimizer.step()
    assert torch.equal(late, alone[-2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_two_buffers(dtype):
    parameter = torch.nn.Parameter(torch.zeros(6, 5, dtype=dtype))
    optimizer = ScheduleFreeAdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    buffers = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert [(buffer.numel(), buffer.dtype) for buffer in buffers] == [(30, dtype)] * 2


def test_plugin_passes_its_fields_on_and_warms_up_without_decay():
    algorithm = ScheduleFree(lr=0.5, beta1=0.1, beta2=0.2, eps=0.3, weight_decay=0.7, r=0.4)
    named, run = [("w", torch.nn.Parameter(torch.zeros(3, 3)))], Run(seed=0, steps=300, roles={"w": Role.MLP})
    (group,) = algorithm.optimizer(named, run).param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.1, 0.2), 0.3)
    assert (group["weight_decay"], group["r"]) == (0.7, 0.4)
    factor = algorithm.schedule(run)
    assert [factor(step) for step in (0, 2, 5, 6, 299, 1000)] == pytest.approx([1 / 6, 0.5, 1, 1, 1, 1])


@pytest.mark.parametrize(("option", "value"), [("lr", -1.0), ("betas", (0.0, 0.9)), ("betas", (0.9, 1.0)), ("r", -1.0)])
def test_bad_options_are_refused_with_name_and_domain(option, value):
    with pytest.raises(BadValue, match="schedule-free") as raised:
        ScheduleFreeAdamW([torch.nn.Parameter(torch.zeros(2))], **{option: value})
    assert ">" in (raised.value.hint or "")
