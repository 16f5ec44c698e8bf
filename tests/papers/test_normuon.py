"""NorMuon: parity with pytorch-optimizer's, and the properties that the card lists."""

from __future__ import annotations

import doctest
import math
from itertools import pairwise

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.optimizers import muon as muon_module
from bench.plugins.optimizers import normuon as module
from bench.plugins.optimizers._orthogonalize import newton_schulz
from bench.plugins.optimizers.muon import MuonOptimizer
from bench.plugins.optimizers.normuon import NorMuon, NorMuonOptimizer

pytestmark = pytest.mark.paper

SHAPES = [(48, 48), (32, 96), (96, 32)]
PRESERVE = {"scale": "preserve", "nesterov": True, "lr": 0.02}


def normuon(**options):
    return lambda parameter: NorMuonOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def patch(monkeypatch, function):
    """Put ``function`` of one matrix in the place of Newton-Schulz, in NorMuon and in Muon."""
    for target in (module, muon_module):
        monkeypatch.setattr(target, "newton_schulz", lambda matrix, _: function(matrix))
        monkeypatch.setattr(
            target, "newton_schulz_batched", lambda matrices, _: torch.stack([function(matrix) for matrix in matrices])
        )


@pytest.fixture
def in_fp32(monkeypatch):
    """Newton-Schulz in fp32: what leaves only the rule itself to compare."""
    patch(monkeypatch, lambda matrix: newton_schulz(matrix, 5, torch.float32))


@pytest.fixture
def exact(monkeypatch):
    """The polar factor itself, by an SVD."""

    def polar(matrix):
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u @ vt

    patch(monkeypatch, polar)


def rule_in_float64(weights, gradients, *, lr, momentum, beta2, weight_decay, scale, nesterov):
    """The card's six steps, with loops over the rows and the iteration written out."""
    w, m, v = weights.double(), torch.zeros_like(weights).double(), torch.zeros(len(weights)).double()
    rows, columns = w.shape
    path = []
    for gradient in gradients:
        g = gradient.double()
        m = momentum * m + (1 - momentum) * g
        x = (1 - momentum) * g + momentum * m if nesterov else m
        x = x / x.square().sum().sqrt()
        for _ in range(5):
            s = x @ x.T
            x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
        evened = torch.zeros_like(x)
        for i in range(rows):
            v[i] = beta2 * v[i] + (1 - beta2) * (x[i] ** 2).sum() / columns
            evened[i] = x[i] / (math.sqrt(v[i]) + 1e-10)
        size = (
            0.2 * math.sqrt(rows * columns) if scale == "rms" else float(x.norm()) * math.sqrt(max(1, rows / columns))
        )
        w = w - lr * weight_decay * w - lr * size / float(evened.norm()) * evened
        path.append(w)
    return path


# -- the rule ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("scale", "nesterov"), [("rms", False), ("preserve", True)])
@pytest.mark.usefixtures("in_fp32")
def test_every_step_is_the_published_rule(shape, foreach, scale, nesterov, stream, start, drive):
    options = {"lr": 0.05, "momentum": 0.9, "beta2": 0.8, "weight_decay": 0.1, "scale": scale, "nesterov": nesterov}
    gradients = stream(*shape, 8)
    for gradient in gradients:
        gradient[: shape[0] // 2] *= 5.0  # uneven rows
    expected = rule_in_float64(start(*shape), gradients, **options)
    found = drive(normuon(foreach=foreach, **options), start(*shape), gradients)
    assert distance([weights.double() for weights in found], expected) < 2e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.usefixtures("in_fp32")
def test_rows_are_equal_and_the_norm_is_kept_without_memory_of_the_rows(shape, foreach, stream):
    (gradient,) = stream(*shape, 1)
    polar = newton_schulz(0.05 * gradient, 5, torch.float32)
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = NorMuonOptimizer([parameter], lr=1.0, beta2=0.0, scale="preserve", foreach=foreach)
    parameter.grad = gradient
    optimizer.step()
    rows = torch.linalg.vector_norm(parameter.detach(), dim=1)
    assert torch.allclose(rows, rows.mean().expand_as(rows), rtol=1e-5)
    norm = torch.linalg.matrix_norm(polar) * math.sqrt(max(1.0, shape[0] / shape[1]))
    assert float(torch.linalg.matrix_norm(parameter.detach())) == pytest.approx(float(norm), rel=1e-5)
    before = torch.linalg.vector_norm(polar, dim=1)
    assert float(before.std() / before.mean()) > 1e3 * float(rows.std() / rows.mean())


@pytest.mark.parametrize("beta2", [0.0, 0.95])
def test_first_step_has_equal_rows_whatever_the_decay(beta2, stream, start, drive):
    (first,) = drive(normuon(beta2=beta2, lr=1.0), torch.zeros(48, 48), stream(48, 48, 1))
    rows = torch.linalg.vector_norm(first, dim=1)
    assert torch.allclose(rows, rows.mean().expand_as(rows), rtol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (7, 1), (1, 7), (12, 4, 3, 3)])
