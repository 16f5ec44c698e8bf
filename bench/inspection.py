"""What is wrong with a results folder: everything at once, and nothing is changed by looking.

The event logs are the truth, so a table is damaged where it does not follow from them. :mod:`bench.repair` does what
each finding's ``remedy`` says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import event_log, parquet, record
from bench.errors import BadStore
from bench.files import archive_fault
from bench.locks import is_locked
from bench.store import MARKER, TABLES, looks_like_results, read_marker, read_protocol, read_trial
from bench.trial import MEASURED, Trial

if TYPE_CHECKING:
    import pyarrow as pa

DAMAGED = "damaged"
"""The folder, in the results, of what could not be used any more."""


class Kind(StrEnum):
    """What is wrong, in the order in which it is repaired."""

    NEWER = "newer"
    MARKER = "marker"
    STRANGER = "stranger"
    TRIAL = "trial"
    LOG = "log"
    ROW = "row"
    MISSING = "missing"
    PROTOCOL = "protocol"
    CHECKPOINT = "checkpoint"
    STALE = "stale"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or, of kind ``NOTE``, worth saying.

    ``path`` is relative to the results folder, ``what`` says what is wrong, ``remedy`` what ``bench repair`` would do.
    """

    kind: Kind
    path: str
    what: str
    remedy: str = ""

    @property
    def damaged(self) -> bool:
        """Whether this is damage."""
        return self.kind is not Kind.NOTE


def inspect(root: Path) -> list[Finding]:
    """Return everything that is wrong with the results folder ``root``, in the order in which it is repaired.

    Raises :class:`~bench.errors.BadStore` for a folder that is none of ours or cannot be read.
    """
    try:
        found = list(_Inspection(root).findings())
    except OSError as error:
        raise BadStore(
            f"the results folder {str(root)!r} cannot be read: {error.strerror}", hint="name another: --results DIR"
        ) from None
    order = list(Kind)
    return sorted(found, key=lambda finding: (order.index(finding.kind), finding.path))


