"""Names beside points, where they cover each other and the points as little as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bench.figures.style import SMALL, ink

_DIRECTIONS = ((0.7, 0.7), (-0.7, 0.7), (0.0, 1.0), (1.0, 0.0), (0.7, -0.7), (-0.7, -0.7), (0.0, -1.0), (-1.0, 0.0))
"""To the upper right first: there lies what is beaten in both costs, and no staircase."""
_RINGS_POINTS = (8.0, 17.0, 28.0, 40.0)
_MARKER_POINTS = 5.0

_Box = tuple[float, float, float, float]


def place_labels(axes: Axes, points: Any, labels: Sequence[str]) -> None:
    """Write ``labels`` beside ``points``, an array of shape (labels, 2) in data coordinates.

    Greedy: each label in turn takes the nearest of 32 places that covers least. Sizes are estimated from the number of
    characters, so no renderer is needed and the outcome does not depend on one.
    """
    per_inch = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    places = np.asarray(axes.transData.transform(points)) * 72.0 / per_inch
    frame = np.asarray(axes.get_window_extent().extents) * 72.0 / per_inch
    boxes: list[_Box] = [
        (x - _MARKER_POINTS, y - _MARKER_POINTS, x + _MARKER_POINTS, y + _MARKER_POINTS) for x, y in places
    ]
    for (x, y), point, label in zip(places, points, labels, strict=True):
        size = (0.58 * SMALL * len(label), 1.2 * SMALL)
        offsets = [(ring * dx, ring * dy) for ring in _RINGS_POINTS for dx, dy in _DIRECTIONS]
        candidates = [(offset, _box(x, y, offset, size)) for offset in offsets]
        costs = [_cost(box, boxes, frame) + 0.02 * place for place, (_, box) in enumerate(candidates)]
        offset, box = candidates[int(np.argmin(costs))]
        boxes.append(box)
        _write(axes, point, label, offset)


def _box(x: float, y: float, offset: tuple[float, float], size: tuple[float, float]) -> _Box:
    across, up = offset
    left = x + across - size[0] * (0.0 if across > 0 else 1.0 if across < 0 else 0.5)
    bottom = y + up - size[1] * (0.0 if up > 0 else 1.0 if up < 0 else 0.5)
    return left, bottom, left + size[0], bottom + size[1]


def _cost(box: _Box, others: Sequence[_Box], frame: Any) -> float:
    """Return the area of ``box`` that covers others or leaves the frame, in square points."""
    whole = (box[2] - box[0]) * (box[3] - box[1])
    return sum(_common(box, other) for other in others) + 2.0 * (whole - _common(box, tuple(frame)))


def _common(one: _Box, other: _Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(up, 0.0)


def _write(axes: Axes, point: Any, label: str, offset: tuple[float, float]) -> None:
    across, up = offset
    far = max(abs(across), abs(up)) > _RINGS_POINTS[0]
    axes.annotate(
        label,
        point,
        xytext=offset,
        textcoords="offset points",
        ha="left" if across > 0 else "right" if across < 0 else "center",
        va="bottom" if up > 0 else "top" if up < 0 else "center",
        fontsize=SMALL,
        arrowprops={"arrowstyle": "-", "color": ink(axes), "linewidth": 0.5, "alpha": 0.6} if far else None,
    )
