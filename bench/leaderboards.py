"""Leaderboards as files: ``<results>/leaderboards/``, one Parquet file per board, which pandas reads as one table.

A file is a board ordered by time (by steps or quality where times do not rank or no target is set) with all columns, so
any other order is a sort. Its metadata holds the notes. The files are derived from the stored trials alone: same trials
and same protocols, same names and same bytes, on the same version of pyarrow.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.board import BOARD, COLUMNS, Board, boards
from bench.errors import BadStore
from bench.record import SCHEMA_VERSION
from bench.store import Store
from bench.trial import digest

FOLDER = "leaderboards"

SHARED = (*BOARD, "protocol_version", "target", "metric", "metric_direction", "by", "confidence", "replicate")
"""What all rows of a board share, repeated in each row: the first columns."""

_TEXT = {
    *(set(SHARED) - {"target", "confidence"}),
    *("algorithm", "setting", "algorithm_version", "algorithm_source_sha256", "hyperparameters", "fillers"),
    *("reference", "basis", "origin", "trust_tier", "memory_source", "outcomes", "information"),
}
_INT = {"order", "group", "replicates", "hits"}
_BOOL = {"ranked", "is_reference", "contended", "pareto"}


def _type(name: str) -> pa.DataType:
    if name in _TEXT:
        return pa.string()
    return pa.int64() if name in _INT else pa.bool_() if name in _BOOL else pa.float64()


SCHEMA = pa.schema(
    [("schema_version", pa.int32()), *((name, _type(name)) for name in (*SHARED, *COLUMNS))],
    metadata={"bench_table": "leaderboard", "bench_schema_version": str(SCHEMA_VERSION)},
)
"""One row per row of a board; what does not apply is null."""


def write(store: Store) -> list[Path]:
    """Write every board of ``store`` and return the files; files of boards that are no more are removed.

    Each file is replaced at once, so a reader sees the old board or the new one.
    """
    folder = store.root / FOLDER
    found = {folder / file_name(board): board for board in boards(store.trials(), "time", store.protocols())}
    try:
        folder.mkdir(exist_ok=True)
        for path, board in found.items():
            temporary = folder / f".{path.name}.{os.getpid()}.tmp"
            pq.write_table(table_of(board), temporary)
            temporary.replace(path)
        for path in set(folder.glob("*.parquet")) - set(found):
            path.unlink()
    except OSError as error:
        raise BadStore(f"cannot write {folder}: {error.strerror}", hint="name another: --results DIR") from None
    return list(found)


def file_name(board: Board) -> str:
    """Return the name of a board's file: what it is for people, then a digest of all that tells boards apart."""
    shared = board.shared
    names = ("workload", "workload_minor", "tier", "precision", "data_source", "protocol", "device_class")
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", str(shared[name])).strip("-.") for name in names]
    return "_".join([*words, digest([str(shared[name]) for name in BOARD])[:8]]) + ".parquet"


def table_of(board: Board) -> pa.Table:
    """Return a board as a table of :data:`SCHEMA`, its notes in the metadata."""
    frame = board.rows.assign(schema_version=SCHEMA_VERSION, **{name: board.shared[name] for name in SHARED})
    columns = [pa.array(frame[field.name], type=field.type, from_pandas=True) for field in SCHEMA]
    metadata = {**SCHEMA.metadata, b"bench_notes": json.dumps(board.notes).encode()}
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata))
