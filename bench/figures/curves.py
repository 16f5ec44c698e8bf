"""Quality against steps or charged time: the median over the replicates of each row, and the band of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.board import Board
from bench.errors import BadValue
from bench.figures import style, text
from bench.figures.rows import Row, label, place, repetitions, replicates, rows, target_of

Reals = npt.NDArray[np.float64]
Progress = Literal["steps", "time"]
COLUMNS = {"steps": "step", "time": "time_s"}
_POINTS = 200


@dataclass(frozen=True)
class _Bundle:
    """The curves of one row: each replicate's ``(x, quality)``, and their summary on a common grid of x."""

    row: Row
    lines: list[tuple[Reals, Reals]]
    grid: Reals
    middle: Reals
    low: Reals
    high: Reals


def draw_curves(axes: Axes, board: Board, trials: pd.DataFrame, curves: pd.DataFrame, x: Progress = "steps") -> str:
    """Draw quality against ``x`` for every row of ``board`` into ``axes``; return the text alternative.

    The line is the median over replicates and the band goes from the lowest to the highest, as far as all of them ran;
    where some ran longer, each goes on as a thin line. An evaluation that is not a number counts as the worst possible,
    and so does a replicate that diverged, to the end. With more than eight rows the bands are left out. The scale
    leaves out the first fifth of the run, and whatever is worse than where the runs began, so that the neighbourhood of
    the target can be seen.

    Args:
        axes: where to draw.
        board: one board.
        trials: the stored table that the board was made from.
        curves: the stored table of evaluations.
        x: ``steps``, or ``time`` for charged seconds.
    """
    if x not in COLUMNS:
        raise BadValue(f"x must be one of {', '.join(COLUMNS)}, not {x!r}")
    worst = -np.inf if board.shared.get("metric_direction") == "max" else np.inf
    bundles = [_bundle(row, replicates(board, row, trials), curves, x, worst) for row in rows(board)]
    bundles = [bundle for bundle in bundles if bundle.lines]
    if not bundles:
        return style.empty(axes, f"No curves are recorded for {place(board)}.")
    scale, unit = (1.0, "") if x == "steps" else text.time_unit(max(line[0]) for b in bundles for line in b.lines)
    handles = [
        _draw(axes, bundle, scale, crowd=len(bundles) > style.CROWD, number=n) for n, bundle in enumerate(bundles)
    ]
    xlabel = "step" if x == "steps" else f"charged time ({unit})"
    style.frame(axes, xlabel=xlabel, ylabel=style.drawn(f"validation {board.shared['metric']}"))
    _limit(axes, bundles, target_of(board), scale, worst)
    _target(axes, board)
    labels = [label(board, bundle.row) for bundle in bundles]
    style.legend(axes, handles, labels)
    return _told(board, bundles, x)


