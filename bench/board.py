"""Leaderboards: queries over the stored trials and nothing else.

Trials compare only within one board: same workload (major.minor of its version), tier, precision, data, protocol and
device class (:data:`BOARD`). Within a board a row is one setting of one algorithm over its replicates; where the
protocol searches the setting, it is the algorithm over its studies. Input order never shows, not in one bit.

Ranking a million trials (200,000 rows of five on a hundred boards, with every column of the table) takes 3.9 s of one
core of a shared two-core virtual machine and 1.9 GB, of which the trials themselves are 1.4 GB; 200 rows of 5,000 take
1.9 s and 1.6 GB (``tests/benchmarks/test_board_speed.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from bench import ranking
from bench.cells import cells, figures
from bench.labels import settings
from bench.protocol import Protocol
from bench.protocol import protocols as installed
from bench.ranking import MEASURES, Measure
from bench.score import BOARD, CELL, Numbers, board_keys, cell_hyperparameters, identify, reals, replicates
from bench.terms import Terms, terms_of

__all__ = ["BOARD", "CELL", "COLUMNS", "MEASURES", "Board", "Measure", "boards", "rows_of"]


@dataclass(frozen=True, kw_only=True)
class Board:
    """One leaderboard: what all its rows share, its rows in order, and what to know when reading them.

    ``shared`` has :data:`BOARD`, ``target``, ``metric``, ``metric_direction``, ``by``, ``confidence``, ``replicate``
    (``seed`` or ``study``), ``protocol_version`` and ``origin``. ``rows`` has :data:`COLUMNS`.
    """

    shared: dict[str, Any]
    rows: pd.DataFrame
    notes: tuple[str, ...]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows, in order, as dictionaries; a figure that does not apply is NaN, a text ``None``."""
        texts = {name for name in self.rows if isinstance(self.rows[name].dtype, pd.StringDtype)}
        return [
            {str(key): None if key in texts and not isinstance(value, str) else value for key, value in row.items()}
            for row in self.rows.to_dict("records")
        ]


def boards(trials: pd.DataFrame, by: Measure = "time", protocols: Mapping[str, Protocol] | None = None) -> list[Board]:
    """Return every board in ``trials``, ordered by its keys.

    ``protocols`` maps hashes to protocols (:meth:`bench.store.Store.protocols`; default: the installed ones). A board
    whose protocol is not among them is shown and not ranked.
    """
    if trials.empty:
        return []
    known = {rules.sha256: rules for rules in installed().values()} if protocols is None else protocols
    trials = trials.reset_index(drop=True)
    identity = identify(trials)
    every, terms = cells(trials, identity), terms_of(trials, identity["board"].to_numpy(), by, known)
    found: dict[int, Board] = {}
    for level in {one.confidence for one in terms}:
        numbers = [number for number, one in enumerate(terms) if one.confidence == level]
        rows = every if len(numbers) == len(terms) else every[every["board"].isin(numbers)].reset_index(drop=True)
        found |= zip(numbers, _boards(rows, [terms[number] for number in numbers], level), strict=True)
    return [found[number] for number in range(len(terms))]


