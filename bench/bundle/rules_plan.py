"""Was it run as the protocol says: seeds, studies, points, selection, nothing left out and nothing picked?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bench.bundle.cases import Case, Group, setting_of
from bench.bundle.contents import Bundle
from bench.bundle.layout import Range
from bench.bundle.selecting import selected
from bench.bundle.verdict import Finding, found
from bench.errors import BenchError
from bench.hyperparameter import Choice, Linear, Log
from bench.plan import LEARNING_RATE_SPAN
from bench.protocol import Protocol, at
from bench.trial import FAILED


def check(case: Case, bundle: Bundle) -> Iterator[Finding]:
    """Yield what was not run, or ran besides."""
    if case.protocol is None or case.protocol.search == "imported":
        return  # told as a protocol that is missing, or that is not installed
    for group in _groups(case):
        if case.protocol.search == "published":
            yield from _seeds(group, case.protocol)
        else:
            yield from _studies(group, case.protocol)
            yield from _points(group, case, case.protocol, bundle)
            yield from _selection(group, case.protocol)
    for group in case.entrants:
        reference = case.reference_of(group)
        if reference is not None and reference is not group:
            yield from _pairs(group, reference)
    yield from _settings(case, bundle)
    for run in case.runs:
        if run.row["outcome"] in FAILED:
            why = str(run.row["outcome_reason"])[:200]
            yield found("failed", run=run.name, outcome=run.row["outcome"], why=repr(why))


def _groups(case: Case) -> list[Group]:
    every = {group.runs[0].folder: group for group in (*case.entrants, *case.references)}
    return list(every.values())


def _seeds(group: Group, protocol: Protocol) -> Iterator[Finding]:
    seeds = sorted(run.trial.seed for run in group.runs)
    asked = f"{protocol.seeds}: {_listed(range(protocol.seeds))}"
    if seeds != list(range(len(seeds))) or len(seeds) < protocol.seeds:
        yield found("seeds", setting=group.name, said=_listed(seeds), found=asked)
    for run in group.runs:
        if (run.trial.study, run.trial.point, run.trial.phase) != (0, 0, "measure"):
            yield found("points", run=run.name, name="study, point and phase", said="others", found="0, 0, measure")


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _studies(group: Group, protocol: Protocol) -> Iterator[Finding]:
    tried = Counter((run.trial.study, run.trial.point) for run in group.phase("tune"))
    wanted = {(study, number) for study, points in enumerate(protocol.points) for number in range(len(points))}
    for study, point in sorted(wanted - set(tried)):
        yield found("complete", study=study, setting=group.name, lacks=f"lacks the point {point}")
    for study, point in sorted(set(tried) - wanted):
        yield found("complete", study=study, setting=group.name, lacks=f"has the point {point}, which the rules lack")
    for (study, point), count in tried.items():
        if count > 1:
            yield found("complete", study=study, setting=group.name, lacks=f"has the point {point} {count} times")
    for run in group.runs:
        if run.trial.phase == "measure":
            yield found("points", run=run.name, name="phase", said="measure", found="tune or rerun")
        if run.trial.phase == "tune" and run.trial.seed != run.trial.study:
            yield found("points", run=run.name, name="seed", said=run.trial.seed, found=run.trial.study)


def _points(group: Group, case: Case, protocol: Protocol, bundle: Bundle) -> Iterator[Finding]:
    """Check the values at each point: what is searched is as the point says, the rest at its published value."""
    facts = bundle.manifest.algorithms.get(group.algorithm)
    if facts is None or (case.workload is None and group.runs[0].trial.is_reference):
        return  # the manifest was found to be wrong, or nobody knows the tuned values
    tuned = {} if case.workload is None else case.workload.tier.reference.get(group.algorithm, {})
    base = {**facts.defaults, **tuned}
    for run in group.runs:
        study, point = run.trial.study, run.trial.point
        if study >= len(protocol.points) or point >= len(protocol.points[study]):
            continue  # told as a study that has too much
        try:
            expected = {**base, **at(_space(protocol, facts.search, base), protocol.points[study][point])}
        except (BenchError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            yield found("manifest", key=f"search of {group.algorithm}", said="ranges", found=f"no point: {error!s:.80}")
            return
        values = run.trial.algorithm.values
        for name in sorted({*values, *expected}):
            if name not in values or name not in expected or values[name] != expected[name]:
                wrong = {"said": repr(values.get(name)), "found": repr(expected.get(name))}
                yield found("points", run=run.name, name=name, **wrong)


def _space(protocol: Protocol, search: Iterable[Range], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the search space of an algorithm under ``protocol``, as :mod:`bench.plan` makes it."""
    if protocol.search == "learning-rate":
        return {"lr": Log(base["lr"] / LEARNING_RATE_SPAN, base["lr"] * LEARNING_RATE_SPAN)}
    space: dict[str, Any] = {}
    for part in search:
        if part.kind == "choice":
            space[part.name] = Choice(part.values)
        else:
            low, high = (float(value) for value in part.values)  # type: ignore[arg-type]
            space[part.name] = Log(low, high) if part.kind == "log" else Linear(low, high)
    return space


def _selection(group: Group, protocol: Protocol) -> Iterator[Finding]:
    """Select as the plan does, and hold it against what was repeated."""
    again = protocol.reruns
    for study in range(protocol.studies if again else 0):
        tried = [run for run in group.phase("tune") if run.trial.study == study]
        chosen = selected(tried)
        seeds = [protocol.studies + study * again + number for number in range(again)]
        wanted = {(point, seed) for point in chosen for seed in seeds}
        there = Counter((r.trial.point, r.trial.seed) for r in group.phase("rerun") if r.trial.study == study)
        retried = any(run.row["attempts"] > 1 for run in tried)
        for point, seed in sorted(wanted - set(there)):
            what = f"it selects the point {point}, which did not run again with the seed {seed}"
            yield found("selection", study=study, setting=group.name, what=what)
        for point, seed in sorted(set(there) - wanted):
            if not (retried and seed in seeds):  # a point that failed, and ran again later, may have changed the choice
                what = f"the point {point} ran again with the seed {seed}, which the rules do not select"
                yield found("selection", study=study, setting=group.name, what=what)


def _pairs(group: Group, reference: Group) -> Iterator[Finding]:
    own, other = ({run.trial.seed for run in part.counted} for part in (group, reference))
    names = {"setting": group.name, "reference": reference.algorithm}
    if own - other:
        yield found("paired", said=_listed(sorted(own - other)), **names)
    if other - own:
        yield found("unpaired", said=_listed(sorted(other - own)), **names)


def _settings(case: Case, bundle: Bundle) -> Iterator[Finding]:
    facts = bundle.manifest.algorithms.get(bundle.manifest.plugin)
    if case.protocol is None or case.protocol.search != "published" or facts is None:
        return
    settings = {setting_of(group.runs[0].trial.algorithm.values) for group in case.entrants}
    if len(settings) > 1:
        yield found("settings", case=case.name, said=len(settings), algorithm=bundle.manifest.plugin)
    tuned = {} if case.workload is None else case.workload.tier.reference.get(bundle.manifest.plugin, {})
    published = {**facts.defaults, **tuned}
    for group in case.entrants:
        values = group.runs[0].trial.algorithm.values
        other = [name for name in sorted({*values, *published}) if values.get(name) != published.get(name)]
        if other:
            told = ", ".join(f"{name} = {values.get(name)!r} for {published.get(name)!r}" for name in other)
            yield found("published", setting=group.name, said=told[:200])
