"""Estimates with their intervals, one below the other: what ratios and scores are drawn as."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from bench.figures.style import SMALL, Style, drawn, ink

_NAME_LENGTH = 26


@dataclass(frozen=True)
class Estimate:
    """One line of the plot; ``told`` stands below the name, ``solid`` fills the marker.

    ``band`` is drawn lightly behind the line, from its first to its second number.
    """

    name: str
    told: str
    style: Style
    value: float
    low: float = math.nan
    high: float = math.nan
    solid: bool = True
    band: tuple[float, float] = (math.nan, math.nan)


def draw_forest(axes: Axes, estimates: Sequence[Estimate], limits: tuple[float, float]) -> None:
    """Draw ``estimates`` from the top down; what lies beyond ``limits`` ends in an arrow at the edge."""
    for height, each in enumerate(estimates):
        if not any(map(math.isnan, each.band)):
            axes.fill_betweenx([height - 0.38, height + 0.38], *each.band, color=ink(axes), alpha=0.09, linewidth=0)
        _draw(axes, each, height, limits)
    axes.set_xlim(*limits)
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    labels = [f"{drawn(each.name, _NAME_LENGTH)}\n{drawn(each.told)}" for each in estimates]
    axes.set_yticks(range(len(estimates)), labels, fontsize=SMALL, multialignment="right")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _draw(axes: Axes, each: Estimate, height: int, limits: tuple[float, float]) -> None:
    colour = each.style.colour
    if not (math.isnan(each.low) or math.isnan(each.high)):
        ends = [min(max(end, limits[0]), limits[1]) for end in (each.low, each.high)]
        axes.plot(ends, [height, height], color=colour, linewidth=1.8, solid_capstyle="butt")
        for end, inside, arrow in ((each.low, limits[0] <= each.low, "<"), (each.high, each.high <= limits[1], ">")):
            place = min(max(end, limits[0]), limits[1])
            axes.plot([place], [height], color=colour, marker="|" if inside else arrow, markersize=7, clip_on=False)
    if not math.isnan(each.value):
        face = colour if each.solid else "none"
        look = each.style.marker
        axes.plot([each.value], [height], color=colour, marker=look, markersize=7, markerfacecolor=face, zorder=3)
