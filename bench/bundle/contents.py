"""Read a bundle into memory: everything in it parsed and well formed, nothing imported, executed or written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench import record
from bench.bundle import archive, layout, limits
from bench.bundle.events import parse_events, parse_json
from bench.bundle.foreign_tables import Rows, normal, read_tables
from bench.errors import BadBundle, BadValue
from bench.protocol import Protocol
from bench.trial import Trial

M = TypeVar("M", bound=BaseModel)
SCHEMAS = {layout.TRIALS: record.TRIALS, layout.CURVES: record.CURVES}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trial of a bundle; ``row`` and ``curve`` are derived from its ``events`` here and now."""

    folder: str
    trial: Trial
    events: tuple[Mapping[str, Any], ...]
    row: Mapping[str, Any]
    curve: Rows

    @property
    def name(self) -> str:
        """How a reason names it."""
        trial = self.trial
        return f"{trial.algorithm.name}, study {trial.study}, point {trial.point}, seed {trial.seed} ({self.folder})"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle holds. ``sources`` maps algorithm and module to source; the tables are as they were sent."""

    sha256: str
    size_bytes: int
    manifest: layout.Manifest
    runs: tuple[Run, ...]
    trials: Rows
    curves: Rows
    protocols: tuple[Protocol, ...]
    sources: Mapping[str, Mapping[str, bytes]]


def read(path: Path | str) -> Bundle:
    """Return the bundle in the file ``path``.

    Raises:
        BadBundle: the file cannot be opened, is no bundle, or is one that nobody should open.
    """
    return parse(_content(Path(path)))


def parse(content: bytes) -> Bundle:
    """Return the bundle whose bytes these are; raises as :func:`read` does."""
    if len(content) > limits.FILE_BYTES:
        raise BadBundle(f"the bundle has more than {limits.FILE_BYTES:,} bytes, which none needs")
    members = archive.members(content)
    manifest = _manifest(members)
    sources = _sources(members, manifest)
    protocols = tuple(_protocol(members[name], name) for name in sorted(members) if name.startswith("protocols/"))
    ids = sorted({name.split("/")[1] for name in members if name.startswith("runs/")})
    runs = tuple(_run(trial_id, members) for trial_id in ids)
    tables = read_tables({name: members[name] for name in SCHEMAS}, SCHEMAS)
    return Bundle(
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        manifest=manifest,
        runs=runs,
        trials=tables[layout.TRIALS],
        curves=tables[layout.CURVES],
        protocols=protocols,
        sources=sources,
    )


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise BadBundle(f"there is no file {str(path)!r}", hint="give the file that bench pack wrote")
        with path.open("rb") as file:
            content = file.read(limits.FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadBundle(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    return content


def _manifest(members: Mapping[str, bytes]) -> layout.Manifest:
    """Return the manifest; it names exactly the members that there are, and each is as it says."""
    unknown = [name for name in members if not layout.is_known(name)]
    if unknown:
        raise BadBundle(f"a bundle has no member {unknown[0]!r}", hint="it holds what bench pack writes and no more")
    lacking = [name for name in (layout.MANIFEST, *SCHEMAS) if name not in members]
    if lacking:
        raise BadBundle(f"the file is no bundle: it has no {lacking[0]}")
    where = layout.MANIFEST
    raw = parse_json(members[where], where, most_bytes=limits.MANIFEST_BYTES)
    if isinstance(raw, dict) and raw.get("bench") == "bundle" and raw.get("format") != layout.FORMAT:
        raise BadBundle(
            f"the bundle has format {raw.get('format')!r:.40}; this bench reads format {layout.FORMAT}",
            hint="use a bench of the version that packed it",
        )
    manifest = _validated(layout.Manifest, members[where], where)
    if manifest.schema_version != record.SCHEMA_VERSION:
        raise BadBundle(
            f"the bundle has schema version {manifest.schema_version}; this bench verifies {record.SCHEMA_VERSION}",
            hint="pack it again with this version of bench",
        )
    _check_files(members, manifest)
    return manifest


def _check_files(members: Mapping[str, bytes], manifest: layout.Manifest) -> None:
    listed, there = set(manifest.files), set(members) - {layout.MANIFEST}
    if there - listed:
        raise BadBundle(f"the member {min(there - listed)!r} is not in the manifest")
    if listed - there:
        raise BadBundle(f"the manifest names {min(listed - there)!r:.200}, which is not in the bundle")
    for name, facts in manifest.files.items():
        if len(members[name]) != facts.bytes:
            raise BadBundle(f"{name} has {len(members[name])} bytes, and {facts.bytes} in the manifest")
        if hashlib.sha256(members[name]).hexdigest() != facts.sha256:
            raise BadBundle(f"{name} has another SHA-256 than the manifest says")


def _sources(members: Mapping[str, bytes], manifest: layout.Manifest) -> dict[str, dict[str, bytes]]:
    files = layout.sources_of(members)
    if set(files) - set(manifest.algorithms):
        raise BadBundle(f"the manifest has no algorithm {min(set(files) - set(manifest.algorithms))!r}")
    for algorithm, modules in files.items():
        for name in modules.values():
            content = members[name]
            if len(content) > limits.SOURCE_BYTES or b"\0" in content:
                raise BadBundle(f"{name} of {algorithm} is no source: it is too large or holds a null byte")
            try:
                content.decode("utf-8")
            except UnicodeDecodeError:
                raise BadBundle(f"{name} of {algorithm} is no text in UTF-8") from None
    return {
        algorithm: {module: members[name] for module, name in modules.items()} for algorithm, modules in files.items()
    }


def _protocol(content: bytes, name: str) -> Protocol:
    rules = parse_json(content, name)
    try:
        if not isinstance(rules, dict) or json.dumps(rules, indent=1, sort_keys=True) + "\n" != content.decode():
            raise BadBundle(f"{name} is not as bench writes a protocol")
        protocol = Protocol.read(rules)
        numbers = (protocol.seeds, protocol.studies, protocol.reruns, protocol.budget_factor)
        if not all(0 <= number <= limits.RULE_NUMBER for number in numbers):
            raise BadBundle(f"{name} asks for more than {limits.RULE_NUMBER} of something")
        expected = f"protocols/{protocol.name}-{protocol.sha256[:12]}.json"
    except (BadValue, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadBundle(f"{name} is no protocol: {str(error).splitlines()[0][:200]}") from None
    if name != expected:
        raise BadBundle(f"{name} holds a protocol whose name and hash make it {expected[:200]}")
    return protocol


def _run(trial_id: str, members: Mapping[str, bytes]) -> Run:
    """Parse one trial and derive what its events say."""
    for name in (layout.trial_file(trial_id), layout.events_file(trial_id)):
        if name not in members:
            raise BadBundle(f"the bundle has no {name}")
    trial = _trial(members[layout.trial_file(trial_id)], layout.trial_file(trial_id))
    where = layout.events_file(trial_id)
    events = parse_events(members[where], where)
    try:
        row = normal([record.trial_row(trial, events)], record.TRIALS)[0]
        curve = normal(record.curve_rows(trial, events), record.CURVES)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:  # Arrow's are among these
        raise BadBundle(f"{where} makes no row: {type(error).__name__}: {str(error)[:160]}") from None
    return Run(folder=trial_id, trial=trial, events=tuple(events), row=row, curve=curve)


def _trial(content: bytes, where: str) -> Trial:
    parse_json(content, where)
    trial = _validated(Trial, content, where)
    texts = [trial.workload, trial.workload_version, trial.tier, trial.device, trial.device_class, trial.protocol.name]
    texts += [trial.reference or "-"]
    for part in (trial.algorithm, *trial.fillers):
        texts += [part.name, part.version, *part.slots, *part.values]
        if not all(isinstance(value, (bool, int, float, str, type(None))) for value in part.values.values()):
            raise BadBundle(
                f"{where} has a hyperparameter of {part.name!r:.80} that is no number, text, switch or none"
            )
    if not all(text.isprintable() and 0 < len(text) <= 200 for text in texts):
        raise BadBundle(f"{where} has a name that is empty, too long or unprintable")
    return trial.model_copy(update={"reproduces": None})  # nobody says that of himself


def _validated(kind: type[M], content: bytes, where: str) -> M:
    try:
        return kind.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise BadBundle(f"{where} is not as bench writes it: {place[:120]}: {first['msg'][:160]}") from None
