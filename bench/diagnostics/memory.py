"""Bytes of state per parameter, by shape."""

from __future__ import annotations

import math
from functools import partial

import torch

from bench.diagnostics.diagnostic import Diagnostic
from bench.diagnostics.ride import Contestant, Problem, Ride, Values, normal
from bench.probes import optimizer_state_bytes
from bench.roles import Role

SHAPES: dict[str, tuple[Role, tuple[int, ...]]] = {
    "square matrix": (Role.ATTENTION_Q, (64, 64)),
    "wide matrix": (Role.MLP, (32, 256)),
    "tall matrix": (Role.MLP, (256, 32)),
    "embedding": (Role.EMBEDDING, (256, 32)),
    "convolution": (Role.CONV, (16, 16, 3, 3)),
    "vector": (Role.NORM, (256,)),
}


def _gradient(values: Values, number: int) -> Values:
    return {key: normal(*value.shape, seed=number) for key, value in values.items()}


def _bytes_per_parameter(contestant: Contestant, shape: str) -> float:
    """Return what two steps leave for a parameter of ``shape``, beside a small matrix that every method can work on."""
    role, size = SHAPES[shape]
    start = {"companion": normal(6, 12)}
    held = []
    for values in (start, {**start, "parameter": normal(*size)}):
        ride = Ride(contestant, Problem(values, _gradient, role), steps=100)
        ride.steps(2)
        held.append(optimizer_state_bytes(ride.optimizer))
    return (held[1] - held[0]) / math.prod(size)


def _read(value: float) -> str:
    weights = torch.finfo(torch.float32).bits // 8
    return f"{value / weights:.3g} times the bytes of the fp32 weights"


memory = tuple(
    Diagnostic(
        f"memory/{shape.replace(' ', '-')}",
        "bytes / parameter",
        f"How many bytes of state does a {shape} in fp32 need per parameter?",
        partial(_bytes_per_parameter, shape=shape),
        _read,
    )
    for shape in SHAPES
)
