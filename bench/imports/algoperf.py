"""The public logs of the AlgoPerf v0.5 competition as trials of a foreign store.

The source is one CSV file with one line per trial of the logs that MLCommons published (repository
``mlcommons/submissions_algorithms``). A line becomes a row of ``trials``; :func:`to_trials` says how.

A submission was written for one framework and is scored as one, so a file that holds two frameworks of one submission
in one ruleset is refused: a median over both would be the score of neither. A step is what a submission did in one
call: those of ``lawa_ema`` and ``lawa_queue`` take some 260 times as long as the baseline's, so they do not compare.
"""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench import record
from bench.errors import BadData
from bench.protocol import Protocol
from bench.trial import digest

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN = "algoperf v0.5"
VERSION = "0.5"
STUDIES = 5

RULESETS = {
    "external_tuning": Protocol(
        name="algoperf-external",
        version=VERSION,
        summary="AlgoPerf v0.5, external tuning: 5 studies of 5 points, the first to the target counts",
        seeds=1,
        ranked=True,
        studies=STUDIES,
        search="imported",
    ),
    "self_tuning": Protocol(
        name="algoperf-self",
        version=VERSION,
        summary="AlgoPerf v0.5, self-tuning: 5 studies of one run without hyperparameters",
        seeds=1,
        ranked=True,
        studies=STUDIES,
        search="imported",
    ),
}
"""The protocol of each ruleset of the competition."""

TRIALS_PER_STUDY = {"external_tuning": 5, "self_tuning": 1}
NAMES = ("ruleset", "submission", "framework", "workload")


@dataclass(frozen=True)
class Number:
    """What a column of numbers may hold; ``optional``: it may be empty."""

    whole: bool
    lowest: float = -np.inf
    above: bool = False  # the lowest value itself is not allowed
    optional: bool = False

    def __str__(self) -> str:
        """Return the domain in words."""
        kind = "a whole number" if self.whole else "a finite number"
        bound = "" if np.isinf(self.lowest) else f" {'above' if self.above else 'from'} {self.lowest:g}"
        return kind + bound + (", or empty" if self.optional else "")

    def holds(self, values: pd.Series[float]) -> pd.Series[bool]:
        """Say which of ``values`` lie in the domain."""
        above = values > self.lowest if self.above else values >= self.lowest
        return above & np.isfinite(values) & (values == values.round() if self.whole else values.notna())


NUMBERS = {
    "study": Number(whole=True, lowest=0),
    "trial": Number(whole=True, lowest=1),
    "time_to_target_s": Number(whole=False, lowest=0, above=True, optional=True),
    "steps_to_target": Number(whole=True, lowest=0, optional=True),
    "target_eval_index": Number(whole=True, lowest=0, optional=True),
    "n_evals": Number(whole=True, lowest=0),
    "best_metric": Number(whole=False, optional=True),
    "end_time_s": Number(whole=False, lowest=0),
    "end_step": Number(whole=True, lowest=0),
}
"""The columns of numbers; beside :data:`NAMES` there is no other column."""

TARGET = ["time_to_target_s", "steps_to_target", "target_eval_index"]
"""Empty together where the target was missed."""

TRIAL = ["ruleset", "submission", "workload", "study", "trial"]
"""What no two lines may share."""


CONSTANT = {
    "schema_version": record.SCHEMA_VERSION,
    "origin": ORIGIN,
    "algorithm_source_sha256": "",
    "hyperparameters": "{}",
    "fillers": "[]",
    "workload_version": VERSION,
    "precision": "unknown",
    "data_source": "algoperf",
    "protocol_version": VERSION,
    "phase": "tune",
    "seed": 0,
    "reference": "baseline",
    "device_class": "algoperf-v05",
    "device_listed": True,
    "outcome_reason": "",
    "trust_tier": "self-reported",
}
"""What every imported trial has in common."""


