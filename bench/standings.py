"""Standings: the algorithms of one protocol and one device class over all their workloads.

The cost of an algorithm on a workload is the median over its replicates, a miss being infinite: half of the replicates
must reach the target. That is AlgoPerf's rule and ours alike. A protocol says how many replicates a cell has; a missing
one is a miss, and of more than that the first count, so nobody improves a standing by repeating until it looks better.

Two numbers come of the costs. The geometric mean of the ratios to the reference does not depend on who else takes part,
but knows nothing of misses. The profile score (:mod:`bench.profiles`) charges misses and orders the rows, but is
relative to the entrants: :func:`leave_one_out` shows how far. Both have percentile bootstrap intervals: workloads are
strata, the replicates of every cell are drawn anew, and all entrants are scored on the same draw, so that differences
between entrants are those of pairs. With three or five replicates such intervals are narrow rather than wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench import statistics
from bench.lineup import Lineup, lineups
from bench.profiles import gate, profile_score_trapezoid, resampled_medians, score_array
from bench.protocol import Protocol
from bench.protocol import protocols as installed
from bench.ranking import Measure
from bench.statistics import Array

LIMIT = 4.0
"""A cost of so many times the best counts as a miss; AlgoPerf's τ_max."""

RESAMPLES = 4000
"""How often replicates are drawn anew: enough for Holm's method over a hundred comparisons."""

SEED = 0
"""Of the draws, which run over sorted entrants and columns."""


@dataclass(frozen=True, kw_only=True)
class Standings:
    """One table over several workloads: what its rows share, the rows in order, and what to know when reading them.

    ``rows`` has the columns order, group (1: the leader and all that cannot be told from it; 0: not ranked), algorithm,
    workloads (how many it was run on), reached, ratio, ratio_low, ratio_high (geometric mean over the workloads that
    both reached of the cost over the reference's; 1 without an interval for the reference), score, score_low,
    score_high (profile score in closed form) and score_trapezoid (as AlgoPerf's code has it). ``costs`` are those that
    the score is made of, algorithm x workload, after the held-out gate: inf for a miss.
    """

    shared: dict[str, Any]
    rows: pd.DataFrame
    notes: tuple[str, ...]
    costs: pd.DataFrame

    def records(self) -> list[dict[str, Any]]:
        """Return the rows, in order, as dictionaries."""
        return [{str(key): value for key, value in row.items()} for row in self.rows.to_dict("records")]


def standings(
    trials: pd.DataFrame, by: Measure = "time", protocols: Mapping[str, Protocol] | None = None
) -> list[Standings]:
    """Return one table for each protocol, device class and origin in ``trials``, ordered by these keys.

    ``protocols`` maps hashes to protocols (:meth:`bench.store.Store.protocols`; default: the installed ones); what
    belongs to another protocol, or to one that does not rank, has no standings. ``by`` is time, steps, memory or
    energy, else :class:`~bench.errors.BadValue`; a miss is infinite in all of them.
    """
    return [_standing(lineup) for lineup in lineups(trials, by, _installed() if protocols is None else protocols)]


def leave_one_out(
    trials: pd.DataFrame, by: Measure = "time", protocols: Mapping[str, Protocol] | None = None
) -> pd.DataFrame:
    """Return how each table of :func:`standings` looks when one entrant is left out, one row per (left out, remaining).

    Columns: protocol, protocol_sha256, device_class, origin, left_out, algorithm, score, order; score_with_all,
    order_with_all (among the remaining); ``flipped``: the order is not the same.
    """
    parts = [pd.DataFrame(columns=_LEFT_OUT)]
    for lineup in lineups(trials, by, _installed() if protocols is None else protocols):
        ranked = lineup.keep([name for name in lineup.entrants if name not in lineup.unranked])
        whole = _ordered(ranked)
        for name in sorted(ranked.entrants):
            remaining = _ordered(ranked.keep([other for other in ranked.entrants if other != name]))
            before = whole[whole.index != name]
            part = pd.DataFrame({"algorithm": remaining.index, "score": remaining.to_numpy()})
            part["order"] = range(1, len(part) + 1)
            part["score_with_all"] = part["algorithm"].map(before)
            part["order_with_all"] = part["algorithm"].map({other: k for k, other in enumerate(before.index, start=1)})
            part["flipped"] = part["order"] != part["order_with_all"]
            shared = {key: lineup.shared[key] for key in _LEFT_OUT[:4]}
            parts.append(part.assign(**shared, left_out=name)[_LEFT_OUT])
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else parts[0]


_LEFT_OUT = ["protocol", "protocol_sha256", "device_class", "origin", "left_out", "algorithm", "score", "order"]
_LEFT_OUT += ["score_with_all", "order_with_all", "flipped"]


def _installed() -> dict[str, Protocol]:
    return {protocol.sha256: protocol for protocol in installed().values()}


