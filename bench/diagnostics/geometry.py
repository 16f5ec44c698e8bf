"""Scale and rotation: on what of a problem's description does the path depend?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.diagnostics.diagnostic import Diagnostic
from bench.diagnostics.ride import Contestant, Problem, Ride, Values, normal, reach

SIZE = 12
SCALES = (1e-3, 1e3)


def _scale_change(contestant: Contestant) -> float:
    """Return the largest ‖W_c - W_1‖ / ‖W_1 - W_0‖ after 40 steps on c ½ ‖W - T‖², c = 1/1000 and 1000."""
    start, goal = normal(SIZE, SIZE), normal(SIZE, SIZE, seed=1)

    def end(scale: float) -> Tensor:
        problem = Problem({"weight": start}, lambda values, _: {"weight": scale * (values["weight"] - goal)})
        return Ride(contestant, problem, steps=40).steps(40)["weight"].double()

    plain = end(1.0)
    way = float((plain - start).norm())
    gaps = [float((end(scale) - plain).norm()) / way if way else 0.0 for scale in SCALES]
    return math.inf if any(map(math.isnan, gaps)) else max(gaps)


def _read_scale(value: float) -> str:
    if value < 0.02:
        return "scale invariant: the size of the loss does not matter"
    if value < 0.5:
        return f"almost scale invariant: a loss of another size ends {value:.0%} of the way apart"
    return "depends on the size of the loss: its learning rate belongs to one scale"


def _rotation_ratio(contestant: Contestant) -> float:
    """Return progress on a rotated quadratic over that on the axis-aligned one; progress is log(f_0 / f_min)."""
    order = torch.randperm(SIZE * SIZE, generator=torch.Generator().manual_seed(2))
    curvature = torch.logspace(-4, 0, SIZE * SIZE)[order].view(SIZE, SIZE)
    left, right = (torch.linalg.qr(normal(SIZE, SIZE, seed=seed)).Q for seed in (3, 4))

    def progress(one: Tensor, other: Tensor) -> float:
        def inside(values: Values) -> Tensor:
            return one @ values["weight"] @ other

        def gradient(values: Values, _: int) -> Values:
            return {"weight": one.T @ (curvature * inside(values)) @ other.T}

        def loss(values: Values) -> float:
            return float((curvature * inside(values).square()).sum().double())

        aligned = normal(SIZE, SIZE, seed=5).sign()
        start = {"weight": one.T @ aligned @ other.T}
        start = {"weight": reach(contestant, gradient, start) * start["weight"]}
        ride = Ride(contestant, Problem(start, gradient), steps=100)
        losses = [loss(ride.steps(1)) for _ in range(100)]
        return math.log(loss(start) / max(min(losses), 1e-300))

    eye = torch.eye(SIZE)
    aligned = progress(eye, eye)
    return progress(left, right) / aligned if aligned > 0 else math.inf


def _read_rotation(value: float) -> str:
    if math.isinf(value):
        return "made no progress on the axis-aligned problem at its default rate"
    if value > 0.9:
        return "does not care for the axes: as fast on rotated problems"
    return f"works along the axes: {value:.0%} of the progress on a rotated problem"


scale = Diagnostic(
    "scale",
    "distance / way",
    "How far apart do paths end when the loss is multiplied by 1000 or 1/1000, relative to the way gone?",
    _scale_change,
    _read_scale,
)
rotation = Diagnostic(
    "rotation",
    "ratio of log progress",
    "How fast is it on an ill-conditioned quadratic of a rotated matrix, relative to the axis-aligned one?",
    _rotation_ratio,
    _read_rotation,
)
