"""Conda: parity with pytorch-optimizer's, and the properties that the card lists."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers import conda as module
from bench.plugins.optimizers._projection import Projection
from bench.plugins.optimizers.conda import Conda, CondaOptimizer, gram_basis, svd_basis

pytestmark = pytest.mark.paper

SHAPES = [(12, 20), (20, 12), (12, 12)]
both_forms = pytest.mark.parametrize("foreach", [True, False])


def conda(**options):
    return lambda parameter: CondaOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def identity(momenta, rank, side, previous):
    """The basis that rotates nothing."""
    basis = torch.eye(rank).expand(len(momenta), rank, rank)
    return Projection(None, basis) if side == "right" else Projection(basis, None)


def rule_in_float64(weights, gradients, *, gap, scale, lr, betas, eps, weight_decay):
    """The card's seven steps, written out in fp64 with an SVD."""
    w = weights.double()
    m, v, basis = torch.zeros_like(w), torch.zeros_like(w), None
    tall = w.shape[0] >= w.shape[1]
    path = []
    for k, gradient in enumerate(gradients):
        g = gradient.double()
        m = betas[0] * m + (1 - betas[0]) * g
        if k % gap == 0:
            u, _, vh = torch.linalg.svd(m, full_matrices=False)
            basis = vh if tall else u
        rotated, average = (g @ basis.T, m @ basis.T) if tall else (basis.T @ g, basis.T @ m)
        v = betas[1] * v + (1 - betas[1]) * rotated**2
        n = average / (v.sqrt() + eps)
        step = lr * math.sqrt(1 - betas[1] ** (k + 1)) / (1 - betas[0] ** (k + 1))
        w = w - step * scale * (n @ basis if tall else basis @ n)
        w = w - lr * weight_decay * w
        path.append(w)
    return path


# -- the rule --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("basis", [gram_basis, svd_basis])
@both_forms
def test_every_step_is_the_published_rule(shape, basis, foreach, stream, start, drive):
    options = {"scale": 0.25, "lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    gradients = stream(*shape, 12)
    expected = rule_in_float64(start(*shape), gradients, gap=5, **options)
    found = drive(conda(update_gap=5, basis=basis, foreach=foreach, **options), start(*shape), gradients)
    assert distance([weights.double() for weights in found], expected) < 5e-6


@pytest.mark.parametrize("shape", SHAPES)
@both_forms
def test_it_is_adam_where_the_basis_is_the_identity(shape, foreach, stream, start, drive):
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-12}
    gradients = stream(*shape, 10)
    ours = drive(conda(scale=1.0, basis=identity, foreach=foreach, **options), start(*shape), gradients)
    adam = drive(lambda parameter: torch.optim.Adam([parameter], **options), start(*shape), gradients)
    assert distance(ours, adam) < 1e-6
    assert distance(drive(conda(scale=1.0, **options), start(*shape), gradients), adam) > 1e-2


def test_decay_comes_after_the_step_at_the_unscaled_rate(stream, start, drive):
    gradients = stream(12, 20, 1)
    (plain,) = drive(conda(lr=0.1), start(12, 20), gradients)
    (decayed,) = drive(conda(lr=0.1, weight_decay=0.5), start(12, 20), gradients)
    assert torch.allclose(decayed, 0.95 * plain, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("basis", [gram_basis, svd_basis])
@both_forms
def test_first_step_is_sign_valued_in_the_rotated_frame(shape, basis, foreach, stream, start, drive):
    (gradient,) = stream(*shape, 1)
    (first,) = drive(conda(lr=0.1, scale=0.5, basis=basis, foreach=foreach), start(*shape), [gradient])
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    expected = -0.05 * (u @ vh.sign() if shape[0] < shape[1] else u.sign() @ vh)
    assert distance([first - start(*shape)], [expected]) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@both_forms
def test_rotation_of_the_short_side_rotates_the_trajectory(shape, foreach, stream, start, drive):
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(7))).Q
    turn = (lambda x: x @ rotation) if shape[0] >= shape[1] else (lambda x: rotation @ x)
    gradients = stream(*shape, 8)
    options = {"update_gap": 3, "eps": 1e-3, "foreach": foreach}
    plain = drive(conda(**options), start(*shape), gradients)
    turned = drive(conda(**options), turn(start(*shape)), [turn(gradient) for gradient in gradients])
    assert distance(turned, [turn(weights) for weights in plain]) < 1e-5


