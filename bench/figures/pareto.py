"""Time (or steps) to target against peak memory, and the rows that nothing beats in both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from bench.board import Board
from bench.figures import style, text
from bench.figures.curves import Progress
from bench.figures.labels import place_labels
from bench.figures.rows import Row, place, rows
from bench.ranking import memory_source, on_front

_LEAST_SPAN = 1.1
"""A scale spans at least this ratio, so that noise of a few per mille does not look like a difference."""


def draw_pareto(axes: Axes, board: Board) -> str:
    """Draw every row that reached the target by its costs, with intervals; return the text alternative.

    Across: charged time to target, or steps where the board's time does not rank. Up: peak memory. The staircase joins
    the rows marked ``pareto``: to its upper right lies what is beaten in both costs. With more than eight rows the
    names stand in a legend instead of at the points. A hollow marker: some replicates missed the target, so the cost is
    that of the others and the row cannot be on the front.
    """
    by, source = _plane(board, board.rows), memory_source(board.rows)
    column, found = _COLUMNS[by], rows(board)
    shown = [row for row in found if row.real(column) > 0 and row.facts.get("memory_source") == source]
    shown = [row for row in shown if row.real("memory_bytes") > 0]
    if not shown:
        return style.empty(axes, f"No row of {place(board)} has both a {by} to target and a memory reading.")
    across = (1.0, "") if by == "steps" else text.time_unit(row.real(column) for row in shown)
    up = text.byte_unit(row.real("memory_bytes") for row in shown)
    points = np.array([(row.real(column) / across[0], row.real("memory_bytes") / up[0]) for row in shown])
    xlabel = "steps to target" if by == "steps" else f"charged time to target ({across[1]})"
    style.frame(axes, xlabel=xlabel, ylabel=f"peak memory ({up[1]}, {style.drawn(source)})")
    columns, units = (column, "memory_bytes"), (across[0], up[0])
    _scale(axes, shown, points, columns, units)
    handles = [_point(axes, row, point, columns, units) for row, point in zip(shown, points, strict=True)]
    _staircase(axes, points[[bool(row.facts.get("pareto")) for row in shown]])
    if len(shown) > style.CROWD:
        style.legend(axes, handles, [style.drawn(row.name, 40) for row in shown])
    else:
        place_labels(axes, points, [style.drawn(row.name, 24) for row in shown])
    return _told(board, found, shown, by)


def _plane(board: Board, table: pd.DataFrame) -> Progress:
    """Return in which plane the rows marked ``pareto`` are the front, which the board does not tell."""
    whole = table["hits"].eq(table["replicates"]) & table["hits"].gt(0)
    comparable = whole & table["memory_source"].eq(memory_source(table) or "")
    for by in _FIRST_BY_STEPS if board.shared["by"] == "steps" else reversed(_FIRST_BY_STEPS):
        busy = by == "time" and (table["contended"].eq(other=True) & whole).any()
        cost = table[_COLUMNS[by]].where(comparable).to_numpy(float)
        same = on_front(cost, table["memory_bytes"].to_numpy(float)) == table["pareto"].to_numpy(bool)
        if same.all() and not busy:
            return by
    return "steps"


_FIRST_BY_STEPS: tuple[Progress, Progress] = ("steps", "time")
_COLUMNS = {"steps": "steps_to_target", "time": "time_to_target_s"}


def _scale(axes: Axes, shown: list[Row], points: Any, columns: tuple[str, str], units: tuple[float, float]) -> None:
    """Set scales that hold the points, and intervals that are not very wide; logarithmic beyond a factor of eight."""
    for number, name in enumerate("xy"):
        ends = [row.real(columns[number] + end) / units[number] for row in shown for end in ("_low", "_high")]
        low, high = points[:, number].min(), points[:, number].max()
        most = (high / low) ** 0.6
        within = [min(max(end, low / most), high * most) for end in ends if math.isfinite(end)]
        low, high = min([low, *within]), max([high, *within])
        widen = max(1.0, math.sqrt(_LEAST_SPAN / (high / low)))
        low, high = low / widen, high * widen
        if high / low > 8.0:
            margin = (high / low) ** 0.12
            low, high = low / margin, high * margin
            axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
            style.log_ticks(axes.xaxis if name == "x" else axes.yaxis, low, high)
        else:
            margin = 0.15 * (high - low)
            axes.set(**{f"{name}lim": (low - margin, high + margin)})
            style.plain_ticks(axes.xaxis if name == "x" else axes.yaxis)


def _point(axes: Axes, row: Row, point: Any, columns: tuple[str, str], units: tuple[float, float]) -> Artist:
    """Draw one row and its two intervals; an interval beyond the scale is cut off at the edge."""
    look = row.style
    for measure, unit, across in ((columns[0], units[0], True), (columns[1], units[1], False)):
        ends = [row.real(measure + end) / unit for end in ("_low", "_high")]
        if not any(map(math.isnan, ends)):
            same = [point[1]] * 2 if across else [point[0]] * 2
            axes.plot(*((ends, same) if across else (same, ends)), color=look.colour, linewidth=1.2, alpha=0.7)
    face = look.colour if row.real("hits") == row.real("replicates") else "none"
    (marker,) = axes.plot(
        *point, color=look.colour, linestyle="", marker=look.marker, markersize=7, markerfacecolor=face, zorder=3
    )
    return marker


def _staircase(axes: Axes, front: Any) -> None:
    if not len(front):
        return
    front = front[np.lexsort((front[:, 1], front[:, 0]))]
    right, height = axes.get_xlim()[1], axes.get_ylim()[1]
    corners = []
    for x, y in front:
        corners += [(x, height), (x, y)]
        height = y
    corners.append((right, height))
    axes.plot(*zip(*corners, strict=True), color=style.ink(axes), linewidth=1.0, alpha=0.6, zorder=1.5)


def _told(board: Board, found: list[Row], shown: list[Row], by: Progress) -> str:
    column, unit = _COLUMNS[by], "seconds" if by == "time" else "steps"
    parts = [f"{'Charged time' if by == 'time' else 'Steps'} to target against peak memory on {place(board)}."]
    for row in shown:
        cost = text.interval(*(row.real(column + end) for end in ("", "_low", "_high")))
        size, name = text.byte_unit([row.real("memory_bytes")])
        memory = text.interval(*(row.real("memory_bytes" + end) / size for end in ("", "_low", "_high")))
        some = "" if row.real("hits") == row.real("replicates") else f" (only {row.hits} reached it)"
        parts.append(f"{row.name}: {cost} {unit}{some}, {memory} {name}.")
    front = [row.name for row in shown if row.facts.get("pareto")]
    parts.append(f"On the front: {text.listed(front) or 'none'}.")
    missing = [row.name for row in found if row not in shown]
    return " ".join([*parts, f"Not shown, for want of a cost: {text.listed(missing)}."] if missing else parts)
