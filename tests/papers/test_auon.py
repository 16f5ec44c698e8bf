"""AuON: the properties that the card lists.

No package on PyPI contains it, so there is no parity with one. In its place stand the rule written out in fp64, and
torch.optim.SGD, which the variant "repo" equals but for the divisor r.
"""

from __future__ import annotations

import doctest
import math
from itertools import pairwise

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.optimizers import auon as module
from bench.plugins.optimizers.auon import AuON, AuONOptimizer, cosh_rms, settled_cosh_rms

pytestmark = pytest.mark.paper

SHAPES = [(64, 64), (48, 96), (96, 48)]
both_forms = pytest.mark.parametrize("foreach", [True, False])


def auon(**options):
    return lambda parameter: AuONOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def divisor(x):
    """r as it is printed, in fp64."""
    return float((torch.cosh(x.double()) ** 2).mean().sqrt())


def rule_in_float64(weights, gradients, *, lr, momentum, weight_decay, variant, gamma):
    """The card's steps 1 to 5, in both variants."""
    w, m = weights.double(), torch.zeros_like(weights).double()
    path = []
    for gradient in gradients:
        g = gradient.double()
        m = momentum * m + (1 - momentum) * g
        c = (1 - momentum) * g + momentum * m
        w = w - lr * weight_decay * w
        if variant == "paper":
            x = c / (c.square().sum().sqrt() + 1e-7)
            w = w - lr * math.sqrt(max(1, w.shape[0] / w.shape[1])) * x / (divisor(x) + 1e-8)
        else:
            x = gamma * c / (c.square().sum().sqrt() + 1e-7)
            w = w - lr * c / (divisor(x) + 1e-8)
        path.append(w)
    return path


# -- the divisor -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(3, 4), (64, 64), (96, 48)])
@pytest.mark.parametrize("norm", [1.0, 1.5])
@pytest.mark.parametrize("kind", ["gaussian", "one entry", "equal", "some rows"])
def test_divisor_lies_between_one_and_that_of_a_single_entry(shape, norm, kind):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if kind == "one entry":
        x = torch.zeros(shape).index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor([-1.0]))
    elif kind == "equal":
        x = torch.ones(shape)
    elif kind == "some rows":
        x[1:] = 0.0
    x = norm * x / torch.linalg.matrix_norm(x)
    r, highest = divisor(x), math.sqrt(1 + math.sinh(norm) ** 2 / x.numel())
    assert 1.0 < r <= highest * (1 + 1e-7)
    if kind == "one entry":
        assert r == pytest.approx(highest, rel=1e-7)
    assert float(cosh_rms(x)) == pytest.approx(r, rel=2e-7)


@pytest.mark.parametrize(("norm", "entries"), [(1.0, 9_528), (1.5, 57_096)])
def test_divisor_is_settled_once_no_entries_could_move_it_by_2e_5(norm, entries):
    settled = settled_cosh_rms(norm, entries)
    assert settled_cosh_rms(norm, entries - 1) is None
    assert settled == pytest.approx(math.sqrt(1.0 + norm**2 / entries), rel=1e-12)
    spike, gaussian = torch.zeros(entries), torch.randn(entries, generator=torch.Generator().manual_seed(0))
    spike[7] = -norm
    assert settled < divisor(spike) < settled * (1.0 + 2.01e-5)
    assert divisor(norm * gaussian.double() / gaussian.double().norm()) == pytest.approx(settled, rel=1e-8)


def test_divisor_of_a_large_gamma_is_never_settled():
    assert settled_cosh_rms(20.1, 10**21) is None
    assert settled_cosh_rms(1e200, 1) is None


@pytest.mark.parametrize(("size", "within"), [(64, 1e-3), (768, 1e-6)])
def test_divisor_is_nearly_one_for_a_realistic_matrix(size, within):
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    x /= torch.linalg.matrix_norm(x)
    assert 1.0 < divisor(x) < 1.0 + within
    assert float(torch.cosh(x.bfloat16()).square().mean().sqrt()) == 1.0  # the published code's dtype sees nothing
    assert float(cosh_rms(x)) == pytest.approx(divisor(x), abs=1.2e-7)


