"""Leaderboards: queries over the stored trials and nothing else.

Trials compare only within one board: same workload (major.minor of its version), tier, precision, data, protocol and
device class. Within a board a row is one setting of one algorithm over its seeds.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from bench.protocol import protocols
from bench.trial import MEASURED

Measure = Literal["time", "steps", "memory", "energy", "quality"]
MEASURES: tuple[Measure, ...] = ("time", "steps", "memory", "energy", "quality")

BOARD = [
    "workload",
    "workload_minor",
    "tier",
    "precision",
    "data_source",
    "data_sha256",
    "protocol",
    "protocol_sha256",
    "device_class",
]
"""What must be equal for two trials to compare."""

ROW = ["algorithm", "algorithm_version", "algorithm_source_sha256", "hyperparameters", "fillers"]
"""What makes a row of a board."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """One leaderboard: what all its rows share, its rows in order, and why it is not a ranking, if it is not."""

    shared: dict[str, Any]
    rows: pd.DataFrame
    notes: Sequence[str]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows, in order, as dictionaries."""
        return [{str(key): value for key, value in row.items()} for row in self.rows.to_dict("records")]


def boards(trials: pd.DataFrame, by: Measure = "time") -> list[Board]:
    """Return every board in ``trials``, ordered by name; input order never matters."""
    if trials.empty:
        return []
    trials = with_board_columns(trials.sort_values("trial_id"))
    return [
        _board(dict(zip(BOARD, key, strict=True)), group, by)
        for key, group in trials.groupby(BOARD, sort=True, dropna=False)
    ]


def with_board_columns(trials: pd.DataFrame) -> pd.DataFrame:
    """Return ``trials`` with the columns of :data:`BOARD` that are derived from others."""
    return trials.assign(workload_minor=trials["workload_version"].map(_major_minor))


def _board(shared: dict[str, Any], trials: pd.DataFrame, by: Measure) -> Board:
    notes = []
    # A trial that failed before it started knows neither device nor metric.
    if by == "time" and not trials["device_listed"].dropna().all():
        notes.append(f"{shared['device_class']} is not a listed device class: ordered by steps, not by time")
        by = "steps"
    rows = pd.DataFrame([_row(dict(zip(ROW, key, strict=True)), cell) for key, cell in trials.groupby(ROW, sort=True)])
    rows.insert(1, "setting", _settings(rows))
    rows = rows.iloc[_order(rows, by, minimise=_only(trials["metric_direction"]) != "max")].reset_index(drop=True)
    rules = protocols().get(shared["protocol"])
    enough = (
        rows["seeds"] >= rules.seeds if rules is not None and rules.ranked else pd.Series(data=False, index=rows.index)
    )
    busy = rows["contended"] if by == "time" else pd.Series(data=False, index=rows.index)
    rows.insert(0, "order", range(1, len(rows) + 1))
    rows.insert(1, "ranked", enough & ~busy)
    if not enough.all():
        wanted = f"takes {rules.seeds} seeds" if rules is not None and rules.ranked else "is shown and never ranked"
        notes.append(f"(n) is a place in this list, not a rank: protocol {shared['protocol']} {wanted}")
    if busy.any():
        notes.append("* measured on a busy machine: this time does not rank; see --by steps")
    return Board(
        shared=shared | {"by": by, "target": _only(trials["target"]), "metric": _only(trials["metric"])},
        rows=rows,
        notes=notes,
    )


def _settings(rows: pd.DataFrame) -> list[str]:
    """Return, for each row, in what it differs from the other rows of its algorithm."""
    facts = [_facts(row) for row in rows.to_dict("records")]
    texts = []
    for mine, name in zip(facts, rows["algorithm"], strict=True):
        peers = [other for other, peer in zip(facts, rows["algorithm"], strict=True) if peer == name]
        differing = [key for key in mine if any(other.get(key) != mine[key] for other in peers)]
        texts.append(", ".join(f"{key}={mine[key]}" for key in differing))
    return texts


def _facts(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    fillers = "+".join(part["name"] for part in json.loads(row["fillers"]))
    identity = {"version": row["algorithm_version"], "source": row["algorithm_source_sha256"][:8], "with": fillers}
    hyperparameters: dict[str, Any] = json.loads(row["hyperparameters"])
    return hyperparameters | identity


def _row(setting: dict[str, Any], cell: pd.DataFrame) -> dict[str, Any]:
    outcomes = cell["outcome"].value_counts().sort_index()
    cell = cell[cell["outcome"].isin(MEASURED)]  # a failure is told, and is no measurement
    hits = cell[cell["outcome"] == "reached"]
    nvml = bool(cell["nvml_peak_bytes"].notna().any())
    return {
        **setting,
        "seeds": len(cell),
        "hits": len(hits),
        "steps_to_target": _geometric_mean(hits["steps_to_target_interpolated"]),
        "steps_cv": _cv(hits["steps_to_target_interpolated"]),
        "time_to_target_s": _geometric_mean(hits["time_to_target_interpolated_s"]),
        "quality": cell["quality"].mean(skipna=False),  # a seed that diverged to NaN counts
        "quality_sd": cell["quality"].std(skipna=False) if len(cell) > 1 else np.nan,
        "memory_bytes": cell["nvml_peak_bytes" if nvml else "rss_peak_bytes"].median(),
        "memory_source": "nvml" if nvml else "rss",
        "optimizer_state_bytes": cell["optimizer_state_bytes"].median(),
        "energy_j": cell["energy_j"].mean(),
        "contended": bool(cell["contended"].eq(other=True).any()),
        "outcomes": ", ".join(f"{count} {name}" for name, count in outcomes.items()),
    }


def _order(rows: pd.DataFrame, by: Measure, *, minimise: bool) -> list[int]:
    quality = rows["quality"] if minimise else -rows["quality"]
    column = {
        "time": rows["time_to_target_s"].where(~rows["contended"]),
        "steps": rows["steps_to_target"],
        "memory": rows["memory_bytes"],
        "energy": rows["energy_j"],
        "quality": quality,
    }[by]
    failed = rows["seeds"] == 0
    missed = rows["hits"] < rows["seeds"] if by in {"time", "steps"} else pd.Series(data=False, index=rows.index)
    keys = pd.DataFrame(
        {
            "failed": failed,
            "missed": missed,
            "value": column,
            "steps": rows["steps_to_target"],
            "quality": quality,
            "name": rows["algorithm"],
        }
    )
    return list(keys.sort_values(list(keys.columns), na_position="last", kind="stable").index)


def _geometric_mean(values: pd.Series[float]) -> float:
    found = values.dropna()
    return float(np.exp(np.log(found).mean())) if len(found) else float("nan")


def _cv(values: pd.Series[float]) -> float:
    found = values.dropna()
    return float(found.std() / found.mean()) if len(found) > 1 else float("nan")


def _only(values: pd.Series[Any]) -> Any:
    known = values.dropna().unique()
    return known[0] if len(known) else None


def _major_minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
