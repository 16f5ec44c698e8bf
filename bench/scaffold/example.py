"""An installed workload on which a new algorithm of some kind can be tried at once, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.algorithm import slots
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.registry import Registry
    from bench.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Example:
    """A tier of a workload and the ``baseline`` there; without any installed workload, words for all three."""

    workload: str = "WORKLOAD"
    tier: str = "TIER"
    baseline: str = "BASELINE"


def example(registry: Registry, slot: str, offers: Sequence[str]) -> Example | None:
    """Return the tier on a CPU that calls ``slot`` and offers all of ``offers``, and little else; of such the fastest.

    A workload that does not load is passed over.
    """
    found = []
    for cls in _workloads(registry):
        if slot not in cls.slots:
            continue
        for name, tier in cls.tiers.items():
            offered = cls(name).offers
            if "cpu" in tier.default_on and offered >= set(offers):
                takes_s = math.inf if tier.expected_s is None else tier.expected_s
                baseline = _filler(registry, tier.reference, slot)
                place = (len(offered), takes_s, cls.name, name)
                found.append((place, Example(workload=cls.name, tier=name, baseline=baseline)))
    return min(found, key=lambda each: each[0])[1] if found else None


def _workloads(registry: Registry) -> Iterator[type[Workload]]:
    for name in sorted(registry.workloads):
        try:
            yield registry.workload_class(name)
        except BenchError:
            continue


def _filler(registry: Registry, reference: Iterable[str], slot: str) -> str:
    """Return the part of the reference that fills ``slot``; where none does, its first one."""
    for name in reference:
        try:
            if slot in slots(registry.algorithm_class(name)):
                return name
        except BenchError:
            continue
    return next(iter(reference), Example.baseline)
