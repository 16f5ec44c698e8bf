"""NAdamW against the rule of the card and timm's class."""

from __future__ import annotations

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.baselines.nadamw import NAdamW, NAdamWOptimizer

pytestmark = pytest.mark.paper

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.3}


def nadamw(**options):
    return lambda parameter: NAdamWOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_rule_of_the_card(foreach, stream, start, drive):
    lr, (beta1, beta2), eps, decay = 0.02, (0.9, 0.99), 1e-3, 0.3
    weights, exp_avg, exp_avg_sq, expected = start(6, 5).double(), 0.0, 0.0, []
    for t, gradient in enumerate(stream(6, 5, 30), start=1):
        g = gradient.double()
        weights = (1 - lr * decay) * weights
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g**2
        ahead = (beta1 * exp_avg + (1 - beta1) * g) / (1 - beta1**t)
        weights = weights - lr * ahead / ((exp_avg_sq / (1 - beta2**t)).sqrt() + eps)
        expected.append(weights)
    path = drive(nadamw(foreach=foreach, **OPTIONS), start(6, 5), stream(6, 5, 30))
    assert distance(path, expected) < 2e-6


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_parity_with_timm(weight_decay, stream, start, drive, module_alone):
    theirs, options = module_alone("timm.optim.nadamw", "timm"), OPTIONS | {"weight_decay": weight_decay}
    gradients = stream(13, 7, 30)
    expected = drive(lambda parameter: theirs.NAdamW([parameter], **options), start(13, 7), gradients)
    assert distance(drive(nadamw(**options), start(13, 7), gradients), expected) < 5e-7


def test_it_is_not_torch_nadam_whose_momentum_is_scheduled(stream, start, drive):
    options = OPTIONS | {"weight_decay": 0.0}
    build = lambda p: torch.optim.NAdam([p], momentum_decay=1e6, **options)  # noqa: E731
    theirs = drive(build, start(6, 5), stream(6, 5, 30))
    assert distance(drive(nadamw(**options), start(6, 5), stream(6, 5, 30)), theirs) > 1e-3


def test_without_momentum_it_is_adamw(stream, start, drive):
    options = OPTIONS | {"betas": (0.0, 0.99)}
    theirs = drive(lambda p: torch.optim.AdamW([p], **options), start(6, 5), stream(6, 5, 20))
    assert distance(drive(nadamw(**options), start(6, 5), stream(6, 5, 20)), theirs) < 1e-6


def test_the_stored_momentum_is_the_plain_average(stream):
    parameter, average = torch.nn.Parameter(torch.zeros(6, 5)), torch.zeros(6, 5)
    optimizer = NAdamWOptimizer([parameter], betas=(0.9, 0.99))
    for gradient in stream(6, 5, 10):
        parameter.grad, average = gradient, 0.9 * average + 0.1 * gradient
        optimizer.step()
    assert torch.allclose(optimizer.state[parameter]["exp_avg"], average, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_two_moments_beside_the_counter(dtype):
    parameter = torch.nn.Parameter(torch.zeros(6, 5, dtype=dtype))
    optimizer = NAdamWOptimizer([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = dict(optimizer.state[parameter])
    assert state.pop("step") == 1
    assert [(buffer.numel(), buffer.dtype) for buffer in state.values()] == [(30, dtype)] * 2


def test_plugin_passes_its_fields_on():
    algorithm = NAdamW(lr=0.5, beta1=0.1, beta2=0.2, eps=0.3, weight_decay=0.7)
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3)))]
    (group,) = algorithm.optimizer(named, Run(seed=0, steps=1, roles={"w": Role.MLP})).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.1, 0.2), 0.3, 0.7)


@pytest.mark.parametrize(
    ("option", "value"), [("lr", -1.0), ("betas", (1.0, 0.9)), ("betas", (0.9, 1.0)), ("eps", -1.0)]
)
def test_bad_options_are_refused_with_name_and_domain(option, value):
    with pytest.raises(BadValue, match="nadamw") as raised:
        NAdamWOptimizer([torch.nn.Parameter(torch.zeros(2))], **{option: value})
    assert ">" in (raised.value.hint or "")
