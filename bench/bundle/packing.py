"""Make a bundle of everything that was measured of one algorithm, and of the reference it is compared with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import record
from bench.bundle import layout
from bench.bundle.contents import SCHEMAS, Bundle, parse
from bench.bundle.snapshot import Snapshot, take
from bench.errors import BadBundle
from bench.event_log import read_events
from bench.protocol import Protocol
from bench.registry import Registry
from bench.store import Store, read_trial
from bench.trial import Trial

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member: equal records make equal bytes."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """One trial of the store with its log as it lies there."""

    trial: Trial
    log: bytes
    events: Sequence[Mapping[str, Any]]
    row: Mapping[str, Any]


def pack(
    store: Store,
    plugin: str,
    out: Path,
    *,
    workload: str | None = None,
    tier: str | None = None,
    protocol: str | None = None,
    registry: Registry | None = None,
) -> Bundle:
    """Write into ``out`` all trials of ``plugin`` in ``store``, with those of its reference, and return the bundle.

    ``workload``, ``tier`` and ``protocol`` leave out what belongs to other comparisons; nothing else can be left out.
    Equal records of equal sources make equal bytes.

    Raises:
        BadBundle: there are no such trials, some are unfinished, or the installed source is not what was measured.
    """
    registry = registry or Registry()
    if store.origin is not None:
        raise BadBundle(
            f"{str(store.root)!r} holds results imported from {store.origin}, which have no event logs",
            hint="pack the results folder in which the trials ran: --results DIR",
        )
    wanted = {"workload": workload, "tier": tier, "protocol": protocol}
    records = _chosen(_stored(store), plugin, wanted, store.root)
    _refuse_unfinished(records)
    names = sorted({part.name for entry in records for part in _parts(entry.trial)})
    snapshots = {name: take(registry, name) for name in names}
    _refuse_changed(records, snapshots)
    used = {entry.trial.protocol.sha256 for entry in records}
    rules = [rules for sha256, rules in sorted(store.protocols().items()) if sha256 in used]
    lacking = used - {protocol.sha256 for protocol in rules}
    if lacking:
        raise BadBundle(f"the rules of the protocol {min(lacking)[:12]} are not in {str(store.root / 'protocols')!r}")
    content = _archive(_files(records, snapshots, rules), plugin, records, snapshots)
    bundle = parse(content)
    _write(out, content)
    return bundle


def _stored(store: Store) -> list[Trial]:
    """Return every trial that was begun; that one reproduced another's bundle is not its own to say."""
    paths = sorted((store.root / "runs").glob("*/trial.json"))
    return [read_trial(path.parent).model_copy(update={"reproduces": None}) for path in paths]


def _parts(trial: Trial) -> list[Any]:
    return [trial.algorithm, *trial.fillers]


def _board(trial: Trial) -> tuple[Any, ...]:
    """Return what must be equal for two trials to be compared, as :data:`bench.score.BOARD` has it."""
    minor = ".".join(trial.workload_version.split(".")[:2])
    here = (trial.workload, minor, trial.tier, trial.precision, trial.data.source, trial.data.sha256)
    return (*here, trial.protocol.name, trial.protocol.sha256, trial.device_class)


def _chosen(trials: Sequence[Trial], plugin: str, wanted: Mapping[str, str | None], root: Path) -> list[_Record]:
    """Return every trial of ``plugin`` that is wanted, and every one of its references beside it."""

    def is_wanted(trial: Trial) -> bool:
        facts = {"workload": trial.workload, "tier": trial.tier, "protocol": trial.protocol.name}
        return all(value is None or facts[key] == value for key, value in wanted.items())

    own = [trial for trial in trials if trial.algorithm.name == plugin and is_wanted(trial)]
    if not own:
        there = sorted({trial.algorithm.name for trial in trials if is_wanted(trial)})
        asked = " ".join(f"--{key} {value}" for key, value in wanted.items() if value is not None)
        raise BadBundle(
            f"{str(root)!r} holds no trials of {plugin!r} {asked}".rstrip(),
            hint=f"there are trials of {', '.join(there)}" if there else "run them first: bench run --protocol default",
        )
    if any(trial.reference is None for trial in own):
        raise BadBundle(
            f"trials of {plugin!r} do not say what they are compared with: an older bench wrote them",
            hint="give their bench run command again, which fills that in",
        )
    beside = {(_board(trial), trial.reference) for trial in own}
    references = [
        trial
        for trial in trials
        if trial.algorithm.name != plugin and trial.is_reference and (_board(trial), trial.algorithm.name) in beside
    ]
    return [_record(trial, root) for trial in sorted([*own, *references], key=lambda trial: trial.trial_id)]