class _Inspection:
    """Looks through one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tables: dict[tuple[str, str], pa.Table] = {}  # by table and trial, those that can be read
        self.unusable: set[tuple[str, str]] = set()

    def findings(self) -> Iterator[Finding]:
        if not self.root.is_dir():
            raise BadStore(f"there are no results in {str(self.root)!r}", hint="name another folder: --results DIR")
        marker = self._marker()
        yield from marker
        if any(finding.kind is Kind.NEWER for finding in marker):
            return  # what a later version means by its files is not for this one to judge
        for name in ("runs", *TABLES, "protocols"):
            if (self.root / name).exists() and not (self.root / name).is_dir():
                yield Finding(kind=Kind.STRANGER, path=name, what="a file where a folder must be", remedy=ASIDE)
        yield from self._stale(self.root)
        for name in TABLES:
            yield from self._table(name)
        for folder in _entries(self.root / "runs"):
            yield from self._run(folder)
        yield from self._without_log()
        yield from self._protocols()

    # -- the folder ------------------------------------------------------------------------------------------------
    def _marker(self) -> list[Finding]:
        path = self.root / MARKER
        try:
            kind, version, _ = read_marker(path)
        except (FileNotFoundError, ValueError) as error:
            if not looks_like_results(self.root):
                raise BadStore(f"{str(self.root)!r} is not a results folder of bench (no {MARKER})") from None
            what = "missing" if isinstance(error, OSError) else f"not the marker of a results folder: {error}"
            return [Finding(kind=Kind.MARKER, path=MARKER, what=what, remedy="write it again")]
        if kind != "results":
            raise BadStore(f"{path} marks a folder of kind {kind!r}, not 'results'")
        if version > record.SCHEMA_VERSION:
            what = f"schema version {version}; this bench reads up to {record.SCHEMA_VERSION}"
            return [Finding(kind=Kind.NEWER, path=MARKER, what=what, remedy=NEWER)]
        return []

    def _stale(self, folder: Path) -> Iterator[Finding]:
        """Find what a kill in the middle of writing left; a file whose process is there is being written."""
        for path in _entries(folder):
            found = TEMPORARY.fullmatch(path.name)
            if found is not None and path.is_file() and not _is_alive(int(found[1])):
                yield self._finding(Kind.STALE, path, "left by a process that was killed", "remove it")

    def _finding(self, kind: Kind, path: Path, what: str, remedy: str = "") -> Finding:
        return Finding(kind=kind, path=path.relative_to(self.root).as_posix(), what=what, remedy=remedy)

    # -- tables ----------------------------------------------------------------------------------------------------
    def _table(self, name: str) -> Iterator[Finding]:
        yield from self._stale(self.root / name)
        for path in _entries(self.root / name):
            if path.name.startswith("."):
                continue  # readers of Parquet folders pass over hidden files
            if path.suffix != ".parquet" or not path.is_file():
                yield self._finding(Kind.STRANGER, path, "not a table, and pandas reads the whole folder", ASIDE)
                continue
            what, kind = "", Kind.ROW
            try:
                table = self.tables[name, path.stem] = parquet.read(path, name)
                what = _other_trial(table, name, path.stem)
            except parquet.NewerSchema as error:
                what, kind = error.message.removeprefix(f"{path} "), Kind.NEWER
            except BadStore as error:
                what = error.message.removeprefix(f"{path} ")
            if what:
                self.unusable.add((name, path.stem))
                yield self._finding(kind, path, what, NEWER if kind is Kind.NEWER else self._row_remedy(path.stem))

    def _row_remedy(self, trial_id: str) -> str:
        there = (self.root / "runs" / trial_id / event_log.NAME).exists()
        return f"{ASIDE}, derive it from its log again" if there else f"{ASIDE}; it has no log to derive it from"

    def _without_log(self) -> Iterator[Finding]:
        for name, trial_id in sorted(self.tables):
            if (name, trial_id) in self.unusable or (self.root / "runs" / trial_id).exists():
                continue
            path = self.root / name / f"{trial_id}.parquet"
            if name == "trials":
                yield self._finding(Kind.NOTE, path, "a row without an event log (imported or copied)")
            elif ("trials", trial_id) not in self.tables:
                yield self._finding(Kind.NOTE, path, "a curve without its row of trials")

    # -- trials ----------------------------------------------------------------------------------------------------
    def _run(self, folder: Path) -> Iterator[Finding]:
        if not folder.is_dir():
            yield self._finding(Kind.STRANGER, folder, "a file where folders of trials are", ASIDE)
            return
        if is_locked(folder / "lock") or is_locked(folder / "claim"):
            yield self._finding(Kind.NOTE, folder, "runs at the moment, and was not looked at")
            return
        yield from self._stale(folder)
        if (folder / "checkpoint.tmp").exists():
            yield self._finding(Kind.STALE, folder / "checkpoint.tmp", "left by a worker that was killed", "remove it")
        if not any((folder / name).exists() for name in ("trial.json", event_log.NAME)):
            return  # a folder whose trial never began
        try:
            trial = read_trial(folder)
        except BadStore as error:
            yield self._finding(Kind.TRIAL, folder, error.message, "move the folder into damaged/; its rows stay")
            return
        reading = event_log.read(folder / event_log.NAME)
        if reading.fault:
            remedy = "keep a copy in damaged/, cut it before that line; the trial runs again"
            yield self._finding(Kind.LOG, folder / event_log.NAME, reading.fault, remedy)
            return
        if reading.cut:
            what = "its last line was cut by a kill, which loses nothing: the next start drops it"
            yield self._finding(Kind.NOTE, folder / event_log.NAME, what)
        yield from self._rows(trial, reading.events)
        yield from self._checkpoint(folder, record.trial_row(trial, reading.events)["outcome"] in MEASURED)

    def _rows(self, trial: Trial, events: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Hold the rows of a trial against its log."""
        ended = bool(events) and events[-1]["event"] == "finished"
        row = record.trial_row(trial, events)
        for name, rows in (("trials", [row]), ("curves", record.curve_rows(trial, events))):
            path = self.root / name / f"{trial.trial_id}.parquet"
            if (name, trial.trial_id) in self.unusable:
                continue
            table = self.tables.get((name, trial.trial_id))
            if table is None:
                if ended:
                    yield self._finding(
                        Kind.MISSING, path, "missing, and its trial has ended", "derive it from its log"
                    )
                continue
            wrong = differing(table, rows, name) if ended else _unfounded(table, name)
            if wrong:
                what = f"does not follow from its log: {', '.join(wrong)}"
                yield self._finding(Kind.ROW, path, what, self._row_remedy(trial.trial_id))

    def _checkpoint(self, folder: Path, measured: bool) -> Iterator[Finding]:
        path = folder / "checkpoint.pt"
        if not path.exists():
            return
        if measured:
            yield self._finding(Kind.STALE, path, "left of a trial that has its measurement", "remove it")
        elif fault := archive_fault(path):
            remedy = f"{ASIDE}; the trial begins again"
            yield self._finding(Kind.CHECKPOINT, path, f"it cannot be read: {fault}", remedy)

    # -- protocols -------------------------------------------------------------------------------------------------
    def _protocols(self) -> Iterator[Finding]:
        yield from self._stale(self.root / "protocols")
        for path in _entries(self.root / "protocols"):
            if path.suffix != ".json":
                continue
            try:
                read_protocol(path)
            except (OSError, ValueError) as error:
                remedy = f"{ASIDE}, write it again if it is installed; else its bench run command does"
                yield self._finding(Kind.PROTOCOL, path, f"not a protocol: {error}", remedy)


ASIDE = "move it into damaged/"
NEWER = "nothing; install a newer bench"
TEMPORARY = re.compile(r"(?:\..+|trial\.json)\.(\d{1,9})(?:\.tmp)?")


def differing(table: pa.Table, rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Return the columns in which a stored table differs from ``rows``; older versions lack some, which is no wrong."""
    import pyarrow as pa

    wanted = pa.Table.from_pylist([dict(row) for row in rows], schema=TABLES[name])
    if len(table) != len(wanted):
        return [f"{len(table)} rows instead of {len(wanted)}"]
    versions = set(table.column("schema_version").to_pylist())
    late = record.later_columns(min(versions, default=record.SCHEMA_VERSION))
    names = [column for column in TABLES[name].names if column != "schema_version" and column not in late]
    return [column for column in names if repr(table[column].to_pylist()) != repr(wanted[column].to_pylist())]


def _unfounded(table: pa.Table, name: str) -> list[str]:
    """Return what a row says without a log that says it: a measurement of a trial that has not ended."""
    if name != "trials":
        return []
    return [f"outcome is {outcome!r}" for outcome in table["outcome"].to_pylist() if outcome in MEASURED]


def _other_trial(table: pa.Table, name: str, trial_id: str) -> str:
    """Return what is wrong where a file holds rows of another trial than its name says."""
    if name == "trials" and any(origin is not None for origin in table["origin"].to_pylist()):
        return ""  # imported rows come in one file
    ids = table["trial_id"].to_pylist()
    if name == "trials" and len(ids) != 1:
        return f"holds {len(ids)} rows instead of one"
    others = sorted(set(ids) - {trial_id}, key=str)
    return f"holds the rows of another trial, {others[0]}" if others else ""


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_alive(process_id: int) -> bool:
    if os.name != "posix":
        return True  # there is no harmless way to ask
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