def workloads() -> Mapping[str, Mapping[str, Any]]:
    """Return the scored workloads by name: role (base or held-out), base, metric, direction and target."""
    return tomllib.loads(resources.files("bench.imports").joinpath("algoperf_workloads.toml").read_text("utf-8"))


def import_csv(path: Path, results: Path) -> pa.Table:
    """Read the CSV file ``path`` into the folder ``results`` and return what is stored; equal files give equal bytes.

    A bad file raises :class:`~bench.errors.BadData` and leaves no folder; a folder of other results raises
    :class:`~bench.errors.BadStore`.
    """
    from bench.store import Store

    table = to_trials(read(path))
    Store(results, create=True).put_foreign(table, ORIGIN, list(RULESETS.values()))
    return table


# -- reading -----------------------------------------------------------------------------------------------------------
def read(path: Path) -> pd.DataFrame:
    """Return the checked lines of the CSV file ``path``, numbers as numbers and empty fields as NaN.

    Whatever is wrong raises :class:`~bench.errors.BadData` with the file, the line, the value and what is allowed.
    """
    lines = _lines(path)
    _check_columns(path, lines)
    _refuse(path, lines, ~lines["ruleset"].isin(list(RULESETS)), "ruleset", " or ".join(map(repr, RULESETS)))
    for column in NAMES[1:]:
        _refuse(path, lines, lines[column].str.strip() == "", column, "a name")
    values = lines.assign(**{column: _numbers(path, lines, column) for column in NUMBERS})
    _check_relations(path, lines, values)
    _check_trials(path, lines, values)
    return values


