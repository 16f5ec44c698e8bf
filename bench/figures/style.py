"""What all figures share: colours, line styles and markers, sizes, text that is only text, legends and log ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLOURS = ("#0162e3", "#db7b01", "#057949", "#b3398d", "#925e19", "#8c948b", "#14a0c7")
"""Blue, orange, green, purple, brown, grey, sky blue: the hues of Okabe and Ito's palette, without its yellow, each as
light or dark as it takes to have a contrast of at least 3 : 1 on white and on dark pages up to #1a1f24, and to differ
from the others (by at least 20 in CIELAB) also for eyes with protanopia, deuteranopia or tritanopia. Black is kept for
what is not data."""

LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
"""As many as share no factor with the number of colours, so that 56 pairs of colour and marker all differ."""

WIDTH_INCH = 4.8
"""At 72 units an inch this is about the width of a phone, where the text is then as large as its size says."""

SMALL, NORMAL = 9.5, 10.0
CROWD = 8
"""With more series than this, bands are left out and labels move from the points to the legend."""


@dataclass(frozen=True)
class Style:
    """How one series is drawn; colour, line and marker each repeat the distinction."""

    colour: str
    line: Any
    marker: str


def style(number: int) -> Style:
    """Return the style of series ``number``, counted from 0."""
    rounds = number // len(COLOURS)
    return Style(
        colour=COLOURS[number % len(COLOURS)],
        line=LINES[(number + rounds) % len(LINES)],
        marker=MARKERS[number % len(MARKERS)],
    )


def new_figure(*, legend: int = 0, rows: int = 0, width_inch: float = WIDTH_INCH) -> tuple[Figure, Axes]:
    """Return a figure with one axes, high enough for what will be drawn into it.

    ``legend`` is how many entries the legend below the axes will have, ``rows`` how many rows a forest plot will have
    (0: not a forest plot). No pyplot: nothing stays registered when the figure is dropped.
    """
    height_inch = 1.0 + 0.46 * rows if rows else 0.62 * WIDTH_INCH
    figure = Figure(figsize=(width_inch, height_inch + 0.2 * legend), layout="constrained")
    return figure, figure.add_subplot()


def frame(axes: Axes, *, xlabel: str, ylabel: str, grid: str = "both") -> None:
    """Give ``axes`` the look of all figures; ``grid`` names the axis that has grid lines (``both``, ``x``, ``y``)."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.set_xlabel(xlabel, fontsize=NORMAL)
    axes.set_ylabel(ylabel, fontsize=NORMAL)
    axes.grid(visible=True, axis=grid, color=ink(axes), alpha=0.12, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def ink(axes: Axes) -> Any:
    """Return the colour in which ``axes`` has its labels: black, or what the user's matplotlib style has chosen."""
    return axes.xaxis.label.get_color()


def plain(value: object, limit: int | None = None) -> str:
    """Return ``value`` as one line of printable text, cut in its middle where it is longer than ``limit``."""
    text = " ".join(str(value).split())
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    if limit is None or len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return f"{text[: limit - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"


def drawn(value: object, limit: int | None = None) -> str:
    """Return :func:`plain` text for matplotlib, which would otherwise read what is between two ``$`` as mathematics."""
    return plain(value, limit).replace("$", r"\$")


def legend(axes: Axes, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Draw a legend below the axes, in as many columns as its longest label allows.

    The labels are :func:`drawn` text. Inside the axes, the legend of more than a few series would hide the data.
    """
    figure = axes.get_figure(root=True)
    if figure is None or not labels:
        return
    entry = SMALL * (_HANDLE + _GAP + 0.6 * max(map(len, labels)))
    corner = ScaledTranslation(-_LEFT_POINTS / 72.0, -_BELOW_POINTS / 72.0, figure.dpi_scale_trans)
    axes.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        bbox_transform=axes.transAxes + corner,
        borderaxespad=0.0,
        borderpad=0.0,
        frameon=False,
        fontsize=SMALL,
        handlelength=_HANDLE,
        columnspacing=_GAP / 2,
        handletextpad=_GAP / 2,
        ncols=max(1, min(4, len(labels), int(72.0 * figure.get_figwidth() // entry))),
    )


_HANDLE, _GAP = 2.8, 1.4
_LEFT_POINTS, _BELOW_POINTS = 38.0, 38.0
"""What the labels of the two axes take."""


def empty(axes: Axes, why: str) -> str:
    """Write ``why`` there is nothing to draw into ``axes``, and return it as the text alternative."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.text(0.5, 0.5, drawn(why), transform=axes.transAxes, ha="center", va="center", fontsize=NORMAL, wrap=True)
    return plain(why)


def plain_ticks(axis: Axis) -> None:
    """Give a linear axis at most six ticks, written as plain numbers."""
    axis.set_major_locator(MaxNLocator(5, steps=_ROUND))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Give a log axis from ``low`` to ``high`` between two and eight ticks, written as plain numbers."""
    decades = math.log10(high / low)
    if decades > 0.5:
        digits = next((each for most, each in _DIGITS if decades < most), (1.0,))
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, max(1, round(decades / 6)))
        ticks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    else:
        ticks = list(MaxNLocator(5, steps=_ROUND).tick_values(low, high))
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


_ROUND = (1, 2, 2.5, 5, 10)
_DIGITS = ((1.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)), (1.7, (1.0, 2.0, 5.0)), (3.0, (1.0, 3.0)))
"""The ticks in each decade of a log axis that spans less than so many decades."""
