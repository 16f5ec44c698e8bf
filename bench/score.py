"""From single trials to independent replicates: what belongs together, what a study selects, what counts.

A *cell* is one row of a board: one algorithm in one version, beside the same fillers, at one setting; where a protocol
searches the setting, all points of the search are one cell. A *replicate* is one independent repetition of a cell: a
seed of a fixed setting, or a study of a search. A study counts with the trials that repeat the point which it selected
(basis ``confirmed``). Where nothing was repeated it counts with the selected trial itself (basis ``selected``), which
flatters: the best of several is partly the luckiest. The two are never mixed in a cell.

Pure functions over the stored table ``trials``, in any order of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        shifted = codes.astype(np.int64) + 1
        found = shifted if found is None else found * (len(values) + 1) + shifted
        found = pd.factorize(found, sort=True)[0].astype(np.int64)
    assert found is not None
    return found


def reals(table: pd.DataFrame, name: str) -> Reals:
    """Return a column as floats, null as NaN."""
    return table[name].to_numpy(dtype=np.float64, na_value=np.nan)


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
    :data:`BASES`; ``study``, ``point``, ``seed``; ``hit``: the target was reached; ``steps``, ``time_s``: to the
    target, interpolated where known, NaN in a miss; ``spent_steps``, ``spent_time_s``: the same, and in a miss all that
    was spent; ``bound_steps``, ``bound_time_s``: the same again, but a miss that ended early (it diverged, it was cut
    off) has the whole budget, the least that it would have needed; then quality, memory and energy as stored.

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
        "basis": pd.Categorical.from_codes(basis, BASES),
        **{name: trials[name].to_numpy()[taken] for name in ("study", "point", "seed")},
        "hit": hit,
    }
    cost = _Cost(trials, taken)
    for unit in ("steps", "time_s"):
        reached, spent, bound = cost.of(unit)
        found[unit] = np.where(hit, reached, np.nan)
        found[f"spent_{unit}"] = np.where(hit, reached, spent)
        found[f"bound_{unit}"] = np.where(hit, reached, bound)
    for name in KEPT:
        found[name] = reals(trials, name)[taken]
    found["contended"] = trials["contended"].eq(other=True).to_numpy(dtype=bool)[taken]
    return pd.DataFrame(found, index=trials.index[taken])


KEPT = (
    "quality",
    "nvml_peak_bytes",
    "rss_peak_bytes",
    "optimizer_state_bytes",
    "trainable_parameters",
    "energy_j",
)
"""The columns of a trial that a replicate has unchanged."""


class _Cost:
    """What chosen trials took: to the target, in all, and at least."""

    def __init__(self, trials: pd.DataFrame, taken: Numbers) -> None:
        self._trials, self._taken = trials, taken
        self._whole = trials["outcome"].eq("missed").to_numpy(dtype=bool)[taken]
        steps, budget = self._real("steps"), self._real("budget_steps")
        with np.errstate(divide="ignore", invalid="ignore"):
            self._share = np.fmax(budget / steps, 1.0)

    def _real(self, name: str) -> Reals:
        return reals(self._trials, name)[self._taken]

    def of(self, unit: str) -> tuple[Reals, Reals, Reals]:
        """Return (to the target, all that was spent, the least that a miss needs) in ``steps`` or ``time_s``."""
        raw, exact = {
            "steps": ("steps_to_target", "steps_to_target_interpolated"),
            "time_s": ("time_to_target_s", "time_to_target_interpolated_s"),
        }[unit]
        interpolated, spent = self._real(exact), self._real(unit)
        reached = np.where(np.isnan(interpolated), self._real(raw), interpolated)
        budget = self._real("budget_steps" if unit == "steps" else "budget_s")
        with np.errstate(invalid="ignore"):
            least = np.fmin(spent * self._share, budget)
        return reached, spent, np.where(self._whole, spent, least)


def _counted(trials: pd.DataFrame, cell: Numbers) -> tuple[Numbers, Numbers]:
    """Return the positions of the replicates' trials, ordered by cell and number, and their bases."""
    measured = trials["outcome"].isin(MEASURED).to_numpy(dtype=bool)
    tune, rerun = (trials["phase"].eq(phase).to_numpy(dtype=bool) for phase in SEARCHED)
    confirmed = np.zeros(cell.max(initial=-1) + 1, dtype=bool)
    confirmed[cell[rerun & measured]] = True
    selected = _selected(trials, cell)
    taken = np.concatenate([np.flatnonzero(measured & ~tune), selected[~confirmed[cell[selected]]]])
    number = _numbers([cell[taken], *(reals(trials, name)[taken] for name in ("study", "point", "seed"))])
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
