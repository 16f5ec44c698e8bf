"""Records: rows derived from event logs, whole, resumed, cut short or not finite."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pyarrow as pa
import pytest
import torch

from bench import provenance, record
from bench.calibration import Calibration, CalibrationReading
from bench.clock import Clock
from bench.crossing import log_linear
from bench.loop import parameter_counts
from bench.nvml_probe import NvmlReadings
from bench.probes import AllocatorPeaks
from bench.record import CURVES, SCHEMA_VERSION, TRIALS, curve_rows, evaluations, trial_row
from bench.trial import Data, Part, Protocol, Trial

TRIAL = Trial(
    algorithm=Part(name="plain", version="1", source_sha256="a" * 64, slots=("optimizer",), values={"lr": 0.1}),
    fillers=(Part(name="steady", version="2", source_sha256="b" * 64, slots=("schedule",), values={}),),
    workload="micro",
    workload_version="1.2.3",
    tier="small",
    precision="fp32",
    data=Data(source="drawn", directory=None, tokenizer=None, sha256="d" * 64, label="drawn features"),
    protocol=Protocol(name="quick", version="1.0", sha256="e" * 64),
    study=0,
    point=0,
    seed=3,
    device="cpu",
    device_class="cpu-2",
    threads=2,
    timeout_s=60.0,
    checkpoint_every_s=10.0,
    command_line="bench run",
    reference="plain",
    is_reference=True,
)
FACTS = {
    "metric": "loss",
    "metric_direction": "min",
    "target": 1.0,
    "budget_steps": 12,
    "budget_s": None,
    "device_listed": True,
    "started_at": "2026-01-01T00:00:00Z",
    "no_such_column": 1,
}


def started(step=0, *, resumed=False, **changes):
    return {"event": "started", "resumed": resumed, "step": step, "facts": FACTS | changes}


def evaluated(step, quality, **cost):
    return {
        "event": "evaluated",
        "step": step,
        "quality": quality,
        "metrics": {"loss": quality, "accuracy": 0.5},
        "train_loss": None if step == 0 else 2.0,
        "learning_rate": 0.1,
        "cost": {"time_s": 10.0 * step, "wall_s": 20.0 * step, "cpu_s": 5.0 * step} | cost,
    }


def finished(outcome="missed", reason="", **cost):
    return {"event": "finished", "outcome": outcome, "reason": reason, "at": "2026-01-01T01:00:00Z", "cost": cost}


def row(*events):
    return trial_row(TRIAL, events)


def curve(*qualities, **facts):
    return row(started(**facts), *(evaluated(2 * i, quality) for i, quality in enumerate(qualities)), finished())


# -- the schema ------------------------------------------------------------------------------------------------------
DESIGNED = """
    algorithm algorithm_version algorithm_source_sha256 workload workload_version tier data_sha256 protocol_sha256
    point seed study device_class outcome time_to_target_s steps_to_target quality setup_s data_s gradient_s step_s
    finish_s cpu_s nvml_peak_bytes nvml_source allocator_peak_bytes reserved_peak_bytes rss_peak_bytes
    optimizer_state_bytes trainable_parameters energy_j calibration_matmul_s calibration_copy_s contended git_sha
    git_dirty bench_version python_version torch_version gpu_name gpu_driver command_line trust_tier schema_version
