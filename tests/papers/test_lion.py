"""Lion: bit parity with two packages, and the properties that the card lists."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from bench import Role, Run
from bench.plugins.optimizers.lion import Lion, LionOptimizer

pytestmark = pytest.mark.paper

OPTIONS = {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.3}


def lion(**options):
    return lambda parameter: LionOptimizer([parameter], **options)


def equal(left, right):
    return all(torch.equal(*pair) for pair in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("module", "wheel"), [("lion_pytorch", "lion-pytorch"), ("pytorch_optimizer", "pytorch-optimizer")]
)
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_bits_are_those_of_the_package(module, wheel, foreach, weight_decay, stream, start, drive, package):
    theirs = package(module, wheel)
    options = OPTIONS | {"weight_decay": weight_decay}
    gradients = stream(13, 7, 30)
    expected = drive(lambda parameter: theirs.Lion([parameter], **options), start(13, 7), gradients)
    assert equal(drive(lion(foreach=foreach, **options), start(13, 7), gradients), expected)


def test_first_step_is_the_sign_of_the_gradient(stream, start, drive):
    gradient = stream(13, 7, 1)[0]
    expected = (1 - 3e-3 * 0.3) * start(13, 7) - 3e-3 * gradient.sign()
    assert torch.allclose(drive(lion(**OPTIONS), start(13, 7), [gradient])[0], expected, atol=1e-7, rtol=0)


def test_every_weight_moves_by_exactly_the_rate_or_not_at_all(stream, start, drive):
    lr = 2.0**-8  # exact in fp32, as are the weights: multiples of 2**-8 below 2**4
    weights = (start(13, 7) * 2**8).round() / 2**8
    gradients = stream(13, 7, 40)
    for gradient in gradients:
        gradient[0] = 0.0
    path = [weights, *drive(lion(lr=lr), weights, gradients)]
    for old, new in pairwise(path):
        assert torch.equal((new - old)[1:].abs(), torch.full((12, 7), lr))
        assert torch.equal(new[0], old[0])


def test_decay_comes_before_the_step(stream, start, drive):
    path = [start(13, 7), *drive(lion(**OPTIONS), start(13, 7), stream(13, 7, 10))]
    for old, new in pairwise(path):
        moved = (new - (1 - 3e-3 * 0.3) * old).abs()
        assert torch.allclose(moved, torch.full_like(moved, 3e-3), atol=3e-7, rtol=0)


def test_equal_betas_give_the_sign_of_an_exponential_average(stream, start, drive):
    gradients, average, weights = stream(13, 7, 20), torch.zeros(13, 7), start(13, 7)
    for gradient in gradients:
        average = 0.95 * average + 0.05 * gradient
        weights = weights - 0.01 * average.sign()
    path = drive(lion(lr=0.01, betas=(0.95, 0.95)), start(13, 7), gradients)
    assert torch.allclose(path[-1], weights, atol=1e-6)


def test_interpolation_uses_beta1_and_momentum_beta2(start, drive):
    # After G = 1 the momentum is 1 - β₂ = 0.1; with G = -0.14 the direction is sign(0.5*0.1 - 0.5*0.14) < 0 so W rises.
    # Any β₁ and β₂ in each other's place makes it positive: 0.9*0.1 - 0.5*0.14, 0.5*0.1 - 0.1*0.14, 0.5*0.5 - 0.5*0.14.
    path = drive(lion(lr=1.0, betas=(0.5, 0.9)), torch.zeros(1, 1), [torch.ones(1, 1), torch.full((1, 1), -0.14)])
    assert [float(weights) for weights in path] == [-1.0, 0.0]


@pytest.mark.parametrize("factor", [2.0**-12, 2.0**9])
def test_positive_rescaling_of_all_gradients_changes_nothing(factor, stream, start, drive):
    gradients = stream(13, 7, 25)
    plain = drive(lion(**OPTIONS), start(13, 7), gradients)
    assert equal(drive(lion(**OPTIONS), start(13, 7), [factor * gradient for gradient in gradients]), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_one_buffer_and_no_counter(dtype):
    parameter = torch.nn.Parameter(torch.zeros(13, 7, dtype=dtype))
    optimizer = LionOptimizer([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    (buffer,) = optimizer.state[parameter].values()
    assert (buffer.shape, buffer.dtype) == (parameter.shape, dtype)


def test_plugin_passes_its_fields_on_and_treats_all_parameters_alike():
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3))), ("b", torch.nn.Parameter(torch.zeros(3)))]
    algorithm = Lion(lr=0.5, beta1=0.1, beta2=0.2, weight_decay=0.7)
    optimizer = algorithm.optimizer(named, Run(seed=0, steps=1, roles={"w": Role.MLP, "b": Role.BIAS}))
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"], len(group["params"])) == (0.5, (0.1, 0.2), 0.7, 2)
