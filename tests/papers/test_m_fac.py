"""M-FAC against its Fisher matrix, both recursions of the authors' code, its package, and what the card lists.

The package is ista-daslab-optimizers, whose DenseMFAC has a path without its CUDA kernels. Two functions of torch that
this path calls exist on CUDA alone and are replaced: LU without pivoting, by the elimination below, and
``parallel_apply``, by calls in turn. The logger and the compiled modules that it only imports are replaced by empty
ones. The card's proofs of pruning (inverse diagonals, optimal compensation) belong to a compression algorithm.
"""

from __future__ import annotations

import doctest
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue
from bench.plugins.optimizers.m_fac import MFAC, MFACOptimizer, default_window

pytestmark = pytest.mark.paper


def m_fac(**options):
    return lambda parameter: MFACOptimizer([parameter], **options)


def directions(path, weights, lr):
    """Return u of each step of a path that starts at ``weights``."""
    return [(old - new) / lr for old, new in zip([weights, *path], path, strict=False)]


def fisher(gradients, window, damping):
    """Return λ I + (1/m) Σ g gᵀ over the last m of ``gradients``; m counts the rows that are still empty too."""
    rows = torch.stack([gradient.flatten() for gradient in gradients[-window:]])
    return damping * torch.eye(rows.shape[1], dtype=rows.dtype) + rows.T @ rows / window


