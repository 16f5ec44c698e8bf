"""Put a damaged results folder in order: tables from the event logs again, what cannot be used out of the way.

Nothing that was measured is deleted: what is of no use any more goes into ``damaged/`` in the results. Each step is
whole or not at all, so a repair that is killed can be given again, and a second one finds nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import event_log
from bench.errors import BadStore, TrialBusy
from bench.files import replacing, temporary_of, writing
from bench.inspection import DAMAGED, Finding, Kind, inspect
from bench.locks import locked
from bench.protocol import protocols
from bench.store import MARKER, Store, origin_of, protocol_file, read_trial, write_marker

LEFT_ALONE = "left alone"
ROUNDS = 5
"""One repair can show further damage, such as the row of a log that was cut; it takes no more looks than this."""


@dataclass(frozen=True, kw_only=True)
class Deed:
    """One finding and what was done about it."""

    finding: Finding
    done: str


def repair(root: Path) -> list[Deed]:
    """Repair the results folder ``root`` and return what was found and done; an imported one is left alone.

    Raises :class:`~bench.errors.BadStore` for a folder that is none of ours or of a newer schema,
    :class:`~bench.errors.TrialBusy` where another process repairs it, and :class:`~bench.errors.CannotWrite` where it
    cannot be written.
    """
    found = _damage(root)
    newer = next((finding for finding in found if finding.kind is Kind.NEWER and finding.path == MARKER), None)
    if newer is not None:
        raise BadStore(f"{str(root)!r} has {newer.what}", hint="install a newer bench")
    if not found:
        return []
    folder = root / DAMAGED
    with writing(folder):
        folder.mkdir(exist_ok=True)
    try:
        with locked(folder / "lock", "another bench repair works on this folder"):
            return _repair(root)
    finally:
        with contextlib.suppress(OSError):  # where nothing was moved, nothing is left
            if {path.name for path in folder.iterdir()} <= {"lock"}:
                (folder / "lock").unlink(missing_ok=True)
                folder.rmdir()


def _damage(root: Path) -> list[Finding]:
    return [finding for finding in inspect(root) if finding.damaged]


def _repair(root: Path) -> list[Deed]:
    deeds: dict[Finding, str] = {}
    for _ in range(ROUNDS):
        new = [finding for finding in _damage(root) if finding not in deeds]
        if not new:
            break
        for finding in new:
            deeds[finding] = _do(root, finding)
    return [Deed(finding=finding, done=done) for finding, done in deeds.items()]


def _do(root: Path, finding: Finding) -> str:
    path = root / finding.path
    origin = origin_of(root)
    if finding.kind is Kind.MARKER:
        return _write_marker(root, path, origin)
    if origin is not None:
        return f"{LEFT_ALONE}: imported from {origin}; import it again"
    try:
        return _WAYS[finding.kind](root, path)
    except FileNotFoundError:
        return "gone meanwhile"
    except (TrialBusy, OSError) as error:
        return f"{LEFT_ALONE}: {error.strerror if isinstance(error, OSError) else error.message}"


def _write_marker(root: Path, path: Path, origin: str | None) -> str:
    moved = f"moved to {_aside(root, path)}, " if path.exists() else ""
    write_marker(root, origin)
    return f"{moved}written again"


def _move(root: Path, path: Path) -> str:
    with _alone(root, path):
        return f"moved to {_aside(root, path)}"


def _remove(root: Path, path: Path) -> str:
    with _alone(root, path), writing(path):
        path.unlink()
    return "removed"


def _move_trial(root: Path, folder: Path) -> str:
    with _alone(root, folder / "trial.json"):
        return f"moved to {_aside(root, folder)}"


def _cut_log(root: Path, path: Path) -> str:
    """Keep a copy of a damaged log, cut it before the damage, and derive what is left."""
    with _alone(root, path):
        reading = event_log.read(path)
        if not reading.fault:
            return "in order meanwhile"
        content = path.read_bytes()
        copy = _free(root, path)
        with writing(copy), replacing(temporary_of(copy), copy):
            temporary_of(copy).write_bytes(content)
        with writing(path), replacing(temporary_of(path), path):
            temporary_of(path).write_bytes(content[: reading.whole_bytes])
        _derive(root, path.parent.name)
    return f"copied to {copy.relative_to(root).as_posix()}, cut after {len(reading.events)} events"


def _renew(root: Path, path: Path) -> str:
    """Move what is in the place of a row out of the way, and derive it where a log is there."""
    with _alone(root, root / "runs" / path.stem / path.name):
        moved = f"moved to {_aside(root, path)}" if path.exists() else ""
        if not (root / "runs" / path.stem / event_log.NAME).exists():
            return f"{moved}; it has no log to derive it from"
        _derive(root, path.stem)
    return f"{moved}, derived from its log again".lstrip(", ")


def _derive(root: Path, trial_id: str) -> None:
    store = Store(root, create=True)  # the rows may be of a newer version than the marker says
    store.finalise(read_trial(root / "runs" / trial_id))


def _renew_protocol(root: Path, path: Path) -> str:
    moved = _move(root, path)
    for protocol in protocols().values():
        if protocol_file(protocol) == path.name:
            Store(root, create=True).keep(protocol)
            return f"{moved}, written again"
    return f"{moved}; its bench run command writes it again"


_WAYS: Mapping[Kind, Callable[[Path, Path], str]] = {
    Kind.NEWER: lambda *_: f"{LEFT_ALONE}: a newer bench wrote it",
    Kind.STRANGER: _move,
    Kind.TRIAL: _move_trial,
    Kind.LOG: _cut_log,
    Kind.ROW: _renew,
    Kind.MISSING: _renew,
    Kind.PROTOCOL: _renew_protocol,
    Kind.CHECKPOINT: _move,
    Kind.STALE: _remove,
}


@contextlib.contextmanager
def _alone(root: Path, path: Path) -> Iterator[None]:
    """Keep every other process from the trial in whose folder ``path`` is; raise ``TrialBusy`` where one runs it."""
    folder = path.parent
    if folder.parent != root / "runs" or not folder.is_dir():
        yield
        return
    busy = f"another process runs the trial {folder.name} now"
    with locked(folder / "claim", busy), locked(folder / "lock", busy):
        yield


def _aside(root: Path, path: Path) -> str:
    """Move ``path`` into the folder of what cannot be used; return its new place, relative to the results."""
    target = _free(root, path)
    with writing(target):
        path.rename(target)
    return target.relative_to(root).as_posix()


def _free(root: Path, path: Path) -> Path:
    """Return the first name that is free in the folder of what cannot be used: the path with ``-``, and a number."""
    name = os.fsdecode(os.fsencode("-".join(path.relative_to(root).parts))[-200:])
    number = 1
    while (root / DAMAGED / f"{name}.{number}").exists():
        number += 1
    return root / DAMAGED / f"{name}.{number}"
