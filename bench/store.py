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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import parquet, record, strict_json
from bench.errors import BadStore
from bench.event_log import read_events
from bench.files import plain, write_text, writing
from bench.locks import is_locked, locked
from bench.protocol import Protocol, protocols
from bench.trial import MEASURED, Trial, digest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MARKER = "store.json"
TABLES = parquet.SCHEMAS


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
        if looks_like_results(self.root):
            raise BadStore(
                f"the results folder {str(self.root)!r} has lost its marker, {MARKER}",
                hint=f"bench repair --results {self.root} writes it again",
            )
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
        write_marker(self.root, self.origin)

    def _check_marker(self) -> int:
        path = self.root / MARKER
        try:
            kind, version, self.origin = read_marker(path)
        except ValueError:
            raise BadStore(
                f"{path} is not the marker of a results folder of bench",
                hint=f"bench repair --results {self.root} writes it again, if the folder is one",
            ) from None
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
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "trial.json", trial.text())
        return folder

    def is_running(self, trial: Trial) -> bool:
        """Return whether a worker has ``trial`` at the moment."""
        return is_locked(self.root / "runs" / trial.trial_id / "lock")

    @contextlib.contextmanager
    def claim(self, trial: Trial) -> Iterator[None]:
        """Keep ``trial`` from others that run the same plan; :class:`~bench.errors.TrialBusy` where one has it.

        A worker locks its folder only when it has started, which takes seconds in which two processes would start two.
        """
        folder = self.root / "runs" / trial.trial_id
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "claim", f"another process runs the trial {trial.trial_id} now"):
            yield

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
        stored = read_trial(folder)
        if stored.reference is None and trial.reference is not None:
            stored = stored.model_copy(update={"reference": trial.reference, "is_reference": trial.is_reference})
            write_text(folder / "trial.json", stored.text())
        events = read_events(folder)
        row = record.trial_row(stored, events)
        self._write("curves", stored.trial_id, record.curve_rows(stored, events))  # first: no row without its curve
        self._write("trials", stored.trial_id, [row])
        return row

    def unfinished(self) -> list[Trial]:
        """Return the trials that were begun and have no measurement yet."""
        paths = sorted((self.root / "runs").glob("*/trial.json"))
        trials = [read_trial(path.parent) for path in paths]
        return [trial for trial in trials if self.finished(trial) is None]

    def _write(self, table: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        parquet.write(self.root / table / f"{name}.parquet", rows, table)

    # -- protocols -------------------------------------------------------------------------------------------------
    def keep(self, protocol: Protocol) -> None:
        """Store the rules of ``protocol``, so that its results can be read wherever they go."""
        path = self.root / "protocols" / protocol_file(protocol)
        text = json.dumps(protocol.rules(), indent=1, sort_keys=True) + "\n"
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != text.encode():
            write_text(path, text)

    def protocols(self) -> dict[str, Protocol]:
        """Return, by their hash, the stored protocols and the installed ones; a file that is none is named."""
        found = {protocol.sha256: protocol for protocol in protocols().values()}
        for path in sorted((self.root / "protocols").glob("*.json")):
            try:
                stored = read_protocol(path)
            except (OSError, ValueError) as error:
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

        parts = [parquet.read(path, name) for path in sorted((self.root / name).glob("*.parquet"))]
        return pa.concat_tables(parts) if parts else TABLES[name].empty_table()

    def trials(self) -> pd.DataFrame:
        """Return ``trials`` as a pandas frame."""
        frame: pd.DataFrame = self.table("trials").to_pandas()
        return frame

    def curves(self) -> pd.DataFrame:
        """Return ``curves`` as a pandas frame; ``metrics`` holds (name, value) pairs."""
        frame: pd.DataFrame = self.table("curves").to_pandas()
        return frame


# -- one file ----------------------------------------------------------------------------------------------------------
def read_marker(path: Path) -> tuple[str, int, str | None]:
    """Return kind, schema version and origin that the marker of a folder names; ``ValueError`` where it is broken."""
    marker = strict_json.loads(plain(path).read_bytes())
    facts = marker if isinstance(marker, dict) else {}
    kind, version, origin = facts.get("bench"), facts.get("schema_version"), facts.get("origin")
    if not isinstance(kind, str) or type(version) is not int or not isinstance(origin, (str, type(None))):
        raise ValueError("bench, schema_version or origin is missing or of the wrong type")
    return kind, version, origin


def write_marker(root: Path, origin: str | None) -> None:
    """Mark the folder ``root`` as results of this schema version."""
    marker = {"bench": "results", "schema_version": record.SCHEMA_VERSION}
    write_text(root / MARKER, json.dumps(marker | ({} if origin is None else {"origin": origin})) + "\n")


def looks_like_results(root: Path) -> bool:
    """Return whether a folder without a marker is one of ours by what is in it."""
    return any((root / "runs").glob("*/trial.json")) or any((root / "trials").glob("*.parquet"))


def origin_of(root: Path) -> str | None:
    """Return what the results were imported from, by their marker, or else by their rows."""
    try:
        return read_marker(root / MARKER)[2]
    except (OSError, ValueError):
        pass
    for path in sorted((root / "trials").glob("*.parquet")):
        try:
            origins = set(parquet.read(path, "trials").column("origin").to_pylist())
        except BadStore:
            continue
        return str(origins.pop()) if len(origins) == 1 and None not in origins else None
    return None


def read_trial(folder: Path, name: str = "trial.json") -> Trial:
    """Return the trial of a folder under ``runs``; one of another identity than the folder's name is refused."""
    trial = Trial.read(folder / name)
    if trial.trial_id != folder.name:
        raise BadStore(
            f"{folder / name} is of another trial, {trial.trial_id}",
            hint=f"bench repair --results {folder.parent.parent} moves it out of the way",
        )
    return trial


def read_protocol(path: Path) -> Protocol:
    """Return the protocol that a file holds; ``ValueError`` where it holds none, or another than its name says."""
    stored = Protocol.read(strict_json.loads(plain(path).read_bytes()))
    if path.name != protocol_file(stored):
        raise ValueError(f"its rules are those of {protocol_file(stored)}")
    return stored


def protocol_file(protocol: Protocol) -> str:
    """Return the name of the file that holds the rules of ``protocol``."""
    return f"{protocol.name}-{protocol.sha256[:12]}.json"
