"""Event logs: JSON lines, from which the rows of both tables are derived."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from bench import record
from bench.event_log import EventLog, read_events
from bench.store import Store
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.targets import samples


class Events:
    """Reads a log, derives the rows and makes tables of them."""

    def __init__(self, home: Path) -> None:  # noqa: ARG002 - a target's signature
        self._trial = samples.trial()

    def make(self, random: Random) -> Case:
        events: list[Any] = samples.events()
        if random.random() < 0.8:
            number = random.randrange(len(events))
            if random.random() < 0.8:
                events[number] = mutate.structure(random, events[number])
            else:
                events = mutate.structure(random, events, 1)
        if isinstance(events, list) and random.random() < 0.15:
            random.shuffle(events)
        lines = [mutate.as_json(random, event) for event in (events if isinstance(events, list) else [events])]
        lines = [line.replace(b"\n", b"") for line in lines]
        raw = b"\n".join(lines) + b"\n"
        if random.random() < 0.25:
            raw = mutate.data(random, raw)
        if random.random() < 0.05:
            raw += hostile.text(random).encode("utf-8", errors="surrogatepass") + random.choice((b"", b"\n"))
        return {"log": raw, "whole": random.random() < 0.1}

    def run(self, case: Case, folder: Path) -> None:
        if case["whole"]:
            store = Store(folder / "results", create=True)
            (store.folder(self._trial) / "events.jsonl").write_bytes(case["log"])
            store.finalise(self._trial)
            store.unfinished()
            store.trials()
            store.curves()
            return
        (folder / "events.jsonl").write_bytes(case["log"])
        events = read_events(folder)
        row = record.trial_row(self._trial, events)
        curves = record.curve_rows(self._trial, events)
        pa.Table.from_pylist([row], schema=record.TRIALS)
        pa.Table.from_pylist(curves, schema=record.CURVES)
        EventLog(folder).write("saved", step=1)
        if len(read_events(folder)) != len(events) + 1:
            raise AssertionError("an event that was written after this log is not found in it")
