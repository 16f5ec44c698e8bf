"""Two rows of a board held against each other, and why rows of two boards do not compare.

Each pair is one comparison that somebody asked for: unlike the tests of a board, its p-values are not adjusted for the
number of tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from bench import ranking, statistics
from bench.board import BOARD, Board, Measure, rows_of
from bench.cells import Sample, cells, sample
from bench.pairs import paired, sign_flip
from bench.score import reals, replicates
from bench.survival import log_rank
from bench.terms import GOAL

Row = Mapping[str, Any]
"""One row of a board, as a dictionary."""

ROW = (
    *("algorithm", "setting", "algorithm_version", "hyperparameters", "fillers", "basis", "replicates", "hits"),
    *("hit_rate", "hit_rate_low", "hit_rate_high", "steps_to_target", "time_to_target_s"),
    *("expected_steps", "expected_time_s", "memory_bytes", "memory_source", "energy_j", "quality", "contended"),
)
"""The columns of a row that the record of a comparison repeats."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Row ``a`` against row ``b`` of ``board``.

    ``figures`` has for ``steps``, ``time``, ``memory`` and ``energy``: ``*_ratio`` (a / b, below 1: a is cheaper) with
    its interval (``_low``, ``_high``), ``_p`` by Welch's test on logarithms, and ``*_detectable_ratio``; for steps and
    time of fixed settings the same over the pairs that share a seed, hence weights and order of data, and both hit:
    ``*_pairs``, ``*_paired_ratio`` with interval, ``_p`` (t test) and ``_sign_flip_p``; ``quality_difference`` (a - b)
    with interval and ``_p``; ``log_rank_p`` over steps, misses censored. ``by`` is the measure of the ``verdict`` and
    ``separation_p`` the p-value that decides it: Welch's, where a miss costs the least that it would have needed.
    """

    board: Board
    a: Row
    b: Row
    figures: Mapping[str, Any]
    verdict: str

    def record(self) -> dict[str, Any]:
        """Return everything as one flat dictionary; the figures of the two rows end in ``_a`` and ``_b``."""
        sides = {f"{name}_{side}": row[name] for name in ROW for side, row in (("a", self.a), ("b", self.b))}
        return {**self.board.shared, **sides, **self.figures, "verdict": self.verdict}


def compare(board: Board, a: Row, b: Row, trials: pd.DataFrame) -> Comparison:
    """Compare two rows of ``board``; the trials behind it are among ``trials``."""
    sides = [rows_of(board, row, trials).drop(columns="counted") for row in (a, b)]
    sums = [cells(part.reset_index(drop=True)) for part in sides]
    counted = [replicates(part) for part in sides]
    level: float = board.shared["confidence"]
    by = _measure(board.shared["by"], a, b)
    found: dict[str, float] = {}
    for name, measure in {**ranking.RATIOS, "quality": "quality"}.items():
        found |= _independent(name, level, *(sample(part, measure) for part in sums))
    for name, column in (("steps", "steps_to_target"), ("time", "time_to_target_s")):
        found |= _paired(name, level, *(_by_seed(part, column) for part in counted))
    found["log_rank_p"] = _log_rank(*counted)
    one, other = (sample(part, ranking.TOLD_APART_BY[by]) for part in sums)
    found["separation_p"] = float(one.minus(other, level).p[0])
    refused = _refusal(a, b, pd.concat([part[[*GOAL]] for part in sides]))
    void = [""] if refused else _void(a, b)
    figures = {name: math.nan if name.startswith(tuple(void)) else value for name, value in found.items()}
    said = f"not comparable: {refused}" if refused else _verdict(board.shared, a, b, figures, by)
    return Comparison(board=board, a=a, b=b, figures={"by": by, **figures}, verdict=said)


def _measure(by: Measure, a: Row, b: Row) -> Measure:
    """Return what the verdict is about: what the board is ordered by, as far as it tells something of these two."""
    if by == "pareto" or (by == "time" and (a["contended"] or b["contended"])):
        by = "steps"
    return "quality" if by in {"time", "steps"} and a["hits"] == b["hits"] == 0 else by


def _refusal(a: Row, b: Row, goals: pd.DataFrame) -> str:
    """Return why two rows of one board do not compare; empty where they do."""
    for row in (a, b):
        if row["replicates"] == 0:
            return f"no trial of {label(row)} is a measurement ({row['outcomes']})"
    if a["basis"] != b["basis"]:
        return (
            f"the replicates of {label(a)} are {a['basis']}, those of {label(b)} {b['basis']}; a selected one flatters"
        )
    for name in GOAL:
        known = sorted({str(value) for value in goals[name].dropna()})
        if len(known) > 1:
            return f"trials of this board have different values of {name}: {', '.join(known)}"
    return ""


def _void(a: Row, b: Row) -> list[str]:
    """Return how the names of the figures begin that do not compare."""
    busy = ["time_"] if a["contended"] or b["contended"] else []
    return busy + (["memory_"] if a["memory_source"] != b["memory_source"] else [])


def _independent(name: str, level: float, one: Sample, other: Sample) -> dict[str, float]:
    """Return Welch's comparison of two rows."""
    difference = one.minus(other, level)
    if name == "quality":
        return _named("quality_difference", difference)
    limit = statistics.detectable_ratio(one.pooled_sd(other), one.n, other.n, alpha=1 - level)
    return {**_named(f"{name}_ratio", difference.exp()), f"{name}_detectable_ratio": float(limit[0])}


