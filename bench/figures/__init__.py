"""Figures from boards, standings and the stored tables; nothing is measured or estimated here.

Every ``draw_`` function takes matplotlib axes first, draws into them and returns the text alternative: a plain sentence
or more with the main numbers. None touches pyplot or leaves a setting changed. The order of rows never matters.

    figure, axes = new_figure(legend=len(board.rows))
    alt = draw_curves(axes, board, trials, curves)
    page = figure_svg(figure, "Loss against steps", alt, name="curves-1")
"""

from __future__ import annotations

from bench.figures.curves import board_figure, draw_curves
from bench.figures.hits import draw_hits
from bench.figures.pareto import draw_pareto
from bench.figures.profile import draw_profile, draw_scores
from bench.figures.ratios import draw_ratios
from bench.figures.sensitivity import draw_sensitivity
from bench.figures.sizes import draw_adapters, draw_sizes
from bench.figures.style import new_figure
from bench.figures.svg import figure_svg, save

__all__ = [
    "board_figure",
    "draw_adapters",
    "draw_curves",
    "draw_hits",
    "draw_pareto",
    "draw_profile",
    "draw_ratios",
    "draw_scores",
    "draw_sensitivity",
    "draw_sizes",
    "figure_svg",
    "new_figure",
    "save",
]
