"""The figures of the page, drawn where there is something to draw, and written as files where that is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench import figures
from bench.board import Board
from bench.figures.sizes import plane
from bench.figures.style import CROWD
from bench.report.document import Block, Gallery, Picture
from bench.report.evidence import Evidence, View
from bench.standings import Standings

if TYPE_CHECKING:
    from bench.figures.curves import Progress

MOST_SENSITIVITIES = 8
"""How many figures of hyperparameters an algorithm gets at most; those of the boards with most trials come first."""

WIDTH_INCH = 4.2
"""Narrow, so that the text is large enough where a phone shows the figure 330 pixels wide."""

FEWEST_POINTS = 3
"""A hyperparameter is drawn where tuning tried at least this many values of it."""


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Draws figures; ``folder`` is where each is written too, as SVG and PNG."""

    evidence: Evidence
    folder: Path | None = None

    def board(self, view: View) -> list[Block]:
        """Return the figures of a board: those for which it has what they show."""
        by = _progress(view.board)
        if view.board.rows["information"].notna().any():
            pictures = [*self._sizes(view)]
        else:
            pictures = [
                *self._curves(view, by),
                *self._hits(view, by),
                *self._adapters(view),
                *self._ratios(view, by),
                *self._pareto(view, by),
            ]
        return [Gallery(pictures=pictures)] if pictures else []

    def _curves(self, view: View, by: Progress) -> Iterator[Picture]:
        curves = self.evidence.curves_of(view.trials)
        if len(curves):
            yield self._picture(
                f"{view.anchor}-curves",
                f"Quality against {by}",
                "A line is the median over repetitions; the band goes from the lowest to the highest.",
                lambda axes: figures.draw_curves(axes, view.board, view.trials, curves, by),
                legend=len(view.board.rows),
            )

    def _hits(self, view: View, by: Progress) -> Iterator[Picture]:
        if view.board.rows["hit_rate"].notna().any() and pd.notna(view.board.shared["target"]):
            yield self._picture(
                f"{view.anchor}-hits",
                "Who has reached the target by when",
                "Kaplan and Meier's estimate of the share of repetitions; a tick is one that ended without a hit.",
                lambda axes: figures.draw_hits(axes, view.board, view.trials, by),
                legend=len(view.board.rows),
            )

    def _sizes(self, view: View) -> Iterator[Picture]:
        curves = self.evidence.curves_of(view.trials)
        found = plane(curves, str(view.board.shared["metric"])) if len(curves) else None
        if found is not None:
            models = found[0] == "models"
            yield self._picture(
                f"{view.anchor}-sizes",
                "Quality against the number of models" if models else "Quality against stored bytes",
                "A marker is a point of the tier, the median over repetitions; the band goes from the lowest to the "
                "highest.",
                lambda axes: figures.draw_sizes(axes, view.board, view.trials, curves),
                legend=len(view.board.rows),
            )

    def _adapters(self, view: View) -> Iterator[Picture]:
        rows = view.board.rows
        if rows["adapter_bytes"].gt(0).sum() > 1:
            yield self._picture(
                f"{view.anchor}-adapters",
                "Quality against the size of the adapter",
                "What fine-tuning stores beside the base: trained parameters and what cannot be derived.",
                lambda axes: figures.draw_adapters(axes, view.board),
                legend=len(rows) if len(rows) > CROWD else 0,
            )

    def _ratios(self, view: View, by: Progress) -> Iterator[Picture]:
        others = view.board.rows[~view.board.rows["is_reference"].eq(other=True)]
        if others[f"{by}_ratio"].notna().any():
            yield self._picture(
                f"{view.anchor}-ratios",
                f"{by.capitalize()} divided by the reference's",
                "Left of 1 is cheaper. A filled mark differs from 1 after Holm's correction; what lies in the light "
                "band is too small for these repetitions to show.",
                lambda axes: figures.draw_ratios(axes, view.board, by),
                rows=len(view.board.rows),
            )

    def _pareto(self, view: View, by: Progress) -> Iterator[Picture]:
        cost = "time_to_target_s" if by == "time" else "steps_to_target"
        rows = view.board.rows
        if (rows[cost].gt(0) & rows["memory_bytes"].gt(0)).any():
            yield self._picture(
                f"{view.anchor}-pareto",
                f"{by.capitalize()} against memory",
                "The staircase joins what no other row beats in both.",
                lambda axes: figures.draw_pareto(axes, view.board),
                legend=len(rows) if len(rows) > CROWD else 0,
            )

    def standing(self, standing: Standings, anchor: str) -> list[Block]:
        """Return the figures of a standing over several workloads."""
        rows = len(standing.rows)
        if not standing.rows["score"].notna().any():
            return []
        scores = self._picture(
            f"{anchor}-scores",
            "Profile scores",
            "Neighbours whose intervals the bootstrap cannot tell apart share a band.",
            lambda axes: figures.draw_scores(axes, standing),
            rows=rows,
        )
        profile = self._picture(
            f"{anchor}-profile",
            "Performance profile",
            "The share of workloads on which the cost is at most so many times the lowest; higher and further left is "
            "better.",
            lambda axes: figures.draw_profile(axes, standing.costs),
            legend=rows,
        )
        return [Gallery(pictures=[scores, profile])]

    def sensitivity(self, algorithm: str, anchor: str) -> list[Block]:
        """Return, for an algorithm with tuning trials, one figure per board and hyperparameter that varied."""
        found = []
        for view in self.evidence.views:
            tuned = view.trials[view.trials["algorithm"].eq(algorithm) & view.trials["phase"].eq("tune")]
            found += [(-len(tuned), view.label, name, tuned) for name in _varied(tuned)]
        found.sort(key=lambda item: item[:2])
        pictures = [
            self._picture(
                f"{anchor}-sensitivity-{number}",
                f"{name} on {label}",
                "Each point is a tuning trial; the other hyperparameters vary too.",
                partial(figures.draw_sensitivity, trials=tuned, hyperparameter=name),
            )
            for number, (_, label, name, tuned) in enumerate(found[:MOST_SENSITIVITIES], start=1)
        ]
        return [Gallery(pictures=pictures)] if pictures else []

    def _picture(
        self, name: str, title: str, caption: str, draw: Callable[[Axes], str], *, legend: int = 0, rows: int = 0
    ) -> Picture:
        figure, axes = figures.new_figure(legend=legend, rows=rows, width_inch=WIDTH_INCH)
        alternative = draw(axes)
        anchor = self.evidence.anchors("figure", name)
        if self.folder is not None:
            for ending in (".svg", ".png"):
                figures.save(figure, self.folder / f"{name}{ending}")
        svg = figures.figure_svg(figure, title, alternative, name=anchor)
        return Picture(anchor=anchor, name=name, title=title, caption=caption, alternative=alternative, svg=svg)


def _progress(board: Board) -> Progress:
    """Return what the figures of a board have on their axis: time only where it ranks."""
    return "time" if board.shared["by"] == "time" and not board.rows["contended"].any() else "steps"


def _varied(tuned: pd.DataFrame) -> list[str]:
    """Return the hyperparameters of which tuning tried enough values, in the order of the fields."""
    values: dict[str, set[str]] = {}
    for text in np.unique(tuned["hyperparameters"].dropna().to_numpy(str)) if len(tuned) else ():
        for name, value in json.loads(text).items():
            values.setdefault(name, set()).add(json.dumps(value))
    return [name for name, found in values.items() if len(found) >= FEWEST_POINTS]
