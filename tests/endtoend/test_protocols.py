"""Protocols with a search, on real trials of milliseconds, from the command line."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from bench.protocol import protocol


@pytest.fixture(scope="module")
def shared(tmp_path_factory, bench_in):
    """Two processes that were given the same command on the same results: the folder, and what both said."""
    folder = tmp_path_factory.mktemp("external")
    command = ("run", "--protocol", "external", "--plugin", "sgd", "--workload", "micro", "--no-reference")
    benches = bench_in(folder), bench_in(folder)
    processes = [bench.start(*command) for bench in benches]
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return folder, [out for out, _ in said]


def test_two_processes_share_a_plan_and_no_trial_runs_twice(shared):
    folder, said = shared
    logs = sorted((folder / "results" / "runs").glob("*/events.jsonl"))
    assert len(logs) == 18
    for log in logs:
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert (events.count("started"), events.count("finished")) == (1, 1), log
    ran = [out.count(": starting") for out in said]
    assert min(ran) > 0, "both had a part in it"
    assert all("The repetitions, with seeds that their studies have not seen" in out for out in said)


def test_each_study_repeats_the_point_that_met_the_target_first(shared):
    trials = pd.read_parquet(shared[0] / "results" / "trials")
    assert trials["phase"].value_counts().to_dict() == {"tune": 15, "rerun": 3}
    assert (trials["reference"] == "adamw").all()
    assert not trials["is_reference"].any()
    assert (trials["outcome"] == "reached").any(), "the test wants something to choose from"
    for study, of_study in trials.groupby("study"):
        tried, repeated = of_study[of_study["phase"] == "tune"], of_study[of_study["phase"] == "rerun"].iloc[0]
        hits = tried[tried["outcome"] == "reached"]
        chosen = tried[tried["point"] == repeated["point"]].iloc[0]
        if len(hits):
            assert chosen["evaluations_to_target"] == hits["evaluations_to_target"].min()
        else:
            assert chosen["best_quality"] == tried["best_quality"].min()
        assert chosen["hyperparameters"] == repeated["hyperparameters"]
        assert repeated["seed"] == 3 + study


def test_a_trial_ends_with_the_evaluation_that_meets_the_target(shared):
    trials = pd.read_parquet(shared[0] / "results" / "trials")
    hits = trials[trials["outcome"] == "reached"]
    assert (hits["steps"] == hits["steps_to_target"]).all()


def test_the_rules_travel_with_the_results(shared):
    (path,) = (shared[0] / "results" / "protocols").iterdir()
    assert json.loads(path.read_text())["points"] == [[list(p) for p in study] for study in protocol("external").points]


def test_plan_shows_points_and_what_is_to_come(bench_here):
    command = ("plan", "--protocol", "external", "--plugin", "adamw", "--workload", "micro")
    answer = bench_here(*command)
    assert answer.code == 0
    assert "3 repetitions of selected points follow" in answer.out
    shown = json.loads(bench_here(*command, "--format", "json").out)
    assert [(row["study"], row["point"]) for row in shown] == [(s, p) for s in range(3) for p in range(5)]


def test_what_a_search_decides_is_refused_in_words(bench_here):
    for option in (("--seeds", "2"), ("--seed", "1"), ("--set", "lr=0.1")):
        answer = bench_here("run", "--protocol", "external", "--plugin", "adamw", "--workload", "micro", *option)
        assert answer.code == 2
        assert "protocol external" in answer.err
        assert "Hint:" in answer.err


def test_a_larger_budget_is_recorded_and_used(bench):
    command = ("run", "--protocol", "self-tuning", "--plugin", "sgd", "--workload", "micro")
    done = bench(*command, "--no-reference", "--seed", 0)
    assert done.returncode == 0, done.stderr
    (row,) = pd.read_parquet(bench.folder / "results" / "trials").to_dict("records")
    assert row["budget_steps"] == 90
    assert row["outcome"] == "reached" or row["steps"] == 90


def test_a_notebook_does_what_the_command_line_does(bench):
    script = bench.folder / "notebook.py"
    script.write_text(
        "import bench\n"
        "results = bench.run('sgd', 'micro', settings={'lr': 0.5}, seeds=2, reference=False)\n"
        "assert sorted(results.trials['seed']) == [0, 1]\n"
        "assert len(results.curves)\n"
        "print(results.trials['command_line'].iloc[0])\n"
    )
    done = bench(program=script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:4] == ["bench", "run", "--plugin", "sgd"]
