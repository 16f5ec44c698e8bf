"""From single trials to independent replicates: what belongs together, what a study selects, what counts.

A *cell* is one row of a board: one algorithm in one version, beside the same fillers, at one setting; where a protocol
searches the setting, all points of the search are one cell. A *replicate* is one independent repetition of a cell: a
seed of a fixed setting, or a study of a search. A study counts with the trials that repeat the point which it selected
(basis ``confirmed``). Where nothing was repeated it counts with the selected trial itself (basis ``selected``), which
flatters: the best of several is partly the luckiest. The two are never mixed in a cell.

Pure functions over the stored table ``trials``, in any order of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.trial import MEASURED

Reals = NDArray[np.float64]
Numbers = NDArray[np.int64]

BOARD = (
    "workload",
    "workload_minor",
    "tier",
    "precision",
    "data_source",
    "data_sha256",
    "protocol",
    "protocol_sha256",
    "device_class",
)
"""What must be equal for two trials to compare."""

CELL = ("algorithm", "algorithm_version", "algorithm_source_sha256", "hyperparameters", "fillers")
"""What makes a row of a board; ``hyperparameters`` is empty where the protocol searches them."""

SEARCHED = ("tune", "rerun")
"""The phases of a protocol that searches the setting."""

BASES = ("seeds", "selected", "confirmed")
"""What the replicates of a cell are."""


def identify(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the columns ``board`` and ``cell`` for every trial: equal numbers where the keys are equal.

    The numbers follow the sorted values of the keys, so they do not depend on the order of the rows.
    """
    keys = board_keys(trials)
    board = _numbers(keys[name] for name in BOARD)
    setting = cell_hyperparameters(trials)
    parts = (setting if name == "hyperparameters" else trials[name] for name in CELL)
    return pd.DataFrame({"board": board, "cell": _numbers([board, *parts])}, index=trials.index)


def board_keys(trials: pd.DataFrame) -> dict[str, pd.Series[Any]]:
    """Return the columns of :data:`BOARD`; ``workload_minor`` is major.minor of the workload's version."""
    versions = trials["workload_version"]
    minors = {version: ".".join(str(version).split(".")[:2]) for version in versions.dropna().unique()}
    return {name: versions.map(minors) if name == "workload_minor" else trials[name] for name in BOARD}


def cell_hyperparameters(trials: pd.DataFrame) -> pd.Series[Any]:
    """Return the hyperparameters that tell cells apart: JSON, or empty where they are searched."""
    searched = trials["phase"].isin(SEARCHED)
    return trials["hyperparameters"].where(~searched, "") if searched.any() else trials["hyperparameters"]


def _numbers(columns: Iterable[pd.Series[Any] | NDArray[Any]]) -> Numbers:
    """Number the rows by the sorted values of ``columns``; null comes first."""
    found: Numbers | None = None
    for column in columns:
        codes, values = pd.factorize(column, sort=True)
        if found is not None and len(values) == 1 and codes.min() == 0:
            continue  # the same in all rows
        shifted = codes.astype(np.int64) + 1
        found = shifted if found is None else found * (len(values) + 1) + shifted
        found = pd.factorize(found, sort=True)[0].astype(np.int64)
    assert found is not None
    return found


def _joined(columns: Sequence[Numbers]) -> Numbers:
    """Return one whole number per row that sorts as ``columns`` do; faster than :func:`_numbers`, and with gaps."""
    found: Numbers | None = None
    for column in columns:
        low, high = int(column.min(initial=0)), int(column.max(initial=0))
        if found is None:
            found = column - low
        elif int(found.max(initial=0)) + 1 > LARGEST // (high - low + 1):
            return _numbers(columns)
        else:
            found = found * (high - low + 1) + (column - low)
    assert found is not None
    return found


LARGEST = 2**62


def reals(table: pd.DataFrame, name: str) -> Reals:
    """Return a column as floats, null as NaN."""
    return table[name].to_numpy(dtype=np.float64, na_value=np.nan)


