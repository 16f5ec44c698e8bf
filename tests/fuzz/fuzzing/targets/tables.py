"""The Parquet tables of a results folder: flipped, cut, of foreign schemas, types, metadata and counts."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.store import Store
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.targets import samples
from fuzzing.targets.checkpoints import Runs

TYPES = (
    pa.null(),
    pa.bool_(),
    pa.int8(),
    pa.uint64(),
    pa.int64(),
    pa.float16(),
    pa.float64(),
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.binary(3),
    pa.date32(),
    pa.timestamp("ns", tz="UTC"),
    pa.decimal128(38, 10),
    pa.list_(pa.int64()),
    pa.list_(pa.list_(pa.list_(pa.string()))),
    pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.string())]))]),
    pa.map_(pa.string(), pa.float64()),
    pa.map_(pa.string(), pa.list_(pa.int64())),
    pa.dictionary(pa.int32(), pa.string()),
)
EXTENSION = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Runs(), 2)}


class StoredTables:
    """Reads one file of one table."""

    def __init__(self, home: Path) -> None:
        store = samples.store(home / "results", ("adamw",), 1)
        self._tables = {name: store.table(name) for name in ("trials", "curves")}
        self._files = {name: _file(table) for name, table in self._tables.items()}

    def make(self, random: Random) -> Case:
        name = random.choice(("trials", "curves", "curves"))
        raw = self._files[name]
        kind = random.random()
        if kind < 0.55:
            footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
            start = random.choice((0, footer, footer, len(raw) - 8))
            return {"table": name, "file": mutate.data(random, raw, start=start)}
        if kind < 0.95:
            return {"table": name, "file": _file(_changed(random, self._tables[name]))}
        return {"table": name, "file": random.choice(_others())}

    def run(self, case: Case, folder: Path) -> None:
        (folder / "store.json").write_text('{"bench": "results", "schema_version": 3}')
        (folder / case["table"]).mkdir()
        (folder / case["table"] / "0123.parquet").write_bytes(case["file"])
        store = Store(folder)
        frame = store.trials() if case["table"] == "trials" else store.curves()
        if list(frame.columns) != store.table(case["table"]).schema.names:
            raise AssertionError(f"columns {list(frame.columns)}")


def _file(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _others() -> list[bytes]:
    feather = io.BytesIO()
    with pa.ipc.new_file(feather, pa.schema([("x", pa.int64())])):
        pass
    return [b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff\xff\xff\x7fPAR1", b"PARE" * 4, feather.getvalue(), b"\0" * 4096]


def _changed(random: Random, table: pa.Table) -> pa.Table:
    """Return the table with a foreign column, type, name, order, count or metadata."""
    for _ in range(random.choice((1, 1, 2))):
        number = random.randrange(table.num_columns)
        field = table.schema.field(number)
        kind = random.randrange(8)
        if kind <= 2:
            made = _column(random, len(table), random.choice(TYPES))
            name = field.name if kind else hostile.text(random)[:40].encode(errors="replace").decode()
            table = table.set_column(number, pa.field(name, made.type, metadata=EXTENSION if kind == 2 else None), made)
        elif kind == 3:
            table = table.remove_column(number)
        elif kind == 4:
            table = table.append_column(field.name, table.column(number))
        elif kind == 5:
            table = table.slice(0, random.randrange(2)) if len(table) else table
        elif kind == 6:
            table = pa.concat_tables([table] * random.choice((2, 50)))
        else:
            table = table.replace_schema_metadata(_metadata(random, dict(table.schema.metadata or {})))
    return table


def _column(random: Random, rows: int, kind: pa.DataType) -> pa.Array:
    if kind in {pa.int64(), pa.float64(), pa.string()}:
        values = [_of(random, kind) for _ in range(rows)]
        return pa.array(values, type=kind)
    return pa.nulls(rows, kind)


def _of(random: Random, kind: pa.DataType) -> Any:
    if kind == pa.string():
        return hostile.text(random).encode(errors="replace").decode()
    if kind == pa.int64():
        return random.choice([value for value in hostile.INTEGERS if -(2**63) <= value < 2**63])
    return random.choice(hostile.REALS)


def _metadata(random: Random, metadata: dict[bytes, bytes]) -> dict[bytes, bytes]:
    key = b"bench_schema_version"
    kind = random.randrange(5)
    if kind == 0:
        metadata[key] = hostile.text(random).encode(errors="replace")
    elif kind == 1:
        metadata.pop(key, None)
    elif kind == 2:
        metadata[key] = random.choice((b"1", b"2", b"0", b"-1", b"4", b"9" * 5000))
    elif kind == 3:
        pandas = {"index_columns": ["__import__('fuzz_canary')", hostile.scalar(random)], "column_indexes": [{}]}
        pandas |= {"columns": [{"name": "step", "pandas_type": "object", "numpy_type": hostile.text(random)[:50]}]}
        metadata[b"pandas"] = json.dumps(pandas).encode(errors="replace")
    else:
        metadata |= {f"key {number}".encode(): b"x" * 100 for number in range(random.choice((1, 5_000)))}
    return metadata