@pytest.mark.parametrize("damping", [1e-5, 1e-2])
def test_every_direction_solves_the_fisher_matrix_also_after_the_window_wraps(damping, stream, start, drive):
    gradients = stream(5, 6, 20, dtype=torch.float64)
    weights = start(5, 6, dtype=torch.float64)
    path = drive(m_fac(lr=0.1, window=8, damping=damping), weights, gradients)
    for k, u in enumerate(directions(path, weights, 0.1)):
        expected = torch.linalg.solve(fisher(gradients[: k + 1], 8, damping), gradients[k].flatten())
        assert torch.allclose(u.flatten(), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def eliminated(matrix):
    """Return the upper factor of ``matrix``: Gaussian elimination without pivoting."""
    u = matrix.clone()
    for i in range(len(u)):
        u[i + 1 :] -= torch.outer(u[i + 1 :, i] / u[i, i], u[i])
    return u


def authors_dynamic_algorithm(window, x, damping):
    """Return F⁻¹x by D, B and the forward substitution of the authors' code, for the rows of ``window``."""
    m, inverse = len(window), 1.0 / damping
    u = eliminated(inverse * window @ window.T + m * torch.eye(m, dtype=window.dtype))
    d = (u - m * torch.eye(m, dtype=window.dtype)).triu()
    den = m + d.diagonal()
    b = inverse * torch.eye(m, dtype=window.dtype)
    for i in range(1, m):
        b[i, :i] = (-d[:i, i] / den[:i]) @ b[:i, :i]
    c = inverse * (window @ x)
    for i in range(1, m):
        c[i:] -= d[i - 1, i:] * c[i - 1] / den[i - 1]
    return inverse * x - ((c / den) @ b) @ window


def slow_recursion(window, x, damping):
    """Return F⁻¹x by one Sherman-Morrison update for each row of ``window``."""
    h = torch.eye(window.shape[1], dtype=window.dtype) / damping
    for g in window:
        h -= torch.outer(h @ g, h @ g) / (len(window) + g @ h @ g)
    return h @ x


@pytest.mark.parametrize("reference", [authors_dynamic_algorithm, slow_recursion])
def test_every_direction_is_that_of_the_authors_recursions(reference, stream, start, drive):
    gradients, weights = stream(5, 6, 20, dtype=torch.float64), start(5, 6, dtype=torch.float64)
    path = drive(m_fac(lr=0.1, window=8, damping=1e-3), weights, gradients)
    buffer = torch.zeros(8, 30, dtype=torch.float64)
    for k, u in enumerate(directions(path, weights, 0.1)):
        buffer[k % 8] = gradients[k].flatten()
        assert torch.allclose(u.flatten(), reference(buffer.clone(), buffer[k % 8], 1e-3), rtol=1e-8, atol=1e-8)


@pytest.fixture
def released(module_alone, monkeypatch):
    """The package's module, with what it needs of CUDA replaced."""
    for name in ("wandb", "gpustat", "ista_daslab_cuda_tools"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(log=lambda _: None))
    monkeypatch.setitem(sys.modules, "ista_daslab_cuda_dense_mfac", None)  # where it is installed, too
    monkeypatch.setattr(torch, "lu", lambda matrix, *, pivot: (eliminated(matrix), pivot))
    in_turn = lambda calls, arguments: [call(argument) for call, argument in zip(calls, arguments, strict=True)]  # noqa: E731
    monkeypatch.setattr(torch.nn.parallel, "parallel_apply", in_turn)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return module_alone("ista_daslab_optimizers.dense_mfac.dense_mfac", "ista-daslab-optimizers")


def test_parity_with_ista_daslab_optimizers_also_after_the_window_wraps(stream, start, drive, released):
    options, gradients = {"lr": 0.2, "weight_decay": 0.0}, stream(5, 6, 20)
    theirs = drive(lambda p: released.DenseMFAC([p], ngrads=8, damp=0.1, **options), start(5, 6), gradients)
    ours = drive(m_fac(window=8, damping=0.1, **options), start(5, 6), gradients)
    assert float((ours[-1] - start(5, 6)).abs().max()) > 0.3
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-5  # theirs is fp32


@pytest.mark.parametrize("window", [1, 4, 64])
def test_the_first_direction_has_a_closed_form(window, stream, drive):
    (gradient,) = stream(5, 6, 1, dtype=torch.float64)
    (moved,) = drive(m_fac(lr=1.0, window=window, damping=0.01), torch.zeros(5, 6, dtype=torch.float64), [gradient])
    expected = -gradient / (0.01 + gradient.square().sum() / window)
    assert torch.allclose(moved, expected, rtol=1e-12, atol=0)


def test_large_damping_gives_sgd_at_the_rate_over_the_damping(stream, start, drive):
    gradients, weights = stream(5, 6, 12, dtype=torch.float64), start(5, 6, dtype=torch.float64)
    ours = drive(m_fac(lr=1e7, window=8, damping=1e9), weights, gradients)
    theirs = drive(lambda p: torch.optim.SGD([p], lr=1e-2), weights, gradients)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-8


def test_fp32_windows_lose_little_even_where_the_damping_is_a_millionth(stream, start, drive):
    # λ I is 1e-6 of the Fisher matrix's largest eigenvalue: subtracting two vectors would lose all but one digit.
    gradients = [gradient / 3 for gradient in stream(5, 6, 20)]
    exact = drive(
        m_fac(lr=0.1, window=8, damping=1e-6), start(5, 6).double(), [gradient.double() for gradient in gradients]
    )
    path = drive(m_fac(lr=0.1, window=8, damping=1e-6), start(5, 6), gradients)
    assert float((path[-1] - exact[-1]).abs().max()) < 1e-4 * float((exact[-1] - start(5, 6)).abs().max())


def test_equal_gradients_of_fp32_do_not_break_the_solution(stream, drive):
    # m λ is 3e-9 of ‖g‖²: the weights of G's rows are 1e8 times what they sum to, and fp32 would leave nothing of it.
    gradient = 30 * stream(5, 6, 1)[0]
    path = drive(m_fac(lr=1.0, window=8), torch.zeros(5, 6), [gradient] * 12)
    for k, u in enumerate(directions(path, torch.zeros(5, 6), 1.0)):
        expected = gradient / (1e-5 + min(k + 1, 8) / 8 * gradient.square().sum())
        assert torch.allclose(u, expected, rtol=1e-3, atol=1e-6)


def test_all_parameters_of_a_group_are_one_vector_and_groups_are_apart(stream):
    gradients = stream(5, 6, 10, dtype=torch.float64)
    whole = torch.nn.Parameter(torch.zeros(5, 6, dtype=torch.float64))
    split = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((2, 6), (3, 6))]
    other = torch.nn.Parameter(torch.zeros(5, 6, dtype=torch.float64))
    one = MFACOptimizer([whole], lr=0.1, window=4)
    two = MFACOptimizer([{"params": split}, {"params": [other], "lr": 0.2}], lr=0.1, window=4)
    for gradient in gradients:
        whole.grad, other.grad = gradient.clone(), gradient.clone()
        split[0].grad, split[1].grad = gradient[:2].clone(), gradient[2:].clone()
        one.step()
        two.step()
    assert torch.allclose(torch.cat([p.detach() for p in split]), whole.detach(), rtol=1e-9, atol=1e-12)
    assert torch.allclose(other.detach(), 2 * whole.detach(), rtol=1e-9, atol=1e-12)


def test_decay_is_part_of_the_gradients_that_are_stored(stream, start, drive):
    gradients, w = stream(5, 6, 10, dtype=torch.float64), start(5, 6, dtype=torch.float64)
    path = drive(m_fac(lr=0.01, window=4, damping=0.1, weight_decay=0.3), w, gradients)
    stored = []
    for k, gradient in enumerate(gradients):
        stored.append(gradient + 0.3 * w)
        w = w - 0.01 * torch.linalg.solve(fisher(stored, 4, 0.1), stored[-1].flatten()).reshape(5, 6)
        assert torch.allclose(path[k], w, rtol=1e-10, atol=1e-12)


