"""Hook specifications: everything that a plugin module can tell the framework.

A module that an entry point of group ``bench`` names may implement any of these with :data:`hookimpl`. The first two
register; the others report coarse events of a trial, outside the clock and never inside a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from bench.entry import Entry, WorkloadEntry

NAME = "bench"
hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)
"""Marks a function of a plugin's entry module as the implementation of the hook of that name."""


@hookspec
def bench_algorithms() -> Sequence[Entry]:
    """Return the entries of the algorithms that this module provides."""
    raise NotImplementedError  # pluggy never calls a specification


@hookspec
def bench_workloads() -> Sequence[WorkloadEntry]:
    """Return the entries of the workloads that this module provides."""
    raise NotImplementedError


@hookspec
def bench_started(trial: Mapping[str, Any]) -> None:
    """Called in the worker when a trial starts or resumes; ``trial`` is its ``trial.json``."""


@hookspec
def bench_evaluated(trial: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """Called in the worker after every evaluation, outside the clock; for loggers and live plots."""


@hookspec
def bench_finished(trial: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Called in the worker when a trial has ended; ``record`` is its row of ``trials``."""