def rows_of(board: Board, row: Mapping[str, Any], trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials behind one row of ``board``, of all phases and outcomes.

    The added column ``counted`` is true for the replicates that the row's figures are made of.
    """
    wanted = {name: board.shared[name] for name in BOARD} | {name: row[name] for name in CELL}
    columns = {**board_keys(trials), **{name: trials[name] for name in CELL}}
    columns["hyperparameters"] = cell_hyperparameters(trials)
    here = np.ones(len(trials), dtype=bool)
    for name, value in wanted.items():
        same = columns[name].isna() if pd.isna(value) else columns[name].eq(value)
        here &= same.to_numpy(dtype=bool)
    found = trials[here]
    return found.assign(counted=found.index.isin(replicates(found).index))


# -- many boards at once: sums and tests take all rows in one go -------------------------------------------------------
def _boards(every: pd.DataFrame, terms: Sequence[Terms], confidence: float) -> list[Board]:
    """Return one board per element of ``terms``; ``every`` holds their cells, board by board."""
    edges = np.flatnonzero(np.diff(every["board"].to_numpy(), prepend=-1, append=-1))
    spans = [slice(int(start), int(end)) for start, end in pairwise(edges)]
    plans = [_plan(every.iloc[part], one) for part, one in zip(spans, terms, strict=True)]
    places = np.concatenate([part.start + plan.places for part, plan in zip(spans, plans, strict=True)])
    rows = every.iloc[places].reset_index(drop=True)
    reference, lacking = ranking.references(rows)
    reference[~np.repeat([one.agreed for one in terms], np.diff(edges))] = -1
    columns: dict[str, Any] = {**figures(rows, confidence), **ranking.ratios(rows, reference, confidence)}
    columns["pareto"] = np.concatenate([plan.front[plan.places] for plan in plans])
    texts: list[str] = []
    standing = []
    for part, one in zip(spans, terms, strict=True):
        here = rows.iloc[part]
        ranked = one.enough(here) & ranking.rankable(here, one.by, minimise=one.minimise)
        group = ranking.groups_of(here, ranked, one.by, confidence, minimise=one.minimise)
        standing.append((np.arange(1, len(here) + 1), ranked, group))
        texts += settings(here)
    order, ranked, group = (np.concatenate(parts) for parts in zip(*standing, strict=True))
    columns |= {"order": order, "ranked": ranked, "group": group, "setting": pd.Series(texts, dtype="str")}
    table = pd.DataFrame({name: columns.get(name, rows.get(name)) for name in COLUMNS}, copy=False)
    return [
        Board(
            shared={**one.shared, "by": one.by, "confidence": confidence},
            rows=table.iloc[part].reset_index(drop=True),
            notes=(*plan.notes, *one.notes(rows.iloc[part]), *(lacking.get(number, ()) if one.agreed else ())),
        )
        for number, part, one, plan in zip(every["board"].iloc[edges[:-1]], spans, terms, plans, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The order of one board's rows, and which of them (before ordering) are on the front of cost and memory."""

    places: Numbers
    front: Any
    notes: tuple[str, ...]


def _plan(rows: pd.DataFrame, terms: Terms) -> _Plan:
    whole = rows["hits"].eq(rows["replicates"]) & rows["hits"].gt(0)
    plane = "time" if terms.listed and not (rows["contended"] & whole).any() else "steps"
    cost = reals(rows, "log_time_to_target_s_mean" if plane == "time" else "log_steps_to_target_mean")
    same = rows["memory_source"].eq(ranking.memory_source(rows)) & whole
    front = ranking.on_front(np.where(same, cost, np.nan), reals(rows, "log_memory_bytes_mean"))
    chosen = terms.by == "pareto"
    told = f"the front of {plane} x memory comes first: that of the point estimates, and no ranking"
    places = ranking.order(rows, terms.by, minimise=terms.minimise, front=front if chosen else None)
    return _Plan(places=places, front=front, notes=(told,) if chosen else ())


def _with_interval(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


COLUMNS = (
    *("order", "ranked", "group", "algorithm", "setting", "algorithm_version", "algorithm_source_sha256"),
    *("hyperparameters", "fillers", "reference", "is_reference", "basis", "origin", "trust_tier"),
    *("replicates", "hits", *_with_interval("hit_rate")),
    *(*_with_interval("steps_to_target"), "steps_to_target_cv"),
    *(*_with_interval("time_to_target_s"), "time_to_target_s_cv"),
    *("expected_steps", "expected_time_s"),
    *(*_with_interval("memory_bytes"), "memory_source", "optimizer_state_bytes", "trainable_parameters"),
    *("information", "adapter_bytes", "stored_bytes", "forgetting", "time_s"),
    *(*_with_interval("energy_j"), *_with_interval("quality"), "quality_sd"),
    *(
        column
        for name in ("steps", "time", "memory", "energy")
        for column in (*_with_interval(f"{name}_ratio"), f"{name}_ratio_p", f"{name}_detectable_ratio")
    ),
    *(*_with_interval("quality_difference"), "quality_difference_p"),
    *("selected_steps_to_target", "selected_time_to_target_s", "tuning_trials", "tuning_steps", "tuning_time_s"),
    *("contended", "outcomes", "pareto"),
)
"""The columns of a board's rows, in order. Units are suffixes; ``_low`` and ``_high`` are the ends of an interval.

``group``: 1 for the leader and all that cannot be told from it, 0 for rows that are not ranked. ``*_ratio``: this over
the reference, below 1 is cheaper; ``*_ratio_p`` is adjusted for the number of comparisons; ``*_detectable_ratio``: the
smallest speedup that so many replicates show four times in five at this noise; ``time_s``: all charged seconds of a
trial; ``information``: what an algorithm after training looks at, whose kinds are ordered and grouped apart.
``selected_*`` is what tuning found, the number that flatters; ``tuning_*`` is what tuning cost. ``pareto``: on the
front of time (or steps) and memory.
"""
