"""AdamW is torch.optim.AdamW, and that is the rule of the card."""

from __future__ import annotations

import math

import pytest
import torch

from bench import Role, Run
from bench.plugins.baselines.adamw import AdamW

pytestmark = pytest.mark.paper


def build(algorithm, parameter):
    return algorithm.optimizer([("w", parameter)], Run(seed=0, steps=9, roles={"w": Role.OTHER}))


def test_every_step_is_the_rule_of_the_card(stream, start, drive):
    lr, beta1, beta2, eps, decay = 0.02, 0.8, 0.95, 0.05, 0.3
    weights, exp_avg, exp_avg_sq = start(6, 5).double(), 0.0, 0.0
    expected = []
    for t, gradient in enumerate(stream(6, 5, 20), start=1):
        g = gradient.double()
        weights = (1 - lr * decay) * weights
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g**2
        denominator = exp_avg_sq.sqrt() / math.sqrt(1 - beta2**t) + eps
        weights = weights - lr / (1 - beta1**t) * exp_avg / denominator
        expected.append(weights)
    algorithm = AdamW(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay)
    path = drive(lambda parameter: build(algorithm, parameter), start(6, 5), stream(6, 5, 20))
    assert max(float((a - b).abs().max()) for a, b in zip(path, expected, strict=True)) < 2e-6


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}])
def test_it_is_torch_adamw_whatever_its_kernel(options, stream, start, drive):
    gradients = stream(6, 5, 20)
    theirs = drive(lambda p: torch.optim.AdamW([p], lr=0.01, weight_decay=0.1, **options), start(6, 5), gradients)
    path = drive(lambda parameter: build(AdamW(lr=0.01, weight_decay=0.1), parameter), start(6, 5), gradients)
    assert max(float((a - b).abs().max()) for a, b in zip(path, theirs, strict=True)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_two_moments_beside_the_counter(dtype):
    parameter = torch.nn.Parameter(torch.zeros(6, 5, dtype=dtype))
    optimizer = build(AdamW(), parameter)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state[parameter]
    moments = [value for name, value in state.items() if name != "step"]
    assert [(moment.numel(), moment.dtype) for moment in moments] == [(30, dtype)] * 2
    assert state["step"].numel() == 1


def test_defaults_are_those_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(2))
    ours, theirs = build(AdamW(), parameter).param_groups[0], torch.optim.AdamW([parameter]).param_groups[0]
    names = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


def test_meta_tensors_are_accepted():
    parameter = torch.nn.Parameter(torch.zeros(6, 5, device="meta"))
    parameter.grad = torch.zeros(6, 5, device="meta")
    optimizer = build(AdamW(), parameter)
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].device.type == "meta"
