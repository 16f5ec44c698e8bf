"""One Parquet file of a table: written whole and checksummed, read with every check, damage named.

Parquet's own checksums cover the pages but not the headers and the footer, so the rows' hash stands in the metadata.
Files of before have neither, and are read without.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import record, strict_json
from bench.errors import BadStore
from bench.files import plain, replacing, temporary_of, writing

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMAS = {"trials": record.TRIALS, "curves": record.CURVES}

REQUIRED = {
    "trials": ("trial_id", "algorithm", "hyperparameters", "fillers", "workload", "data_sha256", "outcome"),
    "curves": ("trial_id", "step"),
}
"""The columns of each table that readers take for granted in every row."""


class NewerSchema(BadStore):
    """A table of a later version of bench: not damaged, and not to be read here."""


_DIGEST = b"bench_rows_sha256"


def write(path: Path, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Write ``rows`` as a file of the table ``name``; a file that holds them already is left as it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[name])
    digest = _digest(table, name)
    with contextlib.suppress(BadStore):
        if path.exists() and read_as_stored(path, name).schema.metadata.get(_DIGEST) == digest:
            return
    stamped = table.replace_schema_metadata({**table.schema.metadata, _DIGEST: digest})
    temporary = temporary_of(path)
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        with replacing(temporary, path), temporary.open("wb") as file:
            pq.write_table(stamped, file, write_page_checksum=True)


def read(path: Path, name: str) -> pa.Table:
    """Return a file of the table ``name`` with the columns of this version, whatever version wrote it.

    Raises :class:`~bench.errors.BadStore` where it is damaged, of another table or of a newer version.
    """
    return _complete(path, read_as_stored(path, name), name)


def read_as_stored(path: Path, name: str) -> pa.Table:
    """Return a file of the table ``name`` with the columns that it has; raises as :func:`read` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = pa.BufferReader(plain(path).read_bytes())  # a path that is no UTF-8 is nothing for Arrow itself
        with pq.ParquetFile(content, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)  # for so few rows threads take longer to start than to read
        table.validate(full=True)  # a flipped bit may leave what is no text, or an offset outside its buffer
        facts = table.schema.metadata or {}
        digest = _digest(table, name) if _DIGEST in facts else None
    except Exception as error:  # noqa: BLE001 - what a damaged file makes the library raise is no closed set
        raise BadStore(f"{path} cannot be read: {error}", hint=_repair(path)) from None
    version = facts.get(b"bench_schema_version", b"")
    if not version.isdigit() or len(version) > 9:
        raise BadStore(f"{path} is not a table of bench", hint=_repair(path))
    if int(version) > record.SCHEMA_VERSION:
        raise NewerSchema(
            f"{path} has schema version {int(version)}; this bench reads up to {record.SCHEMA_VERSION}",
            hint="install a newer bench, or name another folder: --results DIR",
        )
    if facts.get(b"bench_table") != name.encode():
        raise BadStore(f"{path} is not a table of bench that holds {name}", hint=_repair(path))
    if lacking := [column for column in _columns(name, int(version)) if column not in table.schema.names]:
        raise BadStore(f"{path} lacks the columns {', '.join(lacking)}", hint=_repair(path))
    if facts.get(_DIGEST) != digest:
        raise BadStore(f"{path} cannot be read: its rows are not those that were written", hint=_repair(path))
    return table


def version_of(table: pa.Table) -> int:
    """Return the schema version of a table that was read as stored."""
    return int(table.schema.metadata[b"bench_schema_version"])


def _columns(name: str, version: int) -> list[str]:
    """Return the columns that a file of ``version`` must have."""
    late = record.later_columns(version)
    return [column for column in SCHEMAS[name].names if column not in late]


def _complete(path: Path, table: pa.Table, name: str) -> pa.Table:
    """Return ``table`` with the columns of this version: those that came later have what older rows stand for."""
    import pyarrow as pa

    schema = SCHEMAS[name]
    for column, value in record.later_columns(1).items():
        if column in schema.names and column not in table.schema.names:
            kind = schema.field(column).type
            table = table.append_column(column, pa.array([value] * len(table), type=kind))
    try:
        complete = table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise BadStore(f"{path} has a column of another type: {error}", hint=_repair(path)) from None
    if fault := _fault_of(complete, name):
        raise BadStore(f"{path} has a row that no trial has: {fault}", hint=_repair(path))
    return complete


def _fault_of(table: pa.Table, name: str) -> str:
    """Return what every reader of the table relies on and finds otherwise; an empty text where nothing is."""
    lacking = [column for column in REQUIRED[name] if table.column(column).null_count]
    if lacking:
        return f"{lacking[0]} is null"
    for column, is_sound in _JSON.items() if name == "trials" else ():
        for text in table.column(column).unique().to_pylist():
            try:
                sound = is_sound(strict_json.loads(text.encode()))
            except ValueError:
                sound = False
            if not sound:
                return f"{column} is {text!r:.60}"
    return ""


_JSON: Mapping[str, Callable[[Any], bool]] = {
    "hyperparameters": lambda value: isinstance(value, dict),
    "fillers": lambda value: isinstance(value, list) and all(map(_is_filler, value)),
}
"""The columns of ``trials`` that hold JSON, and whether a value is what belongs there."""


def _is_filler(part: Any) -> bool:
    found = isinstance(part, dict) and isinstance(part.get("name"), str)
    return found and isinstance(part.get("values", {}), dict)


def _digest(table: pa.Table, name: str) -> bytes:
    """Return the hash of the columns that bench knows and their values, however they are stored."""
    found = hashlib.sha256()
    for column in SCHEMAS[name].names:
        if column in table.schema.names:
            found.update(repr((column, table.column(column).to_pylist())).encode())
    return found.hexdigest().encode()


def _repair(path: Path) -> str:
    return f"bench repair --results {path.parent.parent} derives it from its log again, or moves it out of the way"
