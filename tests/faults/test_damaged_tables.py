"""Parquet files whose bits were flipped or whose end is gone: read as they were written, or named and repaired."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
import pytest

from bench import parquet
from bench.errors import BadStore
from bench.inspection import inspect
from bench.repair import repair
from bench.store import Store

FLIPS = 300


def read_or_named(path, table, wanted):
    """Whether a file reads as ``wanted``; one that does not must be named. Wrong values are neither."""
    try:
        found = repr(parquet.read(path, table).to_pylist())
    except BadStore as error:
        named = error
    else:
        assert found == wanted, "a damaged file gave other values without a word"
        return True
    assert named.message.startswith(str(path))
    assert "bench repair --results" in named.hint or "newer bench" in named.hint
    return False


@pytest.mark.parametrize("table", ["trials", "curves"])
def test_flipped_bits_are_never_read_as_other_values(made, table):
    made.run()
    path = made.row(table=table)
    whole, wanted = path.read_bytes(), repr(parquet.read(path, table).to_pylist())
    draw = random.Random(f"flips of {table}")
    harmless = 0
    for _ in range(FLIPS):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 2, 16))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        harmless += read_or_named(path, table, wanted)
    assert 0 < harmless < FLIPS, "some bits of a footer mean nothing, most bits of a file mean something"


@pytest.mark.parametrize("table", ["trials", "curves"])
def test_a_file_cut_anywhere_is_named(made, table):
    made.run()
    path = made.row(table=table)
    whole = path.read_bytes()
    draw = random.Random(f"cuts of {table}")
    for length in (0, 1, 4, 8, len(whole) - 1, len(whole) - 4, *(draw.randrange(len(whole)) for _ in range(60))):
        path.write_bytes(whole[:length])
        assert not read_or_named(path, table, ""), length


def test_flipped_files_of_a_store_are_named_by_doctor_and_repaired_to_the_bit(made):
    for seed in range(3):
        made.run(seed)
    before = made.tables()
    draw = random.Random("a store of flips")
    repaired = 0
    for _ in range(8):
        for path in sorted(made.root.glob("*/*.parquet")):
            content = bytearray(path.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
        deeds = repair(made.root)
        repaired += len(deeds)
        assert not any(finding.damaged for finding in inspect(made.root)) or all(
            "newer bench" in deed.done for deed in deeds
        )
        assert made.tables() == before
    assert repaired > 8


def test_files_of_before_have_no_checksums_and_stay_readable(made):
    made.run()
    before = made.tables()
    for name in ("trials", "curves"):
        table = pq.read_table(made.row(table=name))
        facts = {key: value for key, value in table.schema.metadata.items() if key != b"bench_rows_sha256"}
        pq.write_table(table.replace_schema_metadata(facts), made.row(table=name))
    assert made.tables() == before
    assert inspect(made.root) == []


def test_pages_and_rows_have_checksums(made):
    made.run()
    path = made.row()
    assert b"bench_rows_sha256" in pq.read_schema(path).metadata
    content = bytearray(path.read_bytes())
    start = content.index(b"plain")  # the algorithm's name, in the page of its column
    content[start : start + 5] = b"other"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"CRC|checksum"):
        pq.read_table(path, page_checksum_verification=True)
    with pytest.raises(BadStore, match="cannot be read"):
        Store(made.root).trials()


def test_rows_that_are_there_already_are_not_written_again(made):
    made.run()
    path = made.row()
    before = path.stat()
    Store(made.root).finalise(made.trial())
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
