"""The event log of a trial, one JSON object a line: the truth from which every table is derived."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import files, strict_json
from bench.errors import BadStore
from bench.events import fault_of

NAME = "events.jsonl"


class EventLog:
    """Appends events to ``events.jsonl``, one JSON object a line, on disk before it returns."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def write(self, event: str, **values: Any) -> dict[str, Any]:
        """Append one event and return it; :class:`~bench.errors.CannotWrite` leaves the log as it was.

        What the log could not be read with afterwards is a ``ValueError``.
        """
        line = {"event": event, **values}
        text = json.dumps(jsonable(line), allow_nan=False)
        if fault := fault_of(json.loads(text)):
            raise ValueError(f"no event {event!r}: {fault}")
        with files.writing(self._path):
            files.append(self._path, text.encode() + b"\n")
        return line


@dataclass
class Reading:
    """What a log holds: its ``events`` up to the first line that is none.

    ``fault`` says which line that is and why, ``whole_bytes`` where it begins; ``cut`` is what stands after the last
    newline, the beginning of a line whose writing a kill ended.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    whole_bytes: int = 0
    fault: str = ""
    cut: bytes = b""


def read(path: Path) -> Reading:
    """Read a log as far as it can be read; one that is not there is empty."""
    reading = Reading()
    try:
        with files.plain(path).open("rb") as file:
            number = 0
            while line := file.readline(strict_json.LONGEST_BYTES + 2):
                number += 1
                if not line.endswith(b"\n") and len(line) <= strict_json.LONGEST_BYTES:
                    reading.cut = line
                    break
                event, fault = _parsed(line)
                if fault:
                    reading.fault = f"line {number} is not an event: {fault}"
                    break
                reading.events.append(event)
                reading.whole_bytes += len(line)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        reading.fault = f"it cannot be read: {error.strerror}"
    return reading


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a trial, oldest first; a last line that was cut by a kill is left out.

    A log that is damaged before its last line raises :class:`~bench.errors.BadStore` with file and line.
    """
    reading = read(folder / NAME)
    if reading.fault:
        raise BadStore(
            f"{folder / NAME}, {reading.fault}", hint=f"bench repair --results {folder.parent.parent} cuts it there"
        )
    return reading.events


def _parsed(line: bytes) -> tuple[dict[str, Any], str]:
    """Return the event of a line, or what is wrong with it."""
    try:
        event = strict_json.loads(line)
        fault = fault_of(event)
    except ValueError as error:
        event, fault = {}, str(error)[:80]
    return (event, "") if not fault else ({}, f"{line[:60].rstrip()!r} ({fault})")


def jsonable(value: Any) -> Any:
    """Return ``value`` with non-finite numbers as text, since JSON has none, and every text as sound Unicode."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {jsonable(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value
