"""Algorithms that do one thing wrong each, beside the good ones that they are made of."""

from __future__ import annotations

from bench import Entry, WorkloadEntry, hookimpl

GOOD = {
    "good-optimizer": "optimizers:Good",
    "good-adapter": "adapters:Good",
    "good-schedule": "schedules:Good",
    "good-selector": "selectors:Good",
    "good-freezer": "others:GoodFreezer",
    "good-learner": "others:GoodLearner",
    "good-finish": "others:GoodFinish",
    "good-pruning": "pruning:Good",
    "good-average": "averages:Good",
}
WRONG = {
    "facts": {
        "positional": "facts:Positional",
        "unended": "facts:Unended",
        "undocumented": "facts:Undocumented",
        "spaced-summary": "facts:SpacedSummary",
        "unbounded": "facts:Unbounded",
        "searches-outside": "facts:SearchesOutside",
        "takes-anything": "facts:TakesAnything",
        "branches": "branches:Branches",
        "private-parts": "private_parts:PrivateParts",
        "boasts": "boasts:Boasts",
    },
    "optimizers": {
        "idle-group": "IdleGroup",
        "counts-runs": "CountsRuns",
        "draws-globally": "DrawsGlobally",
        "seeds-itself": "SeedsItself",
        "hides-state": "HidesState",
        "keeps-fp32": "KeepsFp32",
        "remembers": "Remembers",
        "swallows-loss": "SwallowsLoss",
        "one-rate": "OneRate",
        "turns-around": "TurnsAround",
        "skips-convolutions": "SkipsConvolutions",
        "needs-elements": "NeedsElements",
        "divides-by-norm": "DividesByNorm",
        "coasts": "Coasts",
        "halves-gradients": "HalvesGradients",
        "other-foreach": "OtherForeach",
        "state-on-cpu": "StateOnCpu",
        "forgets-on-meta": "ForgetsOnMeta",
        "forgets-models-on-meta": "ForgetsModelsOnMeta",
        "breaks-in-amp": "BreaksInAmp",
        "climbs-models": "ClimbsModels",
    },
    "adapters": {
        "salted": "Salted",
        "seeded-salt": "SeededSalt",
        "unclaimed": "Unclaimed",
        "adapter-remembers": "AdapterRemembers",
        "widens": "Widens",
        "hidden-offset": "HiddenOffset",
        "other-shape-on-meta": "OtherShapeOnMeta",
        "starts-elsewhere": "StartsElsewhere",
        "never-moves": "NeverMoves",
    },
    "schedules": {
        "overshoots": "Overshoots",
        "half-way": "HalfWay",
        "counts-calls": "CountsCalls",
        "schedule-draws": "ScheduleDraws",
        "schedule-remembers": "ScheduleRemembers",
    },
    "selectors": {
        "invents-rows": "InventsRows",
        "square-weights": "SquareWeights",
        "spoils-batches": "SpoilsBatches",
        "counts-selections": "CountsSelections",
        "selector-seeds-itself": "SelectorSeedsItself",
        "forgets-position": "ForgetsPosition",
        "selector-remembers": "SelectorRemembers",
    },
    "others": {
        "adds-parameters": "AddsParameters",
        "answers": "Answers",
        "freezer-counts": "FreezerCounts",
        "freezer-draws": "FreezerDraws",
        "freezer-remembers": "FreezerRemembers",
        "learner-draws": "LearnerDraws",
        "learner-remembers": "LearnerRemembers",
        "finish-remembers": "FinishRemembers",
        "no-loss": "NoLoss",
        "shrinks-model": "ShrinksModel",
        "finish-draws": "FinishDraws",
    },
    "pruning": {
        "asks-too-much": "AsksTooMuch",
        "keeps-more": "KeepsMore",
        "pruning-widens": "PruningWidens",
        "leaves-mode": "LeavesMode",
        "touches-norms": "TouchesNorms",
        "pruning-counts": "PruningCounts",
        "pruning-seeds-itself": "PruningSeedsItself",
        "pruning-remembers": "PruningRemembers",
        "freezes-result": "FreezesResult",
        "guesses-points": "GuessesPoints",
        "unpicklable": "Unpicklable",
    },
    "averages": {
        "needs-the-moon": "NeedsTheMoon",
        "merge-leaves-mode": "MergeLeavesMode",
        "other-class": "OtherClass",
        "merge-remembers": "MergeRemembers",
        "merge-counts": "MergeCounts",
        "merge-seeds-itself": "MergeSeedsItself",
        "merges-heads": "MergesHeads",
        "weighs-by-heads": "WeighsByHeads",
        "takes-the-first": "TakesTheFirst",
        "coarse-in-bf16": "CoarseInBf16",
        "drifts": "Drifts",
        "merge-unpicklable": "MergeUnpicklable",
    },
}
"""By module; the names are those of listings."""


def targets() -> dict[str, str]:
    """Return every algorithm with its module and class."""
    wrong = {
        name: target if ":" in target else f"{module}:{target}"
        for module, classes in WRONG.items()
        for name, target in classes.items()
    }
    return GOOD | wrong


@hookimpl
def bench_algorithms() -> list[Entry]:
    """List them all."""
    return [
        Entry(
            name=name,
            target=f"bench_wrong.{target}",
            track="peft" if name.startswith("starts-") or name == "good-adapter" else "optimizer",
            paper="none",
            summary="one thing is wrong " if name == "spaced-summary" else "one thing may be wrong",
        )
        for name, target in targets().items()
    ]


@hookimpl
def bench_workloads() -> list[WorkloadEntry]:
    """List a workload whose name no algorithm may know."""
    return [WorkloadEntry(name="forbidden-fruit", target="bench_wrong:none", tiers=(), summary="a name")]
