"""A benchmark suite and plugin registry for neural-network training algorithms.

A plugin is a frozen dataclass of hyperparameters that overrides the slots it fills:

    @dataclass(frozen=True, kw_only=True)
    class Signum(Algorithm):
        name = "signum"
        lr: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-5, 1e-2), help="learning rate, η")

        def optimizer(self, named_parameters, run):
            return SignumOptimizer(named_parameters, lr=self.lr)

and a light module, named by an entry point of group ``bench``, that lists it:

    @hookimpl
    def bench_algorithms():
        return [Entry(name="signum", target="bench_signum.signum:Signum", track="optimizer",
                      paper="arXiv:1802.04434", summary="step by the sign of the momentum")]

Importing ``bench`` imports neither torch nor pandas; what needs them is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.after_training import CompressionWorkload, MergingWorkload, Point, PostTier
    from bench.algorithm import (
        Algorithm,
        Batch,
        Freezer,
        Learner,
        Loss,
        NamedParameters,
        Schedule,
        Selector,
        slots,
    )
    from bench.api import Results, load, run
    from bench.artifacts import cached
    from bench.context import Run
    from bench.entry import Entry, WorkloadEntry
    from bench.errors import BenchError
    from bench.experts import Experts
    from bench.hyperparameter import Choice, Linear, Log, hyper
    from bench.registry import Registry
    from bench.roles import HIDDEN_MATRICES, Role
    from bench.spec import hookimpl
    from bench.workload import DataIdentity, DataRequest, Target, Tier, TrainingWorkload, Workload

_HOME = {
    "Algorithm": "algorithm",
    "Batch": "algorithm",
    "BenchError": "errors",
    "Choice": "hyperparameter",
    "CompressionWorkload": "after_training",
    "DataIdentity": "workload",
    "DataRequest": "workload",
    "Entry": "entry",
    "Experts": "experts",
    "Freezer": "algorithm",
    "HIDDEN_MATRICES": "roles",
    "Learner": "algorithm",
    "Linear": "hyperparameter",
    "Log": "hyperparameter",
    "Loss": "algorithm",
    "MergingWorkload": "after_training",
    "NamedParameters": "algorithm",
    "Point": "after_training",
    "PostTier": "after_training",
    "Registry": "registry",
    "Results": "api",
    "Role": "roles",
    "Run": "context",
    "Schedule": "algorithm",
    "Selector": "algorithm",
    "Target": "workload",
    "Tier": "workload",
    "TrainingWorkload": "workload",
    "Workload": "workload",
    "WorkloadEntry": "entry",
    "cached": "artifacts",
    "hookimpl": "spec",
    "hyper": "hyperparameter",
    "load": "api",
    "run": "api",
    "slots": "algorithm",
}

__all__ = [
    "HIDDEN_MATRICES",
    "Algorithm",
    "Batch",
    "BenchError",
    "Choice",
    "CompressionWorkload",
    "DataIdentity",
    "DataRequest",
    "Entry",
    "Experts",
    "Freezer",
    "Learner",
    "Linear",
    "Log",
    "Loss",
    "MergingWorkload",
    "NamedParameters",
    "Point",
    "PostTier",
    "Registry",
    "Results",
    "Role",
    "Run",
    "Schedule",
    "Selector",
    "Target",
    "Tier",
    "TrainingWorkload",
    "Workload",
    "WorkloadEntry",
    "cached",
    "hookimpl",
    "hyper",
    "load",
    "run",
    "slots",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bench.{_HOME[name]}"), name)
    globals()[name] = value
    return value
