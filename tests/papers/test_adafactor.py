"""Adafactor in AlgoPerf's form: no package has it, so it is proven against the rule written out in fp64.

transformers' Adafactor shares all but the decay of the second moment, 1 - t^-0.8; with that decay put in here the two
agree. torch.optim.Adafactor has no momentum and scales by the size of the parameter.
"""

from __future__ import annotations

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.baselines import adafactor as module
from bench.plugins.baselines.adafactor import Adafactor, AdafactorOptimizer, decay_at

pytestmark = pytest.mark.paper

SHAPES = [(6, 5), (5, 6), (7,), (4, 3, 2, 5)]


def adafactor(**options):
    return lambda parameter: AdafactorOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def gradients_of_shape(shape, steps):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def published_rule(weights, gradients, *, lr, betas, weight_decay, decay=None):
    """The card's rule, as it stands there."""
    w, momentum, path = weights.double(), 0.0, []
    row = column = full = 0.0
    for t, gradient in enumerate(gradients, start=1):
        b = 0.99 * (1 - 0.99 ** (t - 1)) / (1 - 0.99**t) if decay is None else decay(t)
        g = gradient.double()
        s = g**2 + 1e-30
        if g.ndim >= 2:
            row = b * row + (1 - b) * s.mean(-1)
            column = b * column + (1 - b) * s.mean(-2)
            d = (row / row.mean(-1, keepdim=True)).unsqueeze(-1) * column.unsqueeze(-2)
        else:
            full = b * full + (1 - b) * s
            d = full
        u = g / d.sqrt()
        u = lr * u / max(1.0, float(u.square().mean().sqrt()))
        momentum = betas[0] * momentum + (1 - betas[0]) * u
        w = (1 - lr * weight_decay) * w - momentum
        path.append(w)
    return path


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_rule_of_the_card(shape, foreach, drive):
    options = {"lr": 0.02, "betas": (0.8, 0.99), "weight_decay": 0.3}
    weights, gradients = gradients_of_shape(shape, 1)[0], gradients_of_shape(shape, 25)
    gradients[7] *= 30.0  # so large against the average that it is clipped
    expected = published_rule(weights, gradients, **options)
    assert distance(drive(adafactor(foreach=foreach, **options), weights, gradients), expected) < 3e-6


def test_parity_with_transformers_under_its_decay_of_the_second_moment(monkeypatch, stream, start, drive, package):
    theirs = package("transformers.optimization", "transformers")
    monkeypatch.setattr(module, "decay_at", lambda _, step: 1.0 - step**-0.8)
    gradients, common = stream(6, 5, 25), {"lr": 0.02, "weight_decay": 0.3}
    build = lambda p: theirs.Adafactor([p], beta1=0.8, scale_parameter=False, relative_step=False, **common)  # noqa: E731
    expected = drive(build, start(6, 5), gradients)
    assert distance(drive(adafactor(betas=(0.8, 0.99), **common), start(6, 5), gradients), expected) < 2e-6


def test_rank_one_squares_make_it_the_unfactored_rule(start, drive):
    generator = torch.Generator().manual_seed(0)
    signs = [torch.randint(0, 2, (6, 5), generator=generator) * 2.0 - 1.0 for _ in range(20)]
    outer = (torch.rand(6, 1, generator=generator) + 0.5) * (torch.rand(1, 5, generator=generator) + 0.5)
    gradients, options = [sign * outer for sign in signs], {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.1}
    factored = drive(adafactor(**options), start(6, 5), gradients)
    vector = drive(adafactor(**options), start(6, 5).flatten(), [gradient.flatten() for gradient in gradients])
    assert distance([weights.flatten() for weights in factored], vector) < 1e-6


def test_the_decay_of_the_second_moment_starts_at_zero_and_tends_to_its_limit():
    assert decay_at(0.99, 1) == 0.0
    assert decay_at(0.99, 10_000) == pytest.approx(0.99, abs=1e-9)
    average, weights = 0.0, [0.3, 0.7, 2.0, 5.0]
    for t, value in enumerate(weights, start=1):
        average = decay_at(0.99, t) * average + (1 - decay_at(0.99, t)) * value
    powers = [0.99**k for k in (3, 2, 1, 0)]  # the bias-corrected average, without a correction
    assert average == pytest.approx(sum(p * w for p, w in zip(powers, weights, strict=True)) / sum(powers))


def test_a_change_of_the_rate_arrives_through_the_momentum(stream):
    parameter = torch.nn.Parameter(torch.zeros(6, 5))
    optimizer = AdafactorOptimizer([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for gradient in stream(6, 5, 5):
        parameter.grad = gradient
        optimizer.step()
    optimizer.param_groups[0]["lr"], before = 0.0, parameter.detach().clone()
    momentum = optimizer.state[parameter]["exp_avg"].clone()
    optimizer.step()
    assert torch.allclose(parameter, before - 0.9 * momentum, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_state_is_the_formula_of_the_card(shape, dtype):
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = AdafactorOptimizer([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = dict(optimizer.state[parameter])
    assert state.pop("step") == 1
    momentum = state.pop("exp_avg")
    assert (momentum.shape, momentum.dtype) == (parameter.shape, dtype)
    n = parameter.numel()
    averages = n if len(shape) == 1 else n // shape[-1] + n // shape[-2]
    assert sum(buffer.numel() for buffer in state.values()) == averages
    assert {buffer.dtype for buffer in state.values()} == {torch.float32}


def test_plugin_passes_its_fields_on():
    algorithm = Adafactor(lr=0.5, beta1=0.1, beta2=0.2, weight_decay=0.7)
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3)))]
    (group,) = algorithm.optimizer(named, Run(seed=0, steps=1, roles={"w": Role.MLP})).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.1, 0.2), 0.7)


@pytest.mark.parametrize(("option", "value"), [("lr", -1.0), ("betas", (1.0, 0.9)), ("betas", (0.9, 1.0))])
def test_bad_options_are_refused_with_name_and_domain(option, value):
    with pytest.raises(BadValue, match="adafactor") as raised:
        AdafactorOptimizer([torch.nn.Parameter(torch.zeros(2))], **{option: value})
    assert "<" in (raised.value.hint or "") or ">" in (raised.value.hint or "")