"""


@pytest.mark.parametrize("name", DESIGNED.split())
def test_every_column_of_the_design_exists(name):
    assert name in TRIALS.names


def test_columns_are_unique_and_units_are_their_suffix():
    assert len(set(TRIALS.names)) == len(TRIALS.names)
    for name in TRIALS.names:
        kind = TRIALS.field(name).type
        if name.endswith(("_s", "_j", "_w")):
            assert kind == pa.float64(), name
        if name.endswith("_bytes"):
            assert kind == pa.int64(), name


def test_both_tables_carry_name_and_version_of_their_schema():
    for schema, name in ((TRIALS, b"trials"), (CURVES, b"curves")):
        assert schema.metadata == {b"bench_table": name, b"bench_schema_version": str(SCHEMA_VERSION).encode()}


def test_every_column_has_a_producer_and_no_producer_has_another():
    device = torch.device("cpu")
    calibration = Calibration(device, lambda _: CalibrationReading(1.0, 1.0))
    facts = {field.name for field in fields(provenance.Provenance)} | (set(FACTS) - {"no_such_column"}) | {"threads"}
    cost = {
        *Clock(device).columns(),
        *calibration.columns(),
        *vars(AllocatorPeaks(device).read()),
        *(field.name for field in fields(NvmlReadings)),
        *parameter_counts(torch.nn.Linear(1, 1)),
        *("wall_s", "rss_peak_bytes", "optimizer_state_bytes", "adapter_bytes", "stored_bytes"),
    }
    facts |= {"information", "base_sha256"}
    of_imports = {"origin"}
    derived = {name for name, _ in record.RESULT} - facts | {"schema_version", "trust_tier", "attempts", "finished_at"}
    assert facts <= set(TRIALS.names)
    assert cost == {name for name, _ in record.COST}
    assert set(record.identity_columns(TRIAL)) | facts | cost | derived | of_imports == set(TRIALS.names)


def test_a_whole_log_fills_every_column_that_has_a_value():
    facts = {name: "text" for name, _ in record.PROVENANCE} | FACTS | {"cores": 2, "threads": 2, "git_dirty": False}
    cost = {name: 1.0 if kind == pa.float64() else 1 for name, kind in record.COST}
    cost |= {"nvml_source": "text", "allocator_source": "text", "energy_source": "text", "contended": False}
    facts |= {"budget_s": 60.0, "information": "labels", "base_sha256": "text"}
    last = evaluated(4, 0.5, **cost)
    last["metrics"] |= {"forgetting": 0.2, "stored_bytes": 1.0}
    found = row(started(**facts), evaluated(0, 2.0), last, finished("reached"))
    assert set(found) == set(TRIALS.names)
    assert {name for name, value in found.items() if value is None} == {"origin"}, "only imports have one"
    table = pa.Table.from_pylist([found], schema=TRIALS)
    assert table.to_pylist() == [found]


def test_identity_comes_from_the_trial():
    found = row()
    assert found["trial_id"] == TRIAL.trial_id
    assert json.loads(found["hyperparameters"]) == {"lr": 0.1}
    assert [part["name"] for part in json.loads(found["fillers"])] == ["steady"]
    assert (found["data_source"], found["data_label"]) == ("drawn", "drawn features")
    assert (found["trust_tier"], found["schema_version"]) == ("self-reported", SCHEMA_VERSION)


# -- outcomes --------------------------------------------------------------------------------------------------------
def test_a_log_without_any_event_is_an_interrupted_trial():
    found = row()
    assert (found["outcome"], found["attempts"]) == ("interrupted", 0)
    assert found["quality"] is None
    assert curve_rows(TRIAL, []) == []


def test_a_log_without_an_end_is_an_interrupted_trial_with_what_it_measured():
    found = row(started(), evaluated(0, 3.0), evaluated(2, 2.0))
    assert (found["outcome"], found["outcome_reason"]) == ("interrupted", "the worker ended without a word")
    assert (found["quality"], found["steps"], found["time_s"], found["finished_at"]) == (2.0, 2, 20.0, None)


def test_the_end_tells_outcome_reason_time_and_final_cost():
    found = row(started(), evaluated(0, 3.0), finished("error", "ValueError: no", time_s=1.5, energy_j=7.0))
    assert (found["outcome"], found["outcome_reason"]) == ("error", "ValueError: no")
    assert (found["time_s"], found["energy_j"], found["finished_at"]) == (1.5, 7.0, "2026-01-01T01:00:00Z")


def test_an_end_without_a_start_is_recorded_too():
    found = row(finished("error", "no such plugin"))
    assert (found["outcome"], found["attempts"], found["metric"]) == ("error", 0, None)


def test_facts_that_are_no_column_are_left_out():
    assert "no_such_column" not in row(started())


# -- targets ---------------------------------------------------------------------------------------------------------
def test_a_hit_is_the_first_evaluation_at_or_below_the_target():
    found = curve(3.0, 2.0, 1.0, 0.5)
    assert (found["steps_to_target"], found["time_to_target_s"]) == (4, 40.0)
    assert (found["quality"], found["best_quality"], found["steps"]) == (0.5, 0.5, 6)


def test_a_miss_has_no_time_to_target():
    found = curve(3.0, 2.0, 1.5)
    names = [name for name in TRIALS.names if "to_target" in name]
    assert len(names) == 5
    assert [found[name] for name in names] == [None] * 5


def test_a_tier_without_a_target_has_neither():
    assert curve(3.0, 0.5, target=None)["steps_to_target"] is None


def test_steps_and_time_are_interpolated_in_the_logarithm():
    found = curve(4.0, 3.0, 0.5)  # the target 1.0 lies 0.8 of the way from step 2 to step 4
    assert found["steps_to_target_interpolated"] == pytest.approx(2 * 2**0.8)
    assert found["time_to_target_interpolated_s"] == pytest.approx(20 * 2**0.8)
    assert found["steps_to_target"] == 4


def test_a_crossing_in_the_first_interval_is_interpolated_linearly():
    found = curve(2.0, 0.5)
    assert found["steps_to_target_interpolated"] == pytest.approx(2 * 2 / 3)


@pytest.mark.parametrize("before", ["nan", "inf"])
def test_a_crossing_after_something_not_finite_is_not_interpolated(before):
    found = curve(2.0, before, 0.5)
    assert (found["steps_to_target"], found["steps_to_target_interpolated"]) == (4, 4.0)
    assert found["time_to_target_interpolated_s"] == 40.0


def test_a_target_that_is_met_at_the_start_takes_no_steps():
    found = curve(0.9, 0.5)
    assert (found["steps_to_target"], found["steps_to_target_interpolated"]) == (0, 0.0)


def test_interpolated_values_lie_between_their_neighbours():
    assert log_linear(2.0, 8.0, 0.0) == pytest.approx(2.0)
    assert log_linear(2.0, 8.0, 0.5) == pytest.approx(4.0)
    assert log_linear(2.0, 8.0, 1.0) == pytest.approx(8.0)
    assert log_linear(0.0, 8.0, 0.25) == 2.0


def test_a_metric_to_be_maximised_is_hit_from_below():
    found = curve(0.1, 0.5, 0.9, 0.8, target=0.8, metric_direction="max")
    assert (found["steps_to_target"], found["best_quality"], found["quality"]) == (4, 0.9, 0.8)
    assert found["steps_to_target_interpolated"] == pytest.approx(2 * 2**0.75)
    assert curve(0.1, 0.5, target=0.8, metric_direction="max")["steps_to_target"] is None


# -- not finite ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_quality_that_is_not_finite_is_kept_and_never_hits_a_target(text, direction):
    found = curve(3.0, 2.0, text, metric_direction=direction, target=1.0 if direction == "min" else 9.0)
    assert found["quality"] == pytest.approx(float(text), nan_ok=True)
    assert found["best_quality"] == (2.0 if direction == "min" else 3.0)
    assert found["steps_to_target"] is None


def test_a_run_that_was_never_finite_has_no_best_quality():
    assert curve("nan", "inf")["best_quality"] is None


def test_curves_keep_what_is_not_finite_and_fit_their_schema():
    event = evaluated(2, "nan") | {"train_loss": "inf", "learning_rate": "inf", "metrics": {"loss": "nan"}}
    rows = curve_rows(TRIAL, [started(), evaluated(0, 3.0), event])
    table = pa.Table.from_pylist(rows, schema=CURVES).to_pylist()
    assert [part["step"] for part in table] == [0, 2]
    assert table[0]["metrics"] == [("accuracy", 0.5), ("loss", 3.0)]
    assert (table[0]["train_loss"], table[0]["time_s"], table[0]["wall_s"]) == (None, 0.0, 0.0)
    assert math.isnan(table[1]["quality"])
    assert math.isnan(table[1]["metrics"][0][1])
    assert table[1]["train_loss"] == table[1]["learning_rate"] == math.inf
    assert table[1]["trial_id"] == TRIAL.trial_id


# -- resumed ---------------------------------------------------------------------------------------------------------
RESUMED = [
    started(),
    evaluated(0, 3.0),
    evaluated(2, 2.0),
    evaluated(4, 0.5),  # beyond the checkpoint at step 2, so it is repeated
    started(2, resumed=True, started_at="2026-01-02T00:00:00Z"),
    evaluated(4, 1.5, time_s=41.0),
    evaluated(6, 0.9, time_s=61.0),
]


def test_a_resumed_log_drops_what_lies_beyond_its_checkpoint():
    assert [(event["step"], event["quality"]) for event in evaluations(RESUMED)] == [
        (0, 3.0),
        (2, 2.0),
        (4, 1.5),
        (6, 0.9),
    ]
    found = row(*RESUMED, finished("reached"))
    assert (found["steps_to_target"], found["time_to_target_s"], found["attempts"]) == (6, 61.0, 2)
    assert found["started_at"] == "2026-01-01T00:00:00Z"


def test_a_log_that_starts_anew_forgets_everything_before():
    events = [*RESUMED, started(), evaluated(0, 2.9)]
    assert [event["quality"] for event in evaluations(events)] == [2.9]
    assert row(*events)["attempts"] == 3
    assert row(*events)["steps_to_target"] is None


def test_an_evaluation_repeated_at_the_checkpoint_counts_once():
    events = [started(), evaluated(0, 3.0), started(0, resumed=True), evaluated(0, 3.1), evaluated(2, 2.0)]
    assert [event["quality"] for event in evaluations(events)] == [3.0, 2.0]


def test_a_new_attempt_opens_the_outcome_again():
    found = row(started(), evaluated(0, 3.0), finished("error", "no luck"), started())
    assert (found["outcome"], found["finished_at"]) == ("interrupted", None)


def test_a_new_attempt_from_the_start_keeps_no_cost_of_the_one_before():
    old = [started(), evaluated(0, 3.0), evaluated(2, 2.0, rss_peak_bytes=900), finished("error", energy_j=7.0)]
    found = row(*old, started())
    assert [found[name] for name, _ in record.COST] == [None] * len(record.COST)
    found = row(*old, started(), evaluated(0, 3.0, rss_peak_bytes=500))
    assert (found["time_s"], found["rss_peak_bytes"], found["energy_j"]) == (0.0, 500, None)


def test_peaks_do_not_fall_when_a_resumed_process_counts_anew():
    events = [started(), evaluated(2, 2.0, rss_peak_bytes=900), started(2, resumed=True)]
    assert row(*events, evaluated(4, 2.0, rss_peak_bytes=500))["rss_peak_bytes"] == 900
    assert row(*events, evaluated(4, 2.0, rss_peak_bytes=1000))["rss_peak_bytes"] == 1000
    assert row(*events, evaluated(4, 2.0, rss_peak_bytes=None))["rss_peak_bytes"] is None


def test_an_evaluation_beyond_the_budget_in_seconds_is_no_hit():
    found = row(started(budget_s=30.0), evaluated(0, 3.0), evaluated(2, 2.0), evaluated(4, 0.5), finished())
    assert found["steps_to_target"] is None
    assert found["quality"] == 0.5


def test_where_only_the_last_point_is_judged_milder_ones_neither_meet_the_target_nor_are_the_best():
    found = row(
        started(judged_from_step=3), evaluated(1, 0.1), evaluated(2, 0.2), evaluated(3, 1.5), finished("missed")
    )
    assert (found["quality"], found["best_quality"], found["steps_to_target"]) == (1.5, 1.5, None)
    found = row(started(judged_from_step=3), evaluated(1, 2.0), evaluated(3, 0.1), finished("reached"))
    assert (found["steps_to_target"], found["steps_to_target_interpolated"]) == (3, 3.0)


def test_forgetting_stored_bytes_and_all_metrics_are_those_of_the_last_evaluation():
    first, last = evaluated(0, 2.0), evaluated(4, 1.0)
    first["metrics"] |= {"forgetting": 9.0, "stored_bytes": 9.0}
    last["metrics"] |= {"forgetting": 0.5, "stored_bytes": 7.0, "extra": 3.0}
    found = row(started(), first, last, finished("missed"))
    assert (found["forgetting"], found["stored_bytes"]) == (0.5, 7)
    assert dict(found["metrics"])["extra"] == 3.0
