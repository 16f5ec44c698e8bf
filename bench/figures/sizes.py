"""Quality against size: of a compressed model, of what fine-tuning stores, or against the number of merged models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from bench.board import Board
from bench.figures import style, text
from bench.figures.labels import place_labels
from bench.figures.rows import Row, label, place, replicates, rows

Reals = npt.NDArray[np.float64]

ACROSS = ("stored_bytes", "models")
"""What the points of a tier after training lie along, where their metrics have it; the first one that all have."""

UP = ("perplexity", "normalised_accuracy")
"""What is drawn of the points, where they have it; else the board's metric."""

_WORDS = {
    "perplexity": "perplexity",
    "models": "merged models",
}


def plane(curves: pd.DataFrame, metric: str) -> tuple[str, str] | None:
    """Return the names of the two metrics that the points of ``curves`` are drawn by; ``None`` if there are none."""
    names = [{name for name, _ in pairs} for pairs in curves["metrics"]]
    common = set.intersection(*names) if names else set()
    across = next((name for name in ACROSS if name in common), None)
    up = next((name for name in UP if name in common), metric)
    return None if across is None or up not in common else (across, up)


def draw_sizes(axes: Axes, board: Board, trials: pd.DataFrame, curves: pd.DataFrame) -> str:
    """Draw what is left at every point of a tier after training; return the text alternative.

    A line joins the medians over the replicates of a row, a marker is a point, the band goes from the lowest to the
    highest. Across is the size that was stored (not the one that was asked for), or the number of models.

    Args:
        axes: where to draw.
        board: one board of a compression or merging workload.
        trials: the stored table that the board was made from.
        curves: the stored table of evaluations.
    """
    found = plane(curves, str(board.shared["metric"]))
    if found is None:
        return style.empty(axes, f"The evaluations of {place(board)} do not say how large anything is.")
    across, up = found
    series = [(row, _points(replicates(board, row, trials)["trial_id"], curves, across, up)) for row in rows(board)]
    series = [(row, points) for row, points in series if len(points)]
    if not series:
        return style.empty(axes, f"No points are recorded for {place(board)}.")
    scale, unit = _scale(across, [points["x"].max() for _, points in series])
    handles = [_draw(axes, row, points, scale, crowd=len(series) > style.CROWD) for row, points in series]
    xlabel = f"stored bytes ({unit})" if across == "stored_bytes" else _words(across)
    style.frame(axes, xlabel=xlabel, ylabel=style.drawn(_words(up)))
    middles = np.concatenate([points["middle"].to_numpy(float) for _, points in series])
    if middles.min() > 0 and middles.max() / middles.min() > _FAR:
        axes.set_yscale("log")
        style.log_ticks(axes.yaxis, *axes.get_ylim())
    style.legend(axes, handles, [label(board, row) for row, _ in series])
    return _told(board, series, across, up)


def draw_adapters(axes: Axes, board: Board) -> str:
    """Draw the quality of each row against the bytes that its adapter stores; return the text alternative.

    The bar is the interval of the quality. The scale across is logarithmic: adapters differ by orders of magnitude.
    """
    shown = [row for row in rows(board) if row.real("adapter_bytes") > 0 and np.isfinite(row.real("quality"))]
    if not shown:
        return style.empty(axes, f"No row of {place(board)} says how large its adapter is.")
    scale, unit = text.byte_unit(row.real("adapter_bytes") for row in shown)
    points = np.array([(row.real("adapter_bytes") / scale, row.real("quality")) for row in shown])
    metric = style.drawn(f"validation {board.shared['metric']}")
    style.frame(axes, xlabel=f"adapter ({unit})", ylabel=metric)
    low, high = points[:, 0].min(), points[:, 0].max()
    margin = max((high / low) ** 0.12, 1.1)
    axes.set(xscale="log", xlim=(low / margin, high * margin))
    style.log_ticks(axes.xaxis, low / margin, high * margin)
    handles = [_adapter(axes, row, point) for row, point in zip(shown, points, strict=True)]
    if len(shown) > style.CROWD:
        style.legend(axes, handles, [style.drawn(row.name, 40) for row in shown])
    else:
        place_labels(axes, points, [style.drawn(row.name, 24) for row in shown])
    told = [f"{style.plain(board.shared['metric'])} against the bytes of the adapter on {place(board)}."]
    for row in shown:
        size, name = text.byte_unit([row.real("adapter_bytes")])
        quality = text.interval(*(row.real("quality" + end) for end in ("", "_low", "_high")))
        told.append(f"{row.name}: {quality} with {text.number(row.real('adapter_bytes') / size)} {name}.")
    return " ".join(told)


_FAR = 4.0
"""A ratio of the largest to the smallest median beyond which the scale is logarithmic."""


def _points(ids: Sequence[str] | pd.Series[str], curves: pd.DataFrame, across: str, up: str) -> pd.DataFrame:
    """Return for each point of the tier the medians over replicates, and the lowest and highest."""
    ours = curves[curves["trial_id"].isin(list(ids))]
    values = [dict(pairs) for pairs in ours["metrics"]]
    found = pd.DataFrame(
        {
            "step": ours["step"].to_numpy(),
            "x": [text.real(each.get(across)) for each in values],
            "y": [text.real(each.get(up)) for each in values],
        }
    )
    found = found[np.isfinite(found["x"]) & np.isfinite(found["y"])]
    grouped = found.groupby("step", sort=True)
    points = (
        grouped["y"].agg(["median", "min", "max"]).rename(columns={"median": "middle", "min": "low", "max": "high"})
    )
    ordered: pd.DataFrame = points.assign(x=grouped["x"].median()).sort_values("x")
    return ordered


def _scale(across: str, largest: Sequence[float]) -> tuple[float, str]:
    return text.byte_unit(largest) if across == "stored_bytes" else (1.0, "")


def _words(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def _draw(axes: Axes, row: Row, points: pd.DataFrame, scale: float, *, crowd: bool) -> Artist:
    look = row.style
    x, middle = points["x"].to_numpy(float) / scale, points["middle"].to_numpy(float)
    (line,) = axes.plot(
        x, middle, color=look.colour, linestyle=look.line, marker=look.marker, markersize=5, linewidth=1.6
    )
    if not crowd and len(x) > 1:
        low, high = points["low"].to_numpy(float), points["high"].to_numpy(float)
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    return line


def _adapter(axes: Axes, row: Row, point: Any) -> Artist:
    look = row.style
    ends = [row.real("quality" + end) for end in ("_low", "_high")]
    if np.isfinite(ends).all():
        axes.plot([point[0]] * 2, ends, color=look.colour, linewidth=1.2, alpha=0.7)
    (marker,) = axes.plot(*point, color=look.colour, linestyle="", marker=look.marker, markersize=7, zorder=3)
    return marker


def _told(board: Board, series: Sequence[tuple[Row, pd.DataFrame]], across: str, up: str) -> str:
    against = "stored bytes" if across == "stored_bytes" else "the number of merged models"
    parts = [f"{_words(up).capitalize()} against {against} on {place(board)}."]
    for row, points in series:
        told = []
        for x, middle in zip(points["x"], points["middle"], strict=True):
            size, unit = _scale(across, [x])
            told.append(f"{text.number(middle)} at {text.number(x / size)}{f' {unit}' if unit else ''}")
        parts.append(f"{row.name}: {text.listed(told)}.")
    return " ".join(parts)
