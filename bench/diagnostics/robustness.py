"""Rows that are rarely seen, one gradient that is no number, and the same seed twice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.diagnostics.diagnostic import Diagnostic
from bench.diagnostics.ride import Contestant, Problem, Ride, Values, normal
from bench.roles import Role

ROWS, WIDTH, HALF = 32, 8, 16
SEEN_STEPS, UNSEEN_STEPS = 5, 30


def _unseen_way(contestant: Contestant) -> float:
    """Return the path of embedding rows without gradient in 30 steps, relative to that of rows with one."""

    def gradient(_: Values, number: int) -> Values:
        rows = normal(ROWS, WIDTH, seed=number)
        if number >= SEEN_STEPS:
            rows[HALF:] = 0.0
        return {"embedding": rows, "companion": normal(WIDTH, WIDTH, seed=1000 + number)}

    start = {"embedding": torch.zeros(ROWS, WIDTH), "companion": normal(WIDTH, WIDTH)}
    ride = Ride(contestant, Problem(start, gradient, Role.EMBEDDING), steps=SEEN_STEPS + UNSEEN_STEPS)
    before = ride.steps(SEEN_STEPS)["embedding"]
    seen = unseen = 0.0
    for _ in range(UNSEEN_STEPS):
        after = ride.steps(1)["embedding"]
        step = (after - before).double().abs()
        seen, unseen, before = seen + float(step[:HALF].sum()), unseen + float(step[HALF:].sum()), after
    return unseen / seen if seen else math.inf


def _read_sparse(value: float) -> str:
    if value == 0.0:
        return "rows that are not seen stay where they are"
    if math.isinf(value):
        return "no row moves, seen or not"
    return f"rows that are not seen for {UNSEEN_STEPS} steps go {value:.1%} of the way of the others"


def _poisoned_share(contestant: Contestant) -> float:
    """Return the share of weights that a NaN, or an Inf, in one gradient stops for good.

    The weights are put back to where they were before the bad step, so that what is left is what the state remembers.
    Stopped are weights that are not finite after ten more steps, or that stand where a ride without the bad step moves.
    """
    before, after = _spoiled(contestant, 0.0)
    moves = before != after
    shares = []
    for poison in (math.nan, math.inf):
        before, after = _spoiled(contestant, poison)
        shares.append(float((~after.isfinite() | (moves & (before == after))).double().mean()))
    return max(shares)


def _spoiled(contestant: Contestant, poison: float) -> tuple[Tensor, Tensor]:
    """Return the weights before a step with one spoiled gradient, put back after it, and those ten steps later."""
    ride = Ride(contestant, Problem({"weight": normal(WIDTH, ROWS)}, _drawn), steps=16)
    before = ride.steps(5)

    def spoil(gradients: Values) -> None:
        gradients["weight"][3, 5] = poison

    ride.step(spoil)
    ride.put(before)
    return before["weight"], ride.steps(10)["weight"]


def _drawn(_: Values, number: int) -> Values:
    return {"weight": normal(WIDTH, ROWS, seed=number)}


def _read_recovery(value: float) -> str:
    if value == 0.0:
        return "forgets a bad gradient once the weights are put back"
    if value <= 1.0 / (WIDTH * ROWS):
        return "one bad gradient stops its own weight for good; the others go on"
    return f"one bad gradient stops {value:.0%} of the weights of its matrix for good"


def _differing_share(contestant: Contestant) -> float:
    """Return the share of weights that differ between two rides of the same seed."""
    ends = []
    for _ in range(2):
        problem = Problem({"weight": normal(WIDTH, ROWS)}, _drawn)
        ends.append(Ride(contestant, problem, steps=20).steps(20)["weight"])
    return float((ends[0] != ends[1]).double().mean())


def _read_determinism(value: float) -> str:
    return (
        "the same seed gives the same bits" if value == 0.0 else f"{value:.0%} of the weights differ at the same seed"
    )


sparse = Diagnostic(
    "sparse",
    "ratio of ways",
    "Do rows of an embedding move while no gradient arrives for them, and how far relative to the others?",
    _unseen_way,
    _read_sparse,
)
recovery = Diagnostic(
    "recovery",
    "share of weights",
    "How many weights does one NaN or Inf in a gradient stop for good, though the weights are put back after it?",
    _poisoned_share,
    _read_recovery,
)
determinism = Diagnostic(
    "determinism",
    "share of weights",
    "How many weights differ after 20 steps of the same seed?",
    _differing_share,
    _read_determinism,
)
