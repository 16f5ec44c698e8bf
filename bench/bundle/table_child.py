"""Runs in a process of its own, with little memory: reads Parquet from a stranger and prints it as JSON.

A Parquet file of a few kilobytes may unpack to terabytes (a dictionary with one long text, named a million times), and
its parser is native code. So the process that verifies never touches it. This file is run by its path, imports nothing
of bench, and gets on its standard input one line of JSON, the limits and the sizes of the files, then the files.
"""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

_ENTRIES = re.compile(r" \('\w{0,40}'\)")  # how a map calls its entries, which says nothing of them


def main() -> int:
    """Read the files from standard input; print for each one line of JSON: its schema and rows, or what is wrong."""
    order = json.loads(sys.stdin.buffer.readline())
    _restrict(order["memory_bytes"], order["cpu_s"])
    for size, kinds in zip(order["sizes"], order["kinds"], strict=True):
        content = sys.stdin.buffer.read(size)
        try:
            answer = _table(content, kinds, order)
        except MemoryError:
            answer = {"wrong": "unpacks to more memory than it may"}
        except Exception as error:  # noqa: BLE001 - whatever a parser raises about bytes of a stranger is their fault
            lines = str(error).splitlines() or [""]
            answer = {"wrong": f"cannot be read: {type(error).__name__}: {lines[0][:160]}"}
        sys.stdout.write(json.dumps(answer, allow_nan=False) + "\n")
        sys.stdout.flush()
    return 0


def _restrict(memory_bytes: int, cpu_s: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    for kind, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file


def _table(content: bytes, wanted: list[list[str]], order: dict[str, Any]) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    file = pq.ParquetFile(pa.BufferReader(content), thrift_string_size_limit=2**20, thrift_container_size_limit=2**20)
    footer = file.metadata
    for what, found, most in (
        ("rows", footer.num_rows, order["rows"]),
        ("row groups", footer.num_row_groups, order["row_groups"]),
        ("columns", footer.num_columns, order["columns"]),
    ):
        if found > most:
            return {"wrong": f"declares {found:,} {what}; at most {most:,} are read"}
    schema = file.schema_arrow
    kinds = [[field.name, _ENTRIES.sub("", str(field.type))] for field in schema]
    if kinds != wanted:
        return {"wrong": "has other columns than this table has"}
    table = file.read(use_threads=False)
    table.validate(full=True)
    if table.nbytes > order["values_bytes"]:
        return {"wrong": "unpacks to more than it may"}
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    rows = [[_plain(value) for value in row.values()] for row in table.to_pylist()]
    return {"metadata": metadata, "rows": rows}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


if __name__ == "__main__":
    sys.exit(main())