# -- one table -------------------------------------------------------------------------------------------------------
def _standing(lineup: Lineup) -> Standings:
    size = len(lineup.workloads)
    reached = np.isfinite(np.median(np.where(np.isnan(lineup.costs), 1.0, lineup.costs), axis=-1))
    counts = pd.DataFrame(
        {"workloads": lineup.run[:, :size].sum(axis=1), "reached": reached[:, :size].sum(axis=1)},
        index=pd.Index(lineup.entrants),
    )
    ranked = lineup.keep([name for name in lineup.entrants if name not in lineup.unranked])
    figures, costs = _figures(ranked)
    rows = counts.join(figures).rename_axis("algorithm").reset_index()
    rows["group"] = rows["group"].fillna(0).astype(int)
    rows = rows.sort_values(["score", "algorithm"], ascending=[False, True], na_position="last", ignore_index=True)
    rows.insert(0, "order", range(1, len(rows) + 1))
    reasons: dict[str, list[str]] = {}
    for name, reason in lineup.unranked.items():
        reasons.setdefault(reason, []).append(name)
    notes = [f"not ranked, {reason}: {', '.join(names)}" for reason, names in sorted(reasons.items())]
    if size == 1:
        notes.append(f"one workload: this says no more than the board of {lineup.workloads[0]}")
    if ranked.entrants and (ranked.reference < 0).all():
        notes.append("there is no reference here, and so no ratio")
    shared = lineup.shared | {"limit": LIMIT, "resamples": RESAMPLES}
    return Standings(shared=shared, rows=rows[_ROWS], notes=(*notes, *lineup.notes), costs=costs)


_ROWS = ["order", "group", "algorithm", "workloads", "reached", "ratio", "ratio_low", "ratio_high"]
_ROWS += ["score", "score_low", "score_high", "score_trapezoid"]


def _figures(lineup: Lineup) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the figures of entrants whose costs are all known, and these costs."""
    medians = np.median(lineup.costs, axis=-1)
    costs = pd.DataFrame(_gated(lineup, medians), index=pd.Index(lineup.entrants), columns=lineup.workloads)
    drawn = [
        (_scored(lineup, some), _ratios(lineup, some))
        for some in resampled_medians(lineup.costs, RESAMPLES if lineup.entrants else 1, SEED)
    ]
    scores, ratios = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    found = pd.DataFrame({"score": _scored(lineup, medians), "ratio": _ratios(lineup, medians)}, index=costs.index)
    found["score_trapezoid"] = profile_score_trapezoid(costs, LIMIT)
    for name, values in (("score", scores), ("ratio", ratios)):
        found[f"{name}_low"], found[f"{name}_high"] = _interval(values, lineup.shared["confidence"])
    itself = ((lineup.reference < 0) | (lineup.reference == np.arange(len(costs))[:, np.newaxis])).all(axis=1)
    found.loc[itself, ["ratio_low", "ratio_high"]] = np.nan
    found["group"] = _groups(found["score"], scores, lineup.shared["confidence"])
    return found, costs


def _ordered(lineup: Lineup) -> pd.Series[float]:
    """Return the scores of all entrants, best first."""
    scores = pd.Series(_scored(lineup, np.median(lineup.costs, axis=-1)), index=pd.Index(lineup.entrants))
    return scores.sort_index().sort_values(ascending=False, kind="stable")


def _gated(lineup: Lineup, medians: Array) -> Array:
    base, held_out = np.split(medians, [len(lineup.workloads)], axis=-1)
    return gate(base, held_out, lineup.gates, LIMIT)


def _scored(lineup: Lineup, medians: Array) -> Array:
    return score_array(_gated(lineup, medians), LIMIT)


def _ratios(lineup: Lineup, medians: Array) -> Array:
    """Return [..., entrant]: the geometric mean of cost over reference's cost where both reached; NaN where nowhere."""
    own = medians[..., : len(lineup.workloads)]
    theirs = np.take_along_axis(own, np.broadcast_to(np.maximum(lineup.reference, 0), own.shape), axis=-2)
    both = np.isfinite(own) & np.isfinite(theirs) & (lineup.reference >= 0)
    logs = np.log(np.where(both, own, 1.0)) - np.log(np.where(both, theirs, 1.0))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.exp(logs.sum(axis=-1) / both.sum(axis=-1)))


def _interval(drawn: Array, confidence: float) -> tuple[Array, Array]:
    """Return the percentile interval of each column; draws without a value are left out."""
    found = np.full((2, drawn.shape[1]), np.nan)
    known = ~np.isnan(drawn).all(axis=0)
    if known.any():
        found[:, known] = np.nanquantile(drawn[:, known], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return found[0], found[1]


def _groups(scores: pd.Series[float], drawn: Array, confidence: float) -> pd.Series[int]:
    """Return the group of each entrant: neighbours that the bootstrap cannot tell apart.

    The first leads group 1. On every draw its score is compared with those of all after it: p is twice the share of
    draws on which it is not ahead, adjusted by Holm's method. Going down, entrants join until one is behind the leader
    beyond chance; that one leads the next group. A group says "not shown to be worse", never "equal".
    """
    order = scores.sort_index().sort_values(ascending=False, kind="stable").index
    draws = drawn[:, scores.index.get_indexer(order)]
    found = np.zeros(len(order), dtype=np.int64)
    leader, number = 0, 1
    while leader < len(order):
        not_ahead = (draws[:, leader, np.newaxis] <= draws[:, leader + 1 :]).sum(axis=0)
        p = np.minimum(1.0, 2 * (not_ahead + 1) / (len(draws) + 1))
        apart = np.flatnonzero(statistics.holm(p) < 1 - confidence)
        end = leader + 1 + int(apart[0]) if len(apart) else len(order)
        found[leader:end] = number
        leader, number = end, number + 1
    return pd.Series(found, index=order)
