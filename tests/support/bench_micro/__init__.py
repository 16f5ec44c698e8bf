"""A workload of milliseconds, and algorithms that behave well and badly, as a third party would ship them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import Entry, WorkloadEntry, hookimpl

from .moments import meet

FAULTY = (
    "raises-in-adapt:RaisesInAdapt",
    "raises-in-freezer:RaisesInFreezer",
    "raises-in-optimizer:RaisesInOptimizer",
    "raises-in-schedule:RaisesInSchedule",
    "raises-in-selector:RaisesInSelector",
    "raises-in-learner:RaisesInLearner",
    "raises-in-finish:RaisesInFinish",
    "exits-in-optimizer:ExitsInOptimizer",
    "returns-no-model:ReturnsNoModel",
    "returns-no-freezer:ReturnsNoFreezer",
    "returns-no-optimizer:ReturnsNoOptimizer",
    "returns-no-schedule:ReturnsNoSchedule",
    "returns-no-selector:ReturnsNoSelector",
    "returns-no-learner:ReturnsNoLearner",
    "returns-no-finished-model:ReturnsNoFinishedModel",
    "forgets-parameters:ForgetsParameters",
)
LATE = (
    "freezes-wrongly:FreezesWrongly",
    "steps-wrongly:StepsWrongly",
    "closes-wrongly:ClosesWrongly",
    "schedules-wrongly:SchedulesWrongly",
    "selects-wrongly:SelectsWrongly",
    "learns-wrongly:LearnsWrongly",
    "returns-no-batch:ReturnsNoBatch",
    "returns-no-factor:ReturnsNoFactor",
    "returns-no-loss:ReturnsNoLoss",
    "returns-no-closure-loss:ReturnsNoClosureLoss",
)
EXHAUSTING = (
    "hangs:Hangs",
    "dawdles:Dawdles",
    "hoards:Hoards",
    "hoards-host:HoardsHost",
    "hoards-device:HoardsDevice",
    "diverges:Diverges",
)
STATEFUL = ("wanders:Wanders", "blurs:Blurs", "lacks-micro-batches:LacksMicroBatches")


@hookimpl
def bench_algorithms() -> list[Entry]:
    twin = ("adamw-twin:AdamWTwin",)
    modules = {"faulty": FAULTY, "late": LATE, "exhausting": EXHAUSTING, "stateful": STATEFUL, "twin": twin}
    return [
        Entry(
            name=name,
            target=f"bench_micro.{module}:{cls}",
            track="optimizer",
            paper="none",
            summary="an algorithm for tests",
        )
        for module, names in modules.items()
        for name, cls in (pair.split(":") for pair in names)
    ]


@hookimpl
def bench_workloads() -> list[WorkloadEntry]:
    return [
        WorkloadEntry(
            name="micro",
            target="bench_micro.workload:Micro",
            tiers=("tiny", "deadline"),
            summary="a multilayer perceptron that learns in milliseconds",
        )
    ]


@hookimpl
def bench_evaluated(evaluation: Mapping[str, Any]) -> None:
    meet(f"evaluation {evaluation['step']}")


@hookimpl
def bench_finished() -> None:
    meet("end")