@pytest.mark.parametrize("foreach", [True, False])
def test_rms_of_a_step_is_a_fifth_of_the_rate_for_every_shape(shape, foreach, drive):
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(shape, generator=generator) for _ in range(5)]
    path = [torch.zeros(shape), *drive(normuon(lr=1.0, foreach=foreach), torch.zeros(shape), gradients)]
    for old, new in pairwise(path):
        assert float((old - new).square().mean().sqrt()) == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.usefixtures("exact")
def test_it_is_muon_where_all_rows_of_the_polar_factor_are_equal(foreach, stream, start, drive):
    for shape in ((32, 32), (16, 40)):  # an orthogonal matrix, and orthonormal rows
        gradients = stream(*shape, 6)
        ours = drive(normuon(weight_decay=0.1, foreach=foreach, **PRESERVE), start(*shape), gradients)
        muon = lambda parameter: MuonOptimizer([parameter], lr=0.02, weight_decay=0.1)  # noqa: E731
        assert distance(ours, drive(muon, start(*shape), gradients)) < 1e-6


@pytest.mark.usefixtures("exact")
def test_it_is_not_muon_where_rows_differ(stream, start, drive):
    gradients = stream(40, 16, 6)
    ours = drive(normuon(**PRESERVE), start(40, 16), gradients)
    assert distance(ours, drive(lambda p: MuonOptimizer([p], lr=0.02), start(40, 16), gradients)) > 1e-3


