"""All kinds of checks, and those that belong to one algorithm."""

from __future__ import annotations

from bench.conformance import optimizer_loops, optimizer_steps
from bench.conformance.adaptations import adapt
from bench.conformance.check import Check, Kind, Property, Subject
from bench.conformance.compression import compression
from bench.conformance.facts import facts
from bench.conformance.merging import merging
from bench.conformance.optimizer_state import optimizer
from bench.conformance.runs import run
from bench.conformance.schedules import schedule
from bench.conformance.selectors import selector
from bench.conformance.training_slots import finish, freezer, learner
from bench.registry import Registry

KINDS: tuple[Kind, ...] = (
    facts,
    optimizer,
    adapt,
    schedule,
    selector,
    freezer,
    learner,
    finish,
    run,
    compression,
    merging,
)
"""In the order in which they are run and shown."""

FURTHER = (optimizer_steps, optimizer_loops)
"""Modules that add to a kind which another one defines."""


def checks(name: str, registry: Registry | None = None) -> list[Check]:
    """Return the checks of the algorithm ``name``; ``registry`` is that of the installed plugins unless given.

    Raises :class:`~bench.errors.UnknownName` or :class:`~bench.errors.BrokenPlugin` where there is nothing to check.
    """
    subject = Subject(name, registry or Registry())
    subject.registry.algorithm_class(name)
    return [check for kind in KINDS for check in kind.checks(subject)]


def properties() -> list[Property]:
    """Return every property of every kind, in the order in which they are checked."""
    return [each for kind in KINDS for each in kind.properties]
