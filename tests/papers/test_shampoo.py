"""Shampoo against the rule of the card and its limit cases.

No package on the registry has this algorithm: pytorch-optimizer's Shampoo and ScalableShampoo are others. So every
step is checked against the rule written out in fp64, and against what it becomes in its limits.
"""

from __future__ import annotations

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.baselines.shampoo import Shampoo, ShampooOptimizer, blocks, merged_shape

pytestmark = pytest.mark.paper


def shampoo(**options):
    return lambda parameter: ShampooOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def power(matrix, exponent):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values.clamp(min=0) ** exponent).diag() @ vectors.T


def rule(weights, gradients, *, nadam, graft, frequency, start_at, lr, betas, eps, weight_decay):
    """The card's steps for one block, a matrix, in fp64."""
    (b1, b2), w, path = betas, weights.double(), []
    m = v = torch.zeros_like(w)
    left, right = (torch.zeros(size, size, dtype=torch.float64) for size in w.shape)
    b3 = b1**2 if nadam else b1
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        if t == start_at or (t > start_at and t % frequency == 0):
            eyes = [torch.eye(size, dtype=torch.float64) for size in w.shape]
            p_left = power(left / (1 - b2**t) + eps * eyes[0], -0.25)
            p_right = power(right / (1 - b2**t) + eps * eyes[1], -0.25)
        m_hat = (b3 * m + (1 - b3) * g) / (1 - b3 * b1 ** (t - 1))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        grafted = m_hat / ((v / (1 - b2**t)).sqrt() + 1e-8) if graft == "adam" else m_hat
        step = grafted
        if t >= start_at:
            step = p_left @ m_hat @ p_right
            if graft != "none":
                step = step * grafted.norm() / (step.norm() + 1e-16)
        w = w - lr * (step + weight_decay * w)
        path.append(w)
    return path


@pytest.mark.parametrize("nadam", [True, False])
@pytest.mark.parametrize("graft", ["adam", "sgd", "none"])
def test_every_step_is_the_rule_of_the_card(nadam, graft, stream, start, drive):
    options = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.3}
    expected = rule(start(6, 6), stream(6, 6, 15), nadam=nadam, graft=graft, frequency=3, start_at=5, **options)
    build = shampoo(
        nadam=nadam,
        graft=graft,
        precondition_frequency=3,
        start_preconditioning_step=5,
        max_preconditioner_dim=6,
        **options,
    )
    assert distance(drive(build, start(6, 6), stream(6, 6, 15)), expected) < 2e-5


def test_without_look_ahead_the_momentum_is_the_corrected_average(stream):
    parameter, average = torch.nn.Parameter(torch.zeros(3, 2)), torch.zeros(3, 2)
    options = {"graft": "sgd", "weight_decay": 0.0, "nadam": False, "start_preconditioning_step": 100}
    optimizer = ShampooOptimizer([parameter], lr=1.0, betas=(0.9, 0.99), **options)
    for t, gradient in enumerate(stream(3, 2, 5), start=1):
        before, average = parameter.detach().clone(), 0.9 * average + 0.1 * gradient
        parameter.grad = gradient
        optimizer.step()
        assert torch.allclose(before - parameter, average / (1 - 0.9**t), atol=1e-6)


def test_first_step_without_momentum_and_graft_is_the_polar_factor(stream):
    gradient = stream(6, 6, 1, dtype=torch.float64)[0]
    parameter = torch.nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    options = {"graft": "none", "weight_decay": 0.0, "precondition_frequency": 1, "max_preconditioner_dim": 6}
    optimizer = ShampooOptimizer([parameter], lr=1.0, betas=(0.0, 0.9), eps=1e-16, **options)
    parameter.grad = gradient
    optimizer.step()
    u, _, vt = torch.linalg.svd(gradient)
    assert torch.allclose(parameter, -u @ vt, atol=1e-6)


def test_blocks_of_one_weight_make_it_rmsprop(stream, start, drive):
    options = {"graft": "none", "weight_decay": 0.0, "precondition_frequency": 1, "max_preconditioner_dim": 1}
    path = drive(shampoo(lr=0.01, betas=(0.0, 0.9), eps=1e-6, **options), start(4, 3), stream(4, 3, 10))
    weights, squares = start(4, 3), torch.zeros(4, 3)
    for t, gradient in enumerate(stream(4, 3, 10), start=1):
        squares = 0.9 * squares + 0.1 * gradient**2
        weights = weights - 0.01 * gradient / (squares / (1 - 0.9**t) + 1e-6).sqrt()
        assert float((path[t - 1] - weights).abs().max()) < 1e-5


def test_before_its_start_it_is_the_grafted_method_alone(stream, start, drive):
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    path = drive(shampoo(nadam=False, start_preconditioning_step=100, **options), start(6, 5), stream(6, 5, 15))
    adamw = drive(lambda p: torch.optim.AdamW([p], eps=1e-8, **options), start(6, 5), stream(6, 5, 15))
    assert distance(path, adamw) < 2e-6