def _whole(table: pd.DataFrame, name: str) -> Numbers:
    return np.nan_to_num(reals(table, name), nan=-1).clip(-LARGEST, LARGEST).astype(np.int64)


# -- selection -------------------------------------------------------------------------------------------------------
def select(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trial that each study selects among its measured ``tune`` trials, one row per cell and study.

    The best is the one that meets the target at the earliest evaluation; then at the fewest interpolated steps, then in
    the least time. Among misses it is the one with the best quality. What is still tied goes to the first point.
    """
    return trials.iloc[_selected(trials, identify(trials)["cell"].to_numpy())]


def _selected(trials: pd.DataFrame, cell: Numbers) -> Numbers:
    tried = np.flatnonzero(trials["phase"].eq("tune") & trials["outcome"].isin(MEASURED))
    study = _numbers([cell[tried], reals(trials, "study")[tried]])
    order = np.argsort(study, kind="stable")
    tried, study = tried[order], study[order]
    for merit in _merits(trials):
        starts = np.flatnonzero(np.diff(study, prepend=-1))
        if len(starts) == len(study):
            break
        worth = np.nan_to_num(merit[tried], nan=np.inf, posinf=np.inf, neginf=-np.inf)
        best = np.repeat(np.minimum.reduceat(worth, starts), np.diff(starts, append=len(study)))
        tried, study = tried[worth == best], study[worth == best]
    return tried


def _merits(trials: pd.DataFrame) -> Iterator[Reals]:
    """Yield what a study selects by, first what counts first; the smallest is the best, NaN the worst."""
    hit = trials["outcome"].eq("reached").to_numpy(dtype=bool)
    yield (~hit).astype(np.float64)
    for name in ("evaluations_to_target", "steps_to_target_interpolated", "time_to_target_s"):
        yield np.where(hit, reals(trials, name), np.nan)
    yield reals(trials, "best_quality") * np.where(trials["metric_direction"].eq("max"), -1.0, 1.0)
    yield reals(trials, "point")
    yield pd.factorize(trials["trial_id"], sort=True)[0].astype(np.float64)


# -- replicates ------------------------------------------------------------------------------------------------------
def replicates(trials: pd.DataFrame, identity: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row per replicate, indexed as its trial in ``trials``.

    ``board``, ``cell``: numbers of :func:`identify`, which may be given as ``identity``; ``basis``: one of
    :data:`BASES`; ``study``, ``point``, ``seed``; ``hit``: the target was reached; ``steps_to_target``,
    ``time_to_target_s``: interpolated where known, NaN in a miss; ``spent_steps``, ``spent_time_s``: the same, and in a
    miss all that was spent; ``bound_steps``, ``bound_time_s``: the same again, but a miss that ended early (it
    diverged, it was cut off) has the whole budget, the least that it would have needed; then :data:`KEPT`, as stored,
    and ``contended``.

    Of trials of one seed under several patch versions of a workload only the newest counts: they share data and
    weights, so they are no independent repetitions. A measurement counts whatever it is; a failure does not.
    """
    identity = identify(trials) if identity is None else identity
    cell = identity["cell"].to_numpy()
    taken, basis = _counted(trials, cell)
    hit = trials["outcome"].eq("reached").to_numpy(dtype=bool)[taken]
    found = {
        "board": identity["board"].to_numpy()[taken],
        "cell": cell[taken],
        "basis": pd.Categorical.from_codes(basis, pd.Index(BASES)),
        **{name: _whole(trials, name)[taken] for name in NUMBERS},
        "hit": hit,
    }
    for unit in COSTS:
        found |= _cost(trials, taken, hit, unit)
    kept = {name: reals(trials, name)[taken] for name in KEPT}
    # Where everything is trained nothing of the base is left to store an adapter beside.
    kept["adapter_bytes"][kept["trainable_parameters"] >= reals(trials, "parameters")[taken]] = np.nan
    found |= kept
    found["contended"] = trials["contended"].eq(other=True).to_numpy(dtype=bool)[taken]
    return pd.DataFrame(found, index=trials.index[taken], copy=False)


NUMBERS = ("study", "point", "seed")
"""What numbers the replicates of a cell."""

COSTS = {
    "steps": ("steps_to_target", "steps_to_target_interpolated", "budget_steps"),
    "time_s": ("time_to_target_s", "time_to_target_interpolated_s", "budget_s"),
}
"""The columns of a trial for each unit of cost: to the target, the same interpolated, and the budget."""

KEPT = (
    "quality",
    "nvml_peak_bytes",
    "rss_peak_bytes",
    "optimizer_state_bytes",
    "trainable_parameters",
    "adapter_bytes",
    "stored_bytes",
    "forgetting",
    "time_s",
    "energy_j",
)
"""The columns of a trial that a replicate has unchanged, but for the adapter of a model that is trained whole."""


def _cost(trials: pd.DataFrame, taken: Numbers, hit: NDArray[np.bool_], unit: str) -> dict[str, Reals]:
    """Return what replicates took in ``unit``: to the target, in all, and at least."""
    name, interpolated, budget = COSTS[unit]
    reached = reals(trials, interpolated)[taken]
    reached = np.where(hit, np.where(np.isnan(reached), reals(trials, name)[taken], reached), np.nan)
    misses = taken[~hit]
    spent = reals(trials, unit)[misses]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.fmax(reals(trials, "budget_steps")[misses] / reals(trials, "steps")[misses], 1.0)
        least = np.fmin(spent * share, reals(trials, budget)[misses])
    whole = trials["outcome"].iloc[misses].eq("missed").to_numpy(dtype=bool)
    in_all, at_least = reached.copy(), reached.copy()
    in_all[~hit] = spent
    at_least[~hit] = np.where(whole, spent, np.where(np.isfinite(least), least, np.nan))
    return {name: reached, f"spent_{unit}": in_all, f"bound_{unit}": at_least}


def _counted(trials: pd.DataFrame, cell: Numbers) -> tuple[Numbers, Numbers]:
    """Return the positions of the replicates' trials, ordered by cell and number, and their bases."""
    measured = trials["outcome"].isin(MEASURED).to_numpy(dtype=bool)
    tune, rerun = (trials["phase"].eq(phase).to_numpy(dtype=bool) for phase in SEARCHED)
    confirmed = np.zeros(cell.max(initial=-1) + 1, dtype=bool)
    confirmed[cell[rerun & measured]] = True
    selected = _selected(trials, cell)
    taken = np.concatenate([np.flatnonzero(measured & ~tune), selected[~confirmed[cell[selected]]]])
    number = _joined([cell[taken], *(_whole(trials, name)[taken] for name in NUMBERS)])
    order = np.argsort(number, kind="stable")
    taken = _newest(trials, taken[order], number[order])
    return taken, np.where(rerun[taken], 2, np.where(tune[taken], 1, 0))


def _newest(trials: pd.DataFrame, taken: Numbers, number: Numbers) -> Numbers:
    """Return one trial for each ``number`` (sorted): that of the newest patch version of the workload."""
    starts = np.diff(number, prepend=-1) > 0
    if starts.all():
        return taken
    rows = trials.iloc[taken]
    patches = {text: _patch(text) for text in rows["workload_version"].unique()}
    ranks = {text: rank for rank, text in enumerate(sorted(patches, key=patches.__getitem__))}
    ids = pd.factorize(rows["trial_id"], sort=True)[0]
    order = np.lexsort([ids, -rows["workload_version"].map(ranks).to_numpy(), number])
    return taken[order][starts]


def _patch(version: Any) -> tuple[tuple[int, str], ...]:
    """Return a key that orders versions: numbers by value, other parts after them by text."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in str(version).split("."))
