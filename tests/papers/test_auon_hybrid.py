"""Hybrid-AuON: the properties that the card lists.

No package on PyPI contains it, so there is no parity with one. In its place stand the rule written out in fp64, and
Muon, which the variant "repo" equals but for the divisor r and the shape factor.
"""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.optimizers import auon_hybrid as module
from bench.plugins.optimizers._orthogonalize import newton_schulz, newton_schulz_batched
from bench.plugins.optimizers.auon_hybrid import AuONHybrid, AuONHybridOptimizer
from bench.plugins.optimizers.muon import MuonOptimizer

pytestmark = pytest.mark.paper

SHAPES = [(48, 48), (32, 96), (96, 32)]
both_forms = pytest.mark.parametrize("foreach", [True, False])


def hybrid(**options):
    return lambda parameter: AuONHybridOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def divisor(x):
    return float((torch.cosh(x.double()) ** 2).mean().sqrt())


@pytest.fixture
def in_fp32(monkeypatch):
    """Newton-Schulz in fp32: what leaves only the rule itself to compare."""
    monkeypatch.setattr(module, "newton_schulz", lambda x, steps: newton_schulz(x, steps, torch.float32))
    monkeypatch.setattr(
        module, "newton_schulz_batched", lambda x, steps: newton_schulz_batched(x, steps, torch.float32)
    )


def rule_in_float64(weights, gradients, *, lr, momentum, weight_decay, variant, iterations):
    """The card's hybrid in both variants, with the iteration written out."""
    w, m = weights.double(), torch.zeros_like(weights).double()
    path = []
    for gradient in gradients:
        g = gradient.double()
        m = momentum * m + (1 - momentum) * g
        c = (1 - momentum) * g + momentum * m
        x = c / c.square().sum().sqrt()
        for _ in range(iterations):
            a = x @ x.T
            b = -4.7750 * a + 2.0315 * a @ a
            x = 3.4445 * x + b @ x
        w = w - lr * weight_decay * w
        if variant == "paper":
            w = w - lr * math.sqrt(max(1, w.shape[0] / w.shape[1])) * x / (divisor(x) + 1e-8)
        else:
            w = w - lr * x / (divisor(1.5 * x / x.square().sum().sqrt()) + 1e-8)
        path.append(w)
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("variant", "iterations"), [("paper", 1), ("repo", 5)])
@both_forms
@pytest.mark.usefixtures("in_fp32")
def test_every_step_is_the_published_rule_with_the_published_iterations(
    shape, variant, iterations, foreach, stream, start, drive
):
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "variant": variant}
    gradients = stream(*shape, 6)
    expected = rule_in_float64(start(*shape), gradients, iterations=iterations, **options)
    found = drive(hybrid(foreach=foreach, **options), start(*shape), gradients)
    assert distance([weights.double() for weights in found], expected) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@both_forms
def test_repo_variant_is_muon_but_for_the_divisor_and_the_shape_factor(shape, foreach, stream, start, drive):
    gradients = stream(*shape, 6)
    ours = drive(hybrid(lr=0.02, variant="repo", foreach=foreach), start(*shape), gradients)
    lr = 0.02 / math.sqrt(max(1.0, shape[0] / shape[1]))
    muon = drive(lambda p: MuonOptimizer([p], lr=lr, foreach=foreach), start(*shape), gradients)
    moved = torch.linalg.matrix_norm(muon[-1] - start(*shape))
    difference = torch.linalg.matrix_norm(ours[-1] - muon[-1])
    assert 0.0 < float(difference) < 1e-3 * moved  # r is within 2.3/N of 1


@pytest.mark.usefixtures("in_fp32")
def test_divisor_of_the_paper_s_variant_is_felt_after_one_iteration(stream, drive):
    (gradient,) = stream(32, 32, 1)
    (moved,) = drive(hybrid(lr=1.0), torch.zeros(32, 32), [gradient])
    x = newton_schulz(0.0975 * gradient, 1, torch.float32)
    assert torch.allclose(-moved * divisor(x), x, atol=1e-5)
    assert divisor(x) > 1.004  # ‖X‖_F is above 1 here: the iteration has stretched the singular values


@both_forms
def test_rescaling_all_gradients_changes_nothing(foreach, stream, start, drive):
    gradients = stream(32, 96, 4)
    plain = drive(hybrid(foreach=foreach), start(32, 96), gradients)
    scaled = drive(hybrid(foreach=foreach), start(32, 96), [2.0**-6 * gradient for gradient in gradients])
    assert all(torch.equal(*pair) for pair in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_one_buffer_of_the_parameters_size(dtype):
    parameter = torch.nn.Parameter(torch.zeros(12, 20, dtype=dtype))
    optimizer = AuONHybridOptimizer([parameter])
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    (buffer,) = optimizer.state[parameter].values()
    assert (buffer.numel(), buffer.dtype) == (240, dtype)


@pytest.mark.parametrize("variant", ["paper", "repo"])
@both_forms
def test_zero_gradient_only_decays_the_weights(variant, foreach, start, drive):
    options = {"lr": 0.02, "weight_decay": 0.1, "foreach": foreach, "variant": variant}
    expected = start(12, 20)
    for weights in drive(hybrid(**options), start(12, 20), [torch.zeros(12, 20)] * 3):
        expected = expected * (1 - 0.02 * 0.1)
        assert torch.equal(weights, expected)


@both_forms
def test_convolution_is_its_matrix_view(foreach, stream):
    kernel, matrix = torch.nn.Parameter(torch.zeros(8, 4, 3, 3)), torch.nn.Parameter(torch.zeros(8, 36))
    optimizer = AuONHybridOptimizer([kernel, matrix], foreach=foreach)
    for gradient in stream(8, 36, 3):
        for parameter in (kernel, matrix):
            parameter.grad = gradient.view_as(parameter).clone()
        optimizer.step()
    assert torch.equal(kernel.view(8, 36), matrix)


def test_plugin_passes_its_fields_on():
    roles = {"embed": Role.EMBEDDING, "q": Role.ATTENTION_Q}
    named = [(name, torch.nn.Parameter(torch.zeros(4, 4))) for name in roles]
    algorithm = AuONHybrid(variant="repo", newton_schulz_steps=3, lr=0.02)
    matrices, rest = algorithm.optimizer(named, Run(seed=0, steps=9, roles=roles)).param_groups
    assert (matrices["param_names"], rest["param_names"]) == (["q"], ["embed"])
    assert (matrices["algorithm"], matrices["newton_schulz_steps"], matrices["lr"]) == ("auon-hybrid", 3, 0.02)
    assert (rest["algorithm"], rest["lr"]) == ("adamw", 5.5e-3)


def test_bad_options_are_refused_with_name_value_and_type():
    matrix = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(BadValue, match=r"auon-hybrid: newton_schulz_steps = 0 \(int\)"):
        AuONHybridOptimizer([matrix], newton_schulz_steps=0)
    with pytest.raises(BadValue, match=r"auon-hybrid: momentum = 1\.0 \(float\)"):
        AuONHybrid(momentum=1.0)
    with pytest.raises(BadValue, match="algorithm = 'auon'"):
        AuONHybridOptimizer([{"params": [matrix], "algorithm": "auon"}])


def test_example_in_the_documentation_runs():
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
