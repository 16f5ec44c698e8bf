"""Projections and the functions that find their bases."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.plugins.optimizers._projection import (
    Projection,
    gram_basis,
    side_of,
    subspace_basis,
    svd_basis,
    undefined_projection,
)

BASES = [svd_basis, gram_basis, subspace_basis]
SIDES = ["left", "right", "both"]
KINDS = ["std", "reverse_std", "left", "right", "full"]


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bases_of(projection):
    return [basis for basis in projection if basis is not None]


@st.composite
def problems(draw):
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return gaussian(rows, columns, seed=draw(st.integers(0, 99))), draw(st.integers(1, min(rows, columns)))


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((4, 6), ("left", "right", "left", "right", "both")),
        ((6, 4), ("right", "left", "left", "right", "both")),
        ((5, 5), ("right", "left", "left", "right", "both")),
    ],
)
def test_side_is_that_of_the_published_types(shape, sides):
    assert tuple(side_of(torch.Size(shape), kind) for kind in KINDS) == sides


@given(problems(), st.sampled_from(BASES), st.sampled_from(SIDES))
def test_bases_are_orthonormal_of_the_right_shape_and_on_the_right_side(problem, basis, side):
    gradient, rank = problem
    projection = basis(gradient, rank, side, None)
    assert (projection.left is not None, projection.right is not None) == (side != "right", side != "left")
    for vectors, size in zip(projection, gradient.shape, strict=True):
        if vectors is not None:
            assert vectors.shape == (size, rank)
            assert torch.allclose(vectors.T @ vectors, torch.eye(rank), atol=1e-5)


@given(problems(), st.sampled_from(SIDES))
def test_adding_in_place_is_adding_what_comes_back_up(problem, side):
    gradient, rank = problem
    stack = torch.stack([gradient, 2 - gradient])
    projection = gram_basis(stack, rank, side, None)
    reduced, weights = projection.down(stack), [gradient.sin(), gradient.cos()]
    expected = torch.stack(weights) - 0.3 * projection.up(reduced)
    projection.add_up(weights, reduced, -0.3)
    assert torch.allclose(torch.stack(weights), expected, atol=1e-4)


@given(problems(), st.sampled_from(BASES), st.sampled_from(SIDES))
def test_projecting_twice_is_projecting_once_and_never_adds_energy(problem, basis, side):
    gradient, rank = problem
    projection = basis(gradient, rank, side, None)
    once = projection.up(projection.down(gradient))
    assert torch.allclose(projection.up(projection.down(once)), once, atol=1e-4)
    assert torch.linalg.norm(once) <= torch.linalg.norm(gradient) * (1 + 1e-5)


@given(problems(), st.sampled_from([gram_basis, svd_basis]), st.sampled_from(SIDES))
def test_projection_keeps_exactly_the_leading_singular_values(problem, basis, side):
    gradient, rank = problem
    projection = basis(gradient, rank, side, None)
    kept = torch.linalg.svdvals(projection.up(projection.down(gradient)))
    values = torch.linalg.svdvals(gradient)
    assert torch.allclose(kept[:rank], values[:rank], atol=1e-4)
    assert torch.allclose(kept[rank:], torch.zeros_like(kept[rank:]), atol=1e-4)


@given(problems(), st.sampled_from(BASES), st.sampled_from(SIDES))
def test_full_rank_loses_nothing(problem, basis, side):
    gradient, _ = problem
    projection = basis(gradient, min(gradient.shape), side, None)
    if side == "both" or side_of(gradient.shape, "std") == side:
        assert torch.allclose(projection.up(projection.down(gradient)), gradient, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
@pytest.mark.parametrize("side", SIDES)
def test_gram_vectors_are_the_svds_up_to_sign_and_nearer_to_the_truth(shape, side):
    u, v = (torch.linalg.qr(gaussian(size, min(shape), seed=size).double()).Q for size in shape)
    exact = (u * torch.logspace(0, -4, min(shape), dtype=torch.float64)) @ v.T
    truth = svd_basis(exact, 6, side)
    errors = {
        name: max(
            float((1 - (a.double() * b).sum(dim=0).abs()).max())
            for a, b in zip(bases_of(basis(exact.float(), 6, side)), bases_of(truth), strict=True)
        )
        for name, basis in (("svd", svd_basis), ("gram", gram_basis))
    }
    assert errors["svd"] < 1e-4
    assert errors["gram"] < 1e-6


def test_fp32_gram_matrix_loses_the_small_singular_vectors():
    u, v = (torch.linalg.qr(gaussian(64, 64, seed=seed).double()).Q for seed in (1, 2))
    exact = (u * torch.logspace(0, -6, 64, dtype=torch.float64)) @ v.T
    truth = svd_basis(exact, 48, "left").left
    cosine = {
        dtype: float((gram_basis(exact.float(), 48, "left", dtype=dtype).left.double() * truth).sum(dim=0).abs().min())
        for dtype in (torch.float32, torch.float64)
    }
    assert cosine[torch.float32] < 0.9
    assert cosine[torch.float64] > 0.99


@given(problems(), st.sampled_from(SIDES))
def test_gram_signs_are_fixed_and_the_pair_belongs_together(problem, side):
    gradient, rank = problem
    projection = gram_basis(gradient, rank, side, None)
    short = projection.left if side_of(gradient.shape, "std") == "left" else projection.right
    if short is not None:
        assert (short.gather(0, short.abs().argmax(dim=0, keepdim=True)) > 0).all()
    if side == "both":
        diagonal = projection.down(gradient)
        assert torch.allclose(diagonal, torch.diag(diagonal.diagonal()), atol=1e-4)
        assert (diagonal.diagonal() >= -1e-5).all()


@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.sampled_from(BASES), st.sampled_from(SIDES), st.data()
)
def test_batch_gives_what_its_matrices_give_alone(batch, rows, columns, basis, side, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    stack = gaussian(batch, rows, columns, seed=batch)
    previous = svd_basis(gaussian(batch, rows, columns, seed=77), rank, side)
    together = basis(stack, rank, side, previous)
    reduced = together.down(stack)
    for index in range(batch):
        one = Projection(*(None if vectors is None else vectors[index] for vectors in previous))
        alone = basis(stack[index], rank, side, one)
        for left, right in zip(bases_of(together), bases_of(alone), strict=True):
            assert torch.allclose(left[index].abs(), right.abs(), atol=2e-3)
        expected = alone.up(alone.down(stack[index]))
        assert torch.allclose(together.up(reduced)[index], expected, atol=2e-3)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(10, 24), (24, 10)])
def test_subspace_iteration_converges_to_the_singular_vectors(shape, side):
    u, v = (torch.linalg.qr(gaussian(size, 10, seed=size)).Q for size in shape)
    gradient = (u * 2.0 ** -torch.arange(10.0)) @ v.T
    previous = svd_basis(gaussian(*shape, seed=5), 4, side)
    exact = bases_of(gram_basis(gradient, 4, side))

    def error(sweeps):
        found = bases_of(subspace_basis(gradient, 4, side, previous, sweeps=sweeps))
        return max(float((1 - (a * b).sum(dim=0).abs()).max()) for a, b in zip(found, exact, strict=True))

    assert error(12) < 1e-4
    assert error(1) > error(12)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
def test_zero_matrix_has_an_orthonormal_basis_without_nan(basis, side, shape):
    previous = svd_basis(gaussian(*shape), 3, side)
    for start in (None, previous):
        for vectors in bases_of(basis(torch.zeros(shape), 3, side, start)):
            assert torch.allclose(vectors.T @ vectors, torch.eye(3), atol=1e-5)


@pytest.mark.parametrize("basis", [*BASES, partial(gram_basis, dtype=torch.float32)])
def test_bfloat16_gradient_gets_a_bfloat16_basis_computed_in_higher_precision(basis):
    gradient = gaussian(20, 30, dtype=torch.bfloat16)
    previous = svd_basis(gradient, 5, "left")
    found, expected = basis(gradient, 5, "left", previous).left, svd_basis(gradient.float(), 5, "left").left
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float().T @ found.float(), torch.eye(5), atol=2e-2)
    if basis is not subspace_basis:
        assert torch.allclose(found.float().abs(), expected.abs(), atol=4e-3)


@pytest.mark.parametrize("side", SIDES)
def test_undefined_projection_has_the_shapes_of_a_real_one(side):
    gradient = gaussian(2, 6, 9)
    real, undefined = gram_basis(gradient, 3, side), undefined_projection(gradient, 3, side)
    for left, right in zip(real, undefined, strict=True):
        assert (left is None) == (right is None)
        assert left is None or (left.shape == right.shape and right.isnan().all())
