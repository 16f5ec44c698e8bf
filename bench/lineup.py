"""Lineups: who competes over several workloads, and what each replicate cost. What standings are computed from.

A *column* is one workload: major.minor, tier, precision and data. Tier ``held-out`` is a variant that gates the column
of its workload, tier ``unscored`` never counts. An *entrant* is an algorithm; where it has several rows on one board,
the reference keeps the name and every other row competes under its name and setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench import labels, ranking
from bench.errors import BadValue
from bench.protocol import Protocol
from bench.ranking import Measure
from bench.score import CELL, SEARCHED, Numbers, Reals, board_keys, cell_hyperparameters, identify, reals, replicates

HELD_OUT, UNSCORED = "held-out", "unscored"
"""The tiers that are no columns of their own."""

COSTS: tuple[Measure, ...] = ("time", "steps", "memory", "energy")
"""What an algorithm can be charged for."""

STANDING = ["protocol", "protocol_sha256", "device_class", "origin"]
"""What all columns of a standing share."""

COLUMN = ["workload", "workload_minor", "tier", "precision", "data_source", "data_sha256"]
"""What makes a column."""


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """The costs of ``entrants`` (sorted): entrant x column x replicate, inf for a miss, NaN where nobody knows.

    ``workloads`` names the first columns; the others are held-out variants, and number j of them gates the workload at
    ``gates[j]``. ``run`` says which columns an entrant was run on, ``reference`` which entrant it is compared with on
    a workload (-1: none). ``unranked`` has those whose costs are not all known, with the reason.
    """

    shared: dict[str, Any]
    entrants: list[str]
    workloads: list[str]
    gates: NDArray[np.intp]
    costs: Reals
    run: NDArray[np.bool_]
    reference: Numbers
    unranked: dict[str, str]
    notes: tuple[str, ...]

    def keep(self, entrants: Sequence[str]) -> Lineup:
        """Return the lineup with these of its entrants alone."""
        places = np.array([place for place, name in enumerate(self.entrants) if name in entrants], dtype=np.int64)
        moved = np.full(len(self.entrants) + 1, -1, dtype=np.int64)  # the last stands for "none"
        moved[places] = np.arange(len(places))
        names = [self.entrants[place] for place in places]
        reference = moved[self.reference[places]]
        return replace(self, entrants=names, costs=self.costs[places], run=self.run[places], reference=reference)


def lineups(trials: pd.DataFrame, by: Measure, known: Mapping[str, Protocol]) -> list[Lineup]:
    """Return every lineup in ``trials`` of a protocol that ranks, ordered by its keys; input order never shows.

    Training from scratch and fine-tuning are apart: hardly any algorithm does both, and what was not run is a miss.
    A cost other than :data:`COSTS` raises :class:`~bench.errors.BadValue`.
    """
    if by not in COSTS:
        raise BadValue(f"standings by {by!r}: there is no such cost", hint=f"one of {', '.join(COSTS)}")
    trials = trials[trials["information"].isna()]  # after training nobody races to a target
    tuned = trials["base_sha256"].notna()
    return [*_lineups(trials[~tuned], by, known), *_lineups(trials[tuned], by, known)]


def _lineups(trials: pd.DataFrame, by: Measure, known: Mapping[str, Protocol]) -> list[Lineup]:
    """Return the lineups of ``trials``, of which all start from trained weights or none does."""
    if trials.empty:
        return []
    trials = trials.sort_values("trial_id", ignore_index=True)
    identity = identify(trials)
    repeated = replicates(trials, identity)
    every, boards = _cells(trials, identity, repeated), _boards(trials, identity["board"])
    found = []
    for _, columns in boards.groupby(STANDING, sort=True, dropna=False):
        rules = known.get(columns["protocol_sha256"].iloc[0])
        if rules is None or not rules.ranked:
            continue
        used, notes = _columns(columns)
        if used.empty or used["gates"].ge(0).all():
            continue
        lineup = _lineup(used, every, repeated, rules, by, notes)
        if lineup.shared["by"] == "time" and np.isnan(lineup.costs).any(axis=(1, 2)).all():
            notes = ["every time comes from a busy machine: by steps, not by time", *notes]
            lineup = _lineup(used, every, repeated, rules, "steps", notes)
        unmeasured = np.isnan(lineup.costs).any() and not np.isfinite(lineup.costs).any()
        if by in {"time", "steps"} or not unmeasured:
            found.append(lineup)
    return found


def _boards(trials: pd.DataFrame, board: pd.Series[int]) -> pd.DataFrame:
    """Return what the trials of each board share; one that failed before it started knows neither goal nor device."""
    known = pd.DataFrame(board_keys(trials)).join(trials[["protocol_version", "origin", "target", "device_listed"]])
    found = known.groupby(board).first()
    goals = trials[["target", "metric", "metric_direction"]].groupby(board).nunique()
    unlisted = trials["device_listed"].eq(other=False).groupby(board).any()
    searched = trials["phase"].isin(SEARCHED).groupby(board).any()
    return found.assign(agreed=goals.le(1).all(axis=1), listed=~unlisted, replicate=np.where(searched, "study", "seed"))


def _cells(trials: pd.DataFrame, identity: pd.DataFrame, repeated: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell, numbered like it, with its ``entrant`` and the cell that it is compared with."""
    facts = trials[[*CELL, "reference"]].assign(hyperparameters=cell_hyperparameters(trials), board=identity["board"])
    every = facts.groupby(identity["cell"]).first()
    every["is_reference"] = trials["is_reference"].eq(other=True).groupby(identity["cell"]).any()
    every["basis"] = repeated.groupby("cell")["basis"].first().astype(object)
    names, compared = [], []
    for _, rows in every.groupby("board", sort=True):
        names += _entrants(rows)
        places, _ = ranking.references(rows)
        compared += [int(rows.index[place]) if place >= 0 else -1 for place in places]
    return every.assign(entrant=names, compared=compared)


