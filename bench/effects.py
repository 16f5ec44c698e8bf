"""The effect that a claim is about, measured between two rows of one board; or why these rows cannot measure it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.claims import Claim
    from bench.protocol import Protocol

Row = Mapping[str, Any]
"""One row of a board."""

_COSTS = {
    "time_to_target": ("time", "time_to_target_s"),
    "steps_to_target": ("steps", "steps_to_target"),
    "memory": ("memory", "memory_bytes"),
    "energy": ("energy", "energy_j"),
}
"""By metric: the prefix of the board's comparison with the reference, and the column of the cost itself."""

Triple = tuple[float, float, float]

LARGEST_EXPONENT = math.log(sys.float_info.max)
"""Beyond it an end of an interval is as good as unbounded."""

EXACT = "optimizer_state_bytes"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The algorithm against the baseline: a ratio or a difference with its interval.

    ``detectable`` is the smallest ratio above 1, or difference, that as many replicates show with power 0.8 at this
    noise. An ``exact`` effect is counted, not estimated: ``low`` and ``high`` equal ``value``.
    """

    value: float
    low: float
    high: float
    replicates: int
    baseline_replicates: int
    detectable: float = math.nan
    exact: bool = False


def to_target(metric: str) -> bool:
    """Return whether ``metric`` is a cost to a target, which a replicate may miss."""
    return metric in {"time_to_target", "steps_to_target"}


def truth(value: Any) -> bool:
    """Return a flag of a row as a bool; one that is unknown is not set."""
    return isinstance(value, bool) and value


def plural(protocol: Protocol) -> str:
    """Return what the replicates of ``protocol`` are called."""
    return "studies" if protocol.replicate == "study" else "seeds"


def unfit(claim: Claim, shared: Mapping[str, Any], protocol: Protocol, row: Row, base: Row) -> str:
    """Return why ``row`` and ``base`` of a board cannot test ``claim``; empty if they can."""
    of_rows = (_lacks(claim, protocol, *named) for named in ((row, claim.algorithm), (base, claim.baseline)))
    return next(filter(None, (*of_rows, *_incomparable(claim, shared, protocol, row, base))), "")


def _lacks(claim: Claim, protocol: Protocol, row: Row, name: str) -> str:
    exact = claim.metric == "optimizer_state"
    wanted = 1 if exact else protocol.replicates
    if row["replicates"] < wanted:
        return f"{name} has {row['replicates']} of the {wanted} {plural(protocol)} that this needs"
    if row["basis"] == "selected" and not exact:
        return f"{name} is the best of a search that was not repeated, which is biased towards luck"
    reason = _unmeasured(claim, row)
    return reason and f"{name} {reason}"


def _incomparable(claim: Claim, shared: Mapping[str, Any], protocol: Protocol, row: Row, base: Row) -> Iterator[str]:
    if claim.metric == "quality" and shared["metric"] is None:
        yield "the trials of this board disagree on what the quality is"
    if to_target(claim.metric) and shared["target"] is None:
        yield f"tier {shared['tier']} has no target"
    if claim.metric == "time_to_target" and str(shared["device_class"]).startswith("unlisted"):
        yield "the hardware is of no listed device class, so its times do not rank"
    if claim.metric == "time_to_target" and (truth(row["contended"]) or truth(base["contended"])):
        yield "measured on a busy machine, so these times do not rank"
    if claim.metric == "quality" and protocol.stop_at_target:
        yield f"protocol {protocol.name} stops at the target: no quality at the end of the budget"
    if claim.metric == "memory" and row["memory_source"] != base["memory_source"]:
        yield f"memory comes from {row['memory_source']} and from {base['memory_source']}, which do not compare"


def _unmeasured(claim: Claim, row: Row) -> str:
    """Return what ``row`` lacks to take part in a comparison by the metric of ``claim``; a missed target is no lack."""
    if to_target(claim.metric):
        return ""
    column = {"quality": "quality", "optimizer_state": EXACT}.get(claim.metric) or _COSTS[claim.metric][1]
    value = _real(row, column)
    if not math.isfinite(value):
        return f"has no finite {column} ({row['outcomes']})"
    return "" if claim.metric == "quality" or value > 0 else f"has {value:g} {column}, which makes no ratio"


def effect(claim: Claim, protocol: Protocol, row: Row, base: Row) -> Effect:
    """Return the effect of ``claim`` between two fit rows that met the target throughout."""
    n, base_n = int(row["replicates"]), int(base["replicates"])
    if claim.metric == "optimizer_state":
        value = _real(row, EXACT) / _real(base, EXACT)
        return Effect(value=value, low=value, high=value, replicates=n, baseline_replicates=base_n, exact=True)
    if claim.metric == "quality":
        found = _quality(row, base, protocol.confidence)
        if claim.published_unit == "perplexity":  # of a metric in nats: perplexity = exp(metric)
            found = tuple(_exp(number) for number in found)
    else:
        found = _cost(*_COSTS[claim.metric], row, base, protocol.confidence)
    value, low, high, detectable = found
    return Effect(value=value, low=low, high=high, detectable=detectable, replicates=n, baseline_replicates=base_n)


def _compared(row: Row, base: Row, column: str) -> bool:
    """Return whether the board compares ``row`` with ``base`` itself, because that is the reference."""
    mine = row["reference"] == base["algorithm"] and truth(base["is_reference"]) and not truth(row["is_reference"])
    return mine and math.isfinite(_real(row, column))


def _quality(row: Row, base: Row, confidence: float) -> tuple[float, ...]:
    """Return difference, low, high and the smallest detectable difference."""
    n, base_n, sd = row["replicates"], base["replicates"], _real(row, "quality_sd")
    base_sd = _real(base, "quality_sd")
    detectable = math.log(_detectable(sd, n, base_sd, base_n))  # on the plain scale: a difference, not a ratio
    if _compared(row, base, "quality_difference"):
        names = ("quality_difference", "quality_difference_low", "quality_difference_high")
        return (*(_real(row, name) for name in names), detectable)
    return (*_welch(_real(row, "quality"), sd, n, _real(base, "quality"), base_sd, base_n, confidence), detectable)


def _cost(prefix: str, column: str, row: Row, base: Row, confidence: float) -> tuple[float, ...]:
    """Return ratio, low, high and the smallest detectable ratio."""
    if _compared(row, base, f"{prefix}_ratio"):
        names = (f"{prefix}_ratio", f"{prefix}_ratio_low", f"{prefix}_ratio_high", f"{prefix}_detectable_ratio")
        return tuple(_real(row, name) for name in names)
    n, base_n = row["replicates"], base["replicates"]
    mean, sd = _logs(row, column, confidence)
    base_mean, base_sd = _logs(base, column, confidence)
    ratio = _welch(mean, sd, n, base_mean, base_sd, base_n, confidence)
    return (*map(_exp, ratio), _detectable(sd, n, base_sd, base_n))


def _logs(row: Row, column: str, confidence: float) -> tuple[float, float]:
    """Return mean and standard deviation of the logarithms, read back from the log-t interval of a row.

    Its ends are exp(mean ∓ t sd / √n) with Student's t for n - 1 degrees of freedom.
    """
    from scipy.stats import t

    low, high, n = _real(row, f"{column}_low"), _real(row, f"{column}_high"), row["replicates"]
    if not (low > 0 and high > 0):
        return math.log(_real(row, column)), math.nan
    half = math.log(high / low) / 2
    return math.log(low) + half, half * math.sqrt(n) / float(t.ppf((1 + confidence) / 2, n - 1))


def _welch(mean: float, sd: float, n: int, base_mean: float, base_sd: float, base_n: int, confidence: float) -> Triple:
    from bench.statistics import welch

    found = welch(mean, sd, n, base_mean, base_sd, base_n, confidence)
    return float(found.value), float(found.low), float(found.high)


def _detectable(sd: float, n: int, base_sd: float, base_n: int) -> float:
    from bench.statistics import detectable_ratio

    pooled = math.sqrt(((n - 1) * sd**2 + (base_n - 1) * base_sd**2) / (n + base_n - 2))
    return float(detectable_ratio(pooled, n, base_n))


def _exp(value: float) -> float:
    return math.inf if value > LARGEST_EXPONENT else math.exp(value)


def _real(row: Row, column: str) -> float:
    value = row[column]
    return math.nan if value is None else float(value)
