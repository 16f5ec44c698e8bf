"""The rows of one board against each other: their reference, ratios to it, order, front, and groups of neighbours.

Two rows are told apart by Welch's test at level 1 - confidence: on logarithms for costs, on the plain scale for
quality. For order by time or steps it compares *bounded* costs, in which a miss has the least that it would have needed
(see :func:`bench.score.replicates`); without misses these are the costs to the target themselves.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from bench import statistics
from bench.algorithm import INFORMATION
from bench.cells import Sample, logarithm, sample
from bench.score import Numbers, Reals, reals

Measure = Literal["time", "steps", "memory", "energy", "quality", "pareto"]
MEASURES: tuple[Measure, ...] = ("time", "steps", "memory", "energy", "quality", "pareto")
"""What a board can be ordered by."""

RATIOS = {
    "steps": "log_steps_to_target",
    "time": "log_time_to_target_s",
    "memory": "log_memory_bytes",
    "energy": "log_energy_j",
}
"""The measures of which rows have a ratio to their reference, and the sums that it is taken from."""

TOLD_APART_BY = RATIOS | {"steps": "log_bound_steps", "time": "log_bound_time_s", "quality": "quality"}
"""What decides whether two rows are told apart, by what the board is ordered by."""


# -- reference -------------------------------------------------------------------------------------------------------
def references(rows: pd.DataFrame) -> tuple[Numbers, dict[int, list[str]]]:
    """Return the position of each row's reference (-1: it has none), and by board why rows have none.

    It is the row of that algorithm on the same board, as the workload or the protocol tunes it, beside the same
    fillers; where none has the same fillers, the only one there is.
    """
    names, known = pd.factorize(pd.concat([rows["algorithm"], rows["reference"]]))
    fillers, others = pd.factorize(rows["fillers"])
    own, wanted = (rows["board"].to_numpy() * (len(known) + 1) + part for part in np.split(names, 2))
    tuned = np.flatnonzero(rows["is_reference"].eq(other=True))
    count, found = _look_up(own[tuned] * len(others) + fillers[tuned], wanted * len(others) + fillers)
    anyhow, sole = _look_up(own[tuned], wanted)
    count, found = np.where(count > 0, count, anyhow), np.where(count > 0, found, sole)
    positions = np.full(len(rows), -1)
    positions[count == 1] = tuned[found[count == 1]]
    positions[tuned] = tuned
    return positions, _reasons(rows, np.where(positions < 0, count, 1))


def _look_up(keys: Numbers, wanted: Numbers) -> tuple[Numbers, Numbers]:
    """Return how many of ``keys`` equal each element of ``wanted``, and the position of the first."""
    order = np.argsort(keys, kind="stable")
    start, end = (np.searchsorted(keys[order], wanted, side=side) for side in ("left", "right"))
    return end - start, np.append(order, 0)[np.minimum(start, len(order))]


def _reasons(rows: pd.DataFrame, count: Numbers) -> dict[int, list[str]]:
    """Return by board why rows have no reference: of these there are none or several, as ``count`` says."""
    lacking: dict[tuple[int, str], set[str]] = {}
    here = rows[["board", "algorithm", "reference"]][count != 1]
    for board, name, reference, number in zip(*(here[key].tolist() for key in here), count[count != 1], strict=True):
        why = f"{number} rows of {reference} are the reference" if number else f"no row of {reference} is here"
        why = why if isinstance(reference, str) else "the record names no reference"
        lacking.setdefault((board, why), set()).add(name)
    reasons: dict[int, list[str]] = {}
    for (board, why), some in sorted(lacking.items()):
        reasons.setdefault(board, []).append(f"no ratio for {', '.join(sorted(some))}: {why}")
    return reasons


def ratios(rows: pd.DataFrame, reference: Numbers, confidence: float) -> dict[str, Reals]:
    """Return ratios of costs and differences of quality to the reference: this / reference, this - reference.

    The p-values of each measure are adjusted by Holm's method over all rows of the board that have a reference. A
    reference itself has the ratio 1 and no interval. Without a value: times of a busy machine, memory from different
    sources, and rows whose replicates are of another kind than the reference's (a selected point flatters).
    """
    own, board = np.arange(len(rows)), rows["board"].to_numpy()
    basis = rows["basis"].to_numpy(dtype=object)
    compared = (reference >= 0) & (reference != own) & (basis == basis[reference])
    busy = rows["contended"].to_numpy(dtype=bool)
    source = rows["memory_source"].to_numpy(dtype=object)
    usable = {"time": ~busy & ~busy[reference], "memory": source == source[reference]}
    found: dict[str, Reals] = {}
    for name, measure in (RATIOS | {"quality": "quality"}).items():
        where = np.flatnonzero(compared & usable.get(name, True))
        ours, theirs = sample(rows, measure).at(where), sample(rows, measure).at(reference[where])
        difference = ours.minus(theirs, confidence)
        prefix = "quality_difference" if name == "quality" else f"{name}_ratio"
        shown = difference if name == "quality" else difference.exp()
        for suffix, values in (("", shown.value), ("_low", shown.low), ("_high", shown.high)):
            found[prefix + suffix] = _spread(values, where, len(rows))
        found[f"{prefix}_p"] = _spread(_holm(difference.p, board[where]), where, len(rows))
        itself = (reference == own) & ~np.isnan(sample(rows, measure).mean)
        found[prefix][itself] = 0.0 if name == "quality" else 1.0
        if name != "quality":
            limit = statistics.detectable_ratio(ours.pooled_sd(theirs), ours.n, theirs.n, alpha=1 - confidence)
            found[f"{name}_detectable_ratio"] = _spread(limit, where, len(rows))
    return found


def _holm(p: Reals, board: Numbers) -> Reals:
    """Adjust the p-values of each board, whose rows follow each other."""
    edges = np.flatnonzero(np.diff(board)) + 1
    return np.concatenate([statistics.holm(part) for part in np.split(p, edges)])


def _spread(values: Reals, where: Numbers, size: int) -> Reals:
    found = np.full(size, np.nan)
    found[where] = values
    return found


# -- order -----------------------------------------------------------------------------------------------------------
def value_of(rows: pd.DataFrame, by: Measure, *, minimise: bool) -> Reals:
    """Return what rows are ordered by within their kind, the smallest first; NaN where there is nothing that ranks."""
    quality = reals(rows, "quality_mean") * (1.0 if minimise else -1.0)
    if by == "quality":
        return quality
    if by == "energy":
        return reals(rows, "log_energy_j_mean")
    if by == "memory":
        return np.where(rows["memory_source"].eq(memory_source(rows)), reals(rows, "log_memory_bytes_mean"), np.nan)
    unit, reached = ("time_s", "time_to_target_s") if by == "time" else ("steps", "steps_to_target")
    misses = rows["hits"] < rows["replicates"]
    value = np.where(misses, _log_expected(rows, unit), reals(rows, f"log_{reached}_mean"))
    value = np.where(rows["hits"] == 0, quality, value)
    return np.where(rows["contended"] & (by == "time"), np.nan, value)


def rankable(rows: pd.DataFrame, by: Measure, *, minimise: bool) -> Any:
    """Return which rows have something to rank by: a time of a machine that was not busy, a known value."""
    if by == "pareto":
        return np.zeros(len(rows), dtype=bool)
    if by in {"time", "steps"}:
        return ~(rows["contended"].to_numpy(dtype=bool) & (by == "time"))
    return ~np.isnan(value_of(rows, by, minimise=minimise))


def _log_expected(rows: pd.DataFrame, unit: str) -> Reals:
    return logarithm(statistics.expected_running_time(reals(rows, f"spent_{unit}"), rows["hits"]))


def memory_source(rows: pd.DataFrame) -> str:
    """Return the source of memory that compares on this board: NVML where any row has it, else RSS."""
    return "nvml" if rows["memory_source"].eq("nvml").any() else "rss"


def order(rows: pd.DataFrame, by: Measure, *, minimise: bool, front: Any) -> Numbers:
    """Return the positions of ``rows`` in order; what is equal stays as it is.

    By time and steps: rows whose every replicate hit, by cost; rows of which some hit, by expected running time; rows
    that never hit, by quality. Otherwise by value, unknown ones last. ``pareto``: the front first, then as by steps or
    time. Rows without a measurement come last. Before all this: those that look at less come first, see :func:`kinds`.
    """
    hits, replicates = rows["hits"].to_numpy(), rows["replicates"].to_numpy()
    kind = np.select([replicates == 0, hits == replicates, hits > 0], [3, 0, 1], 2)
    if by not in {"time", "steps"}:
        kind = np.where(kind == 3, 3, 0)
    steps = reals(rows, "log_steps_to_target_mean")
    quality = reals(rows, "quality_mean") * (1.0 if minimise else -1.0)
    keys = [quality, steps, value_of(rows, by, minimise=minimise), kind]
    if front is not None:
        keys.append(~front)
    return np.lexsort([*keys, kinds(rows)])


def kinds(rows: pd.DataFrame) -> Numbers:
    """Return what each row's algorithm looks at, as its place in ``INFORMATION``; 0 in training, where all is known.

    Rows of different kinds are different competitions: they are ordered and grouped apart.
    """
    places = {name: place for place, name in enumerate(INFORMATION)}
    return np.array([places.get(name, 0) for name in rows["information"].tolist()], dtype=np.int64)


def on_front(first: Reals, second: Reals) -> Any:
    """Return which points no other point dominates: at most as large in both costs and smaller in one."""
    known = np.flatnonzero(np.isfinite(first) & np.isfinite(second))
    along = known[np.lexsort([second[known], first[known]])]
    one, other = first[along], second[along]
    # by the first cost, a point is on the front where it is a new low of the second one, or equal to such a point
    low = np.minimum.accumulate(other)
    new = np.diff(low, prepend=np.inf) < 0
    last = np.maximum.accumulate(np.where(new, np.arange(len(along)), 0))
    found = np.zeros(len(first), dtype=bool)
    found[along] = (one == one[last]) & (other == other[last])
    return found


# -- groups ----------------------------------------------------------------------------------------------------------
def groups_of(rows: pd.DataFrame, ranked: Any, by: Measure, confidence: float, *, minimise: bool) -> Numbers:
    """Return the group of every row of a board in its order; 0 for those that are not ranked."""
    found, kind = np.zeros(len(rows), dtype=np.int64), kinds(rows)
    for one in np.unique(kind) if by in TOLD_APART_BY else ():
        where = np.flatnonzero(ranked & (kind == one))
        deciding = sample(rows, TOLD_APART_BY[by]).at(where)
        never = (rows["hits"].to_numpy()[where] == 0) if by in {"time", "steps"} else None
        quality = sample(rows, "quality").at(where)
        found[where] = groups(
            deciding,
            confidence,
            minimise=minimise or by != "quality",
            also=None if never is None else (never, quality, minimise),
        )
    return found


Also = tuple[npt.NDArray[np.bool_], Sample, bool]
"""Which rows are tested by something more, what it is, and whether it is to be small."""


def groups(ordered: Sample, confidence: float, *, minimise: bool = True, also: Also | None = None) -> Numbers:
    """Return the group of each row of a ranking, 1 for the first: neighbours that cannot be told apart.

    The first row leads group 1. It is tested against every row after it, adjusted by Holm's method over these tests.
    Going down, rows join the group until one is worse than the leader beyond chance; that row leads the next group.

    So every member was compared with its leader alone: two members, or the last of a group and the leader of the next,
    may well differ or not differ between themselves ("cannot be told apart" is not transitive), and a group says "not
    shown to be worse", never "equal". Rows too few in replicates to be tested join the group that they come to.

    ``also`` is for rows that never reached the target. Of their cost no more is known than that it exceeds the budget,
    so they are tested by the quality that they ended with too, and the smaller of the two p-values counts twice.
    """
    found = np.zeros(len(ordered.n), dtype=np.int64)
    leader, number = 0, 1
    while leader < len(found):
        worse, p = _against(leader, ordered, minimise=minimise)
        if also is not None:
            never, quality, small = also
            other, q = _against(leader, quality, minimise=small)
            either = np.fmin(1.0, 2.0 * np.fmin(np.where(worse, p, 1.0), np.where(other, q, 1.0)))
            worse, p = np.where(never[leader + 1 :], [worse | other, either], [worse, p])
            worse = worse.astype(bool)
        apart = np.flatnonzero(worse & (statistics.holm(p) < 1 - confidence))
        end = leader + 1 + int(apart[0]) if len(apart) else len(found)
        found[leader:end] = number
        leader, number = end, number + 1
    return found


def _against(leader: int, ordered: Sample, *, minimise: bool) -> tuple[Any, Reals]:
    """Return which rows after the ``leader`` lie on the wrong side of it, and the p-values of these differences."""
    rest, best = ordered.at(slice(leader + 1, None)), ordered.at(slice(leader, leader + 1))
    return (rest.mean > best.mean if minimise else rest.mean < best.mean), p_of_welch(rest, best)


def p_of_welch(one: Sample, other: Sample) -> Reals:
    """Return the p-value of :func:`bench.statistics.welch`.

    Without its interval, which takes longer than all the rest: a walk down a long board makes a million of these tests.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        test = stats.ttest_ind_from_stats(
            one.mean, one.sd, one.n.astype(int), other.mean, other.sd, other.n.astype(int), equal_var=False
        )
    exact = (one.sd == 0) & (other.sd == 0)
    return np.where(exact, np.where(one.mean == other.mean, 1.0, 0.0), test.pvalue)
