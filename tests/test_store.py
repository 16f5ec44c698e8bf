"""The results folder: foreign, newer, cut and corrupt files, and nothing half-written left behind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import record
from bench.errors import BadStore, CannotWrite
from bench.event_log import EventLog
from bench.protocol import protocol
from bench.record import SCHEMA_VERSION, SINCE_2, SINCE_3, TRIALS
from bench.store import Store
from bench.trial import Data, Part, Protocol, Trial

FACTS = {"metric": "loss", "metric_direction": "min", "target": 1.0, "budget_steps": 4}


def trial(seed=0, **changes):
    part = Part(name="plain", version="1", source_sha256="a" * 64, slots=("optimizer",), values={"lr": 0.1})
    facts = {
        "algorithm": part,
        "fillers": (),
        "workload": "micro",
        "workload_version": "1.2.3",
        "tier": "small",
        "precision": "fp32",
        "data": Data(source="drawn", directory=None, tokenizer=None, sha256="d" * 64, label="drawn"),
        "protocol": Protocol(name="quick", version="1.0", sha256="e" * 64),
        "study": 0,
        "point": 0,
        "seed": seed,
        "device": "cpu",
        "device_class": "cpu-2",
        "threads": 2,
        "timeout_s": 60.0,
        "checkpoint_every_s": 10.0,
        "command_line": "bench run",
    }
    return Trial(**facts | changes)


def run(results, one, qualities=(3.0, 0.5), outcome="reached"):
    """Log what a worker would, and derive the rows."""
    log = EventLog(results.folder(one))
    log.write("started", resumed=False, step=0, facts=FACTS)
    for step, quality in enumerate(qualities):
        cost = {"time_s": float(step), "wall_s": float(step)}
        metrics = {"loss": quality}
        log.write(
            "evaluated", step=step, quality=quality, metrics=metrics, train_loss=None, learning_rate=0.1, cost=cost
        )
    if outcome:
        log.write("finished", outcome=outcome, reason="", at="2026-01-01T00:00:00Z", cost={})
    return results.finalise(one)


@pytest.fixture
def results(tmp_path):
    return Store(tmp_path / "results", create=True)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- the folder ------------------------------------------------------------------------------------------------------
def test_a_new_store_is_a_folder_with_a_marker_and_reads_as_empty_tables(results):
    assert files(results.root) == ["store.json"]
    assert json.loads((results.root / "store.json").read_text(encoding="utf-8")) == {
        "bench": "results",
        "schema_version": SCHEMA_VERSION,
    }
    assert len(results.trials()) == len(results.curves()) == 0
    assert list(results.trials().columns) == record.TRIALS.names
    assert list(results.curves().columns) == record.CURVES.names
    assert results.unfinished() == []


def test_a_store_is_made_in_an_empty_folder_and_in_one_whose_parents_are_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    assert Store(tmp_path / "empty", create=True).trials().empty
    assert Store(tmp_path / "a" / "b" / "c", create=True).trials().empty


def test_opening_twice_is_opening_once(results):
    run(results, trial())
    assert len(Store(results.root, create=True).trials()) == len(Store(results.root).trials()) == 1


def test_no_store_is_made_unless_it_is_asked_for(tmp_path):
    with pytest.raises(BadStore, match="there are no results in") as caught:
        Store(tmp_path / "results")
    assert "bench run" in caught.value.hint
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("create", [True, False])
def test_a_file_in_its_place_is_refused(tmp_path, create):
    (tmp_path / "results").write_text("mine", encoding="utf-8")
    with pytest.raises(BadStore, match="is a file; it must be a folder"):
        Store(tmp_path / "results", create=create)
    assert (tmp_path / "results").read_text(encoding="utf-8") == "mine"


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(BadStore, match="is not empty and not a results folder of bench"):
        Store(tmp_path, create=True)
    assert files(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"bench": "results"}', '{"bench": "results", "schema_version": "x"}']
)
def test_a_broken_marker_is_refused(tmp_path, content):
    (tmp_path / "store.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadStore, match=r"store\.json is not the marker of a results folder of bench"):
        Store(tmp_path)


def test_a_marker_of_another_kind_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"bench": "cache", "schema_version": 1}', encoding="utf-8")
    with pytest.raises(BadStore, match="marks a folder of kind 'cache', not 'results'"):
        Store(tmp_path, create=True)


def test_a_store_of_a_newer_schema_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"bench": "results", "schema_version": 4}', encoding="utf-8")
    with pytest.raises(BadStore, match="has schema version 4; this bench reads up to 3") as caught:
        Store(tmp_path, create=True)
    assert "newer bench" in caught.value.hint


def test_a_path_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadStore, match="cannot be used: Not a directory"):
        Store(tmp_path / "file" / "results", create=True)


def test_another_process_that_makes_the_same_store_at_the_same_time_is_no_stranger(tmp_path, monkeypatch):
    def exists(path):
        answer = real(path)
        if path.name == "store.json" and not answer:  # between this look and the next, the other one is faster
            monkeypatch.undo()
            Store(tmp_path, create=True)
            (tmp_path / ".store.json.1.tmp").touch()
        return answer

    real = type(tmp_path).exists
    monkeypatch.setattr(type(tmp_path), "exists", exists)
    assert Store(tmp_path, create=True).trials().empty


# -- trials ----------------------------------------------------------------------------------------------------------
def test_a_trial_s_rows_are_read_back_as_they_were_derived(results):
    row = run(results, trial(), (3.0, math.nan, 0.5))
    assert row["outcome"] == "reached"
    (read,) = results.table("trials").to_pylist()
    assert read == row
    curves = results.curves()
    assert curves["step"].tolist() == [0, 1, 2]
    assert curves["quality"].isna().tolist() == [False, True, False]
    assert curves["metrics"][0] == [("loss", 3.0)]


def test_pandas_reads_both_folders_by_itself(results):
    for seed in range(3):
        run(results, trial(seed))
    assert len(pd.read_parquet(results.root / "trials")) == 3
    assert len(pd.read_parquet(results.root / "curves")) == 6
    assert pd.read_parquet(results.root / "trials")["outcome"].tolist() == ["reached"] * 3


def test_rows_come_in_the_order_of_their_ids_whatever_the_order_of_writing(results, tmp_path):
    other = Store(tmp_path / "other", create=True)
    for seed in (0, 1, 2):
        run(results, trial(seed))
    for seed in (2, 0, 1):
        run(other, trial(seed))
    ids = results.trials()["trial_id"].tolist()
    assert ids == sorted(ids)
    assert results.table("trials").equals(other.table("trials"))
    assert results.table("curves").equals(other.table("curves"))


def test_nothing_temporary_is_left_behind(results):
    run(results, trial())
    name = trial().trial_id
    assert files(results.root) == [
        f"curves/{name}.parquet",
        f"runs/{name}/events.jsonl",
        f"runs/{name}/trial.json",
        "store.json",
        f"trials/{name}.parquet",
    ]


def test_a_write_that_fails_leaves_the_row_before_whole(results, monkeypatch):
    run(results, trial(), (3.0, 2.0), outcome=None)
    before = results.table("trials")

    def cut(table, file, **options):
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", cut)
        with pytest.raises(CannotWrite, match="no space"):
            run(results, trial(), (3.0, 0.5))
    assert results.table("trials").equals(before)
    results.finalise(trial())
    assert results.trials()["outcome"].tolist() == ["reached"]
    assert files(results.root / "trials") == [f"{trial().trial_id}.parquet"]


def test_finished_trials_are_found_by_identity_and_failures_are_not_finished(results):
    assert results.finished(trial()) is None
    run(results, trial())
    assert results.finished(trial(command_line="another", device="cuda:0"))["outcome"] == "reached"
    assert results.finished(trial(seed=1)) is None
    run(results, trial(seed=1), outcome="error")
    assert results.finished(trial(seed=1)) is None


def test_trials_without_a_measurement_are_unfinished(results):
    run(results, trial(0))
    run(results, trial(1), outcome="error")
    run(results, trial(2), outcome=None)
    results.folder(trial(3))
    assert {one.seed for one in results.unfinished()} == {1, 2, 3}


def test_rows_can_be_derived_again_from_the_log_alone(results):
    run(results, trial())
    before = results.table("trials"), results.table("curves")
    for path in (*results.root.glob("trials/*"), *results.root.glob("curves/*")):
        path.unlink()
    results.finalise(trial())
    assert results.table("trials").equals(before[0])
    assert results.table("curves").equals(before[1])


def test_rows_tell_of_the_command_that_ran_the_trial(results):
    run(results, trial(command_line="bench run --seed 0"))
    row = results.finalise(trial(command_line="bench run --seeds 5"))
    assert row["command_line"] == "bench run --seed 0"


def test_two_stores_in_one_process_know_nothing_of_each_other(tmp_path):
    one, other = Store(tmp_path / "one", create=True), Store(tmp_path / "other", create=True)
    run(one, trial(0))
    run(other, trial(1))
    assert one.trials()["seed"].tolist() == [0]
    assert other.trials()["seed"].tolist() == [1]
    assert one.finished(trial(1)) is None


def test_two_handles_on_one_store_see_each_other_s_trials(results):
    other = Store(results.root)
    run(results, trial(0))
    run(other, trial(1))
    assert sorted(results.trials()["seed"]) == sorted(other.trials()["seed"]) == [0, 1]


def test_a_folder_name_of_the_form_key_equals_value_is_a_name_and_no_column(tmp_path):
    results = Store(tmp_path / "seed=7" / "colour=red", create=True)
    run(results, trial(3))
    assert results.trials()["seed"].tolist() == [3]
    assert list(results.trials().columns) == record.TRIALS.names


# -- broken tables ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1 cut"])
def test_a_corrupt_table_is_named(results, content):
    run(results, trial())
    path = results.root / "trials" / f"{trial().trial_id}.parquet"
    path.write_bytes(content)
    with pytest.raises(BadStore) as caught:
        results.trials()
    assert caught.value.message.startswith(f"{path} cannot be read")


def test_a_table_cut_short_is_named(results):
    run(results, trial())
    path = results.root / "curves" / f"{trial().trial_id}.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadStore, match="cannot be read"):
        results.curves()


def test_a_parquet_file_of_somebody_else_is_named(results):
    run(results, trial())
    pd.DataFrame({"a": [1]}).to_parquet(results.root / "trials" / "mine.parquet")
    with pytest.raises(BadStore, match=r"mine\.parquet is not a table of bench") as caught:
        results.trials()
    assert caught.value.hint


def test_a_table_in_the_folder_of_the_other_is_named(results):
    run(results, trial())
    name = f"{trial().trial_id}.parquet"
    (results.root / "curves" / name).replace(results.root / "trials" / name)
    with pytest.raises(BadStore, match=r"\.parquet is not a table of bench|lacks the columns"):
        results.trials()


def test_a_table_of_a_newer_schema_is_refused(results):
    run(results, trial())
    path = results.root / "trials" / f"{trial().trial_id}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"bench_schema_version": b"9"}), path)
    with pytest.raises(BadStore, match="has schema version 9; this bench reads up to 3"):
        results.trials()


def test_a_table_that_lacks_a_column_is_named(results):
    run(results, trial())
    path = results.root / "trials" / f"{trial().trial_id}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["energy_j"]), path)
    with pytest.raises(BadStore, match=r"lacks the columns energy_j"):
        results.trials()


def test_columns_that_were_added_by_hand_are_left_out(results):
    run(results, trial())
    path = results.root / "trials" / f"{trial().trial_id}.parquet"
    pq.write_table(pq.read_table(path).append_column("note", pa.array(["mine"])), path)
    assert list(results.trials().columns) == record.TRIALS.names


def test_a_corrupt_log_is_named_by_whatever_reads_it(results):
    run(results, trial())
    path = results.folder(trial()) / "events.jsonl"
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    for use in (lambda: results.finished(trial()), lambda: results.finalise(trial()), results.unfinished):
        with pytest.raises(BadStore, match=r"events\.jsonl, line 1 is not an event"):
            use()


# -- our own measured stores -------------------------------------------------------------------------------------------
MEASURED = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in MEASURED.glob("*/store.json")))
def test_a_measured_store_says_the_newest_schema_version_of_its_rows(folder):
    told = json.loads((MEASURED / folder / "store.json").read_text())["schema_version"]
    assert told == pd.read_parquet(MEASURED / folder / "trials", columns=["schema_version"]).schema_version.max()


def test_the_default_results_folder_is_not_rewritten_by_the_first_run():
    assert json.loads((MEASURED / "store.json").read_text())["schema_version"] == SCHEMA_VERSION


# -- schema version 1 ------------------------------------------------------------------------------------------------
def as_version_1(results):
    """Rewrite a store as schema version 1 left it."""
    (results.root / "store.json").write_text('{"bench": "results", "schema_version": 1}', encoding="utf-8")
    for path in (results.root / "trials").iterdir():
        old = pq.read_table(path).drop_columns([*SINCE_2, *SINCE_3])
        pq.write_table(old.replace_schema_metadata({b"bench_table": b"trials", b"bench_schema_version": b"1"}), path)
    for path in (results.root / "runs").glob("*/trial.json"):
        known = json.loads(path.read_text())
        late = ("phase", "reference", "is_reference", "budget_factor", "stop_at_target")
        path.write_text(json.dumps({key: value for key, value in known.items() if key not in late}))


def test_rows_of_schema_version_1_are_read_as_what_they_stand_for(results):
    run(results, trial())
    as_version_1(results)
    (row,) = Store(results.root).trials().to_dict("records")
    assert row["phase"] == "measure"
    assert all(pd.isna(row[name]) for name in {*SINCE_2, *SINCE_3} - {"phase"})


def test_asking_for_a_trial_of_version_1_again_says_what_it_is_compared_with(results):
    run(results, trial())
    as_version_1(results)
    store = Store(results.root, create=True)
    row = store.finalise(trial(reference="adamw", is_reference=False))
    assert (row["reference"], row["is_reference"], row["evaluations_to_target"]) == (
        "adamw",
        False,
        row["evaluations_to_target"],
    )
    assert store.trials()["reference"].to_list() == ["adamw"]
    assert json.loads((store.root / "store.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_what_a_trial_is_compared_with_is_never_changed_afterwards(results):
    run(results, trial(reference="adamw", is_reference=False))
    assert results.finalise(trial(reference="sgd", is_reference=True))["reference"] == "adamw"


# -- protocols and results of others ---------------------------------------------------------------------------------
def test_protocols_come_back_by_their_hash_with_the_installed_ones(results):
    mine = replace(protocol("external"), name="mine", studies=1, points=protocol("external").points[:1])
    results.keep(mine)
    found = results.protocols()
    assert found[mine.sha256] == mine
    assert found[protocol("default").sha256] == protocol("default")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x", "loud": true}', '{"name": 1, "points": 3}'])
def test_a_file_that_is_no_protocol_is_named(results, text):
    results.keep(protocol("quick"))
    (path,) = (results.root / "protocols").iterdir()
    path.write_text(text)
    with pytest.raises(BadStore, match="is not a protocol"):
        results.protocols()


def foreign(**values):
    row = dict.fromkeys(TRIALS.names) | {"schema_version": SCHEMA_VERSION, "trial_id": "f" * 20, "origin": "elsewhere"}
    row |= {"algorithm": "theirs", "hyperparameters": "{}", "fillers": "[]", "workload": "micro"}
    row |= {"data_sha256": "d" * 64, "outcome": "missed"}
    return pa.Table.from_pylist([row | values], schema=TRIALS)


def test_imported_trials_are_read_like_measured_ones(results):
    results.put_foreign(foreign(algorithm="theirs"), "elsewhere", [protocol("quick")])
    results.put_foreign(foreign(algorithm="theirs again"), "elsewhere", [])
    assert results.trials()["algorithm"].to_list() == ["theirs again"]
    assert len(results.curves()) == 0


def test_imported_trials_are_never_mixed_with_others(results):
    run(results, trial())
    with pytest.raises(BadStore, match="holds other results than those of elsewhere"):
        results.put_foreign(foreign(), "elsewhere", [])


def test_imports_of_two_origins_are_never_mixed(results):
    results.put_foreign(foreign(), "elsewhere", [])
    with pytest.raises(BadStore, match="holds other results than those of nowhere"):
        results.put_foreign(foreign(), "nowhere", [])


def test_no_trial_runs_in_a_folder_of_imported_results(results):
    results.put_foreign(foreign(), "elsewhere", [])
    again = Store(results.root, create=True)
    assert again.origin == "elsewhere"
    with pytest.raises(BadStore, match="holds results imported from elsewhere"):
        again.folder(trial())