# -- the rule --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "foreach"),
    [(shape, form) for shape in (*SHAPES, (240, 200), (2, 3), (1, 7)) for form in (True, False)],
)
@pytest.mark.parametrize("variant", ["paper", "repo"])
def test_every_step_is_the_published_rule(shape, foreach, variant, stream, start, drive):
    options = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.1, "variant": variant, "gamma": 1.5}
    gradients = stream(*shape, 8)
    expected = rule_in_float64(start(*shape), gradients, **options)
    found = drive(auon(foreach=foreach, **options), start(*shape), gradients)
    assert distance([weights.double() for weights in found], expected) < 5e-6


@pytest.mark.parametrize("shape", [(64, 48), (200, 200)])
@pytest.mark.parametrize("variant", ["paper", "repo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_matrix_of_a_batch_has_a_norm_and_a_divisor_of_its_own(shape, variant, dtype, stream, start):
    ends = []
    for foreach in (True, False):
        parameters = [torch.nn.Parameter(start(*shape, seed=seed, dtype=dtype)) for seed in range(3)]
        optimizer = AuONOptimizer(parameters, variant=variant, weight_decay=0.1, foreach=foreach)
        for step in range(4):
            for size, parameter in enumerate(parameters):
                parameter.grad = 10.0**size * stream(*shape, 1, seed=10 * size + step, dtype=dtype)[0]
                parameter.grad[size] *= 100.0  # a spiky one
            optimizer.step()
        ends.append([parameter.detach() for parameter in parameters])
    rtol = 2e-6 if dtype is torch.float32 else 2.0**-6
    for batched, single in zip(*ends, strict=True):
        assert distance([batched], [single]) < rtol * float(single.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@both_forms
def test_step_of_the_paper_has_the_rate_for_a_norm(shape, foreach, stream, drive):
    gradients = stream(*shape, 6)
    path = [torch.zeros(shape), *drive(auon(lr=0.25, foreach=foreach), torch.zeros(shape), gradients)]
    momentum = torch.zeros(shape)
    for gradient, (old, new) in zip(gradients, pairwise(path), strict=True):
        momentum = 0.95 * momentum + 0.05 * gradient
        mixed = 0.05 * gradient + 0.95 * momentum
        size = 0.25 * math.sqrt(max(1.0, shape[0] / shape[1])) / divisor(mixed / torch.linalg.matrix_norm(mixed))
        assert float(torch.linalg.matrix_norm(new - old)) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("factor", [2.0**-9, 1000.0])
@both_forms
def test_rescaling_all_gradients_changes_nothing_in_the_paper_s_variant(factor, foreach, stream, start, drive):
    gradients = stream(48, 96, 6)
    plain = drive(auon(foreach=foreach), start(48, 96), gradients)
    assert distance(drive(auon(foreach=foreach), start(48, 96), [factor * g for g in gradients]), plain) < 1e-6


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@both_forms
def test_very_small_and_very_large_gradients_stay_finite(factor, foreach, stream, start, drive):
    for variant in ("paper", "repo"):
        path = drive(auon(variant=variant, foreach=foreach), start(6, 8), [factor * g for g in stream(6, 8, 3)])
        assert path[-1].isfinite().all()


@pytest.mark.parametrize("shape", [(64, 48), (48, 96)])
@both_forms
def test_repo_variant_is_nesterov_sgd_but_for_the_divisor(shape, foreach, stream, start, drive):
    gradients = stream(*shape, 6)
    ours = drive(auon(lr=1e-2, variant="repo", foreach=foreach), start(*shape), gradients)
    sgd = lambda p: torch.optim.SGD([p], lr=1e-2 * 0.05, momentum=0.95, nesterov=True)  # noqa: E731
    theirs = drive(sgd, start(*shape), gradients)
    assert distance(ours, theirs) < 2e-5
    assert torch.linalg.matrix_norm(ours[-1] - theirs[-1]) < 1e-5 * torch.linalg.matrix_norm(theirs[-1])
    moved = torch.linalg.matrix_norm(ours[-1] - start(*shape)) / torch.linalg.matrix_norm(theirs[-1] - start(*shape))
    assert float(moved) == pytest.approx(1.0, abs=2.3 / math.prod(shape))  # sinh(1.5)²/(2N), for one entry


@both_forms
def test_paper_variant_is_momentum_of_fixed_norm_but_for_the_divisor(foreach, stream, start, drive):
    gradients, weights, momentum = stream(64, 64, 8), start(64, 64), torch.zeros(64, 64)
    path = drive(auon(lr=0.1, foreach=foreach), start(64, 64), gradients)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        mixed = 0.05 * gradient + 0.95 * momentum
        weights = weights - 0.1 * mixed / torch.linalg.matrix_norm(mixed)
    assert torch.linalg.matrix_norm(path[-1] - weights) < 2e-4 * torch.linalg.matrix_norm(weights - start(64, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@both_forms
def test_state_is_one_buffer_of_the_parameters_size_and_no_counter(dtype, foreach):
    parameter = torch.nn.Parameter(torch.zeros(12, 20, dtype=dtype))
    optimizer = AuONOptimizer([parameter], foreach=foreach)
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    (buffer,) = optimizer.state[parameter].values()
    assert (buffer.numel(), buffer.dtype) == (240, dtype)


@pytest.mark.parametrize("variant", ["paper", "repo"])
@both_forms
def test_zero_gradient_only_decays_the_weights(variant, foreach, start, drive):
    options = {"lr": 0.02, "weight_decay": 0.1, "foreach": foreach, "variant": variant}
    expected = start(12, 20)
    for weights in drive(auon(**options), start(12, 20), [torch.zeros(12, 20)] * 3):
        expected = expected * (1 - 0.02 * 0.1)
        assert torch.equal(weights, expected)


@pytest.mark.parametrize("variant", ["paper", "repo"])
def test_convolution_is_its_matrix_view_and_gradients_are_left_alone(variant, stream):
    kernel, matrix = torch.nn.Parameter(torch.zeros(8, 1, 2, 2)), torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = AuONOptimizer([kernel, matrix], variant=variant)
    for gradient in stream(8, 4, 3):
        for parameter in (kernel, matrix):
            parameter.grad = gradient.view_as(parameter).clone()
        optimizer.step()
        assert torch.equal(kernel.grad.view(8, 4), gradient)
    assert torch.allclose(kernel.view(8, 4), matrix, atol=1e-7)


# -- the plugin ------------------------------------------------------------------------------------------------------
def test_plugin_passes_its_fields_on_and_gives_what_is_no_hidden_matrix_to_adamw():
    roles = {"embed": Role.EMBEDDING, "q": Role.ATTENTION_Q, "norm": Role.NORM}
    shapes = {"embed": (9, 4), "q": (4, 4), "norm": (4,)}
    named = [(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items()]
    algorithm = AuON(variant="repo", gamma=2.0, momentum=0.9, weight_decay=0.01)
    matrices, rest = algorithm.optimizer(named, Run(seed=0, steps=9, roles=roles)).param_groups
    assert (matrices["param_names"], rest["param_names"]) == (["q"], ["embed", "norm"])
    assert (matrices["lr"], matrices["momentum"], matrices["weight_decay"]) == (0.055, 0.9, 0.01)
    assert (matrices["variant"], matrices["gamma"]) == ("repo", 2.0)
    assert (rest["algorithm"], rest["lr"], rest["betas"], rest["eps"]) == ("adamw", 5.5e-3, (0.8, 0.95), 1e-10)


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", 0.0), ("momentum", 1.0), ("variant", "hybrid"), ("gamma", 0.0), ("weight_decay", -0.1)],
)
def test_bad_options_are_refused_with_name_value_and_type(option, value):
    matrix = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(BadValue, match=rf"auon: {option} = {value!r} \({type(value).__name__}\)"):
        AuONOptimizer([matrix], **{option: value})
    with pytest.raises(BadValue, match=option):
        AuON(**{option: value})


def test_example_in_the_documentation_runs():
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
