"""Figures from the stored tables, as matplotlib figures; nothing is measured or estimated here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.board import BOARD, ROW, Board, with_board_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's palette, which people with colour blindness can tell apart; line styles repeat the distinction."""

STYLES = ("-", "--", "-.", ":")


def board_figure(board: Board, trials: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Return the curves of one board, quality against steps: median over seeds, and the band from lowest to highest.

    ``trials`` and ``curves`` are the stored tables; a line is one row of the board, in the board's order.
    """
    trials = with_board_columns(trials)
    here = trials[(trials[BOARD].astype(str) == pd.Series({key: str(board.shared[key]) for key in BOARD})).all(axis=1)]
    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for number, row in enumerate(board.records()):
            same = here[(here[ROW] == pd.Series({key: row[key] for key in ROW})).all(axis=1)]
            ours = curves[curves["trial_id"].isin(same["trial_id"])]
            _draw(axes, ours, row, COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)])
        _finish(axes, board)
    return figure


def _draw(axes: Axes, curves: pd.DataFrame, row: dict[str, Any], colour: str, style: str) -> None:
    grouped = curves.groupby("step")["quality"]
    middle, low, high = grouped.median(), grouped.min(), grouped.max()
    steps = np.asarray(middle.index, dtype=float)
    label = f"{row['algorithm']} {row['setting']}".rstrip() + f" ({row['hits']}/{row['seeds']} reached)"
    axes.plot(steps, middle, color=colour, linestyle=style, linewidth=1.5, label=label)
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)


def _finish(axes: Axes, board: Board) -> None:
    shared = board.shared
    if shared["target"] is not None:
        axes.axhline(shared["target"], color="#555555", linewidth=0.8)
        axes.annotate("target", (0.01, shared["target"]), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set_xlabel("step")
    axes.set_ylabel(f"validation {shared['metric']}")
    axes.set_title(
        f"{shared['workload']} {shared['tier']}, {shared['data_source']} data, {shared['device_class']}", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
