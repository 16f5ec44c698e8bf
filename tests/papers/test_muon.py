"""Muon: parity with torch.optim.Muon, and the properties that the card lists."""

from __future__ import annotations

import math

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers import muon as module
from bench.plugins.optimizers._orthogonalize import newton_schulz
from bench.plugins.optimizers.muon import Muon, MuonOptimizer, step_factor

pytestmark = pytest.mark.paper

SHAPES = [(64, 64), (32, 128), (128, 32)]


def muon(**options):
    return lambda parameter: MuonOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def cosine(left, right):
    return float(torch.nn.functional.cosine_similarity(left.flatten(), right.flatten(), dim=0))


@pytest.fixture
def in_fp32(monkeypatch):
    """Newton-Schulz in fp32: what the algebraic properties need."""

    def fp32(function):
        return lambda matrix, steps: function(matrix, steps, torch.float32)

    monkeypatch.setattr(module, "newton_schulz", fp32(module.newton_schulz))
    monkeypatch.setattr(module, "newton_schulz_batched", fp32(module.newton_schulz_batched))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("factor", ["original", "match_rms_adamw"])
def test_parity_with_torch_muon(shape, nesterov, factor, stream, start, drive):
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": nesterov}
    gradients = stream(*shape, 12)
    build = lambda parameter: torch.optim.Muon([parameter], adjust_lr_fn=factor, **options)  # noqa: E731
    theirs = [start(*shape), *drive(build, start(*shape), gradients)]
    ours = [start(*shape), *drive(muon(shape_factor=factor, **options), start(*shape), gradients)]
    size = 0.02 * step_factor(torch.Size(shape), factor)
    for k in range(12):
        step, expected = ours[k + 1] - (1 - 0.002) * ours[k], theirs[k + 1] - (1 - 0.002) * theirs[k]
        assert cosine(step, expected) > 0.999
        assert distance([step], [expected]) < 2e-2 * size
        values, others = torch.linalg.svdvals(step / size), torch.linalg.svdvals(expected / size)
        inside = others > 0.6  # the tail below is where bfloat16 rounding decides
        assert torch.allclose(values[inside], others[inside], atol=0.03)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (128, 512)])
def test_newton_schulz_brings_gaussian_singular_values_near_one(shape):
    for seed in range(5):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        x = newton_schulz(matrix, 5, torch.float32)
        values = torch.linalg.svdvals(x)
        assert 0.68 <= float(values.min()) <= float(values.max()) <= 1.14
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        assert cosine(x, u @ vt) > 0.98


def test_square_gaussians_keep_small_singular_values_and_none_above_1_2():
    for seed in range(5):
        matrix = torch.randn(128, 128, generator=torch.Generator().manual_seed(seed))
        assert float(torch.linalg.svdvals(newton_schulz(matrix, 5, torch.float32)).max()) < 1.21


@pytest.mark.parametrize("factor", [2.0**-6, 2.0**11])
@pytest.mark.parametrize("shape", SHAPES)
def test_rescaling_all_gradients_changes_nothing(shape, factor, stream, start, drive):
    gradients = stream(*shape, 6)
    plain = drive(muon(), start(*shape), gradients)
    scaled = drive(muon(), start(*shape), [factor * gradient for gradient in gradients])
    assert all(torch.equal(*pair) for pair in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("in_fp32")
def test_rotated_gradients_give_rotated_steps(shape, stream, start, drive):
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator)).Q for size in shape)
    gradients, zero = stream(*shape, 6), torch.zeros(shape)
    plain = drive(muon(), zero, gradients)
    turned = drive(muon(), zero, [left @ gradient @ right for gradient in gradients])
    assert distance(turned, [left @ weights @ right for weights in plain]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_one_buffer_of_the_parameters_size(dtype):
    parameter = torch.nn.Parameter(torch.zeros(12, 20, dtype=dtype))
    optimizer = MuonOptimizer([parameter])
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    (buffer,) = optimizer.state[parameter].values()
    assert (buffer.numel(), buffer.dtype) == (240, dtype)


@pytest.mark.parametrize("foreach", [True, False])
def test_zero_gradient_only_decays_the_weights(foreach, start, drive):
    options = {"lr": 0.02, "weight_decay": 0.1, "foreach": foreach}
    path = drive(muon(**options), start(12, 20), [torch.zeros(12, 20)] * 3)
    expected = start(12, 20)
    for weights in path:
        expected = expected * (1 - 0.02 * 0.1)
        assert torch.equal(weights, expected)


def test_momentum_is_an_average_and_nesterov_mixes_the_gradient_in_again(stream):
    first, second = stream(6, 8, 2)
    parameter = torch.nn.Parameter(torch.zeros(6, 8))
    optimizer = MuonOptimizer([parameter], lr=1.0, momentum=0.9, foreach=False)
    for gradient in (first, second):
        before = parameter.detach().clone()
        parameter.grad = gradient
        optimizer.step()
    momentum = 0.9 * 0.1 * first + 0.1 * second
    assert torch.allclose(optimizer.state[parameter]["momentum"], momentum, atol=1e-6)
    mixed = 0.1 * second + 0.9 * momentum
    assert cosine(before - parameter.detach(), newton_schulz(mixed).float()) > 0.9999
    assert torch.equal(parameter.grad, second)


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((64, 16), "original", 2.0),
        ((16, 64), "original", 1.0),
        ((64, 16), "match_rms_adamw", 1.6),
        ((16, 64), "match_rms_adamw", 1.6),
        ((16, 64), "spectral_unclamped", 0.5),
        ((36, 2, 3, 3), "original", math.sqrt(2.0)),
    ],
)
def test_shape_factors_are_those_of_the_card(shape, kind, expected):
    assert step_factor(torch.Size(shape), kind) == pytest.approx(expected)


