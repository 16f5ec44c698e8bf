"""Cells: what the replicates of one row of a board add up to.

Costs are summed up on the logarithmic scale, where seed noise is nearly symmetric and a t interval covers what it says
already with three replicates; quality is summed up as it is. Sums run in the order of the replicates' numbers, so that
the order of the stored rows never shows, not even in the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench import statistics
from bench.score import BASES, CELL, Numbers, Reals, cell_hyperparameters, identify, reals, replicates
from bench.trial import MEASURED

TRUST = ("self-reported", "reproduced", "verified")
"""The trust tiers, lowest first: a row is worth what its least trusted trial is worth."""

GEOMETRIC = ("steps_to_target", "time_to_target_s", "memory_bytes", "energy_j")
"""The figures of a row that are geometric means."""

MEDIANS = (
    *("optimizer_state_bytes", "trainable_parameters", "adapter_bytes", "stored_bytes"),
    *("forgetting", "time_s"),
)
"""The figures of a row that are medians: most are the same in every replicate."""

BOUNDS = ("bound_steps", "bound_time_s")
"""What decides in a test where some replicates missed."""


@dataclass(frozen=True)
class Sample:
    """Means, standard deviations and numbers of replicates, one of each per row."""

    mean: Reals
    sd: Reals
    n: Reals

    def at(self, positions: Numbers | slice) -> Sample:
        """Return the rows at ``positions``."""
        return Sample(self.mean[positions], self.sd[positions], self.n[positions])

    def minus(self, other: Sample, confidence: float) -> statistics.Difference:
        """Return the difference of the means, row by row, by Welch's test."""
        return statistics.welch(self.mean, self.sd, self.n, other.mean, other.sd, other.n, confidence)

    def pooled_sd(self, other: Sample) -> Reals:
        """Return the standard deviation that two samples share, if they share one."""
        degrees = np.fmax(self.n - 1, 0) + np.fmax(other.n - 1, 0)
        squares = [np.where(one.n > 1, (one.n - 1) * one.sd**2, 0.0) for one in (self, other)]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.sqrt((squares[0] + squares[1]) / degrees))


def sample(cells: pd.DataFrame, measure: str) -> Sample:
    """Return the columns of ``measure`` (such as ``log_steps`` or ``quality``) of :func:`cells`."""
    return Sample(*(reals(cells, f"{measure}_{name}") for name in ("mean", "sd", "n")))


