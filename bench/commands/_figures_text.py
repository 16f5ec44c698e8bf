"""Figures of boards and comparisons for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands._print import bytes_text, seconds_text, words
from bench.errors import UnknownName

if TYPE_CHECKING:
    import pandas as pd

Text = Callable[[float], str]


def with_interval(row: Mapping[str, Any], name: str, text: Text) -> str:
    """Return a figure with the ends of its interval, such as ``184.9 [172.1, 198.7]``; ``-`` where there is none."""
    value, low, high = (float(row[f"{name}{suffix}"]) for suffix in ("", "_low", "_high"))
    if math.isnan(value):
        return "-"
    return text(value) + ("" if math.isnan(low) else f" [{text(low)}, {text(high)}]")


def steps_text(value: float) -> str:
    """Return a number of steps: a geometric mean is rarely whole."""
    return "inf" if math.isinf(value) else f"{value:.1f}" if value < 1e5 else f"{value:.4g}"


def time_text(value: float) -> str:
    """Return a number of seconds."""
    return "inf" if math.isinf(value) else seconds_text(value)


def ratio_text(value: float) -> str:
    """Return a ratio with two decimals, or two digits where it is small or large."""
    return f"{value:.2f}" if 0.1 <= value < 100 else f"{value:.2g}"


def p_text(value: float) -> str:
    """Return a p-value."""
    return "-" if math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.2g}"


def energy_text(value: float) -> str:
    """Return a number of joules."""
    return "-" if math.isnan(value) else f"{value / 1000:.4g} kJ" if value >= 1000 else f"{value:.4g} J"


def memory_text(row: Mapping[str, Any]) -> str:
    """Return what a row needs of memory, and who measured it."""
    return "-" if math.isnan(row["memory_bytes"]) else f"{bytes_text(row['memory_bytes'])} {row['memory_source']}"


def only(trials: pd.DataFrame, column: str, wanted: str | None, results: Path) -> pd.DataFrame:
    """Return the trials with this value of a column; a value that no trial has raises ``UnknownName``."""
    if wanted is None:
        return trials
    known: Iterable[str] = set(trials[column])
    if wanted not in known:
        raise UnknownName(f"{column} in {results}", wanted, known)
    return trials[trials[column] == wanted]


def heading(shared: Mapping[str, Any], form: str) -> str:
    """Return what the rows of a board share, as two lines."""
    mark, break_ = ("### ", "\n\n") if form == "md" else ("", "\n")
    target = "no target" if shared["target"] is None else f"target {shared['metric']} {shared['target']:g}"
    lines = (
        f"{shared['workload']} {shared['workload_minor']}, tier {shared['tier']}, {shared['precision']}",
        (
            f"data {shared['data_source']} ({shared['data_sha256'][:12]}), {target}, protocol {shared['protocol']}, "
            f"device {shared['device_class']}, by {shared['by']}"
        ),
    )
    return f"{mark}{break_.join(words(line, form) for line in lines)}\n"