def test_flipped_vectors_change_nothing_and_their_order_does(stream, start, drive):
    def changed(change):
        def basis(momenta, rank, side, previous):
            projection = svd_basis(momenta, rank, side, previous)
            again = 0 if previous is None else 1
            return projection._replace(right=change(projection.right, again))

        return basis

    options = {"update_gap": 4, "lr": 0.02, "scale": 1.0}
    gradients = stream(20, 12, 8)
    plain = drive(conda(basis=svd_basis, **options), start(20, 12), gradients)
    flipped = changed(lambda right, again: right * (-1.0) ** (torch.arange(12) + again))
    ordered = changed(lambda right, again: right.flip(-1) if again else right)
    assert distance(drive(conda(basis=flipped, **options), start(20, 12), gradients), plain) < 1e-6
    assert distance(drive(conda(basis=ordered, **options), start(20, 12), gradients), plain) > 1e-3


@both_forms
def test_basis_is_renewed_from_the_momentum_at_steps_0_t_2t_of_each_parameter(foreach, stream):
    renewed = []

    def spy(momenta, rank, side, previous):
        renewed.append((step, tuple(momenta.shape[1:]), previous is None, momenta[0].clone()))
        return gram_basis(momenta, rank, side, previous)

    early, late = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 6), (6, 4)))
    optimizer = CondaOptimizer([early, late], update_gap=3, basis=spy, foreach=foreach)
    gradients = stream(4, 6, 8)
    for step, gradient in enumerate(gradients):
        early.grad = gradient
        late.grad = gradient.T if step >= 2 else None
        optimizer.step()
    assert [(s, first) for s, shape, first, _ in renewed if shape == (4, 6)] == [(0, True), (3, False), (6, False)]
    assert [(s, first) for s, shape, first, _ in renewed if shape == (6, 4)] == [(2, True), (5, False)]
    first = next(momenta for s, shape, _, momenta in renewed if shape == (4, 6))
    assert torch.allclose(first, 0.1 * gradients[0], atol=1e-7)  # it holds this step's gradient already


@pytest.mark.parametrize("shape", SHAPES)
@both_forms
def test_first_moment_turned_back_is_the_average_of_the_gradients_through_renewals(shape, foreach, stream):
    parameter, average = torch.nn.Parameter(torch.zeros(shape)), torch.zeros(shape)
    optimizer = CondaOptimizer([parameter], update_gap=3, foreach=foreach)
    for gradient in stream(*shape, 8):
        parameter.grad, average = gradient, 0.9 * average + 0.1 * gradient
        optimizer.step()
        state = optimizer.state[parameter]
        turned = state["exp_avg"] @ state["right"].T if "right" in state else state["left"] @ state["exp_avg"]
        assert torch.allclose(turned, average, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12), (6, 2, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@both_forms
def test_state_is_two_moments_and_the_square_of_the_short_side(shape, dtype, foreach):
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = CondaOptimizer([parameter], foreach=foreach)
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    short = min(shape[0], math.prod(shape[1:]))
    assert sum(tensor.numel() for tensor in tensors) == 2 * math.prod(shape) + short**2
    assert {tensor.dtype for tensor in tensors} == {dtype}
    assert optimizer.state[parameter]["step"] == 1


@both_forms
def test_zero_gradients_and_momentum_of_low_rank_are_harmless(foreach, stream, start, drive):
    zero = torch.zeros(12, 20)
    (low_rank,) = [gradient[:, :1] @ gradient[:1] for gradient in stream(12, 20, 1)]
    path = drive(conda(foreach=foreach, update_gap=2), start(12, 20), [zero, zero, low_rank, *stream(12, 20, 2)])
    assert torch.equal(path[1], start(12, 20))
    assert all(weights.isfinite().all() for weights in path)
    assert float((path[-1] - path[-2]).abs().max()) > 1e-4


@both_forms
def test_gradient_that_is_not_finite_ends_in_nan_weights_and_no_exception(foreach, drive, start):
    path = drive(conda(foreach=foreach), start(6, 4), [torch.full((6, 4), torch.inf)])
    assert path[-1].isnan().all()


def test_convolution_is_its_matrix_view(stream):
    kernel, matrix = torch.nn.Parameter(torch.zeros(8, 4, 3, 3)), torch.nn.Parameter(torch.zeros(8, 36))
    optimizer = CondaOptimizer([kernel, matrix], update_gap=2, weight_decay=0.1)
    for gradient in stream(8, 36, 4):
        for parameter in (kernel, matrix):
            parameter.grad = gradient.view_as(parameter).clone()
        optimizer.step()
    assert torch.equal(kernel.view(8, 36), matrix)


# -- another package -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gap", [1, 100])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_parity_with_pytorch_optimizer(shape, gap, weight_decay, stream, start, drive, package):
    reference = package("pytorch_optimizer", "pytorch-optimizer")
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "scale": 0.25, "weight_decay": weight_decay}
    gradients = stream(*shape, 6)
    theirs = drive(lambda p: reference.Conda([p], update_proj_gap=gap, **options), start(*shape), gradients)
    for basis in (svd_basis, gram_basis):
        for foreach in (True, False):
            build = conda(update_gap=gap, basis=basis, foreach=foreach, **options)
            assert distance(drive(build, start(*shape), gradients), theirs) < 2e-6