def _entrants(rows: pd.DataFrame) -> list[str]:
    """Return under which name each row of a board competes."""
    plain = ~rows["algorithm"].duplicated(keep=False)
    tuned = rows["algorithm"][rows["is_reference"]]
    plain[tuned.index] = ~tuned.duplicated(keep=False)
    texts = zip(rows["algorithm"], labels.settings(rows), plain, strict=True)
    return [name if alone else f"{name} {setting}" for name, setting, alone in texts]


# -- columns ---------------------------------------------------------------------------------------------------------
def _columns(columns: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the boards that are columns, workloads first, each with its label and what it gates; and what is left out.

    The index stays the number of the board.
    """
    unscored, untargeted = columns["tier"].eq(UNSCORED), columns["target"].isna()
    notes = [f"{int(unscored.sum())} boards of tier {UNSCORED} do not count"] if unscored.any() else []
    disagreeing, untargeted = ~columns["agreed"] & ~unscored, untargeted & ~unscored
    for bad, why in ((disagreeing, "its trials disagree on the target"), (untargeted, "it has no target")):
        notes += [f"{row.workload} {row.tier} does not count: {why}" for row in columns[bad].itertuples()]
    used = columns[~(unscored | disagreeing | untargeted)]
    held_out = used["tier"].eq(HELD_OUT)
    base, variants = used[~held_out], used[held_out]
    same = ["workload", "workload_minor", "precision", "data_source"]
    places = base[same].assign(gates=range(len(base))).drop_duplicates(same, keep=False)
    gates = variants[same].merge(places, on=same, how="left")["gates"].to_numpy()
    variants = variants.assign(label=variants["workload"] + f" ({HELD_OUT})", gates=gates)
    lost = variants["gates"].isna() | variants["gates"].duplicated(keep=False)
    notes += [f"{label} gates nothing: it is not the one variant of one column" for label in variants["label"][lost]]
    return pd.concat([base.assign(label=_names(base), gates=-1), variants[~lost]]), notes


def _names(columns: pd.DataFrame) -> list[str]:
    """Return the workload of each column, with what tells columns of one workload apart."""
    names = []
    for row in columns.to_dict("records"):
        peers = columns[columns["workload"] == row["workload"]]
        differing = [name for name in COLUMN[1:] if len(peers[name].unique()) > 1]
        names.append(" ".join([row["workload"], *(str(row[name])[:8] for name in differing)]))
    return names


# -- one lineup ------------------------------------------------------------------------------------------------------
def _lineup(
    columns: pd.DataFrame, every: pd.DataFrame, repeated: pd.DataFrame, rules: Protocol, by: Measure, notes: list[str]
) -> Lineup:
    by, notes = _charge(columns, rules, by, notes)
    here = every[every["board"].isin(columns.index)]
    here = here.assign(column=columns.index.get_indexer(pd.Index(here["board"])))
    entrants = sorted(here["entrant"].unique())
    here = here.assign(place=pd.Index(entrants).get_indexer(pd.Index(here["entrant"])))
    counted = repeated[repeated["cell"].isin(here.index)]
    counted = counted.assign(number=counted.groupby("cell").cumcount(), cost=_costs(counted, by))
    counted = counted[counted["number"] < rules.replicates]
    cell = here.loc[counted["cell"]]
    costs = np.full((len(entrants), len(columns), rules.replicates), np.inf)
    costs[cell["place"], cell["column"], counted["number"]] = counted["cost"]
    run = np.zeros(costs.shape[:2], dtype=bool)
    run[here["place"], here["column"]] = True
    here = here.assign(few=counted["cell"].value_counts().reindex(here.index, fill_value=0) < rules.replicates)
    names, size = columns["label"].tolist(), int((columns["gates"] < 0).sum())
    first = columns[[*STANDING, "protocol_version", "replicate"]].astype(object).iloc[0]
    shared: dict[str, Any] = {str(name): None if pd.isna(value) else value for name, value in first.items()}
    shared |= {"by": by, "confidence": rules.confidence, "replicates": rules.replicates}
    return Lineup(
        shared=shared | {"workloads": tuple(names[:size]), "held_out": tuple(names[size:])},
        entrants=entrants,
        workloads=names[:size],
        gates=columns["gates"].to_numpy(dtype=np.intp)[size:],
        costs=costs,
        run=run,
        reference=_references(here, run.shape)[:, :size],
        unranked=_unranked(here, counted, rules, by),
        notes=(*notes, *_missing(here, entrants, names, run, rules)),
    )


def _charge(columns: pd.DataFrame, rules: Protocol, by: Measure, notes: list[str]) -> tuple[Measure, list[str]]:
    """Return what is charged, and what to know of it."""
    if by == "time" and not columns["listed"].all():
        by = "steps"
        notes = [f"{columns['device_class'].iloc[0]} is not a listed device class: by steps, not by time", *notes]
    if by == "steps" and rules.search == "imported":
        unit = "steps are what each entrant counted as one: where they did not count alike, they do not compare"
        notes = [unit, *notes]
    return by, notes


def _costs(counted: pd.DataFrame, by: Measure) -> Reals:
    """Return what each replicate is charged: inf for a miss, NaN where a cost is not known or does not count."""
    if by == "memory":
        nvml = counted["nvml_peak_bytes"].notna().groupby(counted["board"]).transform("any")
        value = counted["nvml_peak_bytes"].where(nvml, counted["rss_peak_bytes"]).to_numpy(dtype=np.float64)
    else:
        value = reals(counted, _CHARGED[by])
    cost = np.where(counted["hit"], np.where(value > 0, value, np.nan), np.inf)
    return np.where(counted["contended"] & (by == "time"), np.nan, cost)


_CHARGED = {"time": "time_to_target_s", "steps": "steps_to_target", "energy": "energy_j"}
"""The column of the replicates for each cost; memory has two."""


def _references(here: pd.DataFrame, shape: tuple[int, ...]) -> Numbers:
    """Return whom each is compared with; only replicates of one kind compare, as a selected point flatters."""
    found = np.full(shape, -1, dtype=np.int64)
    some = here[here["compared"] >= 0]
    theirs = here.loc[some["compared"]]
    alike = some["basis"].to_numpy() == theirs["basis"].to_numpy()
    found[some["place"][alike], some["column"][alike]] = theirs["place"][alike]
    return found


def _unranked(here: pd.DataFrame, counted: pd.DataFrame, rules: Protocol, by: Measure) -> dict[str, str]:
    """Return who cannot be ranked, with the reason."""
    unknown = counted[counted["cost"].isna()]
    found = dict.fromkeys(here["entrant"][unknown["cell"]], f"{by} that nobody measured")
    if by == "time":
        found |= dict.fromkeys(here["entrant"][unknown["cell"][unknown["contended"]]], "a time from a busy machine")
    if rules.reruns:
        unconfirmed = here["entrant"][here["basis"] == "selected"]
        found |= dict.fromkeys(unconfirmed, "points that were selected and not repeated")
    return dict(sorted(found.items()))


def _missing(
    here: pd.DataFrame, entrants: Sequence[str], names: Sequence[str], run: NDArray[np.bool_], rules: Protocol
) -> list[str]:
    """Say who was not run where, and who has too few replicates."""
    notes = []
    for name, own in zip(entrants, run, strict=True):
        if not own.all():
            lacking = [column for column, there in zip(names, own, strict=True) if not there]
            notes.append(f"{name} was not run on {', '.join(lacking)}: a miss there")
    for place, rows in here[here["few"]].groupby("place", sort=True):
        where = ", ".join(names[column] for column in sorted(rows["column"]))
        what = f"fewer than the {rules.replicates} replicates of the protocol on {where}"
        notes.append(f"{entrants[int(str(place))]} has {what}: the others count as misses")
    return notes
