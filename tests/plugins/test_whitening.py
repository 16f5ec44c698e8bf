"""The solver of low rank on given inputs: its error is the least possible, by both of its forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.plugins.compression._low_rank import Factors, truncated_svd
from bench.plugins.compression._whitening import discarded, eigenspace_factors, output_error, output_factors, whitening

FORMS = {
    "eigenspace": lambda matrix, moment, rank: eigenspace_factors(matrix, whitening(moment), rank),
    "outputs": output_factors,
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(width, tokens, seed=1, spread=3.0):
    """Return X (n, T) whose directions have powers that span ``spread`` decades."""
    return (
        gaussian(width, width, seed=seed + 1)
        @ torch.logspace(0, -spread / 2, width).double().diag()
        @ gaussian(width, tokens, seed=seed)
    )


def moment_of(x):
    return x @ x.mT / x.shape[1]


def real_error(matrix, factors, x):
    return float(((matrix - factors.product()) @ x).square().sum() / x.shape[1])


@st.composite
def problems(draw):
    rows, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    tokens, seed = draw(st.integers(1, 20)), draw(st.integers(0, 99))
    return gaussian(rows, width, seed=seed), inputs(width, tokens, seed, spread=1.0), draw(st.integers(0, 10))


@every_form
@given(problems())
def test_error_on_the_inputs_is_the_sum_of_the_discarded_squared_singular_values(form, problem):
    matrix, x, rank = problem
    factors = form(matrix, moment_of(x), rank)
    assert all(bool(factor.isfinite().all()) for factor in factors)
    assert factors.left.shape[1] == factors.right.shape[0] <= rank
    least = float(torch.linalg.svdvals(matrix @ x)[rank:].square().sum()) / x.shape[1]
    noise = 1e-9 * float((matrix @ x).square().sum()) / x.shape[1]
    assert real_error(matrix, factors, x) == pytest.approx(least, rel=1e-6, abs=noise)
    assert discarded(matrix, whitening(moment_of(x)), rank) == pytest.approx(least, rel=1e-6, abs=noise)


@every_form
def test_no_perturbation_of_the_factors_does_better(form):
    matrix, x = gaussian(7, 10), inputs(10, 200)
    factors = form(matrix, moment_of(x), 3)
    least = real_error(matrix, factors, x)
    for seed in range(200):
        size = 10.0 ** -(seed % 5)
        other = Factors(
            factors.left + size * gaussian(7, 3, seed=seed), factors.right + size * gaussian(3, 10, seed=seed + 1000)
        )
        assert real_error(matrix, other, x) >= least


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_both_forms_and_a_cholesky_root_give_one_product(shape):
    matrix, x = gaussian(*shape), inputs(shape[1], 500, spread=2.0)
    moment = moment_of(x)
    root = torch.linalg.cholesky(moment)
    u, sigma, vt = torch.linalg.svd(matrix @ root, full_matrices=False)
    product = u[:, :3] * sigma[:3] @ vt[:3] @ torch.linalg.inv(root)
    for form in FORMS.values():
        assert (form(matrix, moment, 3).product() - product).norm() <= 1e-8 * product.norm()


@every_form
def test_white_inputs_give_the_plain_svd(form):
    matrix = gaussian(6, 9)
    expected = truncated_svd(matrix, 4).product()
    torch.testing.assert_close(form(matrix, torch.eye(9), 4).product(), expected, rtol=0, atol=1e-12)


@every_form
def test_a_multiple_of_the_moment_gives_the_same_product(form):
    matrix, moment = gaussian(6, 9), moment_of(inputs(9, 100))
    expected = form(matrix, moment, 4).product()
    for factor in (1e-12, 3e9):
        torch.testing.assert_close(form(matrix, factor * moment, 4).product(), expected, rtol=0, atol=1e-9)


@every_form
def test_full_rank_gives_the_outputs_of_the_matrix_on_the_span(form):
    matrix, x = gaussian(6, 9), inputs(9, 5)  # five tokens of nine features
    torch.testing.assert_close(form(matrix, moment_of(x), 6).product() @ x, matrix @ x, rtol=0, atol=1e-6)


def test_off_the_span_the_eigenspace_form_is_zero_and_the_output_form_projects_the_matrix():
    matrix, x = gaussian(6, 9), gaussian(9, 4)
    off = torch.linalg.svd(x).U[:, 4:]
    eigenspace, outputs = (form(matrix, moment_of(x), 2) for form in FORMS.values())
    assert (eigenspace.product() @ off).norm() < 1e-12
    torch.testing.assert_close(outputs.product() @ off, outputs.left @ outputs.left.mT @ matrix @ off)


@every_form
def test_dead_inputs_and_no_inputs_at_all_stay_finite(form):
    matrix, x = gaussian(5, 8), inputs(8, 50)
    x[3] = 0.0
    factors = form(matrix, moment_of(x), 2)
    least = torch.linalg.svdvals(matrix @ x)[2:].square().sum() / 50
    assert real_error(matrix, factors, x) == pytest.approx(float(least), rel=1e-9)
    for dead in (torch.zeros(8, 8), torch.zeros(8, 8, dtype=torch.float64)):
        assert all(bool(factor.isfinite().all()) for factor in form(matrix, dead, 2))
    assert torch.equal(form(torch.zeros(5, 8), moment_of(x), 2).product(), torch.zeros(5, 8, dtype=torch.float64))


def test_a_whitening_is_a_root_and_its_pseudo_inverse_and_leaves_rounding_noise_out():
    x = inputs(9, 200)
    space = whitening(moment_of(x))
    torch.testing.assert_close(space.root @ space.root.mT, moment_of(x))
    torch.testing.assert_close(space.inverse @ space.root, torch.eye(9).double(), rtol=0, atol=1e-10)
    for dtype in (torch.float32, torch.float64):
        eps = 9 * torch.finfo(dtype).eps
        powers = torch.tensor([1.0, 1.1 * eps, 0.9 * eps, 0.0, -1e-18, 0.5, 0.5, 0.5, 0.5], dtype=dtype)
        assert whitening(powers.diag()).root.shape == (9, 6)


def test_error_of_a_difference_is_that_on_the_inputs():
    matrix, x = gaussian(6, 9), inputs(9, 100)
    assert output_error(matrix, moment_of(x)) == pytest.approx(float((matrix @ x).square().sum()) / 100)
