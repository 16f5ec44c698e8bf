"""Is the reference the tuned one of the workload: named, set, sourced as installed, and as good as it was stored?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.bundle.cases import Case, Group
from bench.bundle.contents import Bundle, Run
from bench.bundle.intervals import Interval, sample_of, stored_intervals
from bench.bundle.snapshot import facts_of
from bench.bundle.verdict import Finding, found
from bench.errors import BenchError
from bench.registry import Registry
from bench.request import reference_for
from bench.trial import Part


def check(case: Case, every: Sequence[Case], bundle: Bundle, registry: Registry) -> Iterator[Finding]:
    """Yield what is wrong with the reference of ``case``, one of ``every`` comparison of ``bundle``."""
    for group in case.entrants:
        if case.reference_of(group) is None:
            yield from _missing(case, group, every)
    if case.workload is None:
        return
    for run in case.runs:
        yield from _named(run, case, registry)
    for run in case.runs:
        yield from _set(run, case, registry)
    yield from _sources(case, bundle, registry)
    for group in case.references:
        yield from _interval(case, group, registry)


def _missing(case: Case, group: Group, every: Sequence[Case]) -> Iterator[Finding]:
    reference = group.runs[0].trial.reference
    elsewhere = [other for other in every if other.board[:-1] == case.board[:-1] and other is not case]
    classes = sorted(
        {other.board[-1] for other in elsewhere if any(g.algorithm == reference for g in other.references)}
    )
    if classes:
        yield found("device", case=case.name, reference=reference, said=", ".join(classes))
    yield found("reference-missing", case=case.name, reference=reference)


def _named(run: Run, case: Case, registry: Registry) -> Iterator[Finding]:
    assert case.workload is not None, "check() returned otherwise"
    try:
        right = reference_for(run.trial.algorithm.slots, case.workload, registry)
    except BenchError:
        return
    if run.trial.reference != right:
        yield found("reference", run=run.name, said=run.trial.reference, found=right)


def _set(run: Run, case: Case, registry: Registry) -> Iterator[Finding]:
    """Check what the workload tunes: its reference, and the parts of it that fill other slots."""
    assert case.workload is not None, "check() returned otherwise"
    tuned, trial = case.workload.tier.reference, run.trial
    parts: list[Part] = []
    if trial.is_reference and trial.phase == "measure":
        parts.append(trial.algorithm)
    beside = {part.name for group in case.references for part in group.runs[0].trial.fillers if part.name not in tuned}
    parts += [part for part in trial.fillers if part.name in tuned]
    for part in trial.fillers:
        if part.name not in tuned and part.name not in beside:
            facts = {"part": part.name, "name": "its place", "said": "a filler", "found": "nothing"}
            yield found("reference-setting", run=run.name, **facts)
    for part in parts:
        right = _tuned(part.name, case, registry)
        if right is None:
            continue
        for name in sorted({*part.values, *right}):
            if part.values.get(name) != right.get(name):
                wrong = {"name": name, "said": repr(part.values.get(name)), "found": repr(right.get(name))}
                yield found("reference-setting", run=run.name, part=part.name, **wrong)


def _tuned(name: str, case: Case, registry: Registry) -> dict[str, Any] | None:
    """Return every hyperparameter of a part of the workload's reference; the algorithm is installed with it."""
    assert case.workload is not None, "check() returned otherwise"
    try:
        return registry.algorithm(name, **case.workload.tier.reference.get(name, {})).hyperparameters()
    except BenchError:
        return None


def _sources(case: Case, bundle: Bundle, registry: Registry) -> Iterator[Finding]:
    """Compare the sources of the parts of the reference, and what they declare, with those that are installed."""
    assert case.workload is not None, "check() returned otherwise"
    for name in case.workload.tier.reference:
        said = bundle.manifest.algorithms.get(name)
        if said is None:
            continue  # nothing of it took part
        try:
            installed = facts_of(registry, name)
        except BenchError:
            yield found("reference-version", part=name, said=said.version, found="none that works")
            continue
        if said == installed:
            continue
        if said.version == installed.version:
            yield found("reference-source", part=name, version=said.version)
        elif said.sha256 != installed.sha256:
            yield found("reference-version", part=name, said=said.version, found=installed.version)


def _interval(case: Case, group: Group, registry: Registry) -> Iterator[Finding]:
    """Hold what the reference needed against the stored interval of as many new seeds."""
    assert case.workload is not None, "check() returned otherwise"
    trial, tier = group.runs[0].trial, case.workload.tier
    if group.algorithm != trial.reference or not group.counted:
        return
    alone = all(part.name in tier.reference for part in trial.fillers)
    usual = trial.data.source == tier.source and not trial.data.models and trial.data.tokenizer is None
    stored = stored_intervals(registry, case.workload) if alone and usual else []
    own = [one for one in stored if (one.algorithm, one.protocol) == (group.algorithm, trial.protocol.name)]
    if not own:
        yield found("reference-unknown", case=case.name, reference=group.algorithm)
        return
    yield from _compare(case, group, own[0])


def _compare(case: Case, group: Group, stored: Interval) -> Iterator[Finding]:
    names = {"case": case.name, "reference": group.algorithm}
    mine = sample_of([run.row for run in group.counted], stored.measure)
    if mine is None:
        told = {"said": "no finite value", "low": f"{stored.low:.6g}", "high": f"{stored.high:.6g}"}
        yield found("reference-interval", **names, measure=stored.measure.replace("_", " "), **told)
        return
    if not stored.allows_hits(mine.hits, mine.replicates):
        told = {"said": f"{mine.hits} of {mine.replicates}", "found": f"{stored.hits} of {stored.replicates}"}
        yield found("reference-hits", **names, **told)
    low, high = stored.prediction(mine.replicates)
    if not low <= mine.mean <= high:
        told = {"said": f"{mine.mean:.6g}", "low": f"{low:.6g}", "high": f"{high:.6g}"}
        yield found("reference-interval", **names, measure=stored.measure.replace("_", " "), **told)
