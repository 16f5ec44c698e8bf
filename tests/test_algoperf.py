"""Import of AlgoPerf logs: what a line becomes, what is refused, and that the order of lines and columns never shows.

``fixtures/algoperf_published.csv`` is an excerpt of the logs that MLCommons published (repository
mlcommons/submissions_algorithms, folder previous_leaderboards/algoperf_v05/logs, Apache-2.0): the trials of the two
best submissions of the self-tuning ruleset, each time as logged.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from pathlib import Path

import pandas as pd
import pytest

from bench import record
from bench.errors import BadData, BadStore
from bench.imports import algoperf
from bench.store import Store

EXCERPT = Path(__file__).parent / "fixtures" / "algoperf_published.csv"
LINES = EXCERPT.read_text(encoding="utf-8").splitlines()
HEAD = LINES[0].split(",")
HIT = "external_tuning,fast,jax,fastmri,0,1,3505.053,14493,43,44,0.724865,3600.5,15000"
MISS = "external_tuning,fast,jax,fastmri,0,2,,,,64,0.5,7600.891,10172"


def written(folder, *lines, head=LINES[0]):
    path = folder / "trials.csv"
    path.write_text("\n".join([head, *lines, ""]), encoding="utf-8")
    return path


def changed(line, **values):
    """Return a line with other values in some of its columns."""
    return ",".join(values.get(name, value) for name, value in zip(HEAD, line.split(","), strict=True))


def imported(folder, *lines):
    return algoperf.to_trials(algoperf.read(written(folder, *lines))).to_pandas()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- what a line becomes -----------------------------------------------------------------------------------------------
def test_a_line_becomes_a_row_and_what_was_not_logged_is_null(tmp_path):
    row = imported(tmp_path, HIT).iloc[0]
    expected = {
        "schema_version": record.SCHEMA_VERSION,
        "origin": "algoperf v0.5",
        "algorithm": "fast",
        "algorithm_version": "jax",
        "algorithm_source_sha256": "",
        "hyperparameters": "{}",
        "fillers": "[]",
        "workload": "fastmri",
        "workload_version": "0.5",
        "tier": "base",
        "precision": "unknown",
        "data_source": "algoperf",
        "data_sha256": hashlib.sha256(b"fastmri").hexdigest(),
        "data_label": "fastmri",
        "protocol": "algoperf-external",
        "protocol_version": "0.5",
        "protocol_sha256": algoperf.RULESETS["external_tuning"].sha256,
        "phase": "tune",
        "study": 0,
        "point": 1,
        "seed": 0,
        "reference": "baseline",
        "is_reference": False,
        "device_class": "algoperf-v05",
        "device_listed": True,
        "outcome": "reached",
        "outcome_reason": "",
        "metric": "ssim",
        "metric_direction": "max",
        "target": 0.723653,
        "time_to_target_s": 3505.053,
        "steps_to_target": 14493,
        "evaluations_to_target": 43,
        "quality": 0.724865,
        "best_quality": 0.724865,
        "steps": 15000,
        "time_s": 3600.5,
        "trust_tier": "self-reported",
    }
    known = row.dropna()
    assert known.drop("trial_id").to_dict() == expected
    assert len(row["trial_id"]) == 20
    assert {"energy_j", "rss_peak_bytes", "nvml_peak_bytes"} <= set(row.index[row.isna()])


def test_a_missed_target_has_no_time_and_no_steps_to_it(tmp_path):
    row = imported(tmp_path, MISS).iloc[0]
    assert row["outcome"] == "missed"
    assert row[["time_to_target_s", "steps_to_target", "evaluations_to_target"]].isna().all()
    assert (row["time_s"], row["steps"]) == (7600.891, 10172)


def test_a_held_out_variant_belongs_to_its_base_and_what_was_not_scored_is_said_to_be(tmp_path):
    lines = [changed(HIT, workload=name) for name in ("wmt_glu_tanh", "ogbg_gelu")]
    rows = imported(tmp_path, *lines).set_index("data_label")
    variant, unscored = rows.loc["wmt_glu_tanh"], rows.loc["ogbg_gelu"]
    assert (variant["workload"], variant["tier"], variant["target"]) == ("wmt", "held-out", 29.5779)
    assert (unscored["workload"], unscored["tier"]) == ("ogbg_gelu", "unscored")
    assert unscored[["target", "metric", "metric_direction"]].isna().all()


def test_the_baseline_is_the_reference_of_its_ruleset(tmp_path):
    lines = [changed(HIT, submission="baseline"), changed(HIT, ruleset="self_tuning", submission="baseline"), HIT]
    rows = imported(tmp_path, *lines)
    assert rows.groupby("algorithm")["is_reference"].agg(list).to_dict() == {"baseline": [True, True], "fast": [False]}
    assert set(rows["protocol"]) == {"algoperf-external", "algoperf-self"}


def test_the_protocols_are_of_five_studies_and_were_not_run_here():
    for protocol in algoperf.RULESETS.values():
        assert (protocol.search, protocol.ranked, protocol.replicate) == ("imported", True, "study")
        assert protocol.replicates == 5


def test_eight_workloads_are_scored_and_six_of_them_have_a_held_out_variant():
    known = algoperf.workloads()
    base = {name for name, facts in known.items() if facts["role"] == "base"}
    assert len(base) == 8
    assert all(known[name]["base"] == name for name in base)
    variants = [facts["base"] for facts in known.values() if facts["role"] == "held-out"]
    assert len(variants) == len(set(variants)) == 6
    assert set(variants) <= base
    assert {facts["direction"] for facts in known.values()} == {"min", "max"}


def test_the_table_has_the_schema_of_the_store():
    table = algoperf.to_trials(algoperf.read(EXCERPT))
    assert table.schema.equals(record.TRIALS, check_metadata=True)
    assert table.num_rows == len(LINES) - 1
    assert table["trial_id"].to_pylist() == sorted(set(table["trial_id"].to_pylist()))


# -- the store ---------------------------------------------------------------------------------------------------------
def test_one_file_of_trials_and_the_protocols_are_stored_and_twice_gives_the_same_bytes(tmp_path):
    algoperf.import_csv(EXCERPT, tmp_path / "one")
    first = contents(tmp_path / "one")
    algoperf.import_csv(EXCERPT, tmp_path / "one")
    algoperf.import_csv(EXCERPT, tmp_path / "two")
    assert first == contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(path.suffix == ".parquet" for path in first) == 1
    assert {protocol.name for protocol in Store(tmp_path / "one").protocols().values()} >= {
        "algoperf-external",
        "algoperf-self",
    }


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_lines_and_columns_give_the_same_bytes(tmp_path, seed):
    generator = random.Random(seed)
    rows = list(csv.DictReader(io.StringIO("\n".join(LINES))))
    columns = generator.sample(HEAD, len(HEAD))
    lines = [",".join(row[name] for name in columns) for row in generator.sample(rows, len(rows))]
    path = written(tmp_path, *lines, head=",".join(columns))
    algoperf.import_csv(path, tmp_path / "shuffled")
    algoperf.import_csv(EXCERPT, tmp_path / "plain")
    assert lines != LINES[1:]
    assert contents(tmp_path / "shuffled") == contents(tmp_path / "plain")


def test_numbers_may_be_written_as_pandas_writes_them(tmp_path):
    frame = pd.read_csv(EXCERPT)
    assert frame["steps_to_target"].dtype == float
    frame.to_csv(tmp_path / "again.csv", index=False)
    again, plain = (algoperf.to_trials(algoperf.read(path)) for path in (tmp_path / "again.csv", EXCERPT))
    assert again.equals(plain)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    path = tmp_path / "windows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*LINES, ""]).encode())
    assert algoperf.to_trials(algoperf.read(path)).equals(algoperf.to_trials(algoperf.read(EXCERPT)))


def test_a_folder_of_other_results_is_never_mixed_with_an_import(tmp_path):
    folder = tmp_path / "own"
    Store(folder, create=True)
    (folder / "runs" / "a-trial").mkdir(parents=True)
    with pytest.raises(BadStore, match=r"other results than those of algoperf v0\.5"):
        algoperf.import_csv(EXCERPT, folder)
    assert not (folder / "trials").exists()


def test_a_bad_file_leaves_no_results_folder(tmp_path):
    with pytest.raises(BadData):
        algoperf.import_csv(written(tmp_path, changed(HIT, study="x")), tmp_path / "results")
    assert not (tmp_path / "results").exists()


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("ruleset", "tuning", "'external_tuning' or 'self_tuning'"),
        ("ruleset", "", "'external_tuning' or 'self_tuning'"),
        ("submission", " ", "a name"),
        ("framework", "", "a name"),
        ("workload", "", "a name"),
        ("study", "", "a whole number from 0"),
        ("study", "-1", "a whole number from 0"),
        ("study", "1.5", "a whole number from 0"),
        ("study", "5", "0 to 4"),
        ("trial", "0", "a whole number from 1"),
        ("trial", "6", "1 to 5 in ruleset external_tuning"),
        ("time_to_target_s", "-3505.053", "a finite number above 0, or empty"),
        ("time_to_target_s", "0", "a finite number above 0, or empty"),
        ("time_to_target_s", "NaN", "a finite number above 0, or empty"),
        ("time_to_target_s", "inf", "a finite number above 0, or empty"),
        ("time_to_target_s", "1h", "a finite number above 0, or empty"),
        ("time_to_target_s", "3600.6", "at most end_time_s"),
        ("steps_to_target", "14493.5", "a whole number from 0, or empty"),
        ("steps_to_target", "15001", "at most end_step"),
        ("steps_to_target", "", "a number where time_to_target_s has one, empty where it is empty"),
        ("target_eval_index", "44", "below n_evals"),
        ("target_eval_index", "", "a number where time_to_target_s has one, empty where it is empty"),
        ("n_evals", "many", "a whole number from 0"),
        ("best_metric", "nan", "a finite number, or empty"),
        ("end_time_s", "-1", "a finite number from 0"),
        ("end_time_s", "", "a finite number from 0"),
        ("end_step", "inf", "a whole number from 0"),
    ],
)
def test_a_bad_value_is_named_with_its_line_and_with_what_is_allowed(tmp_path, column, value, allowed):
    path = written(tmp_path, MISS, changed(HIT, **{column: value}))
    with pytest.raises(BadData) as caught:
        algoperf.read(path)
    assert caught.value.message == f"{path}, line 3: {column} is {value!r}; allowed: {allowed}"


def test_a_self_tuning_study_has_one_trial(tmp_path):
    with pytest.raises(BadData, match=r"line 2: trial is '2'; allowed: 1 to 1 in ruleset self_tuning"):
        algoperf.read(written(tmp_path, changed(HIT, ruleset="self_tuning", trial="2")))


def test_a_trial_that_is_there_twice_is_named_with_both_lines(tmp_path):
    with pytest.raises(BadData, match=r"line 4: the trial of line 2 again \(ruleset external_tuning, submission fast,"):
        algoperf.read(written(tmp_path, HIT, MISS, changed(HIT, time_to_target_s="3000")))


def test_a_submission_in_two_frameworks_is_refused(tmp_path):
    with pytest.raises(BadData, match=r"line 3: framework is 'pytorch'; allowed: the framework of the submission's"):
        algoperf.read(written(tmp_path, HIT, changed(MISS, framework="pytorch")))


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (
            LINES[0].replace("study", "Study"),
            "line 1: lacks the columns study and has columns that are unknown or .* Study",
        ),
        (LINES[0] + ",seed", "line 1: has columns that are unknown or twice there: seed"),
        (LINES[0] + ",study", "line 1: has columns that are unknown or twice there: study"),
        (LINES[0].replace(",end_step", ""), "line 1: lacks the columns end_step"),
    ],
)
def test_wrong_columns_are_named(tmp_path, head, fault):
    row = [*HIT.split(","), "0"]
    line = ",".join(row[: head.count(",") + 1])
    with pytest.raises(BadData, match=fault):
        algoperf.read(written(tmp_path, line, head=head))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (HIT + ",1", "line 3: 14 fields, 13 expected: 'external_tuning,fast"),
        ("a,b", "line 3: 2 fields, 13 expected: 'a,b'"),
        ("", "line 3: ruleset is ''"),
    ],
)
def test_a_line_of_another_width_is_named(tmp_path, line, fault):
    with pytest.raises(BadData, match=fault):
        algoperf.read(written(tmp_path, MISS, line, HIT))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is not a CSV file in UTF-8"),
        (b"PAR1\x15\x04\xff\xfe\x00\x00PAR1", "is not a CSV file in UTF-8"),
        ((LINES[0] + "\n" + HIT.replace("fast,", "\xe9,") + "\n").encode("latin-1"), "is not a CSV file in UTF-8"),
        ((LINES[0] + "\n").encode(), "has no line of data"),
    ],
)
def test_what_is_no_csv_file_is_refused(tmp_path, content, fault):
    path = tmp_path / "trials.csv"
    path.write_bytes(content)
    with pytest.raises(BadData, match=fault):
        algoperf.read(path)


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(BadData, match="cannot read") as caught:
        algoperf.read(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message
    assert caught.value.hint == "give the path of a CSV file"
