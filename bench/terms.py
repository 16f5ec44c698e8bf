"""The terms of a board: what all its trials share, whether they compare and rank, and what to know when reading it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench import ranking
from bench.cells import firsts, unanimous
from bench.protocol import Protocol
from bench.ranking import Measure
from bench.score import SEARCHED, Numbers, board_keys

CONFIDENCE = 0.95
"""The level of intervals where the protocol is not known."""

GOAL = ("target", "metric", "metric_direction")
"""What the trials of a board must agree on to compare."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the trials of one board share.

    ``shared``: the keys, goal and versions; ``asked``: the measure that was asked for; ``rules``: the protocol, if
    known; ``agreed``: no two trials know different goals; ``listed``: the device class is listed, so times rank;
    ``after_training``: nothing is trained, so nobody races to a target.
    """

    shared: Mapping[str, Any]
    asked: Measure
    rules: Protocol | None
    agreed: bool
    listed: bool
    after_training: bool = False

    @property
    def by(self) -> Measure:
        """The measure that the board is ordered by: what was asked for, as far as it applies."""
        by = "steps" if self.asked == "time" and not self.listed else self.asked
        no_race = self.after_training or (self.agreed and self.shared["target"] is None)
        return "quality" if by in {"time", "steps"} and no_race else by

    @property
    def confidence(self) -> float:
        """The level of the intervals."""
        return CONFIDENCE if self.rules is None else self.rules.confidence

    @property
    def minimise(self) -> bool:
        """Whether less of the metric is better."""
        return bool(self.shared["metric_direction"] != "max")

    def enough(self, rows: pd.DataFrame) -> Any:
        """Return which rows (of :func:`bench.cells.cells`) have all the replicates that a rank takes."""
        if self.rules is None or not self.rules.ranked or not self.agreed:
            return np.zeros(len(rows), dtype=bool)
        whole = rows["basis"].eq("confirmed") if self.rules.reruns else True
        return (rows["replicates"].ge(self.rules.replicates) & whole).to_numpy(dtype=bool)

    def notes(self, rows: pd.DataFrame) -> Iterator[str]:
        """Yield what to know when reading the board of ``rows``."""
        by = self.by
        if self.asked == "time" and not self.listed:
            yield f"{self.shared['device_class']} is not a listed device class: times do not rank, steps do"
        if self.asked in {"time", "steps"} and by == "quality":
            yield f"{'nothing is trained' if self.after_training else 'no target is set'} here: ordered by quality"
        if len(several := rows["information"].dropna().unique()) > 1:
            yield f"what algorithms look at differs ({', '.join(sorted(several))}): ordered and grouped apart"
        if not self.agreed:
            yield "trials of this board disagree on target, metric or direction: they do not compare"
        elif not self.enough(rows).all():
            yield f"(n) is a place in this list, not a rank: protocol {self.shared['protocol']} {self._needs()}"
        if by == "time" and rows["contended"].any():
            yield "* measured on a busy machine: this time does not rank; see --by steps"
        yield from self._notes_on_figures(rows)

    def _notes_on_figures(self, rows: pd.DataFrame) -> Iterator[str]:
        by = self.by
        if some := _names(rows, rows["basis"].eq("selected")):
            yield f"selected, not confirmed: {some}: the best of several tries flatters"
        if some := _names(rows, rows["hits"].gt(0) & rows["hits"].lt(rows["replicates"])):
            yield f"steps, times and ratios are over the hits alone, so they flatter what missed some times: {some}"
        if by == "memory" and (some := _names(rows, rows["memory_source"].ne(ranking.memory_source(rows)))):
            yield f"no memory from {ranking.memory_source(rows)}, so it does not compare: {some}"
        if by == "quality" and self.rules is not None and self.rules.stop_at_target:
            yield "trials stop at the target: this is the quality where they stopped"
        if older := int(rows["superseded"].sum()):
            yield f"{older} trials of older patch versions left out: the same seeds ran under a newer one"

    def _needs(self) -> str:
        if self.rules is None:
            return "is not known here: shown and never ranked"
        if not self.rules.ranked:
            return "is shown and never ranked"
        searched = "repetitions of selected points" if self.rules.reruns else "studies"
        return f"takes {self.rules.replicates} {'seeds' if self.rules.replicate == 'seed' else searched}"


def terms_of(trials: pd.DataFrame, board: Numbers, asked: Measure, protocols: Mapping[str, Protocol]) -> list[Terms]:
    """Return the terms of each board, by its number in ``board``, one number per trial.

    What a trial does not know, because it failed before it knew, does not count.
    """
    size = int(board.max(initial=-1)) + 1
    first = firsts(board, size)
    keys = board_keys(trials.iloc[first])
    columns = {name: values.astype(object).tolist() for name, values in keys.items()}
    agreed = np.ones(size, dtype=bool)
    for name in (*GOAL, "protocol_version", "origin"):
        columns[name], disputed = unanimous(board, trials[name], size)
        agreed &= ~disputed | (name not in GOAL)
    searched = np.bincount(board, weights=trials["phase"].isin(SEARCHED), minlength=size) > 0
    columns["replicate"] = np.where(searched, "study", "seed").tolist()
    after = np.bincount(board, weights=trials["information"].notna(), minlength=size) > 0
    listed = np.bincount(board, weights=trials["device_listed"].eq(other=False), minlength=size) == 0
    return [
        Terms(
            shared=dict(zip(columns, values, strict=True)),
            asked=asked,
            rules=protocols.get(digest),
            agreed=bool(agreed[number]),
            listed=bool(listed[number]),
            after_training=bool(after[number]),
        )
        for number, (digest, *values) in enumerate(zip(columns["protocol_sha256"], *columns.values(), strict=True))
    ]


def _names(rows: pd.DataFrame, where: pd.Series[bool]) -> str:
    return ", ".join(sorted(set(rows["algorithm"][where])))