def test_momentum_averages_directions(stream, start, drive):
    gradients, w = stream(5, 6, 10, dtype=torch.float64), start(5, 6, dtype=torch.float64)
    path = drive(m_fac(lr=0.01, window=4, damping=0.1, momentum=0.9), w, gradients)
    v = torch.zeros_like(w)
    for k, gradient in enumerate(gradients):
        u = torch.linalg.solve(fisher(gradients[: k + 1], 4, 0.1), gradient.flatten()).reshape(5, 6)
        v = 0.9 * v + 0.1 * u
        w = w - 0.01 * v
        assert torch.allclose(path[k], w, rtol=1e-10, atol=1e-12)


def test_a_missing_gradient_is_a_zero_and_its_parameter_stays(stream):
    options = {"lr": 0.1, "window": 4, "damping": 1e-3}
    shapes = ((2, 6), (3, 6))
    absent, zeroed = ([torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in shapes] for _ in range(2))
    optimizers = [MFACOptimizer(parameters, **options) for parameters in (absent, zeroed)]
    for k, gradient in enumerate(stream(5, 6, 12, dtype=torch.float64)):
        missing = k in {0, 1, 5, 9}
        for parameters in (absent, zeroed):
            parameters[1].grad = gradient[2:].clone()
            parameters[0].grad = torch.zeros(2, 6, dtype=torch.float64) if missing else gradient[:2].clone()
        before = zeroed[0].detach().clone()
        if missing:
            absent[0].grad = None
        for optimizer in optimizers:
            optimizer.step()
        if missing:
            with torch.no_grad():
                zeroed[0].copy_(before)  # the rule would move it along earlier gradients
        for left, right in zip(absent, zeroed, strict=True):
            assert torch.allclose(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_is_the_window_in_fp32_and_its_gram_matrix_in_fp64(dtype, momentum):
    shapes = (4, 3), (3,)
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    optimizer = MFACOptimizer(parameters, window=8, momentum=momentum)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found = {torch.float32: 0, torch.float64: 0}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                found[value.dtype] += value.numel()
    assert found == {torch.float32: 8 * 15 + (15 if momentum else 0), torch.float64: 64}
    assert optimizer.state[parameters[0]]["step"] == 1


@pytest.mark.parametrize(
    ("steps", "elements", "window"),
    [(100_000, 10**6, 1024), (300, 856_000, 32), (5_000, 10**6, 500), (10, 100, 32), (10_000, 58_000_000, 37)],
)
def test_the_default_window_is_the_published_one_or_what_run_and_memory_allow(steps, elements, window):
    assert default_window(steps, elements) == window


def test_plugin_passes_its_fields_on_and_treats_all_parameters_as_one_vector():
    named = [("w", torch.nn.Parameter(torch.zeros(3, 3))), ("b", torch.nn.Parameter(torch.zeros(3)))]
    run = Run(seed=0, steps=600, roles={"w": Role.MLP, "b": Role.BIAS})
    (group,) = MFAC(lr=0.5, damping=0.1, momentum=0.2, weight_decay=0.7).optimizer(named, run).param_groups
    assert (group["lr"], group["damping"], group["momentum"], group["weight_decay"]) == (0.5, 0.1, 0.2, 0.7)
    assert (group["window"], len(group["params"])) == (60, 2)
    (group,) = MFAC(window=5).optimizer(named, run).param_groups
    assert (group["window"], group["damping"], group["momentum"]) == (5, 1e-5, 0.0)


@pytest.mark.parametrize(("window", "rate"), [(1024, 1e-3), (512, 2e-3), (32, 0.032)])
def test_the_default_rate_keeps_the_length_of_the_published_steps(window, rate, stream):
    run = Run(seed=0, steps=600, roles={"w": Role.MLP})
    parameter = torch.nn.Parameter(torch.zeros(5, 6))
    optimizer = MFAC(window=window).optimizer([("w", parameter)], run)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    parameter.grad = stream(5, 6, 1)[0]
    optimizer.step()
    assert float(parameter.detach().norm()) == pytest.approx(1.024 / float(parameter.grad.norm()), rel=2e-2)


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", 0.0), ("window", 0), ("window", 2.5), ("damping", 0.0), ("momentum", 1.0), ("weight_decay", -0.1)],
)
def test_bad_options_are_refused_with_name_value_and_type(option, value):
    with pytest.raises(BadValue, match=rf"m-fac: {option} = {value} \((float|int)\) is not allowed"):
        MFACOptimizer([torch.nn.Parameter(torch.zeros(3))], **{option: value})


def test_examples_in_the_documentation_run():
    results = doctest.testmod(importlib.import_module("bench.plugins.optimizers.m_fac"))
    assert results.attempted >= 3
    assert results.failed == 0