def test_parity_with_pytorch_optimizer_until_a_refresh_which_it_counts_from_one(stream, start, drive, package):
    reference = package("pytorch_optimizer", "pytorch-optimizer")
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "scale": 0.25}
    gradients = stream(20, 12, 8)
    theirs = drive(lambda p: reference.Conda([p], update_proj_gap=5, **options), start(20, 12), gradients)
    ours = drive(conda(update_gap=5, **options), start(20, 12), gradients)
    assert distance(ours[:4], theirs[:4]) < 2e-6
    assert distance(ours[4:5], theirs[4:5]) > 1e-4


def test_parity_with_pytorch_optimizer_where_nothing_is_rotated(stream, start, drive, package):
    reference = package("pytorch_optimizer", "pytorch-optimizer")
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    gradients = [gradient.flatten() for gradient in stream(5, 7, 9)]
    weights = start(5, 7).flatten()
    theirs = drive(lambda p: reference.Conda([p], **options), weights, gradients)
    for foreach in (True, False):
        group = {"rotate": False, "foreach": foreach, **options}
        build = lambda p, group=group: CondaOptimizer([{"params": [p], **group}])  # noqa: E731
        assert distance(drive(build, weights, gradients), theirs) < 1e-6


# -- the plugin ------------------------------------------------------------------------------------------------------
ROLES = {
    "embed": Role.EMBEDDING,
    "q": Role.ATTENTION_Q,
    "conv": Role.CONV,
    "bias": Role.MLP,
    "norm": Role.NORM,
}
PARAMETER_SHAPES = {"embed": (50, 16), "q": (16, 16), "conv": (4, 2, 3, 3), "bias": (16,), "norm": (16,)}


def groups_of(algorithm, steps=10_000):
    named = [(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in PARAMETER_SHAPES.items()]
    return algorithm.optimizer(named, Run(seed=0, steps=steps, roles=ROLES)).param_groups


def test_plugin_rotates_hidden_matrices_and_leaves_the_rest_to_adam_at_the_same_rate():
    matrices, rest = groups_of(Conda())
    assert (matrices["param_names"], rest["param_names"]) == (["q", "conv"], ["embed", "bias", "norm"])
    assert (matrices["rotate"], rest["rotate"]) == (True, False)
    for group in (matrices, rest):
        assert (group["lr"], group["betas"], group["eps"], group["scale"]) == (1e-2, (0.9, 0.99), 1e-8, 0.25)


@pytest.mark.parametrize(("steps", "gap"), [(100_000, 2000), (10_000, 2000), (300, 60), (3, 1)])
def test_default_gap_is_the_published_one_or_a_fifth_of_a_short_run(steps, gap):
    assert groups_of(Conda(), steps)[0]["update_gap"] == gap
    assert groups_of(Conda(update_gap=7), steps)[0]["update_gap"] == 7


@pytest.mark.parametrize(
    ("option", "value"), [("lr", -1.0), ("update_gap", 0), ("scale", 0.0), ("eps", -1.0), ("weight_decay", -0.1)]
)
def test_bad_options_are_refused_with_name_value_and_type(option, value):
    matrix = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(BadValue, match=rf"conda: {option} = {value!r} \({type(value).__name__}\)"):
        CondaOptimizer([matrix], **{option: value})
    with pytest.raises(BadValue, match=option):
        Conda(**{option: value})


def test_bad_groups_are_refused_and_leave_nothing_behind():
    matrix, vector = torch.nn.Parameter(torch.zeros(3, 3)), torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(BadValue, match=r"conda: beta2 = 1\.0 \(float\)"):
        CondaOptimizer([matrix], betas=(0.9, 1.0))
    with pytest.raises(BadValue, match="conda: update_gap = None"):
        CondaOptimizer([matrix], update_gap=None)
    optimizer = CondaOptimizer([matrix])
    with pytest.raises(BadValue, match=r"conda: parameter 0 of shape \(3,\) has fewer than two dimensions"):
        optimizer.add_param_group({"params": [vector]})
    assert len(optimizer.param_groups) == 1


def test_model_without_a_hidden_matrix_is_refused():
    with pytest.raises(SlotMismatch, match="nothing to rotate"):
        Conda().optimizer([("b", torch.nn.Parameter(torch.zeros(3)))], Run(seed=0, steps=1, roles={"b": Role.MLP}))


def test_example_in_the_documentation_runs():
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
