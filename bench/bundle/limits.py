"""How large what a stranger sends may be; far above any honest bundle, far below what would hurt."""

from __future__ import annotations

FILE_BYTES = 32 * 2**20
"""Of the whole file."""

TOTAL_BYTES = 128 * 2**20
"""Of all members, unpacked."""

MEMBER_BYTES = 32 * 2**20
"""Of one member, unpacked."""

MEMBERS = 20_000
"""In one bundle: two for each trial, two tables, and sources."""

RATIO, RATIO_FROM_BYTES = 200, 2**20
"""A member larger than so many bytes may not have been compressed more than so many times; event logs reach 30."""

NAME_CHARACTERS = 240
"""Of the name of a member."""

JSON_BYTES, MANIFEST_BYTES, SOURCE_BYTES = 4 * 2**20, 8 * 2**20, 4 * 2**20
"""Of one JSON document (a line of an event log, a trial.json), of the manifest, of one source file."""

EVENTS = 50_000
"""In one log."""

TABLE_BYTES = 32 * 2**20
"""Of one Parquet file."""

TABLE_ROWS, TABLE_ROW_GROUPS, TABLE_VALUES_BYTES = 1_000_000, 64, 256 * 2**20
"""Rows and row groups that the footer of a Parquet file may declare, and bytes that its columns may unpack to."""

CHILD_MEMORY_BYTES, CHILD_CPU_S, CHILD_WALL_S = 4 * 2**30, 20, 60.0
"""What the process that reads a Parquet file may use."""

RULE_NUMBER = 1000
"""The largest number of seeds, studies or repetitions, and the largest factor of a budget, in a protocol."""

FINDINGS = 100
"""Of one rule so many findings are kept."""
