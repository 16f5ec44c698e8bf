"""Classification tasks that each live in a subspace of their own and share a part of it.

With Q an orthonormal basis of the 256 inputs, its first 16 columns shared, task k has the basis

    B_k = [Q_shared R_k, W_k],    R_k a random rotation (16, 16),    W_k 32 orthonormal mixtures of Q's other columns,

so that all tasks use the shared directions, each in its own way, and meet by chance in the rest. Each of 10 classes is
a mixture of 4 normal clouds in the 48 coordinates of the task: with centre m ~ N(0, 0.8² I) an example is

    u = m + N(0, I),    x = 2 tanh(u / 2) B_kᵀ + 0.05 N(0, I).

A task has few examples for pretraining, many for training, some to choose hyperparameters by (validation) and some to
judge by (test). Everything is drawn in fp64 from numpy's ``RandomState``, whose streams no version of numpy changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.random import RandomState

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Generator:
    """The sizes of the tasks: how many of them, their dimensions, their classes and their examples."""

    tasks: int = 8
    inputs: int = 256
    shared: int = 16
    own: int = 32
    classes: int = 10
    centres: int = 4
    spread: float = 0.8
    noise: float = 0.05
    pretraining: int = 200
    training: int = 4000
    test: int = 2000
    validation: int = 1000


@dataclass(frozen=True)
class Examples:
    """``inputs`` fp32 (N, D) and ``labels`` (N,)."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: its ``basis`` B fp64 (D, 48), its ``centres`` fp64 (classes, centres, 48) and its examples."""

    basis: Floats
    centres: Floats
    pretraining: Examples
    training: Examples
    test: Examples
    validation: Examples


def draw_tasks(generator: Generator, seed: int) -> tuple[Task, ...]:
    """Return the tasks of ``seed``; the first ones are the same however many there are."""
    draws = RandomState(seed)
    basis = _orthonormal(draws.randn(generator.inputs, generator.inputs))
    return tuple(_draw_task(generator, seed, number, basis, draws) for number in range(generator.tasks))


def _draw_task(generator: Generator, seed: int, number: int, basis: Floats, draws: RandomState) -> Task:
    shared, rest = np.split(basis, [generator.shared], axis=1)
    rotated = shared @ _orthonormal(draws.randn(generator.shared, generator.shared))
    own = _orthonormal(rest @ draws.randn(rest.shape[1], generator.own))
    task_basis = np.hstack([rotated, own])
    centres = generator.spread * draws.randn(generator.classes, generator.centres, task_basis.shape[1])

    def examples(size: int, source: RandomState) -> Examples:
        labels = source.randint(generator.classes, size=size, dtype=np.int64)
        centre = centres[labels, source.randint(generator.centres, size=size, dtype=np.int64)]
        inputs = 2 * np.tanh((centre + source.randn(*centre.shape)) / 2) @ task_basis.T
        inputs += generator.noise * source.randn(*inputs.shape)
        return Examples(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels))

    return Task(
        basis=task_basis,
        centres=centres,
        pretraining=examples(generator.pretraining, draws),
        training=examples(generator.training, draws),
        test=examples(generator.test, draws),
        # A stream of its own: the other examples are those that were there before validation examples were wanted.
        validation=examples(generator.validation, RandomState([seed, number])),
    )


def _orthonormal(matrix: Floats) -> Floats:
    """Return Q of the QR decomposition with a positive diagonal of R, which makes it unique on every machine."""
    q, r = np.linalg.qr(matrix)
    signed: Floats = q * np.sign(np.diag(r))
    return signed