@pytest.mark.parametrize("factor", [2.0**-6, 2.0**11])
@pytest.mark.parametrize("shape", SHAPES)
def test_rescaling_all_gradients_changes_nothing(shape, factor, stream, start, drive):
    gradients = stream(*shape, 4)
    plain = drive(normuon(), start(*shape), gradients)
    scaled = drive(normuon(), start(*shape), [factor * gradient for gradient in gradients])
    assert all(torch.equal(*pair) for pair in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (6, 2, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("foreach", [True, False])
def test_state_is_the_momentum_and_one_fp32_number_per_row(shape, dtype, foreach):
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = NorMuonOptimizer([parameter], foreach=foreach)
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = optimizer.state[parameter]
    assert sum(tensor.numel() for tensor in state.values()) == math.prod(shape) + shape[0]  # 12 x 8: 108, as measured
    assert (state["momentum"].dtype, state["row_second_moment"].dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("foreach", [True, False])
def test_zero_gradient_only_decays_the_weights_and_a_zero_row_stays(foreach, start, drive, stream):
    options = {"lr": 0.02, "weight_decay": 0.1, "foreach": foreach}
    (decayed,) = drive(normuon(**options), start(12, 20), [torch.zeros(12, 20)])
    assert torch.equal(decayed, start(12, 20) * (1 - 0.02 * 0.1))
    (gradient,) = stream(12, 20, 1)
    gradient[3] = 0.0
    for eps in (1e-10, 1e-25):
        (moved,) = drive(normuon(lr=1.0, eps=eps, foreach=foreach), torch.zeros(12, 20), [gradient])
        assert moved.isfinite().all()
        assert not moved[3].any()


def test_convolution_is_its_matrix_view(stream):
    kernel, matrix = torch.nn.Parameter(torch.zeros(8, 4, 3, 3)), torch.nn.Parameter(torch.zeros(8, 36))
    optimizer = NorMuonOptimizer([kernel, matrix], weight_decay=0.1)
    for gradient in stream(8, 36, 3):
        for parameter in (kernel, matrix):
            parameter.grad = gradient.view_as(parameter).clone()
        optimizer.step()
    assert torch.equal(kernel.view(8, 36), matrix)


# -- another package -----------------------------------------------------------------------------------------------
@pytest.fixture
def reference(package):
    """Return ``(scale, foreach, **options) -> build`` of pytorch-optimizer's NorMuon."""
    theirs = package("pytorch_optimizer", "pytorch-optimizer")
    names = {"preserve": "preserve_norm", "rms": "match_rms"}

    def of(scale, foreach, **options):
        def build(parameter):
            group = {"params": [parameter], "use_muon": True}
            return theirs.NorMuon([group], update_scale=names[scale], foreach=foreach, **options)

        return build

    return of


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["preserve", "rms"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.usefixtures("in_fp32")
def test_parity_with_pytorch_optimizer_in_fp32(shape, scale, nesterov, stream, start, drive, reference, monkeypatch):
    options = {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov}
    gradients = stream(*shape, 6)
    monkeypatch.setattr(
        "pytorch_optimizer.optimizer.muon.normuon.zero_power_via_newton_schulz_5",
        lambda matrix, num_steps, weights: newton_schulz(matrix, num_steps, torch.float32),  # noqa: ARG005 - the same
    )
    expected = drive(reference(scale, foreach=False, **options), start(*shape), gradients)
    for foreach in (True, False):
        assert (
            distance(drive(normuon(scale=scale, foreach=foreach, **options), start(*shape), gradients), expected) < 5e-6
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["preserve", "rms"])
def test_parity_with_pytorch_optimizer_as_it_is(shape, scale, stream, start, drive, reference):
    options = {"lr": 0.02, "weight_decay": 0.1, "nesterov": True}
    gradients = stream(*shape, 6)
    expected = drive(reference(scale, foreach=None, **options), start(*shape), gradients)
    for foreach in (True, False):
        found = drive(normuon(scale=scale, foreach=foreach, **options), start(*shape), gradients)
        assert distance(found, expected) < 2e-3  # bfloat16 Newton-Schulz, whose norm they take in bfloat16 too
        moved = torch.linalg.matrix_norm(expected[-1] - start(*shape))
        assert torch.linalg.matrix_norm(found[-1] - expected[-1]) < 0.02 * moved


# -- the plugin ----------------------------------------------------------------------------------------------------
def test_plugin_passes_its_fields_on_and_gives_what_is_no_hidden_matrix_to_adamw():
    shapes = {"embed": (9, 4), "q": (4, 4), "conv": (4, 2, 3, 3), "norm": (4,)}
    roles = {"embed": Role.EMBEDDING, "q": Role.ATTENTION_Q, "conv": Role.CONV, "norm": Role.NORM}
    named = [(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items()]
    matrices, rest = (
        NorMuon(beta2=0.9, scale="preserve").optimizer(named, Run(seed=0, steps=9, roles=roles)).param_groups
    )
    assert (matrices["param_names"], rest["param_names"]) == (["q", "conv"], ["embed", "norm"])
    assert (matrices["lr"], matrices["beta2"], matrices["scale"], matrices["nesterov"]) == (
        1e-3,
        0.9,
        "preserve",
        False,
    )
    assert (rest["algorithm"], rest["lr"], rest["betas"], rest["eps"]) == ("adamw", 1e-3, (0.9, 0.95), 1e-10)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -1.0),
        ("momentum", 1.0),
        ("beta2", 1.0),
        ("eps", 0.0),
        ("newton_schulz_steps", 0),
        ("scale", "frobenius"),
        ("weight_decay", -0.1),
    ],
)
def test_bad_options_are_refused_with_name_value_and_type(option, value):
    matrix = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(BadValue, match=rf"normuon: {option} = {value!r} \({type(value).__name__}\)"):
        NorMuonOptimizer([matrix], **{option: value})
    with pytest.raises(BadValue, match=option):
        NorMuon(**{option: value})


def test_example_in_the_documentation_runs():
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
