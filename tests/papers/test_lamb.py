"""LAMB against the rule of the card and timm's class."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.baselines.lamb import LAMB, LAMBOptimizer

pytestmark = pytest.mark.paper

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.3}


def lamb(**options):
    return lambda parameter: LAMBOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_rule_of_the_card(foreach, stream, start, drive):
    weights, exp_avg, exp_avg_sq, expected = start(6, 5).double(), 0.0, 0.0, []
    for t, gradient in enumerate(stream(6, 5, 30), start=1):
        g = gradient.double()
        exp_avg = 0.9 * exp_avg + 0.1 * g
        exp_avg_sq = 0.99 * exp_avg_sq + 0.01 * g**2
        update = exp_avg / (1 - 0.9**t) / ((exp_avg_sq / (1 - 0.99**t)).sqrt() + 1e-8) + 0.3 * weights
        weights = weights - 0.02 * weights.norm() / update.norm() * update
        expected.append(weights)
    assert distance(drive(lamb(foreach=foreach, **OPTIONS), start(6, 5), stream(6, 5, 30)), expected) < 3e-6


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_parity_with_timm(weight_decay, stream, start, drive, module_alone):
    theirs, options = module_alone("timm.optim.lamb", "timm"), OPTIONS | {"weight_decay": weight_decay}
    gradients = stream(13, 7, 30)
    build = lambda p: theirs.Lamb([p], max_grad_norm=None, always_adapt=True, **options)  # noqa: E731
    expected = drive(build, start(13, 7), gradients)
    assert distance(drive(lamb(**options), start(13, 7), gradients), expected) < 1e-6


@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_has_the_length_of_the_tensor_times_the_rate(foreach, stream, start, drive):
    path = [start(6, 5), *drive(lamb(foreach=foreach, **OPTIONS), start(6, 5), stream(6, 5, 10))]
    for old, new in pairwise(path):
        assert float((new - old).norm() / old.norm()) == pytest.approx(0.02, rel=1e-4)


@pytest.mark.parametrize("foreach", [True, False])
def test_the_ratio_is_one_where_weights_or_update_are_zero(foreach, stream, drive):
    options = OPTIONS | {"foreach": foreach, "weight_decay": 0.0}
    (moved,) = drive(lamb(**options), torch.zeros(6, 5), stream(6, 5, 1))
    assert torch.allclose(moved, -0.02 * stream(6, 5, 1)[0].sign(), atol=1e-5)  # Adam's first step
    (still,) = drive(lamb(**options), torch.ones(6, 5), [torch.zeros(6, 5)])
    assert torch.equal(still, torch.ones(6, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_two_moments_beside_the_counter(dtype):
    parameter = torch.nn.Parameter(torch.ones(6, 5, dtype=dtype))
    optimizer = LAMBOptimizer([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = dict(optimizer.state[parameter])
    assert state.pop("step") == 1
    assert [(buffer.numel(), buffer.dtype) for buffer in state.values()] == [(30, dtype)] * 2


def test_plugin_passes_its_fields_on():
    algorithm = LAMB(lr=0.5, beta1=0.1, beta2=0.2, eps=0.3, weight_decay=0.7)
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3)))]
    (group,) = algorithm.optimizer(named, Run(seed=0, steps=1, roles={"w": Role.MLP})).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.1, 0.2), 0.3, 0.7)


@pytest.mark.parametrize(("option", "value"), [("lr", 0.0), ("betas", (1.0, 0.9)), ("betas", (0.9, 1.0))])
def test_bad_options_are_refused_with_name_and_domain(option, value):
    with pytest.raises(BadValue, match="lamb") as raised:
        LAMBOptimizer([torch.nn.Parameter(torch.zeros(2))], **{option: value})
    assert "<" in (raised.value.hint or "") or ">" in (raised.value.hint or "")
