"""Is one side's trial what the other side's trial of the same seed makes likely: start, evaluation, unnamed time?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from bench.bundle.cases import Case, Group
from bench.bundle.contents import Run
from bench.bundle.intervals import sample_of
from bench.bundle.verdict import Finding, found
from bench.record import evaluations
from bench.workload import TrainingWorkload

EVALUATION_FACTOR, CHANGED_FACTOR = 1.5, 4.0
"""How many times as long an evaluation may take as the reference's: of the same model, and of one that the algorithm
changed. Over the seeds of this project's own rows the medians are 0.6 to 1.13, and up to 2.3 for changed models."""

CHANGES_MODEL = frozenset({"adapt", "finish", "learner", "compress", "compensate", "merge"})
"""The slots after which the model that is evaluated may be another one."""

UNACCOUNTED_FACTOR, UNACCOUNTED_SHARE, UNACCOUNTED_S = 1.5, 0.1, 0.05
"""How much more time may be in no section than in the reference's trials: so many times as much, and so large a share
of the charged time, and so many seconds, per evaluation. Medians over seeds were 0.8 to 1.3 times, and 0.03 s."""

SAME_START = 1e-3
"""Relative difference of two qualities of equal weights on equal data."""

ENOUGH_TO_COPY = 5
"""Equal curves of so many evaluations are no chance."""

EXTRAORDINARY = 0.5
"""A ratio of steps to the reference below this is to be shown twice."""


def check(case: Case) -> Iterator[Finding]:
    """Yield what differs more between the sides than algorithms do."""
    yield from _copies(case)
    for group in case.entrants:
        reference = case.reference_of(group)
        if reference is None or reference is group or reference.algorithm == group.algorithm:
            continue
        yield from _evaluation(group, reference)
        if isinstance(case.workload, TrainingWorkload):
            yield from _unaccounted(group, reference)
            yield from _start(group, reference)
        yield from _extraordinary(group, reference)


def _copies(case: Case) -> Iterator[Finding]:
    """Two seeds never draw the same batches; the same curve of two settings is possible (one has no effect)."""
    seen: dict[tuple[object, ...], Run] = {}
    for run in case.runs:
        curve = tuple(str(row["quality"]) for row in run.curve)
        if len(set(curve)) < ENOUGH_TO_COPY:
            continue
        other = seen.setdefault((run.trial.algorithm.name, curve), run)
        if other.trial.seed != run.trial.seed:
            yield found("copies", run=run.name, other=other.name)


def _pairs(group: Group, reference: Group) -> Iterator[tuple[Run, Run]]:
    """Yield trials of both sides that share seed, study and phase; of a search's points the reference's first."""
    others: dict[tuple[str, int, int], Run] = {}
    for run in reference.runs:
        others.setdefault((run.trial.phase, run.trial.study, run.trial.seed), run)
    for run in group.runs:
        other = others.get((run.trial.phase, run.trial.study, run.trial.seed))
        if other is not None:
            yield run, other


def _ratios(group: Group, reference: Group, seconds: Callable[[Run], float]) -> list[float]:
    both = [(seconds(run), seconds(other)) for run, other in _pairs(group, reference)]
    return [own / other for own, other in both if math.isfinite(own) and math.isfinite(other) and other > 0]


def _evaluation(group: Group, reference: Group) -> Iterator[Finding]:
    ratios = _ratios(group, reference, evaluation_s)
    changed = CHANGES_MODEL & set(group.runs[0].trial.algorithm.slots)
    limit = CHANGED_FACTOR if changed else EVALUATION_FACTOR
    if ratios and statistics.median(ratios) > limit:
        told = {"said": f"{statistics.median(ratios):.3g}", "found": f"{limit:g}"}
        yield found("evaluation-work", setting=group.name, reference=reference.algorithm, **told)


def evaluation_s(run: Run) -> float:
    """Return the median seconds of one evaluation of ``run``; NaN without any."""
    spent = [event["cost"]["evaluation_s"] for event in evaluations(run.events)]
    each = [after - before for before, after in zip([0.0, *spent], spent, strict=False)]
    return statistics.median(each) if each else math.nan


def _between(run: Run) -> list[tuple[float, float]]:
    """Return for each time between two evaluations the seconds that are in no section, and those charged."""
    costs = [event["cost"] for event in evaluations(run.events)]
    found = []
    for before, after in pairwise(costs):
        spent = {name: after[name] - before[name] for name in ("wall_s", "time_s", "evaluation_s", "checkpoint_s")}
        rest = spent["wall_s"] - spent["time_s"] - spent["evaluation_s"] - spent["checkpoint_s"]
        found.append((rest, spent["time_s"]))
    return found


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _unaccounted(group: Group, reference: Group) -> Iterator[Finding]:
    rest, other, share = [], [], []
    for run, beside in _pairs(group, reference):
        own, theirs = _between(run), _between(beside)
        if own and theirs:
            rest.append(_median([seconds for seconds, _ in own]))
            other.append(_median([seconds for seconds, _ in theirs]))
            share.append((rest[-1] - other[-1]) / max(_median([charged for _, charged in own]), 1e-9))
    if not rest:
        return
    more = _median([own - theirs for own, theirs in zip(rest, other, strict=True)])
    times = _median(rest) > UNACCOUNTED_FACTOR * _median(other)
    if times and more > UNACCOUNTED_S and _median(share) > UNACCOUNTED_SHARE:
        told = {"said": f"{_median(rest):.3g}", "found": f"{_median(other):.3g}"}
        yield found("unaccounted", setting=group.name, reference=reference.algorithm, **told)


def _start(group: Group, reference: Group) -> Iterator[Finding]:
    """Before the first step an optimizer has changed nothing."""
    if CHANGES_MODEL & {slot for run in group.runs for slot in run.trial.algorithm.slots}:
        return
    for run, beside in _pairs(group, reference):
        starts = [row["quality"] for row in (*run.curve[:1], *beside.curve[:1]) if row["step"] == 0]
        if len(starts) == 2 and not math.isclose(float(starts[0]), float(starts[1]), rel_tol=SAME_START):
            told = {"said": starts[0], "found": starts[1], "reference": reference.algorithm}
            yield found("same-start", run=run.name, **told)


def _extraordinary(group: Group, reference: Group) -> Iterator[Finding]:
    own, other = (sample_of([run.row for run in part.counted], "steps_to_target") for part in (group, reference))
    if own is None or other is None or not own.hits or not other.hits:
        return
    if own.mean < EXTRAORDINARY * other.mean:
        ratio = f"{own.mean / other.mean:.0%}"
        yield found("extraordinary", setting=group.name, reference=reference.algorithm, said=ratio)
