"""Recorded values that no trial of ours has, in tables that are sound: what ranks them must stand it."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench import record
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.targets import samples
from fuzzing.targets.commands import command

COMMANDS = (
    ("leaderboard",),
    ("leaderboard", "--by", "quality", "--format", "json"),
    ("leaderboard", "--by", "memory", "--format", "md"),
    ("leaderboard", "--by", "pareto"),
    ("compare", "adamw", "lion", "--workload", "llama-c4"),
    ("compare", "adamw", "lion", "--workload", "llama-c4", "--format", "csv", "--by", "steps"),
)


class Boards:
    """Ranks and compares rows of ``trials`` of which some values are foreign."""

    def __init__(self, home: Path) -> None:
        self._rows = samples.store(home / "results").table("trials").to_pylist()
        here = Path.cwd()
        os.chdir(home)
        for arguments in COMMANDS:  # imports what commands import, so that an input's memory and time are its own
            command(arguments)
        os.chdir(here)

    def make(self, random: Random) -> Case:
        changes = []
        for _ in range(random.choice((1, 1, 2, 3))):
            field = record.TRIALS.field(random.randrange(len(record.TRIALS)))
            everywhere = random.random() < 0.3
            value = _value(random, field, self._rows[0][field.name])
            rows = range(len(self._rows)) if everywhere else [random.randrange(len(self._rows))]
            changes += [[row, field.name, value] for row in rows]
        return {"changes": changes, "command": list(random.choice(COMMANDS))}

    def run(self, case: Case, folder: Path) -> None:
        os.chdir(folder)
        rows = [dict(row) for row in self._rows]
        for row, name, value in case["changes"]:
            rows[row][name] = value
        (folder / "results" / "trials").mkdir(parents=True)
        (folder / "results" / "store.json").write_text('{"bench": "results", "schema_version": 3}')
        table = pa.Table.from_pylist(rows, schema=record.TRIALS)
        pq.write_table(table, folder / "results" / "trials" / "0123.parquet")
        command(case["command"])


def _value(random: Random, field: pa.Field, value: Any) -> Any:
    kind = field.type
    if random.random() < 0.15:
        return None
    if kind == pa.bool_():
        return random.random() < 0.5
    if kind in {pa.int64(), pa.int32()}:
        limit = 2 ** (kind.bit_width - 1)
        return random.choice([value for value in hostile.INTEGERS if -limit <= value < limit])
    if kind == pa.float64():
        return random.choice(hostile.REALS)
    if kind == pa.string():
        text = mutate.text(random, value) if value and random.random() < 0.5 else hostile.text(random)
        return text.encode(errors="replace").decode()
    return [("loss", random.choice(hostile.REALS)), (hostile.text(random).encode(errors="replace").decode(), None)]
