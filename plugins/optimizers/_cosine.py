r"""The discrete cosine transform as a fixed orthogonal basis, and the choice of its columns that fit a matrix.

    Q[i, j] = √(2/s) cos(π i (2j+1) / 2s),   row 0 times √(1/2)                                  (s, s), Qᵀ Q = I

A Q is the DCT-III of the rows of A, A Qᵀ their DCT-II, which Makhoul's algorithm takes by one FFT of the same length.
Both are bases: "matmul" is B = Q and "fft" is B = Qᵀ, and they give different trajectories.

Q depends on nothing but its size, so there is one for each size, dtype and device, shared by all matrices; it is not
part of any parameter's state.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Transform = Literal["matmul", "fft"]
Norm = Literal["l1", "l2"]


@lru_cache(maxsize=32)
def cosine_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return Q (``size``, ``size``), computed in fp64."""
    row = torch.arange(size, dtype=torch.float64, device=device)
    matrix = torch.cos(row[:, None] * (2.0 * row + 1.0) * (math.pi / (2 * size))) * math.sqrt(2.0 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix.to(dtype)


def basis_rows(matrix: Tensor, transform: Transform) -> Tensor:
    """Return Bᵀ (s, s) for the last axis of ``matrix`` (..., s): its rows are the columns to choose from."""
    cosine = cosine_matrix(matrix.shape[-1], matrix.dtype, matrix.device)
    return cosine.mT if transform == "matmul" else cosine


def coordinates(matrix: Tensor, transform: Transform) -> Tensor:
    """Return ``matrix`` (..., s) times B."""
    if transform == "fft":
        return cosine_transform(matrix)
    return matrix @ basis_rows(matrix, transform).mT


def cosine_transform(matrix: Tensor) -> Tensor:
    """Return the orthonormal DCT-II of the last axis of ``matrix`` by Makhoul's algorithm."""
    size = matrix.shape[-1]
    places = torch.arange(size, device=matrix.device)
    order = torch.cat((places[::2], places[1::2].flip(0)))  # the even places, then the odd ones backwards
    values = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).index_select(-1, order)
    spectrum = torch.fft.fft(values)
    angles = places * (-math.pi / (2 * size))
    scale = math.sqrt(2.0 / size)
    transformed: Tensor = (spectrum.real * angles.cos() - spectrum.imag * angles.sin()) * scale
    transformed[..., 0] *= math.sqrt(0.5)
    return transformed.to(matrix.dtype)


def fitting_columns(coordinates: Tensor, rank: int, norm: Norm) -> Tensor:
    """Return the ``rank`` columns (..., r) of ``coordinates`` (..., l, s) with the largest norm, in ascending order.

    The l2 norm minimises ‖A - A B_I B_Iᵀ‖_F, since B is orthogonal. Ascending, because the order in which a set is
    found would otherwise permute the moments that belong to it.
    """
    dtype = torch.promote_types(coordinates.dtype, torch.float32)
    magnitudes = coordinates.abs() if norm == "l1" else coordinates.to(dtype).square()
    scores = magnitudes.sum(dim=-2, dtype=dtype)  # ten times as fast as a vector norm down the columns
    return scores.topk(rank, dim=-1, sorted=False).indices.sort(dim=-1).values


def columns(matrix: Tensor, indices: Tensor) -> Tensor:
    """Return the columns ``indices`` (b, r) of ``matrix`` (b, l, s)."""
    return matrix.gather(-1, indices.unsqueeze(-2).expand(*matrix.shape[:-1], -1))


def moved(moments: Tensor, old: Tensor, new: Tensor, size: int) -> Tensor:
    """Return ``moments`` (b, l, r) of the columns ``old`` (b, r) at the places of the columns ``new`` (b, r).

    What B_oldᵀ B_new, a matrix of zeros and ones, does to them: a column that stays keeps its moments, a new one
    starts from zero.
    """
    ranks = torch.arange(old.shape[-1], device=old.device).expand_as(old)
    place = old.new_full((*old.shape[:-1], size), -1).scatter_(-1, old, ranks)
    source = place.gather(-1, new)
    return torch.where((source >= 0).unsqueeze(-2), columns(moments, source.clamp(min=0)), 0.0)
