"""Where results live: one folder with an event log per trial, and two Parquet tables derived from the logs.

    results/store.json          marks the folder as ours, with its schema version
    results/runs/<trial id>/    trial.json, events.jsonl (the truth), worker.log, checkpoint.pt while it runs
    results/trials/             Parquet, one row per trial; pandas reads the folder
    results/curves/             Parquet, one row per evaluation
    results/protocols/          the rules, points among them, of each protocol that a trial belongs to

Each trial writes files of its own, so any number of processes write one store without a lock on it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from bench import record
from bench.errors import BadStore, TrialBusy
from bench.event_log import read_events, write_text
from bench.protocol import Protocol, protocols
from bench.trial import MEASURED, Trial, digest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MARKER = "store.json"
TABLES = {"trials": record.TRIALS, "curves": record.CURVES}


class Store:
    """A results folder. ``create=True`` makes one where there is none; a foreign folder raises ``BadStore``."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        self.origin: str | None = None  # where the results were imported from, if they were
        try:
            if not (root / MARKER).exists():
                self._start(create=create)
            version = self._check_marker()
            if create and version < record.SCHEMA_VERSION:  # what is about to be written is newer than the marker says
                self._mark()
        except OSError as error:
            raise BadStore(
                f"the results folder {str(root)!r} cannot be used: {error.strerror}", hint="name another: --results DIR"
            ) from None

    def _start(self, *, create: bool) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise BadStore(f"--results {str(self.root)!r} is a file; it must be a folder")
        if not create:
            raise BadStore(
                f"there are no results in {str(self.root)!r}",
                hint="run something first (bench run ...), or name another folder: --results DIR",
            )
        others = self.root.exists() and any(not path.name.startswith(f".{MARKER}.") for path in self.root.iterdir())
        if others and not (self.root / MARKER).exists():  # another process may have made the same store meanwhile
            raise BadStore(
                f"the folder {str(self.root)!r} is not empty and not a results folder of bench (no {MARKER})",
                hint="name an empty or a new folder: --results DIR",
            )
        self.root.mkdir(parents=True, exist_ok=True)
        self._mark()

    def _mark(self) -> None:
        marker = {"bench": "results", "schema_version": record.SCHEMA_VERSION}
        marker |= {} if self.origin is None else {"origin": self.origin}
        write_text(self.root / MARKER, json.dumps(marker) + "\n")

    def _check_marker(self) -> int:
        path = self.root / MARKER
        try:
            marker = json.loads(path.read_text(encoding="utf-8"))
            kind, version, self.origin = marker["bench"], int(marker["schema_version"]), marker.get("origin")
        except (ValueError, KeyError, TypeError):
            raise BadStore(f"{path} is not the marker of a results folder of bench") from None
        if kind != "results":
            raise BadStore(f"{path} marks a folder of kind {kind!r}, not 'results'")
        if version > record.SCHEMA_VERSION:
            raise BadStore(
                f"{str(self.root)!r} has schema version {version}; this bench reads up to {record.SCHEMA_VERSION}",
                hint="install a newer bench, or name another folder: --results DIR",
            )
        return version

    # -- one trial -------------------------------------------------------------------------------------------------
    def folder(self, trial: Trial) -> Path:
        """Return the folder in which ``trial`` is about to run, made if need be, with its ``trial.json``.

        What is no part of the identity, such as the place of the data, is as this command has it. A folder of imported
        results takes no trials.
        """
        if self.origin is not None:
            raise BadStore(
                f"the results folder {str(self.root)!r} holds results imported from {self.origin}",
                hint="run into a folder of its own: --results DIR",
            )
        folder = self.root / "runs" / trial.trial_id
        temporary = folder / f"trial.json.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial.write(temporary)
            temporary.replace(folder / "trial.json")
        except OSError as error:
            raise BadStore(f"cannot write {folder}: {error.strerror}", hint="name another: --results DIR") from None
        return folder

    def is_running(self, trial: Trial) -> bool:
        """Return whether a worker has ``trial`` at the moment."""
        path = self.root / "runs" / trial.trial_id / "lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True

    @contextlib.contextmanager
    def claim(self, trial: Trial) -> Iterator[None]:
        """Keep ``trial`` from others that run the same plan; :class:`~bench.errors.TrialBusy` where one has it.

        A worker locks its folder only when it has started, which takes seconds in which two processes would start two.
        """
        folder = self.root / "runs" / trial.trial_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadStore(f"cannot write {folder}: {error.strerror}", hint="name another: --results DIR") from None
        try:
            with FileLock(folder / "claim", timeout=0):
                yield
        except Timeout:
            raise TrialBusy(f"another process runs the trial {trial.trial_id} now", hint="wait for it") from None

    def finished(self, trial: Trial) -> dict[str, Any] | None:
        """Return the row of ``trial`` if its outcome is a measurement, else ``None``."""
        events = read_events(self.root / "runs" / trial.trial_id)
        row = record.trial_row(trial, events)
        return row if row["outcome"] in MEASURED else None

    def finalise(self, trial: Trial) -> dict[str, Any]:
        """Derive and write both tables' rows of ``trial`` from its events; return the row of ``trials``.

        They tell of the command that ran the trial, not of one that asks for it again; only what the trial is compared
        with, which trials of schema version 1 do not say, is taken from the one that asks.
        """
        folder = self.root / "runs" / trial.trial_id
        stored = Trial.read(folder / "trial.json")
        if stored.reference is None and trial.reference is not None:
            stored = stored.model_copy(update={"reference": trial.reference, "is_reference": trial.is_reference})
            write_text(folder / "trial.json", stored.text())
        events = read_events(folder)
        row = record.trial_row(stored, events)
        self._write("trials", stored.trial_id, [row])
        self._write("curves", stored.trial_id, record.curve_rows(stored, events))
        return row

    def unfinished(self) -> list[Trial]:
        """Return the trials that were begun and have no measurement yet."""
        paths = sorted((self.root / "runs").glob("*/trial.json"))
        return [trial for trial in map(Trial.read, paths) if self.finished(trial) is None]

    def _write(self, table: str, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = self.root / table
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{trial_id}.{os.getpid()}.tmp"
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=TABLES[table]), temporary)
        temporary.replace(folder / f"{trial_id}.parquet")

    # -- protocols -------------------------------------------------------------------------------------------------
    def keep(self, protocol: Protocol) -> None:
        """Store the rules of ``protocol``, so that its results can be read wherever they go."""
        folder = self.root / "protocols"
        folder.mkdir(exist_ok=True)
        text = json.dumps(protocol.rules(), indent=1, sort_keys=True) + "\n"
        write_text(folder / f"{protocol.name}-{protocol.sha256[:12]}.json", text)

    def protocols(self) -> dict[str, Protocol]:
        """Return, by their hash, the stored protocols and the installed ones; a file that is none is named."""
        found = {protocol.sha256: protocol for protocol in protocols().values()}
        for path in sorted((self.root / "protocols").glob("*.json")):
            try:
                stored = Protocol.read(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise BadStore(f"{path} is not a protocol: {error}", hint="give its bench run command again") from None
            found[stored.sha256] = stored
        return found

    # -- results of others -----------------------------------------------------------------------------------------
    def put_foreign(self, trials: pa.Table, origin: str, protocols: Sequence[Protocol]) -> None:
        """Replace what was imported from ``origin`` by ``trials``; refused where other results are.

        Imported rows have no event log, so they live in folders of their own and are never mixed with measured ones.
        """
        name = digest(origin)[:20]
        others = sorted(path.name for path in (self.root / "trials").glob("*.parquet") if path.stem != name)
        if others or self.origin not in {None, origin} or any((self.root / "runs").glob("*")):
            raise BadStore(
                f"the results folder {str(self.root)!r} holds other results than those of {origin}",
                hint="import into a folder of its own: --results DIR",
            )
        self.origin = origin
        self._mark()
        for protocol in protocols:
            self.keep(protocol)
        self._write("trials", name, trials.to_pylist())

    # -- all trials ------------------------------------------------------------------------------------------------
    def table(self, name: str) -> pa.Table:
        """Return the table ``name`` (``trials`` or ``curves``), rows ordered by trial; a broken file is named."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = TABLES[name]
        parts = []
        for path in sorted((self.root / name).glob("*.parquet")):
            try:
                part = pq.read_table(path)
            except (OSError, pa.ArrowException) as error:
                raise BadStore(
                    f"{path} cannot be read: {error}", hint="give its bench run command again: the log is read anew"
                ) from None
            parts.append(self._check_part(path, part, schema))
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def _check_part(self, path: Path, part: pa.Table, schema: pa.Schema) -> pa.Table:
        """Return ``part`` with the columns of ``schema``: those that came later have what older rows stand for."""
        import pyarrow as pa

        try:
            found = int((part.schema.metadata or {})[b"bench_schema_version"])
        except (KeyError, ValueError):
            raise BadStore(f"{path} is not a table of bench", hint="move it out of the results folder") from None
        if found > record.SCHEMA_VERSION:
            raise BadStore(f"{path} has schema version {found}; this bench reads up to {record.SCHEMA_VERSION}")
        since = {**(record.SINCE_2 if found < 2 else {}), **(record.SINCE_3 if found < 3 else {})}
        for name, value in since.items():
            if name in schema.names and name not in part.schema.names:
                kind = schema.field(name).type
                part = part.append_column(name, pa.array([value] * len(part), type=kind))
        lacking = [name for name in schema.names if name not in part.schema.names]
        if lacking:
            raise BadStore(f"{path} lacks the columns {', '.join(lacking)}", hint="give its bench run command again")
        try:
            return part.select(schema.names).cast(schema)
        except pa.ArrowException as error:
            raise BadStore(f"{path} has a column of another type: {error}", hint="move it out of the folder") from None

    def trials(self) -> pd.DataFrame:
        """Return ``trials`` as a pandas frame."""
        frame: pd.DataFrame = self.table("trials").to_pandas()
        return frame

    def curves(self) -> pd.DataFrame:
        """Return ``curves`` as a pandas frame; ``metrics`` holds (name, value) pairs."""
        frame: pd.DataFrame = self.table("curves").to_pandas()
        return frame