def _lines(path: Path) -> pd.DataFrame:
    """Return the fields as text: row i of the frame is line i + 2 of the file."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    wrong: list[str] = []

    def wrong_width(row: arrow_csv.InvalidRow) -> str:
        fields = f"{row.actual_columns} fields, {row.expected_columns} expected"
        wrong.append(f"{path}, line {row.number}: {fields}: {row.text[:60]!r}")
        return "error"

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=False),  # lines are numbered in order only
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=wrong_width),
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror or error}", hint="give the path of a CSV file") from None
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise BadData(wrong[0] if wrong else f"{path} is not a CSV file in UTF-8: {error}") from None
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _check_columns(path: Path, lines: pd.DataFrame) -> None:
    wanted, found = [*NAMES, *NUMBERS], list(lines.columns)
    lacking = [name for name in wanted if name not in found]
    strange = [name for name in found if name not in wanted or found.count(name) > 1]
    faults = [f"lacks the columns {', '.join(lacking)}"] if lacking else []
    faults += [f"has columns that are unknown or twice there: {', '.join(strange)[:200]}"] if strange else []
    if faults:
        raise BadData(f"{path}, line 1: {' and '.join(faults)}", hint=f"the columns are {', '.join(wanted)}")
    if lines.empty:
        raise BadData(f"{path} has no line of data after its heading")


def _refuse(path: Path, lines: pd.DataFrame, bad: pd.Series[bool], column: str, allowed: str) -> None:
    """Raise for the first line that is ``bad``, if one is."""
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        value = lines[column].iloc[row]
        raise BadData(f"{path}, line {row + 2}: {column} is {value!r}; allowed: {allowed}")


def _numbers(path: Path, lines: pd.DataFrame, column: str) -> pd.Series[float]:
    domain, empty = NUMBERS[column], lines[column] == ""
    values = pd.to_numeric(lines[column].mask(empty), errors="coerce").astype("float64")
    _refuse(path, lines, ~(domain.holds(values) | (empty & domain.optional)), column, str(domain))
    return values


def _check_relations(path: Path, lines: pd.DataFrame, values: pd.DataFrame) -> None:
    """Check what the columns of one line say of each other."""
    hit = values[TARGET[0]].notna()
    for column in TARGET[1:]:
        allowed = f"a number where {TARGET[0]} has one, empty where it is empty"
        _refuse(path, lines, values[column].notna() != hit, column, allowed)
    for column, limit in (("time_to_target_s", "end_time_s"), ("steps_to_target", "end_step")):
        _refuse(path, lines, values[column] > values[limit], column, f"at most {limit}")
    _refuse(path, lines, values["target_eval_index"] >= values["n_evals"], "target_eval_index", "below n_evals")
    _refuse(path, lines, values["study"] >= STUDIES, "study", f"0 to {STUDIES - 1}")
    for ruleset, count in TRIALS_PER_STUDY.items():
        over = (values["ruleset"] == ruleset) & (values["trial"] > count)
        _refuse(path, lines, over, "trial", f"1 to {count} in ruleset {ruleset}")


def _check_trials(path: Path, lines: pd.DataFrame, values: pd.DataFrame) -> None:
    """Check that each trial is there once, and that a submission has one framework."""
    twice = values.duplicated(TRIAL)
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        first = int(np.flatnonzero((values[TRIAL] == values[TRIAL].iloc[row]).all(axis=1))[0])
        what = ", ".join(f"{name} {lines[name].iloc[row]}" for name in TRIAL)
        raise BadData(f"{path}, line {row + 2}: the trial of line {first + 2} again ({what})")
    own = values.groupby(["ruleset", "submission"])["framework"].transform("first")
    allowed = "the framework of the submission's first line: one submission is scored in one framework"
    _refuse(path, lines, values["framework"] != own, "framework", allowed)


# -- mapping -----------------------------------------------------------------------------------------------------------
def to_trials(lines: pd.DataFrame) -> pa.Table:
    """Return the rows of ``trials`` of what :func:`read` returned, ordered by trial.

    The algorithm is the submission, its version the framework, and the point the number of the trial in its study. A
    held-out variant has its base's name as workload and the tier ``held-out``; what was not scored has the tier
    ``unscored``, no target and no metric. ``quality`` is the best metric of the trial, as the last one is not in the
    file. Memory, energy and all else that the competition did not log are null; the hash of the source is empty.
    """
    import pyarrow as pa

    frame = pd.DataFrame(_differing(lines) | CONSTANT).sort_values("trial_id")
    arrays = [
        pa.array(frame[field.name], type=field.type, from_pandas=True)
        if field.name in frame
        else pa.nulls(len(frame), type=field.type)
        for field in record.TRIALS
    ]
    return pa.Table.from_arrays(arrays, schema=record.TRIALS)


def _differing(lines: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of ``trials`` in which imported trials differ."""
    known = workloads()
    facts = {name: known.get(name, {}) for name in lines["workload"].unique()}
    variant, protocols = lines["workload"], lines["ruleset"].map(RULESETS)
    hit = lines["time_to_target_s"].notna()
    return {
        "trial_id": [_trial_id(key) for key in lines[TRIAL].itertuples(index=False)],
        "algorithm": lines["submission"],
        "algorithm_version": lines["framework"],
        "workload": [facts[name].get("base", name) for name in variant],
        "tier": [facts[name].get("role", "unscored") for name in variant],
        "data_label": variant,
        "data_sha256": [hashlib.sha256(name.encode()).hexdigest() for name in variant],
        "protocol": [protocol.name for protocol in protocols],
        "protocol_sha256": [protocol.sha256 for protocol in protocols],
        "study": lines["study"],
        "point": lines["trial"],
        "is_reference": lines["submission"] == "baseline",
        "outcome": np.where(hit, "reached", "missed"),
        "metric": [facts[name].get("metric") for name in variant],
        "metric_direction": [facts[name].get("direction") for name in variant],
        "target": [facts[name].get("target") for name in variant],
        "time_to_target_s": lines["time_to_target_s"],
        "steps_to_target": lines["steps_to_target"],
        "evaluations_to_target": lines["target_eval_index"],
        "quality": lines["best_metric"],
        "best_quality": lines["best_metric"],
        "steps": lines["end_step"],
        "time_s": lines["end_time_s"],
    }


def _trial_id(key: tuple[Any, ...]) -> str:
    return digest([ORIGIN, *(int(part) if isinstance(part, float) else part for part in key)])[:20]
