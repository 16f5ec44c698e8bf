"""SOAP against the rule of the card and pytorch-optimizer's class.

Parity needs square gradients of full rank: for m != n the larger factor has a null space whose basis is rounding noise,
and two correct implementations drift apart.
"""

from __future__ import annotations

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.baselines.soap import SOAP, SOAPOptimizer

pytestmark = pytest.mark.paper

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def after_a_skipped_step(build, weights, gradients):
    """Drive with a first step of rate zero: the reference skips it."""
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = build(parameter)
    lr, path = optimizer.param_groups[0]["lr"], []
    for k, gradient in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = lr if k else 0.0
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def soap(**options):
    return lambda parameter: SOAPOptimizer([parameter], **options)


def rule(weights, gradients, frequency, *, lr, betas, eps, weight_decay):
    """The steps of the card for a matrix, the first moment turned back and forth at every step as in the reference."""
    w, path = weights.clone(), [weights.clone()]
    first = gradients[0]
    left, right = (1 - betas[1]) * first @ first.T, (1 - betas[1]) * first.T @ first
    q_left, q_right = (torch.linalg.eigh(factor)[1].flip(-1) for factor in (left, right))
    m = v = torch.zeros_like(w)
    for k, g in enumerate(gradients[1:], start=1):
        turned = q_left.T @ g @ q_right
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * turned**2
        direction = (q_left.T @ m @ q_right) / (v.sqrt() + eps)
        w = w - lr * (1 - betas[1] ** k) ** 0.5 / (1 - betas[0] ** k) * (q_left @ direction @ q_right.T)
        w = (1 - lr * weight_decay) * w
        left = betas[1] * left + (1 - betas[1]) * g @ g.T
        right = betas[1] * right + (1 - betas[1]) * g.T @ g
        if k % frequency == 0:
            orders = [(q.T @ f @ q).diagonal().argsort(descending=True) for q, f in ((q_left, left), (q_right, right))]
            v = v[orders[0]][:, orders[1]]
            q_left = torch.linalg.qr(left @ q_left[:, orders[0]]).Q
            q_right = torch.linalg.qr(right @ q_right[:, orders[1]]).Q
        path.append(w)
    return path


@pytest.mark.parametrize("frequency", [1, 4])
def test_every_step_is_the_rule_of_the_card(frequency, stream, start):
    gradients = stream(6, 6, 15, dtype=torch.float64)
    weights = start(6, 6, dtype=torch.float64)
    path = after_a_skipped_step(soap(precondition_frequency=frequency, **OPTIONS), weights, gradients)
    assert distance(path, rule(weights, gradients, frequency, **OPTIONS)) < 1e-10


@pytest.mark.parametrize("frequency", [2, 10])
def test_parity_with_pytorch_optimizer_on_square_matrices(frequency, stream, start, package):
    theirs = package("pytorch_optimizer", "pytorch-optimizer")
    options = OPTIONS | {"precondition_frequency": frequency}
    build = lambda p: theirs.SOAP([p], max_precondition_dim=10_000, **options)  # noqa: E731
    gradients = stream(8, 8, 13)
    expected = after_a_skipped_step(build, start(8, 8), gradients)
    assert distance(after_a_skipped_step(soap(**options), start(8, 8), gradients), expected) < 2e-5


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2), (7,)], ids=str)
def test_without_rotation_it_is_adam_one_step_late_with_decay_last(shape):
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = (torch.randn(shape, generator=generator) for _ in range(16))
    path = after_a_skipped_step(soap(max_precondition_dim=1, **OPTIONS), weights, gradients)
    m = v = torch.zeros(shape)
    w = weights
    for k, g in enumerate(gradients[1:], start=1):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        w = w - 0.01 * (1 - 0.95**k) ** 0.5 / (1 - 0.9**k) * m / (v.sqrt() + 1e-8)
        w = (1 - 0.01 * 0.1) * w
        assert float((path[k] - w).abs().max()) < 1e-6


def test_first_step_is_adams_and_leaves_the_moments_empty(stream, start):
    parameter = torch.nn.Parameter(start(6, 5))
    optimizer = SOAPOptimizer([parameter], **OPTIONS)
    parameter.grad = stream(6, 5, 1)[0]
    optimizer.step()
    expected = (1 - 0.01 * 0.1) * (start(6, 5) - 0.01 * stream(6, 5, 1)[0].sign())
    assert torch.allclose(parameter, expected, atol=1e-6)
    assert not optimizer.state[parameter]["exp_avg"].any()
    assert optimizer.state[parameter]["step"] == 0


def test_bases_stay_orthonormal_and_diagonalise_their_factors(stream, start):
    parameter = torch.nn.Parameter(start(6, 6))
    optimizer = SOAPOptimizer([parameter], precondition_frequency=1)
    scales = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    for gradient in stream(6, 6, 60):
        parameter.grad = scales.unsqueeze(1) * gradient
        optimizer.step()
    state = optimizer.state[parameter]
    basis, factor = state["basis_0"], state["factor_0"]
    assert torch.allclose(basis.T @ basis, torch.eye(6), atol=1e-5)
    rotated = basis.T @ factor @ basis
    assert float((rotated - rotated.diagonal().diag()).norm() / rotated.norm()) < 0.1
    assert torch.equal(rotated.diagonal().argsort(descending=True), torch.arange(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "largest", "elements"), [
    ((6, 5), 100, 2 * 30 + 2 * (36 + 25)),
    ((6, 5), 5, 2 * 30 + 2 * 25),
    ((4, 3, 2, 2), 100, 2 * 48 + 2 * (16 + 9 + 4 + 4)),
    ((7,), 100, 14),
])  # fmt: skip
def test_state_is_the_formula_of_the_card_in_fp32(shape, largest, elements, dtype):
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = SOAPOptimizer([parameter], max_precondition_dim=largest, precondition_frequency=1)
    for _ in range(3):
        parameter.grad = torch.randn(shape).to(dtype)
        optimizer.step()
    buffers = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert sum(buffer.numel() for buffer in buffers) == elements
    assert {buffer.dtype for buffer in buffers} == {torch.float32}


def test_a_gradient_that_is_not_finite_ends_in_nan_weights_and_no_exception(start, drive):
    path = drive(soap(), start(6, 5), [torch.full((6, 5), torch.nan), torch.ones(6, 5)])
    assert path[-1].isnan().all()


def test_plugin_passes_its_fields_on():
    algorithm = SOAP(lr=0.5, beta1=0.1, beta2=0.2, factor_decay=0.6, eps=0.3, weight_decay=0.7)
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3)))]
    (group,) = algorithm.optimizer(named, Run(seed=0, steps=1, roles={"w": Role.MLP})).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.1, 0.2), 0.3, 0.7)
    assert (group["factor_decay"], group["precondition_frequency"], group["max_precondition_dim"]) == (0.6, 10, 10_000)


@pytest.mark.parametrize(
    ("option", "value"), [("lr", -1.0), ("betas", (1.0, 0.9)), ("betas", (0.9, 1.0)), ("precondition_frequency", 0)]
)
def test_bad_options_are_refused_with_name_and_domain(option, value):
    with pytest.raises(BadValue, match="soap") as raised:
        SOAPOptimizer([torch.nn.Parameter(torch.zeros(2))], **{option: value})
    assert "<" in (raised.value.hint or "") or ">" in (raised.value.hint or "")