def test_every_block_has_the_length_of_the_grafted_step(stream, start):
    parameter = torch.nn.Parameter(torch.zeros(6, 5))
    options = {"weight_decay": 0.0, "precondition_frequency": 1, "max_preconditioner_dim": 3}
    optimizer = ShampooOptimizer([parameter], lr=1.0, betas=(0.0, 0.9), **options)
    parameter.grad = stream(6, 5, 1)[0]
    optimizer.step()
    for block in blocks((6, 5), 3):
        elements = parameter[block].numel()
        assert float(parameter[block].detach().square().sum()) == pytest.approx(elements, rel=1e-4)  # Adam's: signs


def test_a_vector_has_one_factor_and_the_exponent_one_half(start, drive):
    gradient = torch.randn(5, generator=torch.Generator().manual_seed(0))
    options = {"graft": "none", "weight_decay": 0.0, "precondition_frequency": 1}
    (moved,) = drive(shampoo(lr=1.0, betas=(0.0, 0.9), eps=1e-2, **options), torch.zeros(5), [gradient])
    expected = gradient / (gradient.square().sum() + 1e-2).sqrt()  # g is an eigenvector of g gᵀ + ε I
    assert torch.allclose(-moved, expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "largest", "merged"), [
    ((4, 3, 3, 3), 1024, [108]),
    ((64, 3, 3, 3), 1024, [576, 3]),
    ((64, 64), 1024, [64, 64]),
    ((8, 1, 8), 1024, [64]),
    ((2048,), 1024, [2048]),
    ((1,), 1024, [1]),
    ((), 1024, [1]),
])  # fmt: skip
def test_small_neighbouring_dimensions_are_merged(shape, largest, merged):
    assert merged_shape(shape, largest) == merged


def test_blocks_cover_every_weight_once():
    counts = torch.zeros(7, 10, dtype=torch.int64)
    cut = blocks((7, 10), 4)
    for block in cut:
        counts[block] += 1
    assert len(cut) == 6
    assert bool((counts == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("options", "elements"), [
    ({}, 2 * 30 + 2 * (36 + 25)),
    ({"graft": "sgd"}, 30 + 2 * (36 + 25)),
    ({"betas": (0.0, 0.9)}, 30 + 2 * (36 + 25)),
    ({"max_preconditioner_dim": 5}, 2 * 30 + 2 * (25 + 25 + 1 + 25)),
    ({"max_preconditioner_dim": 30}, 2 * 30 + 2 * 900),
])  # fmt: skip
def test_state_is_the_formula_of_the_card_in_fp32(options, elements, dtype):
    parameter = torch.nn.Parameter(torch.zeros(6, 5, dtype=dtype))
    optimizer = ShampooOptimizer([parameter], **{"max_preconditioner_dim": 6, "precondition_frequency": 1} | options)
    for _ in range(3):
        parameter.grad = torch.randn(6, 5).to(dtype)
        optimizer.step()
    buffers = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert sum(buffer.numel() for buffer in buffers) == elements
    assert {buffer.dtype for buffer in buffers} == {torch.float32}


def test_a_gradient_that_is_not_finite_ends_in_nan_weights_and_no_exception(start, drive):
    build = shampoo(precondition_frequency=1, max_preconditioner_dim=6)
    assert drive(build, start(6, 5), [torch.full((6, 5), torch.nan)])[0].isnan().all()


@pytest.mark.parametrize(("steps", "frequency"), [(12, 1), (300, 10), (100_000, 100)])
def test_plugin_passes_its_fields_on_and_scales_the_frequency(steps, frequency):
    algorithm = Shampoo(lr=0.5, beta1=0.1, beta2=0.2, eps=0.3, weight_decay=0.7)
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3)))]
    (group,) = algorithm.optimizer(named, Run(seed=0, steps=steps, roles={"w": Role.MLP})).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.1, 0.2), 0.3, 0.7)
    assert (group["precondition_frequency"], group["start_preconditioning_step"]) == (frequency, None)


@pytest.mark.parametrize(
    ("option", "value"), [("lr", -1.0), ("betas", (1.0, 0.9)), ("betas", (0.9, 1.0)), ("precondition_frequency", 0)]
)
def test_bad_options_are_refused_with_name_and_domain(option, value):
    with pytest.raises(BadValue, match="shampoo") as raised:
        ShampooOptimizer([torch.nn.Parameter(torch.zeros(2))], **{option: value})
    assert "<" in (raised.value.hint or "") or ">" in (raised.value.hint or "")


def test_an_unknown_graft_is_refused():
    with pytest.raises(BadValue, match="graft = 'lamb'"):
        ShampooOptimizer([torch.nn.Parameter(torch.zeros(2))], graft="lamb")
