"""Boards as files: one Parquet file per board, the same names and bytes for the same trials, replaced at once."""

from __future__ import annotations

import json
import math

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.board import BOARD, COLUMNS, boards
from bench.errors import BadStore
from bench.leaderboards import FOLDER, SCHEMA, SHARED, write
from bench.protocol import protocol
from bench.record import SCHEMA_VERSION, TRIALS
from bench.store import Store

RULES = protocol("default")


def trial(seed, steps, **changes):
    facts = {
        "trial_id": f"{changes}{seed}",
        "algorithm": "plain",
        "algorithm_version": "1",
        "algorithm_source_sha256": "a",
        "hyperparameters": '{"lr": 0.1}',
        "fillers": "[]",
        "workload": "micro",
        "workload_version": "1.2.3",
        "tier": "small",
        "precision": "fp32",
        "data_source": "drawn",
        "data_sha256": "d" * 64,
        "protocol": "default",
        "protocol_version": "1.0",
        "protocol_sha256": RULES.sha256,
        "phase": "measure",
        "seed": seed,
        "is_reference": True,
        "reference": "plain",
        "device_class": "cpu-2",
        "device_listed": True,
        "outcome": "reached",
        "metric": "loss",
        "metric_direction": "min",
        "target": 1.0,
        "steps_to_target": steps,
        "time_to_target_s": steps / 10,
        "quality": 0.9,
        "contended": False,
        "trust_tier": "self-reported",
    }
    return dict.fromkeys(TRIALS.names) | facts | changes


@pytest.fixture
def store(tmp_path):
    """A store of two boards, one of them with two rows."""
    found = Store(tmp_path / "results", create=True)
    put(found, *[trial(seed, 200 + 3 * seed) for seed in range(5)], trial(0, 90, algorithm="a/b c", is_reference=None))
    put(found, *[trial(seed, 400 + seed, tier="large") for seed in range(2)])
    return found


def put(store, *rows):
    (store.root / "trials").mkdir(exist_ok=True)
    for row in rows:
        name = f"{len(list((store.root / 'trials').iterdir())):03d}.parquet"
        pq.write_table(pa.Table.from_pylist([row], schema=TRIALS), store.root / "trials" / name)


def contents(store):
    return {path.name: path.read_bytes() for path in (store.root / FOLDER).iterdir()}


def test_pandas_reads_all_boards_as_one_table(store):
    write(store)
    table = pd.read_parquet(store.root / FOLDER)
    assert list(table.columns) == ["schema_version", *SHARED, *COLUMNS]
    assert set(table["schema_version"]) == {SCHEMA_VERSION}
    assert sorted(zip(table["tier"], table["algorithm"], table["order"], strict=True)) == [
        ("large", "plain", 1),
        ("small", "a/b c", 1),
        ("small", "plain", 2),
    ]
    assert table["is_reference"].tolist().count(None) == 1


def test_a_file_says_what_the_board_says(store):
    (large, small) = boards(store.trials(), "time", store.protocols())
    found = {pq.read_table(path)["tier"][0].as_py(): pq.read_table(path) for path in write(store)}
    assert set(found) == {"large", "small"}
    for board, table in ((large, found["large"]), (small, found["small"])):
        assert table.schema.equals(SCHEMA)
        assert json.loads(table.schema.metadata[b"bench_notes"]) == list(board.notes)
        for row, stored in zip(board.records(), table.to_pylist(), strict=True):
            for name in COLUMNS:
                value = row[name]
                unknown = value is None or (isinstance(value, float) and math.isnan(value))
                assert stored[name] == (None if unknown else value), name
            assert {name: stored[name] for name in BOARD} == {name: board.shared[name] for name in BOARD}


def test_every_column_of_a_board_has_a_type_of_its_own_kind():
    types = {field.name: field.type for field in SCHEMA}
    assert types["ranked"] == types["pareto"] == pa.bool_()
    assert types["group"] == types["hits"] == pa.int64()
    assert types["setting"] == types["tier"] == types["by"] == pa.string()
    assert types["steps_to_target"] == types["target"] == types["tuning_trials"] == pa.float64()
    assert len(SCHEMA) == len(set(SCHEMA.names)) == 1 + len(SHARED) + len(COLUMNS)


def test_the_same_trials_give_the_same_names_and_bytes(store, tmp_path):
    write(store)
    first = contents(store)
    write(store)
    assert contents(store) == first
    other = Store(tmp_path / "other", create=True)
    rows = [row for path in sorted((store.root / "trials").iterdir()) for row in pq.read_table(path).to_pylist()]
    put(other, *rows[::-1])
    write(other)
    assert contents(other) == first
    assert all(name.startswith("micro_1.2_") and name.isascii() for name in first)


def test_names_are_made_of_harmless_characters_and_differ_where_boards_do(store):
    put(store, trial(0, 5, workload="../we ird", data_sha256="e" * 64), trial(0, 5, workload="../we ird"))
    names = [path.name for path in write(store)]
    assert len(set(names)) == 4
    assert all(path.parent == store.root / FOLDER for path in write(store))
    assert sum(name.startswith("we-ird_1.2_small_fp32_drawn_default_cpu-2_") for name in names) == 2


def test_files_of_boards_that_are_no_more_go_and_nothing_else_does(store):
    first = write(store)
    (store.root / FOLDER / "notes.txt").write_text("mine")
    for path in (store.root / "trials").iterdir():
        if pq.read_table(path)["tier"][0].as_py() == "large":
            path.unlink()
    second = write(store)
    assert len(first) == 2
    assert set(second) < set(first)
    assert sorted(contents(store)) == sorted(["notes.txt", second[0].name])


def test_an_empty_store_has_no_boards(tmp_path):
    store = Store(tmp_path / "results", create=True)
    assert write(store) == []
    assert contents(store) == {}


def test_a_place_that_cannot_be_written_is_told(store):
    (store.root / FOLDER).write_text("in the way")
    with pytest.raises(BadStore, match=r"cannot write .*leaderboards"):
        write(store)


def test_a_kill_while_writing_leaves_the_old_board_whole(store, monkeypatch):
    write(store)
    first = contents(store)
    put(store, trial(9, 90, algorithm="new"))

    def killed(table, path):
        path.write_bytes(b"half a fi")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        write(store)
    whole = {name: data for name, data in contents(store).items() if not name.startswith(".")}
    assert whole == first
    assert len(pd.read_parquet(store.root / FOLDER)) == 3, "what is left half written is not read"