def board_figure(board: Board, trials: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Return the curves of one board as a figure of its own, with a title; see :func:`draw_curves`."""
    figure, axes = style.new_figure(legend=(len(board.rows) + 1) // 2, width_inch=6.4)
    draw_curves(axes, board, trials, curves)
    shared = board.shared
    title = f"{place(board)}, {shared['data_source']} data, {shared['device_class']}"
    axes.set_title(style.drawn(title, 80), fontsize=style.NORMAL)
    return figure


def _bundle(row: Row, ours: pd.DataFrame, curves: pd.DataFrame, x: Progress, worst: float) -> _Bundle:
    found = curves[curves["trial_id"].isin(ours["trial_id"])].dropna(subset=[COLUMNS[x]])
    found = found.sort_values(["trial_id", "step", "time_s", "quality"]).drop_duplicates(["trial_id", "step"])
    end, diverged = found[COLUMNS[x]].max(), set(ours["trial_id"][ours["outcome"] == "diverged"])
    lines = []
    for name, one in found.groupby("trial_id", sort=True):
        progress, quality = one[COLUMNS[x]].to_numpy(float), one["quality"].fillna(worst).to_numpy(float)
        if name in diverged and progress[-1] < end:
            progress, quality = np.append(progress, end), np.append(quality, worst)
        lines.append((progress, quality))
    grid = _grid([line[0] for line in lines], x)
    if not len(grid):
        return _Bundle(row, lines, grid, grid, grid, grid)
    values = np.stack([_at(grid, *line, worst) for line in lines])
    finite = np.where(np.isfinite(values), values, np.nan)
    some = np.isfinite(values).any(axis=0)
    low, high = np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    low[some], high[some] = np.nanmin(finite[:, some], axis=0), np.nanmax(finite[:, some], axis=0)
    return _Bundle(row, lines, grid, _median(values), low, high)


def _median(values: Reals) -> Reals:
    """Return the median over the first axis; NaN where it is not finite, since that cannot be drawn."""
    ordered = np.sort(values, axis=0)
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    finite = np.isfinite(lower) & np.isfinite(upper)
    middle = np.full(values.shape[1], np.nan)
    middle[finite] = (lower[finite] + upper[finite]) / 2
    return middle


def _grid(progress: list[Reals], x: Progress) -> Reals:
    """Return the x at which a median can be taken: from the last start to the first end of the replicates."""
    if not progress:
        return np.empty(0)
    low, high = max(line[0] for line in progress), min(line[-1] for line in progress)
    every = np.unique(np.concatenate(progress))
    within = every[(every >= low) & (every <= high)]
    # Replicates are evaluated at the same steps, and never at the same seconds.
    return within if x == "steps" or len(within) <= _POINTS else np.linspace(low, high, _POINTS)


def _at(grid: Reals, x: Reals, quality: Reals, worst: float) -> Reals:
    """Return a replicate's quality on ``grid``, between its evaluations along a straight line."""
    finite = np.isfinite(quality)
    if not finite.any():
        return np.full(len(grid), worst)
    found: Reals = np.interp(grid, x[finite], quality[finite])
    next_evaluation = np.minimum(np.searchsorted(x, grid), len(x) - 1)
    found[~finite[next_evaluation]] = worst
    return found


def _draw(axes: Axes, bundle: _Bundle, scale: float, *, crowd: bool, number: int) -> Artist:
    look = bundle.row.style
    (line,) = axes.plot(
        bundle.grid / scale,
        bundle.middle,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markersize=4,
        markevery=(0.08 + 0.013 * (number % style.CROWD), 0.19) if np.isfinite(bundle.middle).any() else None,
        linewidth=1.6,
    )
    if not crowd:
        axes.fill_between(bundle.grid / scale, bundle.low, bundle.high, color=look.colour, alpha=0.18, linewidth=0)
    for x, quality in bundle.lines:
        later = x >= bundle.grid[-1] if len(bundle.grid) else x >= x[0]
        if later.sum() > 1:
            shown = np.where(np.isfinite(quality), quality, np.nan)
            axes.plot(x[later] / scale, shown[later], color=look.colour, linestyle=look.line, linewidth=0.6)
    return line


def _limit(axes: Axes, bundles: list[_Bundle], target: float, scale: float, worst: float) -> None:
    """Set the scales; see :func:`draw_curves` for what they leave out."""
    end = max(line[0][-1] for bundle in bundles for line in bundle.lines)
    first = [line[1][0] for bundle in bundles for line in bundle.lines]
    shown = [line[1][line[0] >= end / 5] for bundle in bundles for line in bundle.lines]
    values = np.concatenate([*shown, [target]])
    values = values[np.isfinite(values)]
    first = [value for value in first if np.isfinite(value)]
    if first:
        values = np.minimum(values, max(first)) if worst > 0 else np.maximum(values, min(first))
    if len(values):
        margin = 0.05 * (values.max() - values.min()) or 0.05 * abs(values.max()) or 1.0
        axes.set_ylim(values.min() - margin, values.max() + margin)
    axes.set_xlim(0, 1.02 * end / scale or 1.0)


def _target(axes: Axes, board: Board) -> None:
    target = target_of(board)
    if not np.isfinite(target):
        return
    axes.axhline(target, color=style.ink(axes), linewidth=0.9, dashes=(6, 3), zorder=1.5)
    axes.annotate(
        f"target {text.number(target, 4)}",
        (0.01, target),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="left",
        va="bottom",
        fontsize=style.SMALL,
    )


def _told(board: Board, bundles: list[_Bundle], x: Progress) -> str:
    against, target = "steps" if x == "steps" else "charged time", target_of(board)
    goal = f"the target is {text.number(target, 4)}" if np.isfinite(target) else "no target is set"
    parts = [f"Validation {style.plain(board.shared['metric'])} against {against} on {place(board)}; {goal}."]
    ends = [f"{each.row.name}{each.row.biased}: {_reached(board, each.row, x)}; {_end(each)}." for each in bundles]
    return " ".join(parts + ends)


def _reached(board: Board, row: Row, x: Progress) -> str:
    count = row.real("replicates")
    if not np.isfinite(target_of(board)):
        return repetitions(board, count)
    told = f"{row.real('hits'):.0f} of {repetitions(board, count)} reached the target"
    column, unit = ("steps_to_target", "steps") if x == "steps" else ("time_to_target_s", "seconds")
    values: Any = [row.real(column + end) for end in ("", "_low", "_high")]
    return told if np.isnan(values[0]) else f"{told}, after {text.interval(*values)} {unit}"


def _end(bundle: _Bundle) -> str:
    """Return the qualities at which the replicates of a row ended."""
    last = [line[1][-1] for line in bundle.lines]
    finite = sorted(value for value in last if np.isfinite(value))
    lost = len(last) - len(finite)
    diverged = f", {lost} ended without a number" if lost else ""
    if not finite:
        return "none ended with a number"
    if len(finite) == 1:
        return f"ended at {text.number(finite[0], 4)}{diverged}"
    middle, low, high = (text.number(float(value), 4) for value in (np.median(finite), finite[0], finite[-1]))
    return f"ended at {middle} in the median, from {low} to {high}{diverged}"
