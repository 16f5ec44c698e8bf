"""Gradient streams and the loop that feeds them to an optimizer."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn


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
def beside_peft(package):
    """Return ``(config, make, pairs, shapes) -> (ours, theirs, distance)`` of two linear layers adapted by us and peft.

    ``make`` makes our layer; ``pairs`` maps our parameters to ``peft's layer -> its tensor``. Both get the same values,
    away from the start, and 20 steps of AdamW in fp64; the distance is the largest difference of any output, gradient
    or parameter in any of them.
    """
    peft = package("peft", "peft")
    from bench.plugins.peft._adapter import adapted_linears

    def compare(config, make, pairs, shapes=((12, 8), (8, 12))):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(*shapes[0]), nn.Tanh(), nn.Linear(*shapes[1])).requires_grad_(False)
        ours = adapted_linears(copy.deepcopy(base), ["0", "2"], make).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.get_peft_model(copy.deepcopy(base), config).double()
        peers = theirs.base_model.model
        matched = [(ours[i].get_parameter(key), get(peers[i])) for i in (0, 2) for key, get in pairs.items()]
        trained = [pair for pair in matched if pair[0].requires_grad]
        with torch.no_grad():
            for mine, other in matched:
                if mine.requires_grad:
                    mine.add_(0.3 * torch.randn_like(mine))
                other.copy_(mine)
        optimizers = [torch.optim.AdamW(part, lr=0.03, weight_decay=0.1) for part in zip(*trained, strict=True)]
        largest = 0.0
        for number in range(20):
            generator = torch.Generator().manual_seed(number)
            x, y = (
                torch.randn(7, 5, n, dtype=torch.float64, generator=generator) for n in (shapes[0][0], shapes[1][1])
            )
            outputs = ours(x), theirs(x)
            for optimizer, output in zip(optimizers, outputs, strict=True):
                optimizer.zero_grad()
                (output - y).square().mean().backward()
            gradients = [(mine.grad.clone(), other.grad.clone()) for mine, other in trained]
            for optimizer in optimizers:
                optimizer.step()
            pairings = [outputs, *gradients, *matched]
            largest = max(largest, *(float((a - b).detach().abs().max()) for a, b in pairings))
        return ours, peers, largest

    return compare