def test_match_rms_makes_the_step_as_large_as_adamws(stream, start, drive):
    moved = drive(muon(lr=1.0, shape_factor="match_rms_adamw"), torch.zeros(128, 512), stream(128, 512, 1))[0]
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_convolution_is_its_matrix_view(stream):
    kernel = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    matrix = torch.nn.Parameter(torch.zeros(8, 36))
    for gradient in stream(8, 36, 4):
        for parameter in (kernel, matrix):
            parameter.grad = gradient.view_as(parameter).clone()
        optimizer = MuonOptimizer([kernel, matrix], weight_decay=0.1)
        optimizer.step()
    assert torch.allclose(kernel.view(8, 36), matrix, atol=1e-6)


def test_adamw_group_takes_the_steps_of_torch_adamw(stream, start, drive):
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    gradients = stream(12, 20, 15)
    build = lambda p: MuonOptimizer([{"params": [p], "algorithm": "adamw", **options}])  # noqa: E731
    theirs = drive(lambda parameter: torch.optim.AdamW([parameter], **options), start(12, 20), gradients)
    assert distance(drive(build, start(12, 20), gradients), theirs) < 1e-6


ROLES = {
    "embed": Role.EMBEDDING,
    "stem": Role.OTHER,
    "q": Role.ATTENTION_Q,
    "conv": Role.CONV,
    "norm": Role.NORM,
    "bias": Role.MLP,
    "head": Role.LM_HEAD,
}
PARAMETER_SHAPES = {
    "embed": (50, 8),
    "stem": (8, 3, 3, 3),
    "q": (8, 8),
    "conv": (8, 8, 3, 3),
    "norm": (8,),
    "bias": (8,),
    "head": (50, 8),
}


def test_plugin_gives_hidden_matrices_to_muon_and_the_rest_to_adamw_at_its_own_rate():
    named = [(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in PARAMETER_SHAPES.items()]
    matrices, rest = Muon().optimizer(named, Run(seed=0, steps=9, roles=ROLES)).param_groups
    assert matrices["param_names"] == ["q", "conv"]
    assert rest["param_names"] == ["embed", "stem", "norm", "bias", "head"]
    assert (matrices["algorithm"], matrices["lr"], matrices["weight_decay"]) == ("muon", 0.02, 0.0)
    assert (rest["algorithm"], rest["lr"], rest["betas"], rest["eps"]) == ("adamw", 3e-4, (0.9, 0.95), 1e-10)


def test_adamw_group_has_the_published_defaults():
    vector = torch.nn.Parameter(torch.zeros(3))
    (group,) = MuonOptimizer([{"params": [vector], "algorithm": "adamw"}], lr=0.5).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-4, (0.9, 0.95), 1e-10, 0.0)


def test_bad_groups_are_refused():
    matrix, vector = torch.nn.Parameter(torch.zeros(3, 3)), torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(BadValue, match=r"parameter 0 of shape \(3,\) has fewer than two dimensions"):
        MuonOptimizer([vector])
    with pytest.raises(BadValue, match="algorithm = 'sgd'"):
        MuonOptimizer([{"params": [matrix], "algorithm": "sgd"}])
    with pytest.raises(BadValue, match=r"adamw_lr = -1\.0"):
        MuonOptimizer([{"params": [vector], "algorithm": "adamw", "lr": -1.0}])
    with pytest.raises(BadValue, match=r"momentum = 1\.0"):
        MuonOptimizer([matrix], momentum=1.0)
    optimizer = MuonOptimizer([matrix])
    with pytest.raises(BadValue, match="fewer than two"):
        optimizer.add_param_group({"params": [vector]})
    assert len(optimizer.param_groups) == 1


def test_model_without_a_hidden_matrix_is_refused():
    with pytest.raises(SlotMismatch, match="no parameter with a hidden role"):
        Muon().optimizer([("b", torch.nn.Parameter(torch.zeros(3)))], Run(seed=0, steps=1, roles={"b": Role.MLP}))
