"""Each kind of damage is found, all at once, told with path and remedy, and repaired without a loss."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from bench import parquet
from bench.errors import BadStore, TrialBusy
from bench.inspection import Kind, inspect
from bench.protocol import protocol
from bench.record import SCHEMA_VERSION, SINCE_3
from bench.repair import LEFT_ALONE, repair
from bench.store import MARKER, Store


def damage(root):
    return [finding for finding in inspect(root) if finding.damaged]


def told(root):
    return {(str(finding.kind), finding.path) for finding in damage(root)}


@pytest.fixture
def whole(made):
    """A store of three trials, all of them in order; returns it with what its tables hold."""
    for seed in range(3):
        made.run(seed)
    made.store.keep(protocol("quick"))
    assert inspect(made.root) == []
    return made


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_everything_that_is_wrong_is_found_at_once_and_nothing_is_changed_by_looking(whole):
    breaks = [BREAKS[name][0] for name in ("broken row", "damaged log", "cut row of curves", "broken protocol")]
    for seed, one in enumerate(breaks):
        one(whole, seed % 3)
    before = whole.content()
    assert len(damage(whole.root)) == 4
    assert all(finding.path and finding.what and finding.remedy for finding in damage(whole.root))
    assert whole.content() == before


# -- each kind of damage -----------------------------------------------------------------------------------------------
def broken_row(made, seed):
    made.row(seed).write_bytes(b"not parquet")


def empty_row(made, seed):
    made.row(seed).write_bytes(b"")


def cut_row(made, seed):
    path = made.row(seed, "curves")
    path.write_bytes(path.read_bytes()[:-60])


def foreign_row(made, seed):
    pd.DataFrame({"a": [1]}).to_parquet(made.row(seed))


def row_of_the_other_table(made, seed):
    shutil.copy(made.row(seed), made.row(seed, "curves"))


def row_of_another_trial(made, seed):
    shutil.copy(made.row((seed + 1) % 3), made.row(seed))


def forged_row(made, seed):
    (row,) = parquet.read(made.row(seed), "trials").to_pylist()
    parquet.write(made.row(seed), [row | {"time_to_target_s": 0.001, "time_s": 0.5}], "trials")


def forged_curve(made, seed):
    rows = parquet.read(made.row(seed, "curves"), "curves").to_pylist()
    parquet.write(made.row(seed, "curves"), rows[:-1], "curves")


def lost_row(made, seed):
    made.row(seed).unlink()


def lost_tables(made, _):
    shutil.rmtree(made.root / "trials")
    shutil.rmtree(made.root / "curves")


def damaged_log(made, seed):
    lines = made.events(seed).read_bytes().splitlines(keepends=True)
    made.events(seed).write_bytes(b"".join([*lines[:2], b"not an event\n", *lines[2:]]))


def broken_trial(made, seed):
    (made.folder(seed) / "trial.json").write_text('{"algorithm": ')


def lost_trial(made, seed):
    (made.folder(seed) / "trial.json").unlink()


def trial_of_another_identity(made, seed):
    path = made.folder(seed) / "trial.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 77}))


def lost_marker(made, _):
    (made.root / MARKER).unlink()


def broken_marker(made, _):
    (made.root / MARKER).write_text('{"bench": "results", "schema')


def broken_protocol(made, _):
    (path,) = (made.root / "protocols").iterdir()
    path.write_bytes(path.read_bytes()[:-9])


def flipped_protocol(made, _):
    (path,) = (made.root / "protocols").iterdir()
    path.write_text(path.read_text().replace('"seeds": 1', '"seeds": 3'))


def temporary_file(made, seed):
    (made.root / "trials" / f".{made.trial(seed).trial_id}.parquet.{dead_process()}.tmp").write_bytes(b"PAR1")


def stale_checkpoint(made, seed):
    (made.folder(seed) / "checkpoint.pt").write_bytes(b"of a finished trial")


def notes_among_the_rows(made, _):
    (made.root / "trials" / "notes.txt").write_text("mine")


def file_among_the_runs(made, _):
    (made.root / "runs" / "notes.txt").write_text("mine")


BREAKS = {
    "broken row": (broken_row, "row"),
    "empty row": (empty_row, "row"),
    "cut row of curves": (cut_row, "row"),
    "foreign row": (foreign_row, "row"),
    "row of the other table": (row_of_the_other_table, "row"),
    "row of another trial": (row_of_another_trial, "row"),
    "forged row": (forged_row, "row"),
    "forged curve": (forged_curve, "row"),
    "lost row": (lost_row, "missing"),
    "lost tables": (lost_tables, "missing"),
    "damaged log": (damaged_log, "log"),
    "broken trial.json": (broken_trial, "trial"),
    "lost trial.json": (lost_trial, "trial"),
    "trial.json of another identity": (trial_of_another_identity, "trial"),
    "lost marker": (lost_marker, "marker"),
    "broken marker": (broken_marker, "marker"),
    "broken protocol": (broken_protocol, "protocol"),
    "flipped protocol": (flipped_protocol, "protocol"),
    "temporary file": (temporary_file, "stale"),
    "stale checkpoint": (stale_checkpoint, "stale"),
    "notes among the rows": (notes_among_the_rows, "stranger"),
    "file among the runs": (file_among_the_runs, "stranger"),
}
LOSES_A_LOG = {"damaged log"}
"""Damage after which a trial is no longer finished: what the log said after the damage is only in the copy."""


@pytest.mark.parametrize(("spoil", "kind"), BREAKS.values(), ids=BREAKS)
def test_damage_is_found_repaired_and_gone(whole, spoil, kind, request):
    before = whole.tables()
    logs = {whole.events(seed).read_bytes() for seed in range(3)}
    spoil(whole, 1)
    logs |= {path.read_bytes() for path in whole.root.glob("runs/*/events.jsonl")}
    assert {str(finding.kind) for finding in damage(whole.root)} == {kind}
    deeds = repair(whole.root)
    assert deeds
    assert all(deed.done and not deed.done.startswith(LEFT_ALONE) for deed in deeds)
    assert damage(whole.root) == []
    assert repair(whole.root) == [], "a second repair finds nothing"
    if request.node.callspec.id not in LOSES_A_LOG:
        assert whole.tables() == before, "no row is lost, and none is another"
    kept = {path.read_bytes() for path in whole.root.rglob("*events.jsonl*") if path.is_file()}
    assert kept >= logs - {b""}, "no log is lost"


def test_a_damaged_log_is_kept_and_cut_and_the_trial_is_unfinished_from_there(whole):
    damaged_log(whole, 1)
    original = whole.events(1).read_bytes()
    (deed,) = repair(whole.root)
    name = f"damaged/runs-{whole.trial(1).trial_id}-events.jsonl.1"
    assert deed.done == f"copied to {name}, cut after 2 events"
    assert (whole.root / name).read_bytes() == original
    assert whole.events(1).read_bytes() == original[: original.index(b"not an event")]
    assert [trial.seed for trial in whole.store.unfinished()] == [1]
    rows = whole.store.trials().set_index("seed")
    assert rows["outcome"].to_dict() == {0: "reached", 1: "interrupted", 2: "reached"}
    whole.log(1)
    assert whole.store.finalise(whole.trial(1))["outcome"] == "reached"


def test_a_row_that_claims_more_than_an_unfinished_log_is_damage(made):
    """What a repair leaves that was killed between cutting the log and deriving the row."""
    made.run()
    lines = made.events().read_bytes().splitlines(keepends=True)
    made.events().write_bytes(b"".join(lines[:3]))
    (finding,) = damage(made.root)
    assert (finding.kind, finding.what) == (Kind.ROW, "does not follow from its log: outcome is 'reached'")
    repair(made.root)
    assert made.store.trials()["outcome"].tolist() == ["interrupted"]


def test_a_row_of_a_trial_that_went_on_since_is_no_damage(made):
    made.run(outcome="error")
    log = made.log(outcome=None)
    assert damage(made.root) == []
    log.write("finished", outcome="reached", reason="", at="2026-01-03", cost={})
    assert told(made.root) == {("row", f"trials/{made.row().name}")}


def test_a_cut_last_line_is_harmless_and_said_as_such(made):
    made.run(outcome=None)
    made.events().write_bytes(made.events().read_bytes() + b'{"event": "evalu')
    (finding,) = inspect(made.root)
    assert not finding.damaged
    assert "loses nothing" in finding.what
    assert repair(made.root) == []


def test_rows_without_a_log_are_legitimate_and_stay(whole):
    shutil.rmtree(whole.root / "runs")
    before = whole.content()
    findings = inspect(whole.root)
    assert {finding.what for finding in findings} == {"a row without an event log (imported or copied)"}
    assert not any(finding.damaged for finding in findings)
    assert repair(whole.root) == []
    assert whole.content() == before


def test_a_broken_row_without_a_log_is_kept_aside_and_the_rest_is_readable(whole):
    shutil.rmtree(whole.folder(1))
    broken_row(whole, 1)
    with pytest.raises(BadStore, match="cannot be read"):
        whole.store.trials()
    (deed,) = repair(whole.root)
    assert deed.done.endswith("it has no log to derive it from")
    assert (whole.root / "damaged" / f"trials-{whole.row(1).name}.1").read_bytes() == b"not parquet"
    assert sorted(whole.store.trials()["seed"]) == [0, 2]


def test_two_things_of_one_name_are_both_kept(whole):
    for content in (b"first", b"second"):
        whole.row(1).write_bytes(content)
        repair(whole.root)
    kept = sorted((whole.root / "damaged").glob(f"trials-{whole.row(1).name}.*"))
    assert [path.read_bytes() for path in kept] == [b"first", b"second"]


def test_a_trial_that_runs_at_the_moment_is_not_touched(whole):
    damaged_log(whole, 1)
    broken_row(whole, 1)
    before = whole.content()
    with FileLock(whole.folder(1) / "lock"):
        notes = [finding for finding in inspect(whole.root) if not finding.damaged]
        assert [finding.what for finding in notes] == ["runs at the moment, and was not looked at"]
        deeds = repair(whole.root)
        assert [deed.done for deed in deeds] == [
            f"{LEFT_ALONE}: another process runs the trial {whole.trial(1).trial_id} now"
        ]
        assert whole.content() == before
    assert all(not deed.done.startswith(LEFT_ALONE) for deed in repair(whole.root))
    assert damage(whole.root) == []


def test_two_repairs_at_once_do_not_meet(whole):
    broken_row(whole, 1)
    (whole.root / "damaged").mkdir()
    with FileLock(whole.root / "damaged" / "lock"), pytest.raises(TrialBusy, match="another bench repair"):
        repair(whole.root)
    assert len(repair(whole.root)) == 1


def test_what_a_living_process_writes_is_not_stale(whole):
    path = whole.root / "trials" / f".x.parquet.{os.getpid()}.tmp"
    path.write_bytes(b"PAR1")
    assert inspect(whole.root) == []


def test_imported_results_are_left_alone(made):
    made.run()
    table = made.store.table("trials")
    elsewhere = Store(made.root.parent / "imported", create=True)
    column = table.schema.get_field_index("origin")
    elsewhere.put_foreign(table.set_column(column, table.schema.field(column), [["elsewhere"]]), "elsewhere", [])
    assert inspect(elsewhere.root)[0].what == "a row without an event log (imported or copied)"
    (elsewhere.root / MARKER).unlink()
    repair(elsewhere.root)
    assert Store(elsewhere.root).origin == "elsewhere", "its rows say where they are from"
    (path,) = (elsewhere.root / "trials").iterdir()
    path.write_bytes(b"broken")
    (deed,) = repair(elsewhere.root)
    assert deed.done == f"{LEFT_ALONE}: imported from elsewhere; import it again"
    assert path.read_bytes() == b"broken"


@pytest.mark.parametrize("name", ["store.json", "trials"])
def test_what_a_newer_bench_wrote_is_left_alone(whole, name):
    if name == "store.json":
        (whole.root / name).write_text(json.dumps({"bench": "results", "schema_version": SCHEMA_VERSION + 1}))
        with pytest.raises(BadStore, match=f"schema version {SCHEMA_VERSION + 1}"):
            repair(whole.root)
    else:
        table = pq.read_table(whole.row(1))
        facts = table.schema.metadata | {b"bench_schema_version": b"9"}
        pq.write_table(table.replace_schema_metadata(facts), whole.row(1))
        before = whole.content()
        (deed,) = repair(whole.root)
        assert deed.done == f"{LEFT_ALONE}: a newer bench wrote it"
        assert whole.content() == before
    assert [finding.kind for finding in damage(whole.root)] == [Kind.NEWER]


@pytest.mark.parametrize("name", ["thesis.tex", "store.json"])
def test_a_folder_of_somebody_else_is_never_repaired(tmp_path, name):
    (tmp_path / name).write_text('{"bench": "cache", "schema_version": 1}')
    for act in (inspect, repair):
        with pytest.raises(BadStore, match=r"is not a results folder of bench|of kind 'cache'"):
            act(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_rows_of_older_schema_versions_follow_from_their_logs(whole):
    path = whole.row(1)
    table = pq.read_table(path).drop_columns(list(SINCE_3))
    column = table.schema.get_field_index("schema_version")
    table = table.set_column(column, table.schema.field(column), pa.array([2], pa.int32()))
    pq.write_table(table.replace_schema_metadata({b"bench_table": b"trials", b"bench_schema_version": b"2"}), path)
    assert inspect(whole.root) == []


@pytest.mark.parametrize("step", range(12))
def test_a_repair_that_is_killed_anywhere_can_be_given_again(whole, step, monkeypatch):
    """The process ends at the ``step``-th change of a name in the file system, with nothing tidied up behind it."""
    before = whole.tables()
    for seed, name in enumerate(("forged row", "broken row", "broken trial.json")):
        BREAKS[name][0](whole, seed)
    lost_marker(whole, 0)

    class Killed(BaseException):
        pass

    left = [step]

    def dying(real):
        def call(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "mkdir", "rmdir"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        try:
            repair(whole.root)
        except Killed:
            assert left == [0]
    repair(whole.root)
    assert damage(whole.root) == []
    assert whole.tables() == before
