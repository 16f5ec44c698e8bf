"""The record of a trial: the schema of the two tables, and how a row is derived from the events.

The event log is the truth; both tables can be rebuilt from it at any time. A column's unit is its suffix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from bench.crossing import crossing
from bench.trial import Trial

SCHEMA_VERSION = 3

_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

IDENTITY = (
    ("trial_id", _TEXT),
    ("origin", _TEXT),  # null for trials of this program, else what they were imported from
    ("algorithm", _TEXT),
    ("algorithm_version", _TEXT),
    ("algorithm_source_sha256", _TEXT),
    ("hyperparameters", _TEXT),  # JSON object, every field with its value
    ("fillers", _TEXT),  # JSON list: which algorithms filled the other slots, with all their values
    ("workload", _TEXT),
    ("workload_version", _TEXT),
    ("tier", _TEXT),
    ("precision", _TEXT),
    ("data_source", _TEXT),
    ("data_sha256", _TEXT),
    ("data_label", _TEXT),
    ("protocol", _TEXT),
    ("protocol_version", _TEXT),
    ("protocol_sha256", _TEXT),
    ("phase", _TEXT),  # measure, tune or rerun
    ("study", _INT),
    ("point", _INT),
    ("seed", _INT),
    ("reference", _TEXT),  # the algorithm that this one is compared with
    ("is_reference", _BOOL),
    ("device_class", _TEXT),
    ("device_listed", _BOOL),
    ("information", _TEXT),  # what an algorithm after training looks at; null for trials of training
    ("base_sha256", _TEXT),  # of the trained weights that the trial starts from; null where it starts from none
)
RESULT = (
    ("outcome", _TEXT),
    ("outcome_reason", _TEXT),
    ("metric", _TEXT),
    ("metric_direction", _TEXT),
    ("target", _REAL),
    ("time_to_target_s", _REAL),  # null when missed
    ("steps_to_target", _INT),
    ("evaluations_to_target", _INT),  # number of the evaluation that met the target, counted from 0
    ("time_to_target_interpolated_s", _REAL),
    ("steps_to_target_interpolated", _REAL),
    ("quality", _REAL),  # at the last evaluation, that is at the end of the budget unless the trial stopped earlier
    ("best_quality", _REAL),
    ("budget_steps", _INT),
    ("budget_s", _REAL),
    ("steps", _INT),
    ("forgetting", _REAL),  # what fine-tuning cost on the data of pre-training; null where nobody measures it
    ("metrics", pa.map_(_TEXT, _REAL)),  # all metrics of the last evaluation
)
COST = (
    ("time_s", _REAL),  # all charged sections
    ("setup_s", _REAL),
    ("data_s", _REAL),
    ("gradient_s", _REAL),
    ("step_s", _REAL),
    ("finish_s", _REAL),
    ("evaluation_s", _REAL),  # not charged, like the next three
    ("checkpoint_s", _REAL),
    ("warmup_s", _REAL),
    ("wall_s", _REAL),
    ("cpu_s", _REAL),
    ("nvml_peak_bytes", _INT),
    ("nvml_steady_bytes", _INT),
    ("nvml_source", _TEXT),
    ("allocator_peak_bytes", _INT),
    ("reserved_peak_bytes", _INT),
    ("allocator_source", _TEXT),
    ("rss_peak_bytes", _INT),
    ("optimizer_state_bytes", _INT),
    ("parameter_bytes", _INT),
    ("parameters", _INT),
    ("trainable_parameters", _INT),
    ("adapter_bytes", _INT),  # of what fine-tuning adds or changes: a file of it is so large
    ("stored_bytes", _INT),  # of a compressed model's matrices as they would be stored
    ("energy_j", _REAL),
    ("energy_window_s", _REAL),
    ("energy_source", _TEXT),
    ("idle_w", _REAL),
    ("calibration_matmul_s", _REAL),
    ("calibration_copy_s", _REAL),
    ("calibration_matmul_spread", _REAL),  # slowest reading over fastest
    ("calibration_copy_spread", _REAL),
    ("calibration_readings", _INT),
    ("contended", _BOOL),
)
PROVENANCE = (
    ("trust_tier", _TEXT),
    ("attempts", _INT),
    ("started_at", _TEXT),  # UTC, ISO 8601
    ("finished_at", _TEXT),
    ("command_line", _TEXT),
    ("git_sha", _TEXT),
    ("git_dirty", _BOOL),
    ("bench_version", _TEXT),
    ("python_version", _TEXT),
    ("torch_version", _TEXT),
    ("numpy_version", _TEXT),
    ("pandas_version", _TEXT),
    ("pyarrow_version", _TEXT),
    ("platform", _TEXT),
    ("cpu_model", _TEXT),
    ("cores", _INT),
    ("threads", _INT),
    ("gpu_name", _TEXT),
    ("gpu_uuid", _TEXT),
    ("gpu_driver", _TEXT),
    ("cuda_version", _TEXT),
)

_ELSEWHERE = {"trust_tier", "attempts", "finished_at", "command_line"}
FACTS = (
    *(column for column in IDENTITY if column[0] in {"device_listed", "information", "base_sha256"}),
    *(column for column in RESULT if column[0] in {"metric", "metric_direction", "target", "budget_steps", "budget_s"}),
    *(column for column in PROVENANCE if column[0] not in _ELSEWHERE),
)
"""The columns that the worker's facts fill: what a log says beside them, such as another identity, changes nothing."""

