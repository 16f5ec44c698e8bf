"""How an algorithm's tuning trials depend on one hyperparameter."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.figures import style, text

HIT, MISS = style.style(0), style.style(1)
_PANEL, _GAP = 0.3, 0.1
"""Shares of the axes' height that the misses take, where there are hits too, and that lies between."""


@dataclass(frozen=True)
class _Points:
    """Trials as points: ``x`` is the hyperparameter's value or, where it is a choice, the number of its choice."""

    x: Any
    hits: Any
    steps: Any
    quality: Any
    choices: list[str] | None


def draw_sensitivity(axes: Axes, trials: pd.DataFrame, hyperparameter: str) -> str:
    """Draw steps to target against one hyperparameter, for the tuning trials of one algorithm; return the alternative.

    Each trial is a point; where values repeat over studies, a line joins the medians. Trials that missed the target
    have no steps: their best quality is drawn in a panel of its own above. Other hyperparameters vary from point to
    point too, so a point is not the effect of this one alone. Values that span more than a decade are on a log axis;
    values that are not numbers are set side by side.

    Args:
        axes: where to draw.
        trials: rows of the stored table, all of one algorithm on one board; only phase ``tune`` is drawn.
        hyperparameter: a key of the column ``hyperparameters``.
    """
    tuned = trials[trials["phase"] == "tune"].sort_values("trial_id")
    values = [json.loads(each or "{}").get(hyperparameter, _ABSENT) for each in tuned["hyperparameters"].fillna("")]
    present = np.array([value is not _ABSENT for value in values], dtype=bool)
    points = _points(tuned[present], [value for value in values if value is not _ABSENT])
    name = style.plain(hyperparameter)
    if points is None:
        return style.empty(axes, f"No tuning trial has the hyperparameter {name} and a result.")
    metric = style.plain(tuned["metric"].dropna().iloc[0]) if tuned["metric"].notna().any() else "quality"
    hit, missed = points.hits, ~points.hits & np.isfinite(points.quality)
    style.frame(
        axes, xlabel=style.drawn(name, 40), ylabel="steps to target" if hit.any() else f"best {style.drawn(metric)}"
    )
    if hit.any():
        _draw(axes, points.x[hit], points.steps[hit], HIT)
        if missed.any():
            panel = _panel(axes, metric)
            _draw(panel, points.x[missed], points.quality[missed], MISS, hollow=True)
            _scale(panel, points, labelled=False)
    elif missed.any():
        _draw(axes, points.x[missed], points.quality[missed], MISS, hollow=True)
    _scale(axes, points, labelled=True)
    return _told(points, name, metric)


_ABSENT = object()


def _points(tuned: pd.DataFrame, values: list[Any]) -> _Points | None:
    """Return the trials as points, those without any result left out."""
    steps = (
        tuned["steps_to_target_interpolated"].astype(float).fillna(tuned["steps_to_target"].astype(float)).to_numpy()
    )
    quality = tuned["best_quality"].astype(float).to_numpy()
    hits = (tuned["outcome"] == "reached").to_numpy() & np.isfinite(steps)
    x, choices = _numbered(values)
    known = (hits | np.isfinite(quality)) & np.isfinite(x)
    if not known.any():
        return None
    return _Points(x=x[known], hits=hits[known], steps=steps[known], quality=quality[known], choices=choices)


def _numbered(values: list[Any]) -> tuple[Any, list[str] | None]:
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return np.array(values, dtype=float), None
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    choices = sorted(set(texts))
    return np.array([choices.index(each) for each in texts], dtype=float), choices


def _panel(axes: Axes, metric: str) -> Axes:
    """Return a panel for the misses in the upper part of ``axes``, whose own scale keeps to the part below."""
    low, high = axes.get_ylim()
    share = 1.0 - _PANEL - _GAP
    ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axes.set_yticks(ticks)
    axes.set_ylim(low, low + (high - low) / share)
    axes.spines["left"].set_bounds(low, high)
    axes.set_ylabel(axes.get_ylabel(), loc="bottom")
    panel = axes.inset_axes((0.0, 1.0 - _PANEL, 1.0, _PANEL))
    style.frame(panel, xlabel="", ylabel=f"best {style.drawn(metric, 14)}\nof misses", grid="y")
    panel.yaxis.set_major_locator(MaxNLocator(3))
    panel.margins(y=0.2)
    panel.tick_params(axis="x", bottom=False)
    panel.patch.set_visible(False)
    panel.spines["bottom"].set_visible(False)
    return panel


def _draw(axes: Axes, x: Any, y: Any, look: style.Style, *, hollow: bool = False) -> None:
    distinct, counts = np.unique(x, return_counts=True)
    if len(distinct) > 1 and counts.max() > 1:
        axes.plot(
            distinct, [np.median(y[x == value]) for value in distinct], color=look.colour, linewidth=0.9, alpha=0.7
        )
    face = "none" if hollow else look.colour
    axes.plot(x, y, color=look.colour, linestyle="", marker=look.marker, markersize=5.5, markerfacecolor=face)


def _scale(axes: Axes, points: _Points, *, labelled: bool) -> None:
    low, high = float(points.x.min()), float(points.x.max())
    if points.choices is not None:
        axes.set_xlim(-0.5, len(points.choices) - 0.5)
        axes.set_xticks(range(len(points.choices)), [style.drawn(each, 16) for each in points.choices])
    elif low > 0 and high > 10 * low:
        margin = (high / low) ** 0.05
        axes.set_xscale("log")
        axes.set_xlim(low / margin, high * margin)
        style.log_ticks(axes.xaxis, low / margin, high * margin)
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_xlim(low - margin, high + margin)
        style.plain_ticks(axes.xaxis)
    if not labelled:
        axes.tick_params(axis="x", labelbottom=False)


def _told(points: _Points, name: str, metric: str) -> str:
    hit = points.hits
    where = f"{len(hit)} tuning trials against {name}"
    if points.choices is None:
        where += f" from {points.x.min():.3g} to {points.x.max():.3g}"
    else:
        where += f", one of {text.listed([style.plain(each) for each in points.choices])}"
    parts = [f"{where}: {hit.sum()} reached the target, {(~hit).sum()} did not."]
    if hit.any():
        best = int(np.argmin(np.where(hit, points.steps, math.inf)))
        parts.append(f"Fewest steps to target: {text.number(points.steps[best])}, at {name} {_value(points, best)}.")
        parts.append(f"Most: {text.number(points.steps[hit].max())}.")
    missed = ~hit & np.isfinite(points.quality)
    if missed.any():
        low, high = points.quality[missed].min(), points.quality[missed].max()
        parts.append(f"Best {metric} of the misses: from {text.number(low)} to {text.number(high)}.")
    return " ".join(parts)


def _value(points: _Points, index: int) -> str:
    return f"{points.x[index]:.3g}" if points.choices is None else style.plain(points.choices[int(points.x[index])])
