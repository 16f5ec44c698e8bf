"""When the target is reached, with the trials that missed it counted as what they are: not reached *yet*.

A trial is (time, hit): the time at which it reached the target, or all the time that it spent without. Time may be
seconds or steps. Times are finite and at least 0, and NaN is refused: a trial that measured nothing is no observation.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from bench.errors import BadValue
from bench.statistics import Array, inside_unit

COLUMNS = ["time", "reached", "reached_low", "reached_high", "at_risk"]


def kaplan_meier(time: npt.ArrayLike, hit: npt.ArrayLike, confidence: float = 0.95) -> pd.DataFrame:
    """Return the share of trials that has reached the target by each time, misses counted as censored.

    1 - S(t), S(t) = Π over t_i <= t of (1 - d_i / n_i): d_i hits at t_i, n_i trials that ran up to it (``at_risk``).
    A hit comes before a miss at the same time. One row per distinct time, ascending; an empty frame for no trials.
    The pointwise interval is Greenwood's on ln(-ln S), which stays in [0, 1]; it is NaN where the share is 0 or 1.
    Source: Kaplan & Meier, Nonparametric estimation from incomplete observations, JASA 53 (1958).
    """
    times, hits = _observations(time, hit)
    inside_unit("confidence", confidence)
    if times.size == 0:
        return pd.DataFrame({name: np.empty(0) for name in COLUMNS}).astype({"at_risk": np.int64})
    function = stats.ecdf(stats.CensoredData.right_censored(times, ~hits)).sf
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # undefined where the share is 0 or 1, as documented
        band: Any = function.confidence_interval(confidence, method="log-log")
    inside = (function.probabilities > 0) & (function.probabilities < 1)
    return pd.DataFrame(
        {
            "time": function.quantiles,
            "reached": 1 - function.probabilities,
            "reached_low": np.where(inside, 1 - band.high.probabilities, np.nan),
            "reached_high": np.where(inside, 1 - band.low.probabilities, np.nan),
            "at_risk": times.size - np.searchsorted(np.sort(times), function.quantiles, side="left"),
        },
        columns=COLUMNS,
    )


def log_rank(time_a: npt.ArrayLike, hit_a: npt.ArrayLike, time_b: npt.ArrayLike, hit_b: npt.ArrayLike) -> float:
    """Return the two-sided p-value of "a and b reach the target equally fast", misses counted as censored.

    Z = Σ (O_i - E_i) / √Σ V_i over the times of hits: O_i hits of a, E_i and V_i mean and variance of their number if
    the d_i hits fell on the n_i trials at risk by chance. NaN where nothing compares: an empty side, no hits.
    Source: Mantel, Evaluation of survival data and two new rank order statistics, Cancer Chemother. Rep. 50 (1966).
    """
    sides = [_observations(time_a, hit_a), _observations(time_b, hit_b)]
    if any(times.size == 0 for times, _ in sides):
        return float("nan")
    a, b = (stats.CensoredData.right_censored(times, ~hits) for times, hits in sides)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(stats.logrank(a, b).pvalue)


def _observations(time: npt.ArrayLike, hit: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
    times, hits = np.asarray(time, dtype=np.float64), np.asarray(hit)
    if times.ndim != 1 or times.shape != hits.shape:
        raise BadValue(
            f"time has shape {times.shape} and hit has shape {hits.shape}",
            hint="give one row of times and, of the same length, whether each of them is a hit",
        )
    if not (np.isfinite(times) & (times >= 0)).all():
        wrong = times[~(np.isfinite(times) & (times >= 0))][0]
        raise BadValue(
            f"time = {wrong} is not a finite number of at least 0",
            hint="for a miss give what the trial spent; leave out a trial that measured nothing",
        )
    if hits.size and not np.isin(hits, (0, 1)).all():
        wrong = hits[~np.isin(hits, (0, 1))][0]
        raise BadValue(f"hit holds {wrong!r}, not true or false", hint="give True for a hit, False for a miss")
    return times, hits.astype(np.bool_)
