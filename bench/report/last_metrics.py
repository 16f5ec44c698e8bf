"""The table of everything that was measured at the last point of a trial after training, one column per algorithm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.board import rows_of
from bench.report.evidence import View
from bench.report.table import EMPTY, Column, Row, Table, cell, name_cell, table
from bench.report.text import number


def last_metrics(view: View) -> Table | None:
    """Return the means over repetitions of all metrics at the last point; ``None`` where something was trained."""
    if not view.board.rows["information"].notna().any():
        return None
    records = view.board.records()
    means = [_means(view, record) for record in records]
    names = sorted({name for each in means for name in each}, key=_natural)
    columns = [Column(key="metric", head="Metric", header=True)]
    columns += [
        Column(key=str(place), head=f"{record['algorithm']} {record['setting'] or ''}".strip(), numeric=True)
        for place, record in enumerate(records)
    ]
    rows = [
        Row(
            cells={
                "metric": name_cell(name),
                **{
                    str(place): cell(number(each[name], 4), each[name]) if name in each else EMPTY
                    for place, each in enumerate(means)
                },
            }
        )
        for name in names
    ]
    return table(f"{view.anchor}-metrics", "Everything measured at the last point, means", columns, rows)


def _means(view: View, record: Mapping[str, Any]) -> dict[str, float]:
    found = rows_of(view.board, record, view.trials)
    values: dict[str, list[float]] = {}
    for pairs in found["metrics"][found["counted"]]:
        for name, value in pairs if isinstance(pairs, (list, np.ndarray)) else ():
            values.setdefault(name, []).append(float(value))
    means = {name: float(np.mean(each)) for name, each in values.items()}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _natural(name: str) -> tuple[str, int]:
    """Order ``task_10`` after ``task_9``."""
    stem, _, end = name.rpartition("_")
    return (stem, int(end)) if end.isdigit() else (name, -1)
