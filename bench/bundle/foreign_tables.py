"""The two Parquet tables of a bundle, read by a process that has little to lose (:mod:`bench.bundle.table_child`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.bundle import limits, table_child
from bench.errors import BadBundle
from bench.event_log import jsonable

Rows = list[dict[str, Any]]
"""Rows as both sides of a comparison hold them: lists for pairs, text for numbers that are not finite."""

_KEPT = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What an interpreter may need to find itself; the child gets nothing else."""


def read_tables(contents: Mapping[str, bytes], schemas: Mapping[str, pa.Schema]) -> dict[str, Rows]:
    """Return the rows of each file in ``contents``, which must have exactly the columns of its schema.

    Raises:
        BadBundle: a file is too large, damaged, of other columns, or needs more memory or time than any honest one.
    """
    for name, content in contents.items():
        if len(content) > limits.TABLE_BYTES:
            raise BadBundle(f"{name} has {len(content):,} bytes; at most {limits.TABLE_BYTES:,} are read")
    found = {}
    for (name, schema), line in zip(schemas.items(), _answers(contents, schemas), strict=True):
        answer = _parsed(line, name)
        if "wrong" in answer:
            raise BadBundle(f"{name} {answer['wrong']}")
        if answer["metadata"] != {key.decode(): value.decode() for key, value in schema.metadata.items()}:
            raise BadBundle(f"{name} says that it is {answer['metadata']!r:.200}, not a table of this version of bench")
        found[name] = [dict(zip(schema.names, row, strict=True)) for row in answer["rows"]]
    return found


def normal(rows: Rows, schema: pa.Schema) -> Rows:
    """Return ``rows`` as a table of ``schema`` would give them back, in the form of :data:`Rows`.

    Raises what pyarrow raises for a value that does not fit its column.
    """
    return [dict(jsonable(row)) for row in pa.Table.from_pylist(rows, schema=schema).to_pylist()]


def _answers(contents: Mapping[str, bytes], schemas: Mapping[str, pa.Schema]) -> list[bytes]:
    kinds = [[[field.name, str(field.type)] for field in schema] for schema in schemas.values()]
    order = {
        "sizes": [len(contents[name]) for name in schemas],
        "rows": limits.TABLE_ROWS,
        "row_groups": limits.TABLE_ROW_GROUPS,
        "columns": 4 * max(map(len, kinds)),
        "values_bytes": limits.TABLE_VALUES_BYTES,
        "kinds": kinds,
        "memory_bytes": limits.CHILD_MEMORY_BYTES,
        "cpu_s": limits.CHILD_CPU_S,
    }
    given = json.dumps(order).encode() + b"\n" + b"".join(contents[name] for name in schemas)
    command = [sys.executable, "-I", str(Path(table_child.__file__))]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command, input=given, capture_output=True, check=False, timeout=limits.CHILD_WALL_S, env=environment
        )
    except subprocess.TimeoutExpired:
        raise BadBundle(f"the tables took more than {limits.CHILD_WALL_S:g} s to read") from None
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(schemas):
        raise BadBundle(f"the tables cannot be read: their reader ended with code {done.returncode}")
    return lines


def _parsed(line: bytes, name: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        raise BadBundle(f"{name}: its reader answered no JSON") from None
    return answer
