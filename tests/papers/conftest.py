"""Gradient streams and the loop that feeds them to an optimizer."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def stream():
    """Return ``(rows, columns, steps, seed) -> list of Gaussian gradients``."""

    def make(rows, columns, steps, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(rows, columns, generator=generator).to(dtype) for _ in range(steps)]

    return make


@pytest.fixture
def start():
    """Return ``(rows, columns, seed) -> weights to start from``."""

    def make(rows, columns, seed=1, dtype=torch.float32):
        return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)

    return make


@pytest.fixture
def drive():
    """Return ``(build, weights, gradients) -> weights after each step`` for an optimizer of one parameter."""

    def run(build, weights, gradients):
        parameter = torch.nn.Parameter(weights.clone())
        optimizer = build(parameter)
        path = []
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
            path.append(parameter.detach().clone())
        return path

    return run
