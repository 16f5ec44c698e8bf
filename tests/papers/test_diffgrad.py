"""diffGrad against its paper's rule, two packages, and the properties that the card lists."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.optimizers.diffgrad import DiffGrad, DiffGradOptimizer

pytestmark = pytest.mark.paper

OPTIONS = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-4}
SHAPES = [(12, 20), (20, 12), (12, 12)]

both_paths = pytest.mark.parametrize("foreach", [True, False])


def diffgrad(**options):
    return lambda parameter: DiffGradOptimizer([parameter], **options)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def rule_in_float64(weights, gradients, lr, betas, eps, weight_decay=0.0, friction=True):
    """Return the path of the published rule, written from the card; ``friction=False`` puts 1 in the place of ξ."""
    w, path = weights.double(), []
    m, v, previous = (torch.zeros_like(w) for _ in range(3))
    for k, gradient in enumerate(gradients, start=1):
        g = gradient.double() + weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        xi = 1 / (1 + torch.exp(-(previous - g).abs())) if friction else 1.0
        previous = g
        w = w - lr * math.sqrt(1 - betas[1] ** k) / (1 - betas[0] ** k) * xi * m / (v.sqrt() + eps)
        path.append(w)
    return path


@both_paths
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_every_step_is_the_published_rule(shape, weight_decay, foreach, stream, start, drive):
    options = OPTIONS | {"weight_decay": weight_decay}
    gradients = stream(*shape, 15)
    expected = rule_in_float64(start(*shape), gradients, **options)
    assert distance(drive(diffgrad(foreach=foreach, **options), start(*shape), gradients), expected) < 1e-6


@both_paths
@pytest.mark.parametrize(
    ("module", "wheel"), [("pytorch_optimizer", "pytorch-optimizer"), ("torch_optimizer", "torch-optimizer")]
)
def test_parity_with_the_package(module, wheel, foreach, stream, drive, package):
    theirs = package(module, wheel)
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    gradients = stream(13, 7, 6)
    expected = drive(lambda p: theirs.DiffGrad([p], weight_decay=0.0, **options), torch.zeros(13, 7), gradients)
    assert distance(drive(diffgrad(foreach=foreach, **options), torch.zeros(13, 7), gradients), expected) < 3e-8


@pytest.mark.parametrize(
    ("module", "wheel", "coupled"),
    [
        ("pytorch_optimizer", "pytorch-optimizer", {"weight_decouple": False}),
        ("torch_optimizer", "torch-optimizer", {}),
    ],
)
def test_parity_with_the_package_under_coupled_decay(module, wheel, coupled, stream, start, drive, package):
    theirs = package(module, wheel)
    gradients = stream(13, 7, 12)
    expected = drive(lambda p: theirs.DiffGrad([p], weight_decay=0.1, **coupled), start(13, 7), gradients)
    assert distance(drive(diffgrad(weight_decay=0.1), start(13, 7), gradients), expected) < 1e-6


def test_a_constant_gradient_gives_half_of_adams_step_from_the_second_step_on(stream, drive):
    gradients = stream(13, 7, 1, dtype=torch.float64) * 9
    zero = torch.zeros(13, 7, dtype=torch.float64)
    ours = [zero, *drive(diffgrad(**OPTIONS), zero, gradients)]
    adam = [zero, *rule_in_float64(zero, gradients, friction=False, **OPTIONS)]
    for k, ((old, new), (before, after)) in enumerate(zip(pairwise(ours), pairwise(adam), strict=True)):
        factor = torch.sigmoid(gradients[0].abs()) if k == 0 else 0.5
        assert torch.allclose(new - old, factor * (after - before), rtol=1e-9, atol=0)


@both_paths
def test_the_first_step_is_the_rate_times_the_sigmoid_of_the_gradient(foreach, stream, drive):
    (gradient,) = stream(13, 7, 1)
    (moved,) = drive(diffgrad(lr=0.01, foreach=foreach), torch.zeros(13, 7), [gradient])
    expected = -0.01 * torch.sigmoid(gradient.abs()) * gradient.sign()
    assert torch.allclose(moved, expected, rtol=1e-4, atol=0)


def test_without_the_friction_it_would_be_adam_with_its_eps_at_the_uncorrected_root(stream, start):
    # The rule with ξ = 1 is torch's Adam once ε has moved; so nothing but the friction makes the two differ.
    gradients = stream(13, 7, 12, dtype=torch.float64)
    parameter = torch.nn.Parameter(start(13, 7, dtype=torch.float64))
    adam = torch.optim.Adam([parameter], lr=3e-3, betas=(0.8, 0.95))
    for k, gradient in enumerate(gradients, start=1):
        adam.param_groups[0]["eps"] = 1e-4 / math.sqrt(1 - 0.95**k)
        parameter.grad = gradient
        adam.step()
    expected = rule_in_float64(start(13, 7), gradients, friction=False, **OPTIONS)[-1]
    assert torch.allclose(parameter.detach(), expected, rtol=0, atol=1e-12)


@both_paths
def test_huge_changes_of_the_gradient_leave_adams_step(foreach, stream, drive):
    # Numbers of 1e3 and of turning sign: every change is above 20, where the sigmoid is 1 to nine digits.
    gradients = [(-1) ** k * 1e3 * (1 + gradient.abs()) for k, gradient in enumerate(stream(13, 7, 8))]
    adam = rule_in_float64(torch.zeros(13, 7), gradients, friction=False, **OPTIONS)
    assert distance(drive(diffgrad(foreach=foreach, **OPTIONS), torch.zeros(13, 7), gradients), adam) < 1e-7


def test_rescaling_the_loss_changes_the_path_although_adams_stays(stream, drive):
    gradients, options, zero = stream(13, 7, 10), OPTIONS | {"eps": 0.0}, torch.zeros(13, 7)
    small, large = ([factor * gradient for gradient in gradients] for factor in (2.0**-10, 2.0**6))
    slow, fast = (drive(diffgrad(**options), zero, scaled)[-1] for scaled in (small, large))
    adams = [rule_in_float64(zero, scaled, friction=False, **options)[-1] for scaled in (small, large)]
    assert distance(adams[:1], adams[1:]) < 1e-12
    assert distance([slow], [0.5 * adams[0]]) < 5e-5  # ten steps of 3e-3, each with ξ within 1e-3 of 1/2
    assert float(fast.norm()) > 1.8 * float(slow.norm())


@both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_three_buffers_of_the_parameters_size(foreach, dtype):
    parameter = torch.nn.Parameter(torch.zeros(12, 8, dtype=dtype))
    optimizer = DiffGradOptimizer([parameter], foreach=foreach)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in tensors) == 3 * 96
    assert {tensor.dtype for tensor in tensors} == {dtype}
    assert optimizer.state[parameter]["step"] == 1


@both_paths
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_previous_gradient_survives_gradients_that_are_accumulated_in_place(
    foreach, weight_decay, stream, start, drive
):
    # The aliasing bug hides where each step brings a new gradient tensor; here one tensor is written over.
    gradients = stream(13, 7, 6)
    options = OPTIONS | {"weight_decay": weight_decay, "foreach": foreach}
    parameter = torch.nn.Parameter(start(13, 7))
    optimizer = DiffGradOptimizer([parameter], **options)
    parameter.grad = torch.zeros(13, 7)
    for gradient in gradients:
        optimizer.zero_grad(set_to_none=False)
        parameter.grad += gradient
        optimizer.step()
        stored = optimizer.state[parameter]["previous_grad"]
        assert stored.untyped_storage().data_ptr() != parameter.grad.untyped_storage().data_ptr()
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(parameter.detach(), drive(diffgrad(**options), start(13, 7), gradients)[-1])


@pytest.mark.parametrize(("shape", "steps"), [((13, 7), 12), ((700, 512), 3)], ids=["small", "cut-in-pieces"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_both_paths_give_the_same_bits(weight_decay, shape, steps, stream, start, drive):
    options = OPTIONS | {"weight_decay": weight_decay}
    gradients = stream(*shape, steps)
    paths = [drive(diffgrad(foreach=foreach, **options), start(*shape), gradients) for foreach in (True, False)]
    assert all(torch.equal(*pair) for pair in zip(*paths, strict=True))


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", 0.0), ("betas", (1.0, 0.999)), ("betas", (0.9, 1.0)), ("eps", -1e-8), ("weight_decay", -0.1)],
)
def test_bad_options_are_refused_with_name_value_and_type(option, value):
    with pytest.raises(BadValue, match=r"diffgrad: \w+ = .* \(float\) is not allowed"):
        DiffGradOptimizer([torch.nn.Parameter(torch.zeros(3))], **{option: value})


def test_plugin_passes_its_fields_on_and_treats_all_parameters_alike():
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3))), ("b", torch.nn.Parameter(torch.zeros(3)))]
    algorithm = DiffGrad(lr=0.5, beta1=0.1, beta2=0.2, eps=0.3, weight_decay=0.7)
    (group,) = algorithm.optimizer(named, Run(seed=0, steps=1, roles={"w": Role.MLP, "b": Role.BIAS})).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.1, 0.2), 0.3, 0.7)
    assert len(group["params"]) == 2


def test_defaults_are_the_published_ones():
    assert DiffGrad().hyperparameters() == {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
