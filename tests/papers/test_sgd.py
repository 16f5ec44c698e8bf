"""SGD is torch.optim.SGD with Nesterov momentum, and that is the rule of the card."""

from __future__ import annotations

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.baselines.sgd import SGD

pytestmark = pytest.mark.paper


def build(algorithm, parameter):
    return algorithm.optimizer([("w", parameter)], Run(seed=0, steps=9, roles={"w": Role.OTHER}))


def test_every_step_is_the_rule_of_the_card(stream, start, drive):
    lr, momentum, decay = 0.05, 0.8, 0.1
    weights, buffer, expected = start(6, 5).double(), None, []
    for gradient in stream(6, 5, 20):
        g = gradient.double() + decay * weights
        buffer = g if buffer is None else momentum * buffer + g
        weights = weights - lr * (g + momentum * buffer)
        expected.append(weights)
    algorithm = SGD(lr=lr, momentum=momentum, weight_decay=decay)
    path = drive(lambda parameter: build(algorithm, parameter), start(6, 5), stream(6, 5, 20))
    assert max(float((a - b).abs().max()) for a, b in zip(path, expected, strict=True)) < 3e-6


@pytest.mark.parametrize("foreach", [True, False])
def test_it_is_torch_sgd_whatever_its_kernel(foreach, stream, start, drive):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    gradients = stream(6, 5, 20)
    theirs = drive(lambda p: torch.optim.SGD([p], nesterov=True, foreach=foreach, **options), start(6, 5), gradients)
    path = drive(lambda parameter: build(SGD(**options), parameter), start(6, 5), gradients)
    assert max(float((a - b).abs().max()) for a, b in zip(path, theirs, strict=True)) < 3e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_one_buffer(dtype):
    parameter = torch.nn.Parameter(torch.zeros(6, 5, dtype=dtype))
    optimizer = build(SGD(), parameter)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    (buffer,) = optimizer.state[parameter].values()
    assert (buffer.numel(), buffer.dtype) == (30, dtype)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(BadValue, match=r"momentum = 0\.0"):
        SGD(momentum=0.0)
