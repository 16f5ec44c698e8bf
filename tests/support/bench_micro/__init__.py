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
    "grows:Grows",
    "nan-loss:NanLoss",
    "infinite-loss:InfiniteLoss",
    "nan-gradient:NanGradient",
    "infinite-gradient:InfiniteGradient",
)
STATEFUL = ("wanders:Wanders", "blurs:Blurs", "lacks-micro-batches:LacksMicroBatches")

HOSTILE = (
    "sets-dtype:SetsDtype",
    "sets-threads:SetsThreads",
    "sets-device:SetsDevice",
    "stops-gradients:StopsGradients",
    "sets-threads-in-forward:SetsThreadsInForward",
    "stops-collector:StopsCollector",
    "takes-signals:TakesSignals",
    "moves-cores:MovesCores",
    "patches-clock:PatchesClock",
    "turns-clock-back:TurnsClockBack",
    "patches-loss:PatchesLoss",
    "patches-defaults:PatchesDefaults",
    "patches-method:PatchesMethod",
    "patches-harness:PatchesHarness",
    "patches-constant:PatchesConstant",
    "patches-workload:PatchesWorkload",
    "leaves-thread:LeavesThread",
    "leaves-raw-thread:LeavesRawThread",
    "leaves-process:LeavesProcess",
    "joins-threads:JoinsThreads",
    "learns-in-evaluation:LearnsInEvaluation",
    "counts-in-evaluation:CountsInEvaluation",
    "draws-from-torch:DrawsFromTorch",
    "draws-from-numpy:DrawsFromNumpy",
    "draws-from-python:DrawsFromPython",
    "reseeds:Reseeds",
    "writes-batch:WritesBatch",
    "adds-to-batch:AddsToBatch",
    "writes-batch-late:WritesBatchLate",
    "reads-results:ReadsResults",
    "lists-results-quietly:ListsResultsQuietly",
    "reads-results-in-forward:ReadsResultsInForward",
    "reads-command:ReadsCommand",
    "calls-home:CallsHome",
    "sees-objects:SeesObjects",
    "walks-frames:WalksFrames",
    "walks-traceback:WalksTraceback",
    "traces:Traces",
    "listens-in:ListensIn",
    "writes-outside:WritesOutside",
    "removes-outside:RemovesOutside",
    "leaves-traces:LeavesTraces",
    "uses-the-library:UsesTheLibrary",
)


@hookimpl
def bench_algorithms() -> list[Entry]:
    modules = {
        "faulty": FAULTY,
        "late": LATE,
        "exhausting": EXHAUSTING,
        "stateful": STATEFUL,
        "twin": ("adamw-twin:AdamWTwin",),
        "hostile": HOSTILE,
        "patching": ("patches-at-import:PatchesAtImport",),
    }
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
