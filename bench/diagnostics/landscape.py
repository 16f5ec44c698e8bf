"""Saddle, plateau and noise: how it leaves, crosses and rests."""

from __future__ import annotations

import math

import torch

from bench.diagnostics.diagnostic import Diagnostic
from bench.diagnostics.ride import Contestant, Problem, Ride, Values, normal, reach

SIZE, HALF = 12, 6
LEAVING_STEPS = 300
TINY = 1e-8
RESTING_STEPS = 200


def _saddle_steps(contestant: Contestant) -> float:
    """Return the steps until |y| has grown from s/1000 to s on ½ (x² - y²); s is fifty first steps; inf: not in 300."""

    def gradient(values: Values, _: int) -> Values:
        found = values["weight"].clone()
        found[:, HALF:] *= -1
        return {"weight": found}

    signs = normal(SIZE, SIZE).sign()
    size = reach(contestant, gradient, {"weight": signs})
    start = size * signs
    start[:, HALF:] /= 1000
    ride = Ride(contestant, Problem({"weight": start}, gradient), steps=LEAVING_STEPS)
    for number in range(1, LEAVING_STEPS + 1):
        if float(ride.steps(1)["weight"][:, HALF:].abs().mean()) >= size:
            return number
    return math.inf


def _read_saddle(value: float) -> str:
    if math.isinf(value):
        return f"stays at the saddle for {LEAVING_STEPS} steps"
    return f"leaves the saddle in {value:.0f} steps; steps of constant length take 50"


def _plateau_ratio(contestant: Contestant) -> float:
    """Return the way in 20 steps along gradients of 1e-8, relative to that along gradients of 1."""
    direction = normal(SIZE, SIZE).sign()

    def way(size: float) -> float:
        problem = Problem({"weight": torch.zeros(SIZE, SIZE)}, lambda _, __: {"weight": size * direction})
        return float(Ride(contestant, problem, steps=20).steps(20)["weight"].double().norm())

    plain = way(1.0)
    return way(TINY) / plain if plain else 0.0


def _read_plateau(value: float) -> str:
    if value > 0.9:
        return "goes on as if gradients of 1e-8 were of size 1"
    if value > 0.01:
        return f"slows down to {value:.0%} where gradients are 1e-8"
    return "stands still where gradients are 1e-8"


def _resting_variance(contestant: Contestant) -> float:
    """Return the mean of W² in the last 100 of 200 steps on ½ ‖W‖² from its minimum, gradients with noise N(0, 1)."""

    def gradient(values: Values, number: int) -> Values:
        return {"weight": values["weight"] + normal(SIZE, SIZE, seed=100 + number)}

    ride = Ride(contestant, Problem({"weight": torch.zeros(SIZE, SIZE)}, gradient), steps=RESTING_STEPS)
    ride.steps(RESTING_STEPS - 100)
    squares = [float(ride.steps(1)["weight"].double().square().mean()) for _ in range(100)]
    return sum(squares) / len(squares)


def _read_noise(value: float) -> str:
    if math.isinf(value):
        return "does not come to rest under noise"
    return f"rests as noisily as plain SGD with the learning rate {2 * value / (1 + value):.2g}"


saddle = Diagnostic(
    "saddle",
    "steps",
    "How many steps does it need to leave a saddle, started a thousandth of the distance from its ridge?",
    _saddle_steps,
    _read_saddle,
)
plateau = Diagnostic(
    "plateau",
    "ratio of ways",
    "How far does it go in 20 steps along gradients of 1e-8, relative to gradients of 1?",
    _plateau_ratio,
    _read_plateau,
)
noise = Diagnostic(
    "noise",
    "variance",
    "How far from the minimum of a quadratic of curvature 1 does it rest when gradients carry noise of variance 1?",
    _resting_variance,
    _read_noise,
)
