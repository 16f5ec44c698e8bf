"""The comparison matrix: on every board each row against each other, with interval, told apart or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench import statistics
from bench.board import CELL, Board
from bench.cells import cells, sample
from bench.ranking import TOLD_APART_BY, Measure
from bench.report.document import Section, Tabular, text
from bench.report.evidence import Evidence, View
from bench.report.table import EMPTY, Cell, Column, Row, Table
from bench.report.text import fixed, interval, known, number, plural
from bench.score import Reals
from bench.terms import GOAL

APART, NOT_APART = "●", "○"
MOST_ROWS = 24
"""A board with more rows shows its first ones."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Every row of a board against every other: ``value[i, j]`` is i divided by j, or i minus j for quality.

    ``p`` is adjusted by Holm's method over all pairs and ``alpha`` is its level. ``minimise`` says whether less is
    better. Rows of different kinds of replicate do not compare (NaN). ``missed`` says which rows have a miss: their
    cost is then the least that it can be.
    """

    measure: Measure
    value: Reals
    low: Reals
    high: Reals
    p: Reals
    alpha: float
    missed: Any
    minimise: bool


def compare_all(board: Board, trials: pd.DataFrame, measure: Measure) -> Pairs:
    """Compare the rows of ``board``, in their order, two by two by Welch's test, on logarithms but for quality."""
    every = cells(trials.reset_index(drop=True))
    places = {key: place for place, key in enumerate(zip(*(every[name] for name in CELL), strict=True))}
    order = [places[key] for key in zip(*(board.rows[name] for name in CELL), strict=True)]
    every = every.iloc[order].reset_index(drop=True)
    one, other = np.triu_indices(len(every), 1)
    found = sample(every, TOLD_APART_BY[measure])
    difference = found.at(one).minus(found.at(other), board.shared["confidence"])
    basis = every["basis"].to_numpy(dtype=object)
    apart = np.where(basis[one] == basis[other], 0.0, np.nan)
    p = statistics.holm(difference.p + apart)
    ends = {"value": difference.value, "low": difference.low, "high": difference.high}
    full = {name: _both(len(every), one, other, part + apart, sign=-1.0) for name, part in ends.items()}
    full["low"], full["high"] = np.fmin(full["low"], full["high"]), np.fmax(full["low"], full["high"])
    if measure != "quality":
        full = {name: np.exp(part) for name, part in full.items()}
    missed = (every["hits"] < every["replicates"]).to_numpy() & (measure in {"steps", "time"})
    p = _both(len(every), one, other, p, sign=1.0)
    minimise = measure != "quality" or board.shared["metric_direction"] != "max"
    alpha = 1 - board.shared["confidence"]
    return Pairs(measure=measure, p=p, alpha=alpha, missed=missed, minimise=minimise, **full)


def _both(size: int, one: Any, other: Any, values: Reals, *, sign: float) -> Reals:
    """Return a square of the values of the pairs, those below the diagonal with ``sign``."""
    square = np.full((size, size), np.nan)
    square[one, other], square[other, one] = values, sign * values
    return square


# -- the section -----------------------------------------------------------------------------------------------------
def matrix(evidence: Evidence) -> Section:
    """Return the section of the comparison matrix, one part per board with more than one row."""
    told = (
        "Each cell is its row divided by its column: below 1 the row is cheaper. For quality it is the row minus the "
        f"column. {APART} told apart beyond chance, {NOT_APART} not told apart, after Holm's correction over all pairs "
        "of the board. Where a run missed the target, its cost is the least that it can be, the ratio is a bound (≥ or "
        "≤), and only a bound on the far side of 1 tells the two apart."
    )
    parts = [_part(evidence, view) for view in evidence.views if len(view.board.rows) > 1 and _agreed(view)]
    if not parts:
        told = "No board has two rows to compare."
    return Section(
        anchor=evidence.anchors("matrix"),
        title="Comparison matrix",
        short="Comparison",
        blocks=[text(told)],
        sections=parts,
    )


def _agreed(view: View) -> bool:
    """Return whether no two trials of a board know different goals; else nothing on it compares."""
    return bool(view.trials[list(GOAL)].nunique().le(1).all())


def _part(evidence: Evidence, view: View) -> Section:
    measure = measure_of(view.board)
    pairs = compare_all(view.board, view.trials, measure)
    names = [f"{row['algorithm']} {row['setting']}".rstrip() for row in view.board.records()]
    unit = {"quality": f"difference in {view.board.shared['metric']}"}.get(measure, f"ratio of {measure} to target")
    shown = _table(f"{view.anchor}-matrix", f"{view.label}: {unit}", names[:MOST_ROWS], pairs)
    blocks = [Tabular(table=shown)]
    rest = len(names) - MOST_ROWS
    more = [text(f"{plural(rest, 'more row')} of this board are not shown here.")] if rest > 0 else []
    return Section(
        anchor=evidence.anchors("matrix", view.anchor), title=view.label, short=view.label, blocks=[*blocks, *more]
    )


def measure_of(board: Board) -> Measure:
    """Return what the rows of ``board`` are compared by: what orders it, but steps where a time does not rank."""
    by: Measure = board.shared["by"]
    return "steps" if by == "time" and board.rows["contended"].any() else by


def _table(anchor: str, caption: str, names: list[str], pairs: Pairs) -> Table:
    head = Column(key="name", head="Row ÷ column" if pairs.measure != "quality" else "Row − column", header=True)
    columns = [head, *(Column(key=str(place), head=name, numeric=True) for place, name in enumerate(names))]
    rows = [
        Row(cells={"name": Cell(text=name), **{str(j): _cell(pairs, i, j) for j in range(len(names)) if i != j}})
        for i, name in enumerate(names)
    ]
    return Table(anchor=anchor, caption=caption, columns=columns, rows=rows, sortable=False)


def _quality(value: float) -> str:
    return fixed(value, 4)


def _cell(pairs: Pairs, i: int, j: int) -> Cell:
    value = float(pairs.value[i, j])
    if not known(value) or (pairs.missed[i] and pairs.missed[j]):
        return EMPTY
    quality = pairs.measure == "quality"
    show = _quality if quality else number
    bound = "≥ " if pairs.missed[i] else "≤ " if pairs.missed[j] else ""
    less = value < (0 if quality else 1)
    # A bound tells apart only in its own direction: "at least 0.3" may be anything above.
    possible = not (pairs.missed[i] and less) and not (pairs.missed[j] and not less)
    apart = bool(pairs.p[i, j] < pairs.alpha) and possible
    mark = APART if apart else NOT_APART
    return Cell(
        text=f"{bound}{show(value)} {mark}",
        detail=interval(float(pairs.low[i, j]), float(pairs.high[i, j]), show),
        tone="muted" if not apart else "good" if less == pairs.minimise else "bad",
        value=value,
    )
