"""Ratios to the reference with their intervals, and what difference the measurement could have shown."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from bench.board import Board
from bench.errors import BadValue
from bench.figures import style, text
from bench.figures.forest import Estimate, draw_forest
from bench.figures.rows import Row, place, rows

Cost = Literal["steps", "time", "memory", "energy"]
_NAMES = {"steps": "steps to target", "time": "time to target", "memory": "peak memory", "energy": "energy"}
_COLUMNS = ("_ratio", "_ratio_low", "_ratio_high", "_ratio_p", "_detectable_ratio")
_WIDEST = 8.0


def draw_ratios(axes: Axes, board: Board, by: Cost = "steps") -> str:
    """Draw each row's ratio to its reference with its interval on a log axis; return the text alternative.

    Left of 1 is cheaper than the reference. A filled marker: different from 1 after Holm's correction. The light band
    is what this pair of samples cannot tell from 1: a true ratio outside of it is found with a power of 0.8. An
    interval beyond a factor of 8 around the outermost ratio ends in an arrow. Rows without a ratio keep their line and
    say why.

    Args:
        axes: where to draw.
        board: one board, with at least one reference.
        by: ``steps``, ``time``, ``memory`` or ``energy``.
    """
    if by not in _NAMES:
        raise BadValue(f"by must be one of {', '.join(_NAMES)}, not {by!r}")
    found = rows(board)
    if not any(math.isfinite(row.real(f"{by}_ratio")) for row in found):
        return style.empty(axes, f"No row of {place(board)} has a ratio of {_NAMES[by]} to a reference.")
    alpha = 1.0 - float(board.shared.get("confidence") or 0.95)
    estimates = [_estimate(row, by, alpha) for row in found]
    low, high = _limits(estimates)
    axes.set_xscale("log")
    references = sorted({style.plain(row.facts["algorithm"]) for row in found if row.is_reference})
    xlabel = style.drawn(f"{_NAMES[by]}: ratio to {references[0] if len(references) == 1 else 'its reference'}", 60)
    style.frame(axes, xlabel=xlabel, ylabel="", grid="x")
    axes.axvline(1.0, color=style.ink(axes), linewidth=1.0)
    draw_forest(axes, estimates, (low, high))
    style.log_ticks(axes.xaxis, low, high)
    return _told(board, found, by, alpha)


def _estimate(row: Row, by: Cost, alpha: float) -> Estimate:
    value, low, high, p, detectable = (row.real(by + end) for end in _COLUMNS)
    return Estimate(
        name=row.name,
        told=_why(row, by) if math.isnan(value) or row.is_reference else text.ratio(value, low, high),
        style=row.style,
        value=value,
        low=low,
        high=high,
        solid=p < alpha,
        band=(1.0 / detectable, detectable) if math.isfinite(detectable) else (math.nan, math.nan),
    )


def _why(row: Row, by: Cost) -> str:
    """Return what stands where a ratio is not known."""
    if row.is_reference and math.isfinite(row.real(f"{by}_ratio")):
        return "the reference"
    if by in {"steps", "time"} and row.real("hits") == 0:
        return f"{row.hits} reached the target"
    return "no ratio"


def _limits(estimates: list[Estimate]) -> tuple[float, float]:
    """Return the ends of the axis: all ratios, and intervals and bands as far as they are not extremely wide."""
    values = [each.value for each in estimates if math.isfinite(each.value) and each.value > 0] + [1.0]
    ends = np.array([end for each in estimates for end in (each.low, each.high, *each.band)], dtype=float)
    ends = ends[np.isfinite(ends)]
    floor, ceiling = min(values) / _WIDEST, max(values) * _WIDEST
    every = [*values, *np.clip(ends, floor, ceiling)]
    margin = max(1.08, (max(every) / min(every)) ** 0.05)
    return float(min(every) / margin), float(max(every) * margin)


def _told(board: Board, found: list[Row], by: Cost, alpha: float) -> str:
    parts = [
        f"Ratio of {_NAMES[by]} to the reference on {place(board)}, with {1 - alpha:.0%} intervals;",
        "below 1 is cheaper.",
    ]
    for row in found:
        value, low, high, p, detectable = (row.real(by + end) for end in _COLUMNS)
        if row.is_reference and math.isfinite(value):
            parts.append(f"{row.name} is the reference.")
        elif math.isnan(value):
            parts.append(f"{row.name}: {_why(row, by)}.")
        else:
            told = f"{row.name}: {text.ratio(value, low, high)}"
            if math.isfinite(p):
                told += f", {'' if p < alpha else 'not '}told apart from the reference (p {p:.2g})"
            if math.isfinite(detectable):
                told += f", smallest detectable ratio {text.ratio(detectable)}"
            parts.append(told + ".")
    return " ".join(parts)
