"""Does one trial's log hold together: order, steps, outcome, and the sums of its seconds?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from bench.bundle.cases import Case
from bench.bundle.contents import Run
from bench.bundle.events import SPENT
from bench.bundle.verdict import Finding, found
from bench.clock import SECTIONS
from bench.crossing import is_hit
from bench.record import evaluations
from bench.workload import TrainingWorkload, Workload

CPU_FACTOR, CPU_SLACK_S = 1.05, 0.1
"""CPU seconds over charged seconds times cores: clocks tick apart; at most 1.006 was seen where times are seconds."""

WALL_FACTOR, WALL_SLACK_S = 1.001, 0.05
"""The same of the parts over the whole of the wall-clock time."""

START_SLACK_S = 60.0
"""The wall-clock time of a trial begins before its start is written down: at most 5 s were seen."""

JUDGED = frozenset({"reached", "missed", "completed", "diverged"})

Event = Mapping[str, Any]


def check(case: Case) -> Iterator[Finding]:
    """Yield what no worker would have logged."""
    for run in case.runs:
        kept = evaluations(run.events)
        yield from _order(run)
        yield from _quality(run, kept)
        yield from _clock(run, kept)
        yield from _wall(run, kept)
        if case.workload is not None:
            yield from _grid(run, kept, case.workload)
        yield from _outcome(run, kept, case.workload)


def _order(run: Run) -> Iterator[Finding]:
    """Check the log as a sequence: starts, then evaluations that go forward, then an end."""
    kinds = [event["event"] for event in run.events]
    if kinds[-1] != "finished" or run.row["outcome"] == "interrupted":
        yield found("unfinished", run=run.name)
    last, ended = -1, False
    for event in run.events:
        if event["event"] == "started":
            last, ended = event["step"] if event["resumed"] else -1, False
            continue
        if ended:
            yield found("events", run=run.name, what=f"after its end it has {event['event']!r}")
        if event["event"] == "evaluated":
            if event["step"] <= last:
                what = f"the evaluation at step {event['step']} follows that at step {last}"
                yield found("events", run=run.name, what=what)
            last = event["step"]
        ended = event["event"] == "finished"


def _quality(run: Run, kept: Sequence[Event]) -> Iterator[Finding]:
    metric = run.row["metric"]
    for event in kept:
        told = event["metrics"].get(metric)
        if told is None or str(float(told)) != str(float(event["quality"])):
            yield found(
                "quality", run=run.name, step=event["step"], said=event["quality"], metric=metric, found=repr(told)
            )


def _clock(run: Run, kept: Sequence[Event]) -> Iterator[Finding]:
    before: Mapping[str, Any] = dict.fromkeys(SPENT, 0.0)
    for event in kept:
        cost, where = event["cost"], {"run": run.name, "step": event["step"]}
        for name in SPENT:
            if cost[name] < before[name]:
                yield found("clock", **where, name=name, said=before[name], found=cost[name])
        before = cost
        total = math.fsum(cost[f"{section}_s"] for section in SECTIONS)
        if not math.isclose(total, cost["time_s"], rel_tol=1e-9, abs_tol=1e-9):
            yield found("sum", **where, said=cost["time_s"], found=total)
    if before["cpu_s"] > _cores(run) * before["time_s"] * CPU_FACTOR + CPU_SLACK_S:
        yield found(
            "cpu", run=run.name, said=f"{before['cpu_s']:.4g}", found=f"{before['time_s']:.4g}", cores=_cores(run)
        )


def _cores(run: Run) -> int:
    """Return how many cores the process may have used: a trial on the CPU is pinned to as many as it has threads."""
    pinned = run.trial.device == "cpu" and str(run.row["platform"]).startswith("Linux")
    cores = run.row["threads"] if pinned else run.row["cores"]
    return cores if isinstance(cores, int) and cores > 0 else 1


def _wall(run: Run, kept: Sequence[Event]) -> Iterator[Finding]:
    for event in kept:
        cost = event["cost"]
        parts = sum(cost[name] for name in ("time_s", "evaluation_s", "checkpoint_s", "warmup_s"))
        if parts > cost["wall_s"] * WALL_FACTOR + WALL_SLACK_S:
            what = f"what was measured until step {event['step']}"
            wall, whole = f"{cost['wall_s']:.4g}", "wall-clock time"
            yield found("wall", run=run.name, what=what, said=f"{parts:.4g}", found=wall, whole=whole)
            break
    yield from _dates(run, kept)


def _dates(run: Run, kept: Sequence[Event]) -> Iterator[Finding]:
    """Compare the wall-clock time with the calendar: what was measured lies between start and end, and fills it."""
    start, end = _time(run.row["started_at"]), _time(run.row["finished_at"])
    if start is None or end is None:
        yield found("events", run=run.name, what="its start or its end is no time in UTC")
        return
    between, wall = (end - start).total_seconds(), kept[-1]["cost"]["wall_s"] if kept else 0.0
    if wall > between + START_SLACK_S:
        whole = "the time between its start and its end"
        yield found("wall", run=run.name, what="its clock", said=f"{wall:.4g}", found=f"{between:.4g}", whole=whole)
    ended = run.row["outcome"] in JUDGED and run.row["attempts"] == 1
    if ended and between > wall + START_SLACK_S:
        whole = "its wall-clock time"
        what = "the time between its start and its end"
        yield found("wall", run=run.name, what=what, said=f"{between:.4g}", found=f"{wall:.4g}", whole=whole)


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def grid(workload: Workload) -> list[int]:
    """Return the steps at which a trial of this tier is evaluated."""
    tier = workload.tier
    if not isinstance(workload, TrainingWorkload):
        return list(range(1, tier.steps + 1))
    return sorted({*range(0, tier.steps + 1, tier.evaluate_every), tier.steps})


def _grid(run: Run, kept: Sequence[Event], workload: Workload) -> Iterator[Finding]:
    wanted = grid(workload)
    for number, event in enumerate(kept):
        right = wanted[number] if number < len(wanted) else None
        if event["step"] != right:
            told = f"step {right} next" if right is not None else f"no step after {wanted[-1]}"
            yield found("grid", run=run.name, said=event["step"], found=told)
            return


def _outcome(run: Run, kept: Sequence[Event], workload: Workload | None) -> Iterator[Finding]:
    """Judge each evaluation as the worker does: none but the last may end the trial, and the last must."""
    outcome, row, hit = run.row["outcome"], run.row, None
    for number, event in enumerate(kept):
        hit = event["step"] if hit is None and _hits(event, row, run) else hit
        says = _judge(event, hit, row, run, workload)
        if number < len(kept) - 1:
            if says in JUDGED:
                yield found("outcome", run=run.name, said=outcome, found=f"it was {says!r} at step {event['step']}")
                return
        elif outcome in JUDGED and says is not None and says != outcome:
            yield found("outcome", run=run.name, said=outcome, found=f"it is {says!r}")
        elif (
            outcome in JUDGED
            and says is None
            and workload is not None
            and not (hit is not None and _was_late(event, run))
        ):
            yield found("outcome", run=run.name, said=outcome, found="it goes on")
        elif outcome == "timeout" and event["cost"]["wall_s"] < run.trial.timeout_s and not _was_stopped(run):
            yield found("outcome", run=run.name, said=outcome, found=f"only {event['cost']['wall_s']:.4g} s had passed")
    if not kept and outcome in JUDGED:
        yield found("outcome", run=run.name, said=outcome, found="nothing was evaluated")


def _was_late(event: Event, run: Run) -> bool:
    """Whether the timeout may have ended a trial that had reached its target, and only went on."""
    return bool(event["cost"]["wall_s"] >= 0.9 * run.trial.timeout_s)


def _was_stopped(run: Run) -> bool:
    """Whether so much time lies between start and end that the trial may have been stopped at its timeout."""
    start, end = _time(run.row["started_at"]), _time(run.row["finished_at"])
    return start is not None and end is not None and (end - start).total_seconds() >= 0.9 * run.trial.timeout_s


def _hits(event: Event, row: Mapping[str, Any], run: Run) -> bool:
    facts = {"target": row["target"], "direction": row["metric_direction"], "budget_s": row["budget_s"]}
    return event["step"] >= _judged_from(run) and is_hit(float(event["quality"]), event["cost"]["time_s"], **facts)


def _judged_from(run: Run) -> int:
    started = [event for event in run.events if event["event"] == "started"]
    return int(started[-1]["facts"].get("judged_from_step", 0)) if started else 0


def _judge(event: Event, hit: int | None, row: Mapping[str, Any], run: Run, workload: Workload | None) -> str | None:
    """Return the outcome of a trial that ends with ``event``; ``None`` where it goes on."""
    finite = math.isfinite(float(event["quality"]))
    if not finite and hit is None:
        return "diverged"
    over = row["budget_s"] is not None and event["cost"]["time_s"] > row["budget_s"]
    patience = math.inf if workload is None or workload.tier.patience_steps is None else workload.tier.patience_steps
    if workload is None and hit is not None and run.row["steps"] == event["step"]:
        patience = 0  # unknown: let the last evaluation be the end
    patient = hit is None or event["step"] < hit + patience
    if finite and event["step"] < row["budget_steps"] and not over and patient:
        return None
    if hit is not None:
        return "reached"
    return "completed" if row["target"] is None else "missed"
