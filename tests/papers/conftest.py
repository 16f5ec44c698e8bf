"""Gradient streams and the loop that feeds them to an optimizer."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from itertools import accumulate

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


@pytest.fixture
def package():
    """Return ``name -> module``, skipping with the reason where the package is missing."""

    def load(name, wheel):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return importlib.import_module(name)
            except ImportError as error:
                pytest.skip(f"parity needs the package {wheel}: {error}")

    return load


@pytest.fixture
def module_alone(monkeypatch):
    """Return ``(name, wheel) -> module``, without running the initialisers of the packages above it.

    They import what the module does not need and what is not there: torchvision, which fits one build of torch, or
    compiled CUDA kernels. Skips with the reason where the package is missing.
    """

    def load(name, wheel):
        for parent in accumulate(name.split(".")[:-1], "{}.{}".format):
            spec = importlib.util.find_spec(parent)
            if spec is None:
                pytest.skip(f"parity needs the package {wheel}")
            monkeypatch.setitem(sys.modules, parent, importlib.util.module_from_spec(spec))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)

    return load
