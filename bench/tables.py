"""The stored tables of one or more results folders, read together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.protocol import Protocol
from bench.store import Store


@dataclass(frozen=True, kw_only=True)
class Tables:
    """``trials`` and ``curves`` of the folders, protocols by hash, and how many trials each folder holds."""

    trials: pd.DataFrame
    curves: pd.DataFrame
    protocols: Mapping[str, Protocol]
    sizes: Mapping[str, int]


def read(folders: Sequence[Path | str]) -> Tables:
    """Return what ``folders`` hold, the same whatever their order.

    Of one trial that two folders hold the one that finished first counts. A folder that is no store, is unreadable or
    of a newer schema raises :class:`~bench.errors.BadStore`.
    """
    names = sorted({str(folder) for folder in folders})
    stores = [Store(Path(name)) for name in names]
    tables = [store.trials() for store in stores]
    trials, kept = _first_of_each(tables)
    curves = [store.curves() for store in stores]
    return Tables(
        trials=trials,
        curves=pd.concat([curve[curve["trial_id"].isin(ids)] for curve, ids in zip(curves, kept, strict=True)]),
        protocols={key: rules for store in stores for key, rules in store.protocols().items()},
        sizes=dict(zip(names, map(len, tables), strict=True)),
    )


def _first_of_each(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, list[set[str]]]:
    """Return all trials, each once, and which of them are taken from which table."""
    marked = [table.assign(folder=number) for number, table in enumerate(tables) if len(table)]
    if not marked:
        return tables[0], [set() for _ in tables]
    every = pd.concat(marked).sort_values(["trial_id", "finished_at", "wall_s"], kind="stable", ignore_index=True)
    first = every.drop_duplicates("trial_id", ignore_index=True)
    kept = [set(first["trial_id"][first["folder"] == number]) for number in range(len(tables))]
    return first.drop(columns="folder"), kept
