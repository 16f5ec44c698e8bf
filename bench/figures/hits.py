"""How the share of replicates that have reached the target grows with steps or charged time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bench.board import Board
from bench.errors import BadValue
from bench.figures import style, text
from bench.figures.curves import Progress
from bench.figures.rows import Row, label, place, repetitions, replicates, rows, target_of
from bench.survival import kaplan_meier

_COLUMNS = {"steps": ("steps_to_target", "bound_steps"), "time": ("time_to_target_s", "bound_time_s")}


def draw_hits(axes: Axes, board: Board, trials: pd.DataFrame, by: Progress = "steps") -> str:
    """Draw the Kaplan-Meier estimate of the share that has reached the target, one line a row; return the alternative.

    A miss is censored at the end of its budget (a small bar on the line), also where it diverged or was cut off before:
    it might have reached the target later, and not earlier. Bands are Greenwood's pointwise intervals at the board's
    confidence; with more than eight rows they are left out.

    Args:
        axes: where to draw.
        board: one board.
        trials: the stored table that the board was made from.
        by: ``steps``, or ``time`` for charged seconds.
    """
    if by not in _COLUMNS:
        raise BadValue(f"by must be one of {', '.join(_COLUMNS)}, not {by!r}")
    if not np.isfinite(target_of(board)):
        return style.empty(axes, f"{place(board)} has no target, so nothing can reach it.")
    times = [(row, *_times(replicates(board, row, trials), by)) for row in rows(board)]
    times = [(row, time, hit) for row, time, hit in times if len(time)]
    if not times:
        return style.empty(axes, f"No replicates are recorded for {place(board)}.")
    longest = max(time.max() for _, time, _ in times)
    scale, unit = (1.0, "") if by == "steps" else text.time_unit([longest])
    confidence = float(board.shared.get("confidence") or 0.95)
    parts = [_draw(axes, each, longest, scale, confidence, band=len(times) <= style.CROWD) for each in times]
    xlabel = "step" if by == "steps" else f"charged time ({unit})"
    style.frame(axes, xlabel=xlabel, ylabel="reached the target")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlim(0, 1.02 * longest / scale or 1.0)
    style.legend(axes, parts, [label(board, row) for row, _, _ in times])
    return _told(board, times, by)


def _times(found: pd.DataFrame, by: Progress) -> tuple[Any, Any]:
    """Return when each replicate reached the target or was censored, and which of the two; without those unknown."""
    reached, bound = _COLUMNS[by]
    time = found[reached].where(found["hit"], found[bound])
    found = found.assign(time=time)[np.isfinite(time)].sort_values(["time", "trial_id"])
    return found["time"].to_numpy(float), found["hit"].to_numpy(bool)


def _draw(
    axes: Axes, series: tuple[Row, Any, Any], longest: float, scale: float, confidence: float, *, band: bool
) -> Artist:
    row, time, hit = series
    estimate = kaplan_meier(time, hit, confidence)
    x, reached, low, high = (estimate[column].to_numpy(float) for column in ("time", *_REACHED))
    last = longest if reached[-1] == 1.0 else time.max()  # what is reached stays so; what is not, nobody knows
    x = np.concatenate([[0.0], x, [last]]) / scale
    shares = [np.concatenate([[0.0], each, each[-1:]]) for each in (reached, low, high)]
    look = row.style
    (line,) = axes.plot(x, shares[0], color=look.colour, linestyle=look.line, drawstyle="steps-post", linewidth=1.6)
    if band:
        axes.fill_between(x, shares[1], shares[2], step="post", color=look.colour, alpha=0.13, linewidth=0)
    censored = time[~hit] / scale
    places = np.searchsorted(x, censored, side="right") - 1
    axes.plot(
        censored, shares[0][places], color=look.colour, linestyle="", marker="|", markersize=8, markeredgewidth=1.4
    )
    return line


_REACHED = ("reached", "reached_low", "reached_high")


def _told(board: Board, times: list[tuple[Row, Any, Any]], by: Progress) -> str:
    against, unit = ("steps", "steps") if by == "steps" else ("charged time", "seconds")
    target = f"the target, {style.plain(board.shared['metric'])} {text.number(target_of(board), 4)}"
    parts = [f"Share of replicates on {place(board)} that have reached {target}, against {against}."]
    for row, time, hit in times:
        told = f"{row.name}{row.biased}: {hit.sum()} of {repetitions(board, len(hit))} reached it"
        if hit.any():
            first, last = text.number(time[hit].min()), text.number(time[hit].max())
            told += f", the first after {first}, the last after {last} {unit}"
        if not hit.all():
            told += f", {(~hit).sum()} did not within {text.number(time[~hit].max())} {unit}"
        parts.append(told + ".")
    return " ".join(parts)