NOT_FINITE = ("nan", "inf", "-inf")
"""The texts as which numbers that are not finite travel, since JSON has none."""

SINCE_2 = {"origin": None, "phase": "measure", "reference": None, "is_reference": None, "evaluations_to_target": None}
"""The columns that schema version 2 added, with what a row of version 1 has in them."""

SINCE_3 = dict.fromkeys(("information", "base_sha256", "forgetting", "metrics", "adapter_bytes", "stored_bytes"))
"""The same for version 3: nobody measured these before."""


def later_columns(version: int) -> dict[str, Any]:
    """Return the columns that came after schema ``version``, with what a row of that version has in them."""
    return {**(SINCE_2 if version < 2 else {}), **(SINCE_3 if version < 3 else {})}


TRIALS = pa.schema(
    [("schema_version", pa.int32()), *IDENTITY, *RESULT, *COST, *PROVENANCE],
    metadata={"bench_table": "trials", "bench_schema_version": str(SCHEMA_VERSION)},
)
"""One row per trial."""

CURVES = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("trial_id", _TEXT),
        ("step", _INT),
        ("time_s", _REAL),  # charged up to this evaluation
        ("wall_s", _REAL),  # since the trial's first start, with everything
        ("quality", _REAL),  # the workload's metric
        ("train_loss", _REAL),  # mean over the steps since the evaluation before
        ("learning_rate", _REAL),  # of the first parameter group, at the step before
        ("metrics", pa.map_(_TEXT, _REAL)),
    ],
    metadata={"bench_table": "curves", "bench_schema_version": str(SCHEMA_VERSION)},
)
"""One row per evaluation."""


def identity_columns(trial: Trial) -> dict[str, Any]:
    """Return the identity columns of ``trial`` (``device_listed`` comes with the provenance)."""
    return {
        "trial_id": trial.trial_id,
        "algorithm": trial.algorithm.name,
        "algorithm_version": trial.algorithm.version,
        "algorithm_source_sha256": trial.algorithm.source_sha256,
        "hyperparameters": json.dumps(trial.algorithm.values),
        "fillers": json.dumps([part.model_dump(mode="json") for part in trial.fillers]),
        "workload": trial.workload,
        "workload_version": trial.workload_version,
        "tier": trial.tier,
        "precision": trial.precision,
        "data_source": trial.data.source,
        "data_sha256": trial.data.sha256,
        "data_label": trial.data.label,
        "protocol": trial.protocol.name,
        "protocol_version": trial.protocol.version,
        "protocol_sha256": trial.protocol.sha256,
        "phase": trial.phase,
        "study": trial.study,
        "point": trial.point,
        "seed": trial.seed,
        "reference": trial.reference,
        "is_reference": trial.is_reference,
        "device_class": trial.device_class,
        "command_line": trial.command_line,
    }


