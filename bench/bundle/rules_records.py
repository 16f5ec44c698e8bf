"""Is the bundle one piece: identities, rows, hashes, manifest?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from bench.bundle.cases import Case, minor_of
from bench.bundle.contents import Bundle
from bench.bundle.foreign_tables import Rows
from bench.bundle.verdict import Finding, found
from bench.protocol import protocols
from bench.source import sources_sha256
from bench.trial import Part


def check(bundle: Bundle, cases: Sequence[Case]) -> Iterator[Finding]:
    """Yield what does not fit together."""
    yield from _manifest(bundle, cases)
    for run in bundle.runs:
        if run.trial.trial_id != run.folder:
            yield found("identity", run=run.name, found=run.trial.trial_id)
    names = {run.folder: run.name for run in bundle.runs}
    yield from _table("trials", bundle.trials, [dict(run.row) for run in bundle.runs], ("trial_id",), names)
    curves = [row for run in bundle.runs for row in run.curve]
    yield from _table("curves", bundle.curves, curves, ("trial_id", "step"), names)
    yield from _sources(bundle)
    yield from _protocols(bundle)
    yield from _versions(cases)


def _manifest(bundle: Bundle, cases: Sequence[Case]) -> Iterator[Finding]:
    manifest, rows = bundle.manifest, [run.row for run in bundle.runs]
    told = {
        "created_at": (manifest.created_at, max((str(row["finished_at"]) for row in rows), default="nothing")),
        "bench_version": (manifest.bench_version, ", ".join(sorted({str(row["bench_version"]) for row in rows}))),
        "algorithms": (sorted(manifest.algorithms), sorted({part.name for run in bundle.runs for part in _parts(run)})),
    }
    for key, (said, truth) in told.items():
        if said != truth:
            yield found("manifest", key=key, said=said, found=repr(truth)[:200])
    if not any(case.entrants for case in cases):
        there = sorted({run.trial.algorithm.name for run in bundle.runs})
        yield found("manifest", key="plugin", said=manifest.plugin, found=f"trials of {', '.join(there)}")
    placed = {run.folder for case in cases for run in case.runs}
    for run in bundle.runs:
        if run.folder not in placed:
            yield found("manifest", key="plugin", said=manifest.plugin, found=f"a trial of neither side: {run.name}")


def _table(table: str, said: Rows, derived: Rows, key: Sequence[str], names: Mapping[str, str]) -> Iterator[Finding]:
    """Compare a table as it was sent with what the events give."""
    keyed, rows = ({tuple(row[name] for name in key): row for row in part} for part in (said, derived))
    if len(said) != len(derived) or set(keyed) != set(rows):
        yield found("tables", table=table, said=len(said), found=len(derived))
    for where, row in rows.items():
        for column, value in row.items():
            other = keyed.get(where, row)[column]
            if other != value or isinstance(other, bool) != isinstance(value, bool):
                run = names.get(str(row["trial_id"]), row["trial_id"])
                step = f", step {row['step']}" if table == "curves" else ""
                yield found(
                    "rows", table=table, column=column, run=f"{run}{step}", said=_short(other), found=_short(value)
                )


def _short(value: Any) -> str:
    return f"{value!r:.80}"


def _parts(run: Any) -> list[Part]:
    return [run.trial.algorithm, *run.trial.fillers]


def _sources(bundle: Bundle) -> Iterator[Finding]:
    for name, facts in bundle.manifest.algorithms.items():
        sha256 = sources_sha256(bundle.sources.get(name, {}))
        said = {part.source_sha256 for run in bundle.runs for part in _parts(run) if part.name == name}
        for other in sorted((said | {facts.sha256}) - {sha256}):
            yield found("source", algorithm=name, said=other[:12], found=sha256[:12])
        versions = {part.version for run in bundle.runs for part in _parts(run) if part.name == name}
        if versions - {facts.version}:
            yield found("manifest", key=f"version of {name}", said=facts.version, found=", ".join(sorted(versions)))
        module = facts.target.partition(":")[0]
        if module not in bundle.sources.get(name, {}):
            yield found("manifest", key=f"target of {name}", said=facts.target, found="no source of that module")


def _protocols(bundle: Bundle) -> Iterator[Finding]:
    stored = {protocol.sha256: protocol for protocol in bundle.protocols}
    for run in bundle.runs:
        stamp = run.trial.protocol
        own = stored.get(stamp.sha256)
        if own is None or (own.name, own.version) != (stamp.name, stamp.version):
            yield found("protocol-missing", run=run.name)
    installed = protocols()
    for protocol in stored.values():
        known = installed.get(protocol.name)
        if known is None or known.version != protocol.version:
            yield found("protocol-unknown", protocol=protocol.name, version=protocol.version)
        elif known.sha256 != protocol.sha256:
            yield found("protocol", protocol=protocol.name, version=protocol.version)


def _versions(cases: Sequence[Case]) -> Iterator[Finding]:
    installed = metadata.version("bench-training")
    for case in cases:
        for package in ("bench", "torch"):
            versions = sorted({str(run.row[f"{package}_version"]) for run in case.runs})
            if len(versions) > 1:
                yield found("versions", case=case.name, package=package, found=", ".join(versions)[:200])
            if package == "bench" and any(minor_of(version) != minor_of(installed) for version in versions):
                yield found("bench-version", case=case.name, said=", ".join(versions)[:200], found=installed)
