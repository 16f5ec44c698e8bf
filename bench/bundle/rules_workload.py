"""Is it the installed workload: its version, target, budget, limits and data, on the hardware that is named?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bench.bundle.cases import Case, minor_of
from bench.bundle.contents import Run
from bench.bundle.verdict import Finding, found
from bench.devices import listed
from bench.errors import BenchError
from bench.workload import Workload

CLOSE = 1e-12
"""Limits are products of the tier's and the protocol's numbers."""


def check(case: Case) -> Iterator[Finding]:
    """Yield what is not as the installed workload has it."""
    yield from _device(case)
    workload = case.workload
    if workload is None:
        yield found("workload-unknown", case=case.name, why=case.why_unknown)
        return
    said = case.runs[0].trial.workload_version
    if minor_of(said) != minor_of(workload.version):
        yield found("workload-version", case=case.name, said=said, found=workload.version)
        return
    for run in case.runs:
        yield from _facts(run, workload)
    yield from _data(case, workload)


def _facts(run: Run, workload: Workload) -> Iterator[Finding]:
    tier, limits, trial, row = workload.tier, workload.limits, run.trial, run.row
    target = workload.target
    wanted = {
        "metric": (row["metric"], workload.metric),
        "metric_direction": (row["metric_direction"], workload.direction),
        "target": (row["target"], None if target is None else target.value),
        "budget_steps": (row["budget_steps"], tier.steps),
        "budget_s": (row["budget_s"], tier.budget_s),
        "precision": (trial.precision, tier.precision),
        "judged_from_step": (_judged_from(run), workload.judged_from_step),
        "timeout_s": (trial.timeout_s, tier.timeout_s * limits.budget_factor),
        "budget_factor": (trial.budget_factor, limits.budget_factor),
        "stop_at_target": (trial.stop_at_target, limits.stop_at_target),
    }
    for fact, (said, right) in wanted.items():
        if said != right and not _close(said, right):
            yield found("workload", run=run.name, fact=fact, said=said, found=right)


def _close(said: Any, right: Any) -> bool:
    """Whether two numbers are equal but for rounding."""
    numbers = isinstance(said, (int, float)) and isinstance(right, (int, float))
    return numbers and abs(said - right) <= CLOSE * abs(right)


def _judged_from(run: Run) -> int:
    starts = [event["facts"].get("judged_from_step", 0) for event in run.events if event["event"] == "started"]
    return int(starts[-1]) if starts else 0


def _data(case: Case, workload: Workload) -> Iterator[Finding]:
    data = case.runs[0].trial.data
    if data.source == "local" or data.models or data.tokenizer is not None:
        yield found("data-unknown", case=case.name, why="they are the submitter's own, and not in the bundle")
        return
    try:
        identity = workload.data()
    except (BenchError, OSError) as error:
        yield found("data-unknown", case=case.name, why=str(error).splitlines()[0])
        return
    if identity.sha256 != data.sha256:
        short = {"said": data.sha256[:12], "found": identity.sha256[:12], "source": identity.source}
        yield found("data", case=case.name, **short)


def _device(case: Case) -> Iterator[Finding]:
    names = {rule.name: rule for rule in listed()}
    for run in case.runs:
        name, row = run.trial.device_class, run.row
        if row["device_listed"] != (name in names):
            facts = {"said": row["device_listed"], "found": name in names}
            yield found("device-facts", run=run.name, fact="device_listed", device=name, **facts)
        rule = names.get(name)
        cores = rule.cores if rule is not None and rule.kind == "cpu" else None
        if cores is not None and (run.trial.threads, run.trial.device) != (cores, "cpu"):
            said, right = f"{run.trial.threads} on {run.trial.device}", f"{cores} on cpu"
            yield found("device-facts", run=run.name, fact="threads", device=name, said=said, found=right)
        if rule is not None and rule.pattern is not None and not re.fullmatch(rule.pattern, str(row["gpu_name"])):
            facts = {"said": row["gpu_name"], "found": rule.pattern}
            yield found("device-facts", run=run.name, fact="gpu_name", device=name, **facts)
    busy = sum(run.row["contended"] is True for run in case.runs)
    if busy:
        why = f"the machine was busy in {busy} of {len(case.runs)} trials"
        yield found("time-not-ranked", case=case.name, why=why)
    if case.runs[0].trial.device_class not in names:
        yield found("time-not-ranked", case=case.name, why="the hardware is no listed device class")
