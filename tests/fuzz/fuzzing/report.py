"""What became of inputs: counted per target, told in a table, the input that runs at the moment where others see it."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

TOLD = 2
"""How many inputs of one kind of fault are told."""


@dataclass
class Fault:
    """An input that broke a property; ``number`` is ``None`` where it is not known which one did."""

    target: str
    number: int | None
    kind: str
    detail: str
    file: str | None = None
    chunk: int | None = None


@dataclass
class Tally:
    """What became of the inputs of one target."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    slowest: int | None = None
    cpu_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Add what became of other inputs."""
        for name in ("inputs", "accepted", "refused", "cpu_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest = other.slowest_s, other.slowest
        for kind, count in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count
        self.faults += other.faults

    def dump(self, path: Path) -> None:
        """Append to a file, as one JSON line."""
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def load(path: Path) -> list[Tally]:
    """Return the tallies of a file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        values = json.loads(line)
        values["faults"] = [Fault(**fault) for fault in values["faults"]]
        found.append(Tally(**values))
    return found


def merged(tallies: Iterable[Tally], died: Iterable[Fault]) -> list[Tally]:
    """Return one tally per target; inputs that ended their process count as inputs and as faults."""
    found: dict[str, Tally] = {}
    for one in tallies:
        found.setdefault(one.target, Tally(one.target)).add(one)
    for fault in died:
        owner = found.setdefault(fault.target, Tally(fault.target))
        owner.add(Tally(fault.target, inputs=1, faults=[fault], kinds={fault.kind: 1}))
    return list(found.values())


def told(tallies: Sequence[Tally], seed: int, lines: int) -> Iterator[str]:
    """Say what became of the inputs: a line per target, and every kind of fault with how to run its input again."""
    total = Tally("all")
    yield f"{'target':<18}{'inputs':>8}{'accepted':>10}{'refused':>9}{'faults':>8}{'slowest':>11} {'':<7}{'CPU':>10}"
    for one in tallies:
        total.add(Tally(**{**vars(one), "faults": []}))
    for one in (*tallies, total):
        faults = one.inputs - one.accepted - one.refused
        place = "" if one.slowest is None or one is total else f"#{one.slowest}"
        times = f"{one.slowest_s:>9.3f} s {place:<7}{one.cpu_s:>8.1f} s"
        yield f"{one.target:<18} {one.inputs:>7}{one.accepted:>10}{one.refused:>9}{faults:>8}{times}"
    for one in tallies:
        for kind, count in sorted(one.kinds.items(), key=lambda item: -item[1]):
            yield f"\n{one.target}: {kind} ({count} times)"
            for fault in [fault for fault in one.faults if fault.kind == kind][:TOLD]:
                yield from _again(fault, seed)
                yield from (f"    {line}" for line in fault.detail.splitlines()[-lines:] if lines)


def _again(fault: Fault, seed: int) -> Iterator[str]:
    """Say how to run the input of a fault again."""
    program = "python -P tests/fuzz/run.py"
    if fault.number is not None:
        yield f"  again: {program} --seed {seed} --target {fault.target} --number {fault.number}"
    if fault.file is not None:
        yield f"     or: {program} --case {fault.file}"


class Progress:
    """The number of the input that runs at the moment, readable by another process after this one is gone."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(struct.pack("<q", -1))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def at(self, number: int) -> None:
        """Say which input runs; -1: none."""
        struct.pack_into("<q", self._map, 0, number)

    def read(self) -> int:
        """Return which input runs."""
        found: int = struct.unpack_from("<q", self._map, 0)[0]
        return found