def evaluations(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the evaluations that count, oldest first.

    A resumed trial repeats the steps after its last checkpoint: what was logged beyond the checkpoint is replaced by
    what the resumed run logs.
    """
    kept: list[Mapping[str, Any]] = []
    for event in events:
        if event["event"] == "started":
            kept = [row for row in kept if row["step"] <= event["step"]] if event["resumed"] else []
        elif event["event"] == "evaluated" and (not kept or event["step"] > kept[-1]["step"]):
            kept.append(event)
    return kept


_OPEN = {"outcome": "interrupted", "outcome_reason": "the worker ended without a word", "finished_at": None}


def trial_row(trial: Trial, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Derive the row of ``trials`` from the events of ``trial``; a log without an end counts as interrupted."""
    row: dict[str, Any] = dict.fromkeys(TRIALS.names)
    row |= identity_columns(trial) | {"schema_version": SCHEMA_VERSION}
    row["trust_tier"] = "self-reported" if trial.reproduces is None else "reproduced"
    rows, attempts, judged_from = evaluations(events), 0, 0
    row |= _OPEN
    for event in events:
        if event["event"] == "started":
            attempts += 1
            row |= _OPEN
            if not event["resumed"]:  # nothing of the attempt before counts
                row |= dict.fromkeys(name for name, _ in COST)
            started_at = row["started_at"]
            row |= _known(event["facts"], FACTS)
            judged_from = event["facts"].get("judged_from_step", 0)
            row["started_at"] = started_at or event["facts"].get("started_at")
        elif event["event"] == "evaluated":
            row |= _cost(row, event["cost"])
        elif event["event"] == "finished":
            row |= _cost(row, event["cost"])
            row |= {"outcome": event["outcome"], "outcome_reason": event["reason"], "finished_at": event["at"]}
    row["attempts"] = attempts
    if rows:
        row |= crossing(rows, row, judged_from) | _last_metrics(rows[-1]["metrics"])
    return row


def curve_rows(trial: Trial, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Derive the rows of ``curves`` from the events of ``trial``."""
    return [
        {
            "schema_version": SCHEMA_VERSION,
            "trial_id": trial.trial_id,
            "step": event["step"],
            "time_s": event["cost"]["time_s"],
            "wall_s": event["cost"]["wall_s"],
            "quality": number(event["quality"]),
            "train_loss": number(event["train_loss"]),
            "learning_rate": number(event["learning_rate"]),
            "metrics": [(name, number(value)) for name, value in sorted(event["metrics"].items())],
        }
        for event in evaluations(events)
    ]


def _known(values: Mapping[str, Any], columns: Sequence[tuple[str, pa.DataType]]) -> dict[str, Any]:
    found = {name: (kind, values[name]) for name, kind in columns if name in values}
    return {name: number(value) if kind == _REAL else value for name, (kind, value) in found.items()}


_PEAKS = ("nvml_peak_bytes", "allocator_peak_bytes", "reserved_peak_bytes", "rss_peak_bytes")


def _cost(row: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cost columns of an event; a peak never falls, though a resumed process counts from zero."""
    known = _known(cost, COST)
    for name in _PEAKS:
        if known.get(name) is not None and row[name] is not None:
            known[name] = max(known[name], row[name])
    return known


def number(value: Any) -> float | None:
    """Return a number as JSON events carry it: non-finite ones travel as text, since JSON has none."""
    return None if value is None else float(value)


def _last_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return all metrics of the last evaluation, and again those that have a column of their own."""
    values = {name: number(value) for name, value in sorted(metrics.items())}
    found: dict[str, Any] = {"metrics": list(values.items())}
    if values.get("forgetting") is not None:
        found["forgetting"] = values["forgetting"]
    stored = values.get("stored_bytes")
    if stored is not None and math.isfinite(stored):
        found["stored_bytes"] = round(stored)
    return found
