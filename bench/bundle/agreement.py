"""Do two sets of trials of the same seeds agree? Theirs from a bundle, ours from this machine.

Steps to the target do not depend on how fast a machine is, and the *ratio* of times to the reference depends on it
little; so a slow machine's records are reproduced by a fast one. Each quantity is compared seed by seed, as the ratio
ours / theirs with its t interval on logarithms:

- the whole interval within the margin around 1: ``reproduced``;
- the whole interval outside of it: ``not reproduced``;
- else ``undecided``, with how many seeds would decide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scipy import stats

from bench.bundle.intervals import prediction, sample_of, steps_of
from bench.pairs import paired
from bench.statistics import log_t_interval, t_interval

Decision = Literal["reproduced", "not reproduced", "undecided", "not judged"]
Row = Mapping[str, Any]
RowPair = tuple[Row, Row]

STEPS_MARGIN, TIME_MARGIN = 0.10, 0.25
"""How much ours may differ: processors round differently, and share their time differently between the parts of a
step."""

MOST_SEEDS = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One comparison: both means with intervals, their ratio (for a quality: difference), and what follows.

    ``seeds_needed`` is an estimate of how many seeds in all would decide, where they do not yet.
    """

    name: str
    theirs: tuple[float, float, float]
    ours: tuple[float, float, float]
    compared: tuple[float, float, float]
    decision: Decision
    why: str = ""
    seeds_needed: int | None = None


def steps(name: str, theirs: Sequence[Row], ours: Sequence[Row]) -> Quantity:
    """Compare steps to the target of the same seeds; a miss counts as its whole budget."""
    return _ratio(name, [steps_of(row) for row in theirs], [steps_of(row) for row in ours], STEPS_MARGIN)


def steps_ratio(name: str, theirs: Sequence[RowPair], ours: Sequence[RowPair]) -> Quantity:
    """Compare the steps of the entrant over those of the reference."""
    before, here = ([steps_of(a) / steps_of(b) for a, b in side] for side in (theirs, ours))
    return _ratio(name, before, here, STEPS_MARGIN)


def time_ratio(name: str, theirs: Sequence[RowPair], ours: Sequence[RowPair]) -> Quantity:
    """Compare the time of the entrant over that of the reference; not judged where either machine was busy."""
    before, here = ([_time(a) / _time(b) for a, b in side] for side in (theirs, ours))
    found = _ratio(name, before, here, TIME_MARGIN)
    for side, whose in ((theirs, "the bundle's"), (ours, "this")):
        rows = [row for pair in side for row in pair]
        if any(row["contended"] is True or not row["device_listed"] for row in rows):
            why = f"{whose} machine was busy or is of no listed class"
            return replace(found, decision="not judged", why=why, seeds_needed=None)
    return found


def quality(name: str, every: Sequence[Row], ours: Sequence[Row]) -> Quantity:
    """Hold the mean quality of ours against the interval that ``every`` trial of theirs predicts for so many."""
    stored, mine = sample_of(every, "quality"), sample_of(ours, "quality")
    nothing = (math.nan, math.nan, math.nan)
    if stored is None or mine is None or stored.replicates < 2:
        why = "a quality is not finite, or there is one seed only"
        return Quantity(name=name, theirs=nothing, ours=nothing, compared=nothing, decision="undecided", why=why)
    low, high = prediction("quality", stored.mean, stored.sd, stored.replicates, mine.replicates)
    inside = low <= mine.mean <= high
    sides = [_plain([float(row["quality"]) for row in side]) for side in (every, ours)]
    return Quantity(
        name=name,
        theirs=sides[0],
        ours=sides[1],
        compared=(mine.mean - stored.mean, low - stored.mean, high - stored.mean),
        decision="reproduced" if inside else "not reproduced",
    )


def overall(quantities: Sequence[Quantity]) -> Decision:
    """Return what follows from all: one that is contradicted counts most; a time that says nothing changes nothing."""
    decisions = [one.decision for one in quantities if one.decision != "not judged"]
    if "not reproduced" in decisions:
        return "not reproduced"
    counted = [one.decision for one in quantities if one.decision != "not judged" and not one.name.startswith("time")]
    return "reproduced" if counted and set(counted) == {"reproduced"} else "undecided"


def needed(mean: float, sd: float, margin: float) -> int | None:
    """Return how many differences of this mean and spread put the interval on one side of the margin."""
    room = abs(margin - abs(mean))
    for n in range(2, MOST_SEEDS + 1):
        if room > 0 and stats.t.isf((1 - CONFIDENCE) / 2, n - 1) * sd / math.sqrt(n) <= room:
            return n
    return None


def _time(row: Row) -> float:
    found = row["time_to_target_interpolated_s"] if row["outcome"] == "reached" else None
    return max(float(row["time_s"] if found is None else found), 1e-9)


def _ratio(name: str, theirs: Sequence[float], ours: Sequence[float], margin: float) -> Quantity:
    logs = [math.log(own / other) for own, other in zip(ours, theirs, strict=True)]
    difference = paired(logs, CONFIDENCE)
    mean, low, high = (float(part) for part in (difference.value, difference.low, difference.high))
    sides = [_geometric(values) for values in (theirs, ours)]
    compared = (math.exp(mean), _exp(low), _exp(high))
    edge, why, more = math.log1p(margin), "", None
    decision: Decision = "undecided"
    if -edge <= low and high <= edge:
        decision = "reproduced"
    elif low > edge or high < -edge:
        decision = "not reproduced"
    else:
        more = needed(mean, statistics.stdev(logs), edge) if len(logs) > 1 else None
        why = f"{len(logs)} seeds leave open whether they differ by more than {margin:.0%}"
    return Quantity(
        name=name, theirs=sides[0], ours=sides[1], compared=compared, decision=decision, why=why, seeds_needed=more
    )


def _interval(values: Sequence[float], of: Callable[..., tuple[Any, Any]], mean: float) -> tuple[float, float]:
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    low, high = of(mean, 0.0 if math.isnan(sd) else sd, len(values), CONFIDENCE)
    return float(low), float(high)


def _geometric(values: Sequence[float]) -> tuple[float, float, float]:
    logs = [math.log(value) for value in values]
    mean = statistics.fmean(logs)
    return (math.exp(mean), *_interval(logs, log_t_interval, mean))


def _plain(values: Sequence[float]) -> tuple[float, float, float]:
    mean = statistics.fmean(values)
    return (mean, *_interval(values, t_interval, mean))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
