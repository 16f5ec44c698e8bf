"""The event log of a trial, one JSON object a line: the truth from which every table is derived."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import BadStore


class EventLog:
    """Appends events to ``events.jsonl``, one JSON object a line, on disk before it returns."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"
        _drop_cut_line(self._path)

    def write(self, event: str, **values: Any) -> dict[str, Any]:
        """Append one event and return it."""
        line = {"event": event, **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(jsonable(line), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return line


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a trial, oldest first; a last line that was cut by a kill is left out."""
    path = folder / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    whole = lines[:-1]  # what follows the last newline was never finished
    events = []
    for number, line in enumerate(whole, start=1):
        event = _parsed(line)
        if event is None:
            raise BadStore(f"{path}, line {number} is not an event: {line[:60]!r}")
        events.append(event)
    return events


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _drop_cut_line(path: Path) -> None:
    """Cut off a last line without its newline, so that the next event starts on a line of its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def jsonable(value: Any) -> Any:
    """Return ``value`` with non-finite numbers as text, since JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
