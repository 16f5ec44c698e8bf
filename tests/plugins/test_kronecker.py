"""The factors of SOAP and Shampoo, proven once."""

from __future__ import annotations

import pytest
import torch

from bench.plugins.baselines._kronecker import contract, eigh, gram, inverse_root


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_factors_of_a_matrix_are_its_two_gram_matrices():
    g = drawn(4, 6)
    assert torch.allclose(gram(g, 0), g @ g.T)
    assert torch.allclose(gram(g, 1), g.T @ g)


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_factors_of_a_tensor_are_inner_products_of_its_slices(dimension):
    g = drawn(2, 3, 4)
    for i, left in enumerate(g.unbind(dimension)):
        for j, right in enumerate(g.unbind(dimension)):
            assert torch.isclose(gram(g, dimension)[i, j], (left * right).sum())


def test_contraction_multiplies_every_dimension_and_skips_none():
    x, a, b = drawn(4, 6), drawn(4, 4), drawn(6, 6)
    assert torch.allclose(contract(x, [a, b]), a.T @ x @ b)
    assert torch.allclose(contract(x, [a, b], transposed=True), a @ x @ b.T)
    assert torch.allclose(contract(x, [None, b]), x @ b)
    assert torch.equal(contract(x, [None, None]), x)
    y, c = drawn(2, 3, 4), drawn(3, 3)
    assert torch.allclose(contract(y, [None, c, None]), torch.einsum("ijk,jl->ilk", y, c))


@pytest.mark.parametrize("order", [2, 4, 6])
def test_the_inverse_root_times_itself_is_the_inverse(order):
    matrix = drawn(5, 5) @ drawn(5, 5).T
    root = inverse_root(matrix, order, 0.1)
    product = torch.linalg.matrix_power(root, order) @ (matrix + 0.1 * torch.eye(5, dtype=torch.float64))
    assert torch.allclose(product, torch.eye(5, dtype=torch.float64), atol=1e-8)


def test_the_inverse_root_of_a_singular_matrix_is_finite():
    vector = torch.ones(6, 1)
    root = inverse_root(vector @ vector.T, 4, 1e-8)
    assert root.isfinite().all()
    assert torch.allclose(root @ vector, vector / 6**0.25, atol=1e-3)


def test_a_matrix_that_is_not_finite_has_eigenvectors_of_nan():
    values, vectors = eigh(torch.full((3, 3), torch.nan))
    assert values.isnan().all()
    assert vectors.isnan().all()
    assert (values.shape, vectors.shape) == ((3,), (3, 3))