def _paired(name: str, level: float, one: pd.Series[float], other: pd.Series[float]) -> dict[str, float]:
    """Return the comparison within the seeds in which both hit."""
    ratios = (one / other).dropna()
    logs = np.log(ratios[ratios > 0].to_numpy(dtype=np.float64))
    found = _named(f"{name}_paired_ratio", paired(logs, level).exp())
    return {f"{name}_pairs": len(logs), **found, f"{name}_sign_flip_p": sign_flip(logs)}


def _named(name: str, found: statistics.Difference) -> dict[str, float]:
    parts = {"": found.value, "_low": found.low, "_high": found.high, "_p": found.p}
    return {name + suffix: float(np.ravel(values)[0]) for suffix, values in parts.items()}


def _by_seed(counted: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return a column of replicates by seed; empty where the setting was searched, so that seeds pair nothing."""
    fixed = counted[counted["basis"].eq("seeds")]
    return pd.Series(reals(fixed, column), index=fixed["seed"].to_numpy())


def _log_rank(one: pd.DataFrame, other: pd.DataFrame) -> float:
    ours, theirs = (part[part["spent_steps"].notna()] for part in (one, other))
    return log_rank(ours["spent_steps"], ours["hit"], theirs["spent_steps"], theirs["hit"])


# -- words -----------------------------------------------------------------------------------------------------------
def label(row: Row) -> str:
    """Return the name of a row: its algorithm, and in what it differs from the other rows of it."""
    return f"{row['algorithm']} {row['setting'] or ''}".rstrip()


def _verdict(shared: Mapping[str, Any], a: Row, b: Row, figures: Mapping[str, float], by: Measure) -> str:
    """Return the outcome of a comparison as a sentence."""
    counts = _counts(shared, a, b)
    missed = by in {"time", "steps"} and (a["hits"] < a["replicates"] or b["hits"] < b["replicates"])
    effect = _quality_words(shared, a, b, figures) if by == "quality" else _ratio_words(a, b, figures, by)
    if missed:
        hits = [f"{row['hits']} of {row['replicates']}" for row in (a, b)]
        over = f"; over the hits {effect}" if a["hits"] and b["hits"] else ""
        effect = f"{label(a)} reached the target in {hits[0]} {_unit(shared, 2)}, {label(b)} in {hits[1]}{over}"
    elif by == "quality" and shared["target"] is not None and a["hits"] == b["hits"] == 0:
        effect = f"neither reached the target; {effect}"
    p, limit = figures["separation_p"], figures.get(f"{by}_detectable_ratio", math.nan)
    if math.isnan(p):
        return f"{effect}; {counts}: too few to tell whether this is chance"
    if p < 1 - shared["confidence"]:
        return f"{effect}; {counts}; separable"
    shows = "" if math.isnan(limit) or missed else f"; this comparison would show {limit - 1:.0%} or more"
    return f"{label(a)} and {label(b)} cannot be told apart: {effect}; {counts}{shows}"


def _ratio_words(a: Row, b: Row, figures: Mapping[str, float], by: Measure) -> str:
    return f"{label(a)} needs {_interval(figures, f'{by}_ratio', f'x the {by} of {label(b)}')}"


def _quality_words(shared: Mapping[str, Any], a: Row, b: Row, figures: Mapping[str, float]) -> str:
    of = f" from that of {label(b)}"
    return f"the {shared['metric']} of {label(a)} differs by {_interval(figures, 'quality_difference', of)}"


def _interval(figures: Mapping[str, float], name: str, what: str) -> str:
    value, low, high = (figures[name + suffix] for suffix in ("", "_low", "_high"))
    form = "+.4g" if name == "quality_difference" else ".2f" if value >= 0.1 else ".2g"
    ends = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{what}{ends}"


def _counts(shared: Mapping[str, Any], a: Row, b: Row) -> str:
    return f"{a['replicates']} and {b['replicates']} {_unit(shared, a['replicates'] + b['replicates'])}"


def _unit(shared: Mapping[str, Any], number: int) -> str:
    return {"seed": ("seed", "seeds"), "study": ("study", "studies")}[shared["replicate"]][number != 1]


# -- what does not compare -------------------------------------------------------------------------------------------
WORDS = {
    "workload_minor": "workload version",
    "data_source": "data",
    "data_sha256": "data hash",
    "protocol_sha256": "protocol hash",
    "device_class": "device class",
}
"""The keys of boards in words, where the words are others."""

NAMED_BY = {"data_sha256": "data_source", "protocol_sha256": "protocol"}
"""The hashes, and the name of what they are hashes of: where the names differ already, hashes tell nothing more."""


def differing(shared: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which any two of several boards differ, in the order of :data:`bench.board.BOARD`."""
    found: set[str] = set()
    for one, other in combinations(shared, 2):
        keys = {key for key in BOARD if one[key] != other[key]}
        found |= {key for key in keys if NAMED_BY.get(key) not in keys}
    return [key for key in BOARD if key in found]


def why_not(ones: Iterable[Mapping[str, Any]], others: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return in what the boards of ``ones`` differ from those of ``others``: the pairs that differ least."""
    found: dict[str, int] = {}
    for one, other in product(ones, others):
        keys = differing([one, other])
        text = ", ".join(f"{WORDS.get(key, key)} {shown(one, key)} vs {shown(other, key)}" for key in keys)
        found[text] = len(keys)
    return [text for text, number in sorted(found.items()) if number == min(found.values())]


def shown(shared: Mapping[str, Any], key: str) -> str:
    """Return a key of a board for people: hashes are cut short."""
    return str(shared[key])[:12] if key.endswith("_sha256") else str(shared[key])
