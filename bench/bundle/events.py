"""The event log of a trial from a stranger: every line an event that a worker of this version writes, and no other."""

from __future__ import annotations

from typing import Any

from bench import strict_json
from bench.bundle import limits
from bench.clock import ASIDE, SECTIONS
from bench.errors import BadBundle
from bench.events import fault_of

KINDS = ("started", "evaluated", "saved", "unsaved", "finished")
"""The events of a worker. What others add to a log later, such as that it was reproduced, is not theirs to send."""

SPENT = (*(f"{section}_s" for section in (*SECTIONS, *ASIDE)), "time_s", "wall_s", "cpu_s")
"""The seconds that every evaluation has."""

LARGEST = 1e12
"""Above every number of seconds, and every target."""

FACTS = ("started_at", "metric", "metric_direction", "target", "budget_steps", "budget_s")
"""The facts that every start has, and that decide how a trial ends."""


def parse_events(content: bytes, where: str) -> list[dict[str, Any]]:
    """Return the events of the log ``content``, oldest first.

    Raises:
        BadBundle: a line is cut or is no event that a worker of this version writes.
    """
    lines = content.split(b"\n")
    if lines.pop():
        raise BadBundle(f"{where} ends in the middle of a line")
    if not 0 < len(lines) <= limits.EVENTS:
        raise BadBundle(f"{where} has {len(lines):,} events; 1 to {limits.EVENTS:,} are read")
    events = [_event(line, f"{where}, line {number}") for number, line in enumerate(lines, start=1)]
    if events[0]["event"] != "started":
        raise BadBundle(f"{where} does not begin with a start")
    return events


def _event(line: bytes, where: str) -> dict[str, Any]:
    event: dict[str, Any] = parse_json(line, where)
    fault = fault_of(event) or _lack(event)
    if fault:
        raise BadBundle(f"{where} is no event of a worker: {fault[:200]}")
    return event


def _lack(event: dict[str, Any]) -> str:
    """Return what an event lacks that verification needs."""
    kind = event["event"]
    if kind not in KINDS:
        return f"{kind[:40]!r} is none of {', '.join(KINDS)}"
    if kind == "started":
        facts = event["facts"]
        return next((f"facts.{name} is {facts.get(name)!r:.40}" for name in FACTS if not _decides(name, facts)), "")
    if kind == "evaluated":
        cost = event["cost"]
        return next((f"cost.{name} is {cost.get(name)!r:.40}" for name in SPENT if not _is_spent(cost.get(name))), "")
    return ""


def _decides(name: str, facts: dict[str, Any]) -> bool:
    """Whether the fact ``name`` is there and of a value that an outcome can follow from."""
    value = facts.get(name)
    if name in {"target", "budget_s"}:
        return name in facts and (value is None or (not isinstance(value, str) and abs(value) < LARGEST))
    if name == "metric_direction":
        return value in {"min", "max"}
    return value is not None


def _is_spent(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < LARGEST


def parse_json(content: bytes, where: str, *, most_bytes: int = limits.JSON_BYTES) -> Any:
    """Return the JSON document ``content``; whatever is wrong with it raises ``BadBundle`` that names ``where``."""
    if len(content) > most_bytes:
        raise BadBundle(f"{where} has {len(content):,} bytes; at most {most_bytes:,} are read")
    try:
        return strict_json.loads(content)
    except ValueError as error:
        raise BadBundle(f"{where} is no JSON that bench writes: {str(error)[:200]}") from None
