"""Performance profiles over workloads, and the scores made of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bench.figures import style, text
from bench.figures.forest import Estimate, draw_forest
from bench.profiles import performance_profile, profile_score, ratios_to_best

if TYPE_CHECKING:
    from bench.standings import Standings


def draw_profile(axes: Axes, costs: pd.DataFrame, limit: float = 4.0) -> str:
    """Draw Dolan and More's performance profile of each algorithm; return the text alternative.

    A line shows on which share of the workloads an algorithm's cost is at most tau times the best cost, for tau from 1
    to ``limit``; the legend gives the area below it, as a share of the largest possible (the profile score).

    Args:
        axes: where to draw.
        costs: one row an algorithm, one column a workload; infinite where the target was missed, which is also
            what a missing cost counts as.
        limit: where the axis ends, above 1.
    """
    if costs.empty:
        return style.empty(axes, "There are no costs to compare.")
    costs = costs.fillna(math.inf).sort_index(axis=0).sort_index(axis=1)
    scores = profile_score(costs, limit)
    ratios = ratios_to_best(costs).to_numpy(float)
    taus = np.unique(np.concatenate([[1.0, limit], ratios[np.isfinite(ratios) & (ratios < limit)]]))
    profile = performance_profile(costs, taus)
    order = sorted(costs.index, key=lambda name: (-scores[name], str(name)))
    styles = {name: style.style(number) for number, name in enumerate(costs.index)}
    handles = [_draw(axes, taus, profile[name].to_numpy(float), styles[name]) for name in order]
    style.frame(axes, xlabel="cost as a multiple of the best, tau", ylabel="workloads")
    axes.set_xlim(1.0 - 0.01 * (limit - 1.0), limit)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    style.legend(axes, handles, [f"{style.drawn(name, 32)} ({scores[name]:.3f})" for name in order])
    told = [f"Share of {costs.shape[1]} workloads on which the cost is within a multiple of the best."]
    for name in order:
        best, within = profile[name].iloc[0], profile[name].iloc[-1]
        reach = f"within {text.number(limit)} times the best on {within:.0%}"
        told.append(f"{style.plain(name)}: best on {best:.0%}, {reach}, score {scores[name]:.4f}.")
    return " ".join(told)


def _draw(axes: Axes, taus: Any, shares: Any, look: style.Style) -> Artist:
    (line,) = axes.plot(
        taus,
        shares,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markersize=4,
        markevery=np.flatnonzero(np.diff(shares, prepend=-1.0)).tolist(),
        drawstyle="steps-post",
        linewidth=1.6,
    )
    return line


def draw_scores(axes: Axes, standings: Standings) -> str:
    """Draw profile scores with their bootstrap intervals, the best at the top; return the text alternative.

    Neighbours that the bootstrap cannot tell apart share a group; every second group has a light background. A hollow
    marker: not ranked.
    """
    table = standings.rows.sort_values(["order", "algorithm"])
    table = table[np.isfinite(table["score"].astype(float))]
    if table.empty:
        return style.empty(axes, "No algorithm has a profile score.")
    styles = {name: style.style(number) for number, name in enumerate(sorted(standings.rows["algorithm"]))}
    estimates = [_estimate(row, styles[row["algorithm"]]) for row in table.to_dict("records")]
    for height, group in enumerate(table["group"]):
        if group % 2:
            axes.axhspan(height - 0.5, height + 0.5, color=style.ink(axes), alpha=0.06, linewidth=0)
    style.frame(axes, xlabel="profile score", ylabel="", grid="x")
    draw_forest(axes, estimates, (-0.02, 1.02))
    told = [
        f"{style.plain(each.name)} {each.told}, {f'group {group:.0f}' if group else 'not ranked'}"
        for each, group in zip(estimates, table["group"], strict=True)
    ]
    head = "Profile scores with intervals, best first; those of one group cannot be told apart."
    return f"{head} {'; '.join(told)}."


def _estimate(row: Mapping[Hashable, Any], look: style.Style) -> Estimate:
    score, low, high = (text.real(row[column]) for column in ("score", "score_low", "score_high"))
    known = not (math.isnan(low) or math.isnan(high))
    told = f"{score:.3f} ({low:.3f} to {high:.3f})" if known else f"{score:.3f}"
    name, ranked = str(row["algorithm"]), bool(row["group"])
    return Estimate(name=name, told=told, style=look, value=score, low=low, high=high, solid=ranked)
