"""The rows of a board as series: their names, their styles, and the trials that stand for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench import score
from bench.board import Board, rows_of
from bench.figures.style import Style, drawn, plain, style
from bench.figures.text import real


@dataclass(frozen=True)
class Row:
    """One row of a board; ``name`` is its algorithm with its setting, as plain text."""

    facts: Mapping[str, Any]
    name: str
    style: Style

    def real(self, column: str) -> float:
        """Return a number of the row; NaN where it is missing."""
        return real(self.facts.get(column))

    @property
    def hits(self) -> str:
        """How many replicates reached the target, such as ``3/5``."""
        return f"{self.real('hits'):.0f}/{self.real('replicates'):.0f}"

    @property
    def is_reference(self) -> bool:
        """Whether the row is what others are compared with; where that is unknown it is not."""
        known = self.facts.get("is_reference")
        return isinstance(known, (bool, np.bool_)) and bool(known)

    @property
    def biased(self) -> str:
        """``, selected`` where the row's trials are those that won the search, whose luck is part of the result."""
        return ", selected" if self.facts.get("basis") == "selected" else ""


def rows(board: Board) -> list[Row]:
    """Return the rows of ``board`` in its order.

    A row's style follows from the names on the board alone, so that every figure of one board, by whatever it is
    ordered, draws an algorithm alike.
    """
    records = sorted(board.records(), key=lambda row: row["order"])
    names = [plain(f"{row['algorithm']} {row.get('setting') or ''}") for row in records]
    identities = [(name, *(str(row.get(key)) for key in _IDENTITY)) for name, row in zip(names, records, strict=True)]
    places = {identity: place for place, identity in enumerate(sorted(identities))}
    return [
        Row(facts=row, name=name, style=style(places[identity]))
        for row, name, identity in zip(records, names, identities, strict=True)
    ]


_IDENTITY = ("algorithm_version", "algorithm_source_sha256", "hyperparameters", "fillers")


def replicates(board: Board, row: Row, trials: pd.DataFrame) -> pd.DataFrame:
    """Return the replicates of a row, see :func:`bench.score.replicates`, with their ``trial_id`` and ``outcome``."""
    cell = rows_of(board, row.facts, trials).sort_values("trial_id").reset_index(drop=True)
    found = score.replicates(cell)
    return found.join(cell[["trial_id", "outcome"]])


def place(board: Board) -> str:
    """Return which workload and tier a board is about."""
    return plain(f"{board.shared['workload']} {board.shared['tier']}")


def target_of(board: Board) -> float:
    """Return the target; NaN where there is none."""
    return real(board.shared.get("target"))


def label(board: Board, row: Row) -> str:
    """Return how a legend names a row: with its hits, where there is a target."""
    facts = [row.hits] if math.isfinite(target_of(board)) else []
    facts += ["selected"] if row.biased else []
    return drawn(row.name, 40) + (f" ({', '.join(facts)})" if facts else "")


def repetitions(board: Board, count: float) -> str:
    """Return ``1 seed``, ``5 seeds``, ``3 studies``: what the replicates of a board are."""
    study = board.shared.get("replicate") == "study"
    one, many = ("study", "studies") if study else ("seed", "seeds")
    return f"{count:.0f} {one if count == 1 else many}"
