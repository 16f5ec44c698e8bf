"""``bench run`` from the command line to the Parquet tables."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from bench.record import CURVES, SCHEMA_VERSION, TRIALS

WITHOUT_GPU = ("nvml_peak_bytes", "nvml_steady_bytes", "allocator_peak_bytes", "reserved_peak_bytes", "energy_j")
"""Columns that are null on a machine without a GPU, each with its reason in another column."""

PARAMETERS = {"hidden.weight": 32 * 16, "hidden.bias": 32, "classifier.weight": 4 * 32, "classifier.bias": 4}
EVALUATIONS = list(range(0, 61, 4))


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file of the two tables."""
    files = sorted([*(folder / "trials").iterdir(), *(folder / "curves").iterdir()])
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def summary(out: str) -> dict[str, list[str]]:
    """Return the words of the summary's lines by algorithm."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("algorithm "))
    table = lines[start + 2 :]
    return {line.split()[0]: line.split() for line in table[: table.index("")]}


@pytest.fixture(scope="module")
def done(tmp_path_factory, bench_in):
    """An algorithm beside the reference, run once and only read: the folder, and what the command said."""
    folder = tmp_path_factory.mktemp("run")
    return folder, bench_in(folder)("run", "--plugin", "wanders", "--workload", "micro")


@pytest.fixture(scope="module")
def trials(done):
    return pd.read_parquet(done[0] / "results" / "trials").set_index("algorithm", drop=False)


@pytest.fixture(scope="module")
def curves(done):
    return pd.read_parquet(done[0] / "results" / "curves")


def test_run_trains_algorithm_and_reference_and_says_how_they_compare(done):
    _, said = done
    assert (said.returncode, said.stderr) == (0, "")
    lines = summary(said.stdout)
    assert set(lines) == {"wanders", "adamw"}
    assert all(line[1] == "reached" for line in lines.values())
    assert lines["adamw"][3] == "1.00x"
    assert "RSS" in lines["adamw"]
    assert "a first look, never ranked" in said.stdout
    assert re.search(r"step 60/60  train \d\.\d+  loss \d\.\d+  target reached", said.stdout)


def test_pandas_reads_every_column_of_the_schema(done, trials, curves):
    assert list(trials.columns) == TRIALS.names
    assert list(curves.columns) == CURVES.names
    assert set(trials.schema_version) == set(curves.schema_version) == {SCHEMA_VERSION}
    assert set(curves.trial_id) == set(trials.trial_id)
    assert list((done[0] / "results").glob("*/.*")) == [], "temporary files are left"


def test_record_names_what_was_run(trials):
    row = trials.loc["wanders"]
    assert (row.workload, row.workload_version, row.tier, row.precision) == ("micro", "1.0.0", "tiny", "fp32")
    assert (row.algorithm_version, row.seed, row.protocol) == ("1.2.3", 0, "quick")
    assert (row.data_source, row.data_label) == ("embedded", "points with a random teacher's classes")
    assert re.fullmatch("[0-9a-f]{64}", row.data_sha256)
    assert row.command_line == "bench run --plugin wanders --workload micro"
    assert [(part["name"], part["slots"]) for part in json.loads(row.fillers)] == [
        ("adamw", ["optimizer"]),
        ("warmup-linear", ["schedule"]),
    ]
    assert json.loads(trials.loc["adamw"].hyperparameters)["lr"] == 0.02
    assert trials.attempts.tolist() == [1, 1]


def test_result_and_costs_are_consistent(trials, curves):
    for row in trials.itertuples():
        curve = curves[curves.trial_id == row.trial_id].reset_index(drop=True)
        assert curve.step.tolist() == EVALUATIONS
        hit = curve[curve.quality <= row.target].iloc[0]
        assert (row.steps_to_target, row.time_to_target_s) == (hit.step, hit.time_s)
        assert hit.step - 4 < row.steps_to_target_interpolated <= hit.step
        assert row.quality == curve.quality.iloc[-1]
        assert row.best_quality == curve.quality.min()
        assert row.steps == row.budget_steps == 60
        sections = row.setup_s + row.data_s + row.gradient_s + row.step_s + row.finish_s
        assert row.time_s == pytest.approx(sections)
        assert 0 < row.time_s < row.wall_s
        assert curve.time_s.is_monotonic_increasing
        assert curve.train_loss.isna().tolist() == [True] + [False] * 15
        assert dict(curve.metrics.iloc[-1])["loss"] == curve.quality.iloc[-1]
        assert row.calibration_readings == len(EVALUATIONS) + 1


def test_what_a_gpu_would_tell_is_null_with_a_reason(trials):
    for column in WITHOUT_GPU:
        assert trials[column].isna().all(), column
    for column in ("nvml_source", "allocator_source", "energy_source"):
        assert trials[column].str.len().min() > 3, column
    assert trials.rss_peak_bytes.min() > 50e6


def test_state_bytes_are_those_of_two_moments_and_a_step_counter_per_tensor(trials):
    moments = 2 * 4 * sum(PARAMETERS.values())
    assert trials.optimizer_state_bytes.tolist() == [moments + 4 * len(PARAMETERS)] * 2
    assert trials.parameter_bytes.tolist() == [4 * sum(PARAMETERS.values())] * 2
    assert trials.trainable_parameters.tolist() == trials.parameters.tolist() == [sum(PARAMETERS.values())] * 2


def test_finished_trials_leave_no_checkpoint(done):
    runs = sorted((done[0] / "results" / "runs").iterdir())
    assert len(runs) == 2
    for folder in runs:
        assert {file.name for file in folder.iterdir()} <= {"trial.json", "events.jsonl", "worker.log", "lock", "claim"}


def test_repeated_command_runs_nothing_and_changes_no_byte(done, bench_here):
    folder, said = done
    before = contents(folder / "results")
    again = bench_here("run", "--plugin", "wanders", "--workload", "micro", "--results", folder / "results")
    assert again.code == 0
    assert again.out.count("recorded already (reached)") == 2
    assert summary(again.out) == summary(said.stdout)
    assert contents(folder / "results") == before


def test_lost_tables_come_back_with_the_command(done, bench_here):
    folder, _ = done
    before = contents(folder / "results")
    for name in before:
        (folder / "results" / name).unlink()
    again = bench_here("run", "--plugin", "wanders", "--workload", "micro", "--results", folder / "results")
    assert again.code == 0
    assert contents(folder / "results") == before


def test_leaderboard_orders_what_was_recorded(done, bench_here):
    answer = bench_here("leaderboard", "--results", done[0] / "results", "--by", "steps", "--format", "json")
    assert answer.code == 0
    rows = json.loads(answer.out)
    assert {row["algorithm"] for row in rows} == {"wanders", "adamw"}
    assert {(row["workload"], row["hits"], row["replicates"]) for row in rows} == {("micro", 1, 1)}


def test_options_reach_the_record(bench_here):
    chosen = ("--plugin", "sgd", "--with", "blurs", "--set", "sgd.lr=0.05", "--set", "momentum=0.8", "--no-reference")
    answer = bench_here("run", *chosen, "--workload", "micro", "--seeds", 2)
    assert answer.code == 0, answer
    assert re.search(r"sgd: \d of 2 seeds reached the target", answer.out)
    table = pd.read_parquet("results/trials")
    assert sorted(zip(table.algorithm, table.seed, strict=True)) == [("sgd", 0), ("sgd", 1)]
    assert table.trial_id.nunique() == 2
    for row in table.itertuples():
        assert json.loads(row.hyperparameters) == {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.0}
        assert [(part["name"], part["slots"]) for part in json.loads(row.fillers)] == [
            ("blurs", ["finish"]),
            ("warmup-linear", ["schedule"]),
        ]
        assert row.optimizer_state_bytes == 4 * sum(PARAMETERS.values()), "one momentum buffer"
    by_seed = bench_here("run", *chosen, "--workload", "micro", "--seed", 1)
    assert by_seed.out.count("recorded already") == 1
    planned = bench_here("plan", *chosen, "--workload", "micro", "--seeds", 3, "--format", "json")
    states = [(row["algorithm"], row["seed"], row["state"]) for row in json.loads(planned.out)]
    assert states == [("sgd", 0, "recorded"), ("sgd", 1, "recorded"), ("sgd", 2, "to do")]


def test_a_setting_is_another_trial(bench_here):
    identities = set()
    for options in ([], ["--set", "adamw.lr=0.021"], ["--seed", "1"], ["--with", "blurs"], ["--protocol", "default"]):
        answer = bench_here("plan", "--plugin", "adamw", "--workload", "micro", *options, "--format", "json")
        identities.add(json.loads(answer.out)[0]["trial"])
    assert len(identities) == 5
    same = bench_here("plan", "--plugin", "adamw", "--workload", "micro", "--set", "lr=0.02", "--format", "json")
    assert json.loads(same.out)[0]["trial"] in identities, "a value that is set anyway is no other trial"


def test_a_qualified_setting_goes_to_its_own_plugin(bench_here):
    common = ("plan", "--plugin", "adamw,sgd", "--workload", "micro", "--format", "json")
    plain, changed = (
        {row["algorithm"]: row["trial"] for row in json.loads(bench_here(*common, *options).out)}
        for options in ([], ["--set", "sgd.lr=0.3"])
    )
    assert plain["adamw"] == changed["adamw"]
    assert plain["sgd"] != changed["sgd"]