def moments(group: Numbers, values: Reals, size: int, *, whole: bool = False) -> Sample:
    """Return mean, standard deviation (n - 1) and number of the values in each of ``size`` groups.

    NaN is left out; with ``whole`` it makes its group's mean NaN. Equal values have a deviation of exactly zero.
    """
    if not whole:
        known = ~np.isnan(values)
        group, values = group[known], values[known]
    n = np.bincount(group, minlength=size).astype(np.float64)
    first = np.zeros(size)
    first[group[::-1]] = values[::-1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shift = np.bincount(group, weights=values - first[group], minlength=size) / n
        mean = first + shift
        squares = np.bincount(group, weights=(values - mean[group]) ** 2, minlength=size)
        return Sample(mean, np.sqrt(squares / np.where(n > 1, n - 1, np.nan)), n)


def logarithm(values: Reals) -> Reals:
    """Return the natural logarithm; that of 0 is minus infinity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values)


def cells(trials: pd.DataFrame, identity: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row per cell, in the order of the numbers of :func:`bench.score.identify`.

    Beside the keys and what all trials of the cell share: ``replicates``, ``hits``, the sums (``log_*_mean``, ``_sd``,
    ``_n``) of :data:`GEOMETRIC` and :data:`BOUNDS`, those of ``quality``, totals that were spent, and what the search
    cost and selected. ``steps_to_target`` and ``time_to_target_s`` are over hits, the bounds over all replicates.
    ``superseded`` counts the trials left out because the same seed ran under a newer patch version of the workload.
    """
    identity = identify(trials) if identity is None else identity
    cell = identity["cell"].to_numpy()
    size = int(cell.max(initial=-1)) + 1
    first = firsts(cell, size)
    keys = {name: cell_hyperparameters(trials) if name == "hyperparameters" else trials[name] for name in CELL}
    repeated = replicates(trials, identity)
    found = {
        "board": identity["board"].to_numpy()[first],
        **{name: values.iloc[first].astype("str").reset_index(drop=True) for name, values in keys.items()},
        **{name: texts(unanimous(cell, trials[name], size)[0]) for name in ("reference", "origin", "information")},
        "is_reference": pd.Series(_any_of(cell, trials["is_reference"], size), dtype=object),
        "trust_tier": texts(_least_trusted(cell, trials["trust_tier"], size)),
        "outcomes": texts(_outcomes(cell, trials["outcome"], size)),
        **_sums(repeated, size),
        **_search(trials, identity, size),
    }
    measured = trials["outcome"].isin(MEASURED) & trials["phase"].ne("tune")
    direct = np.bincount(cell[measured.to_numpy(dtype=bool)], minlength=size)
    found["superseded"] = np.where(found["basis"] == "selected", 0, direct - found["replicates"])
    return pd.DataFrame(found, copy=False)


def texts(values: Sequence[str | None]) -> pd.Series[str]:
    """Return a column of text, whatever is in it, so that no column's type depends on what else is on a board."""
    column: pd.Series[str] = pd.Series(list(values), dtype="str")
    return column


def firsts(group: Numbers, size: int) -> Numbers:
    """Return the first position of each group."""
    found = np.zeros(size, dtype=np.int64)
    found[group[::-1]] = np.arange(len(group))[::-1]
    return found


def _sums(repeated: pd.DataFrame, size: int) -> dict[str, Any]:
    cell = repeated["cell"].to_numpy()
    basis = np.full(size, len(BASES))
    basis[cell] = repeated["basis"].cat.codes
    nvml = np.zeros(size, dtype=bool)
    nvml[cell[repeated["nvml_peak_bytes"].notna()]] = True
    values = {name: reals(repeated, name) for name in (*GEOMETRIC[:2], *BOUNDS, "energy_j", "quality")}
    values["memory_bytes"] = np.where(nvml[cell], repeated["nvml_peak_bytes"], repeated["rss_peak_bytes"])
    found: dict[str, Any] = {
        "basis": texts(_pick(BASES, basis)),
        "replicates": np.bincount(cell, minlength=size),
        "hits": np.bincount(cell, weights=repeated["hit"], minlength=size).astype(np.int64),
        "contended": np.bincount(cell, weights=repeated["contended"], minlength=size) > 0,
    }
    for name in GEOMETRIC:
        found |= _columns(f"log_{name}", moments(cell, logarithm(values[name]), size))
    for name in BOUNDS:
        found |= _columns(f"log_{name}", moments(cell, logarithm(values[name]), size, whole=True))
    found |= _columns("quality", moments(cell, values["quality"], size, whole=True))
    source = np.where(found["log_memory_bytes_n"] > 0, np.where(nvml, 1, 0), 2)
    found["memory_source"] = texts(_pick(("rss", "nvml"), source))
    for name in GEOMETRIC[:2]:
        plain = moments(cell, values[name], size)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[f"{name}_cv"] = plain.sd / plain.mean
    for name in ("spent_steps", "spent_time_s"):
        found[name] = np.bincount(cell, weights=repeated[name], minlength=size)
    middle = repeated.groupby("cell")[list(MEDIANS)].median()
    return found | {str(name): column.to_numpy() for name, column in middle.reindex(range(size)).items()}


def _columns(measure: str, sums: Sample) -> dict[str, Reals]:
    return {f"{measure}_mean": sums.mean, f"{measure}_sd": sums.sd, f"{measure}_n": sums.n}


def _search(trials: pd.DataFrame, identity: pd.DataFrame, size: int) -> dict[str, Reals]:
    """Return what the search of each cell cost, and what it selected; NaN where nothing was searched."""
    tune = trials["phase"].eq("tune").to_numpy(dtype=bool)
    cell = identity["cell"].to_numpy()[tune]
    tried = np.bincount(cell, minlength=size).astype(np.float64)
    none = tried == 0
    found = {"tuning_trials": np.where(none, np.nan, tried)}
    for name in ("steps", "time_s"):
        spent = np.bincount(cell, weights=np.nan_to_num(reals(trials, name)[tune]), minlength=size)
        found[f"tuning_{name}"] = np.where(none, np.nan, spent)
    only = trials[tune] if tune.any() else trials.iloc[:0]
    selected = replicates(only, identity.loc[only.index])
    for name in GEOMETRIC[:2]:
        over = moments(selected["cell"].to_numpy(), logarithm(reals(selected, name)), size)
        found[f"selected_{name}"] = np.exp(over.mean)
    return found


def figures(cells: pd.DataFrame, confidence: float) -> dict[str, Reals]:
    """Return the figures that are shown of each cell, each with its interval."""
    found: dict[str, Reals] = {}
    for name in GEOMETRIC:
        sums = sample(cells, f"log_{name}")
        found[name] = np.exp(sums.mean)
        found[f"{name}_low"], found[f"{name}_high"] = statistics.log_t_interval(sums.mean, sums.sd, sums.n, confidence)
    quality = sample(cells, "quality")
    found["quality"] = quality.mean
    found["quality_low"], found["quality_high"] = statistics.t_interval(quality.mean, quality.sd, quality.n, confidence)
    hits, n = reals(cells, "hits"), reals(cells, "replicates")
    found["hit_rate"] = hits / np.where(n > 0, n, np.nan)
    found["hit_rate_low"], found["hit_rate_high"] = statistics.wilson_interval(hits, n, confidence)
    for unit in ("steps", "time_s"):
        spent = np.where(n > 0, reals(cells, f"spent_{unit}"), np.nan)
        found[f"expected_{unit}"] = statistics.expected_running_time(spent, hits)
    return found


# -- what the trials of a group share --------------------------------------------------------------------------------
def unanimous(group: Numbers, column: pd.Series[Any], size: int) -> tuple[list[Any], Any]:
    """Return for each group the one known value of ``column``, else ``None``; and where there is more than one."""
    low, high, values = _span(group, column, size)
    return _pick(values.tolist(), np.where(low == high, low, len(values))), high > low


def _pick(values: Sequence[Any], codes: Numbers) -> list[Any]:
    """Return the value for each code; ``None`` for the code after the last."""
    known = np.empty(len(values) + 1, dtype=object)
    known[:-1] = values
    found: list[Any] = known[codes].tolist()
    return found


def _span(group: Numbers, column: pd.Series[Any], size: int) -> tuple[Numbers, Numbers, Any]:
    """Return the lowest and highest code of the known values in each group, and the values, sorted."""
    codes, values = pd.factorize(column, sort=True)
    known = codes >= 0
    low, high = np.full(size, len(values), dtype=np.int64), np.full(size, -1, dtype=np.int64)
    np.minimum.at(low, group[known], codes[known])
    np.maximum.at(high, group[known], codes[known])
    return low, high, values


def _any_of(group: Numbers, column: pd.Series[Any], size: int) -> list[bool | None]:
    _, high, values = _span(group, column, size)
    return _pick([bool(value) for value in values], np.where(high < 0, len(values), high))


def _least_trusted(group: Numbers, column: pd.Series[Any], size: int) -> list[str]:
    codes, values = pd.factorize(column, sort=True)
    levels = np.array([TRUST.index(value) if value in TRUST else 0 for value in values] + [0])
    lowest = np.full(size, len(TRUST) - 1)
    np.minimum.at(lowest, group, levels[codes])
    return _pick(TRUST, lowest)


def _outcomes(group: Numbers, column: pd.Series[Any], size: int) -> list[str]:
    """Return how many trials of each group ended in which way, such as ``1 missed, 4 reached``."""
    codes, values = pd.factorize(column, sort=True)
    counts = np.bincount(group * len(values) + codes, minlength=size * len(values)).reshape(size, len(values))
    number = np.zeros(size, dtype=np.int64)
    for count in counts.T:
        number = np.asarray(pd.factorize(number * (count.max() + 1) + count)[0], dtype=np.int64)
    kinds = counts[firsts(number, number.max(initial=-1) + 1)]
    words = [", ".join(f"{n} {name}" for n, name in zip(row, values, strict=True) if n) for row in kinds]
    return _pick(words, number)