def _record(trial: Trial, root: Path) -> _Record:
    folder = root / "runs" / trial.trial_id
    events = read_events(folder)
    path = folder / "events.jsonl"
    log = path.read_bytes() if path.exists() else b""
    return _Record(trial=trial, log=log[: log.rfind(b"\n") + 1], events=events, row=record.trial_row(trial, events))


def _refuse_unfinished(records: Sequence[_Record]) -> None:
    open_ = [entry for entry in records if not entry.events or entry.row["outcome"] == "interrupted"]
    if open_:
        told = ", ".join(f"{entry.trial.algorithm.name} seed {entry.trial.seed}" for entry in open_[:4])
        raise BadBundle(
            f"{len(open_)} of {len(records)} trials are unfinished: {told}{' ...' if len(open_) > 4 else ''}",
            hint="finish them first: bench resume",
        )


def _refuse_changed(records: Sequence[_Record], snapshots: Mapping[str, Snapshot]) -> None:
    """Refuse to send a source that is not what ran."""
    for entry in records:
        for part in _parts(entry.trial):
            installed = snapshots[part.name].facts.sha256
            if part.source_sha256 != installed:
                others = [p for e in records for p in _parts(e.trial) if p.name == part.name]
                count = sum(other.source_sha256 != installed for other in others)
                raise BadBundle(
                    f"the source of {part.name!r} changed since {count} of these trials were measured: "
                    f"{part.source_sha256[:12]} is now {installed[:12]}",
                    hint="install what was measured, or run again into a new folder; "
                    "--workload, --tier and --protocol choose among comparisons",
                )


def _files(
    records: Sequence[_Record], snapshots: Mapping[str, Snapshot], rules: Iterable[Protocol]
) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for entry in records:
        files[layout.trial_file(entry.trial.trial_id)] = entry.trial.text().encode()
        files[layout.events_file(entry.trial.trial_id)] = entry.log
    for protocol in rules:
        text = json.dumps(protocol.rules(), indent=1, sort_keys=True) + "\n"
        files[f"protocols/{protocol.name}-{protocol.sha256[:12]}.json"] = text.encode()
    for snapshot in snapshots.values():
        files |= snapshot.files
    files[layout.TRIALS] = _table([dict(entry.row) for entry in records], layout.TRIALS)
    curves = [row for entry in records for row in record.curve_rows(entry.trial, entry.events)]
    files[layout.CURVES] = _table(curves, layout.CURVES)
    return files


def _table(rows: list[dict[str, Any]], name: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), buffer)
    return buffer.getvalue()


def _archive(
    files: Mapping[str, bytes], plugin: str, records: Sequence[_Record], snapshots: Mapping[str, Snapshot]
) -> bytes:
    manifest = layout.Manifest(
        bench="bundle",
        format=layout.FORMAT,
        created_at=max(str(entry.row["finished_at"]) for entry in records),
        bench_version=", ".join(sorted({str(entry.row["bench_version"]) for entry in records})),
        schema_version=record.SCHEMA_VERSION,
        plugin=plugin,
        algorithms={name: snapshot.facts for name, snapshot in sorted(snapshots.items())},
        files={
            name: layout.File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
            for name, content in sorted(files.items())
        },
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    return zip_of({layout.MANIFEST: text.encode(), **dict(sorted(files.items()))})


def zip_of(files: Mapping[str, bytes]) -> bytes:
    """Return the one archive of these files: their order, a fixed time, plain permissions, deflate."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, EPOCH)
            member.create_system = 3
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, content, compresslevel=6)
    return buffer.getvalue()


def _write(out: Path, content: bytes) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(out)
    except OSError as error:
        raise BadBundle(f"cannot write {str(out)!r}: {error.strerror}", hint="name another file: --out FILE") from None
