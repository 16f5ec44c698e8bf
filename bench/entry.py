"""The light half of a plugin: what a listing shows, and where the code is.

An entry costs nothing to import, so ``bench list`` stays fast and free of torch however many plugins there are;
the class behind ``target`` is imported when somebody uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

TRACKS = (
    "optimizer",
    "schedule",
    "data-selection",
    "parameterization",
    "peft",
    "compression",
    "merging",
)
"""The tracks of algorithms, in the order in which listings show them."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One algorithm as listings show it.

    ``name`` is what ``--plugin`` takes and equals the class's own ``name``; ``target`` is ``"package.module:Class"``;
    ``track`` is one of :data:`TRACKS`; ``paper`` is ``"arXiv:..."``, ``"doi:..."`` or a title; ``summary`` is one line.
    """

    name: str
    target: str
    track: str
    paper: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class WorkloadEntry:
    """One workload as listings show it; ``tiers`` names its sizes, smallest first."""

    name: str
    target: str
    tiers: tuple[str, ...]
    summary: str
