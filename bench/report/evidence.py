"""What the report is made of: the tables of one or more stores, and everything that is derived from them, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bench.board import Board, boards
from bench.errors import BadStore
from bench.protocol import Protocol
from bench.registry import Registry
from bench.report.text import Anchors
from bench.score import identify
from bench.standings import Standings, standings
from bench.tables import read

BUSY = "every time here comes from a busy machine: ordered by steps, not by time"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One results folder, as it was named, and how many trials it holds."""

    name: str
    trials: int


@dataclass(frozen=True, kw_only=True)
class View:
    """One board with its trials, its name and the identifier of its section."""

    board: Board
    trials: pd.DataFrame
    label: str
    anchor: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The stored tables with the rules that belong to them, and the plugins that are installed here.

    ``repeated`` counts the trials that more than one folder holds: the one that finished first counts.
    """

    sources: Sequence[Source]
    trials: pd.DataFrame
    curves: pd.DataFrame
    protocols: Mapping[str, Protocol]
    registry: Registry
    repeated: int

    @cached_property
    def boards(self) -> list[Board]:
        """Every board, in the order of their names: by time, but by steps where every time is of a busy machine."""
        found = boards(self.trials, "time", self.protocols)
        busy = [board.shared["by"] == "time" and bool(board.rows["contended"].all()) for board in found]
        if not any(busy):
            return found
        by_steps = [
            replace(board, notes=(BUSY, *board.notes)) for board in boards(self.trials, "steps", self.protocols)
        ]
        return [steps if instead else time for time, steps, instead in zip(found, by_steps, busy, strict=True)]

    @cached_property
    def standings(self) -> list[Standings]:
        """Every standing over several workloads: by time, but by steps where no time ranks."""
        found = standings(self.trials, "time", self.protocols)
        if all(standing.rows["score"].notna().any() for standing in found):
            return found
        by_steps = {_key(each): each for each in standings(self.trials, "steps", self.protocols)}
        return [each if each.rows["score"].notna().any() else by_steps.get(_key(each), each) for each in found]

    @cached_property
    def views(self) -> list[View]:
        """Every board with its trials and its names, in the order of the boards."""
        number = identify(self.trials)["board"].to_numpy()
        shared = [board.shared for board in self.boards]
        keys = ("workload", "workload_minor", "tier", "protocol", "device_class", "data_source", "precision")
        return [
            View(
                board=board,
                trials=self.trials[number == place],
                label=label,
                anchor=self.anchors("board", *(board.shared[key] for key in keys)),
            )
            for place, (board, label) in enumerate(zip(self.boards, _labels(shared), strict=True))
        ]

    @cached_property
    def _curves_by_trial(self) -> dict[str, pd.DataFrame]:
        return {str(trial): curve for trial, curve in self.curves.groupby("trial_id", sort=True)}

    def curves_of(self, trials: pd.DataFrame) -> pd.DataFrame:
        """Return the curves of ``trials``."""
        found = [self._curves_by_trial[name] for name in trials["trial_id"] if name in self._curves_by_trial]
        return pd.concat(found) if found else self.curves.iloc[:0]

    @cached_property
    def algorithms(self) -> list[str]:
        """The algorithms that have trials."""
        return sorted(self.trials["algorithm"].unique())

    @cached_property
    def anchors(self) -> Anchors:
        """What gives the parts of the page their identifiers."""
        return Anchors()

    @cached_property
    def algorithm_anchors(self) -> dict[str, str]:
        """The identifiers of the algorithms' sections, by name."""
        return {name: self.anchors("algorithm", name) for name in self.algorithms}


def _key(standing: Standings) -> tuple[str, ...]:
    return tuple(str(standing.shared[key]) for key in ("protocol", "protocol_sha256", "device_class", "origin"))


def gather(folders: Sequence[Path], registry: Registry) -> Evidence:
    """Read every store of ``folders``; a folder without a trial, or none at all, raises ``BadStore``."""
    tables = read(folders)
    if not len(tables.trials):
        raise BadStore(
            f"nothing is recorded in {', '.join(map(repr, tables.sizes))}",
            hint="run something first (bench run ...), or name another folder: --results DIR",
        )
    return Evidence(
        sources=[Source(name=name, trials=size) for name, size in tables.sizes.items()],
        trials=tables.trials,
        curves=tables.curves,
        protocols=tables.protocols,
        registry=registry,
        repeated=sum(tables.sizes.values()) - len(tables.trials),
    )


_TELLING = ("workload_minor", "data_source", "precision", "protocol", "device_class", "protocol_sha256", "data_sha256")
"""What is added to a board's name where it is needed, the first one first."""


def _labels(shared: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [f"{board['workload']} {board['tier']}" for board in shared]
    for key in _TELLING:
        alike = {
            name for name in names if len({str(b[key]) for b, n in zip(shared, names, strict=True) if n == name}) > 1
        }
        names = [
            f"{name}, {_short(key, board[key])}" if name in alike else name
            for board, name in zip(shared, names, strict=True)
        ]
    return names


def _short(key: str, value: Any) -> str:
    if key == "workload_minor":
        return f"version {value}"
    if key.endswith("sha256"):
        return f"{key.removesuffix('_sha256')} {str(value)[:8]}"
    return f"{value} data" if key == "data_source" else str(value)
