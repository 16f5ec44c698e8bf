"""Cheap diagnostics of an optimizer on analytic problems, and the overhead of any algorithm."""

from __future__ import annotations

from bench.diagnostics.costs import Overhead, overhead
from bench.diagnostics.diagnostic import Diagnostic, Finding, examine
from bench.diagnostics.geometry import rotation, scale
from bench.diagnostics.landscape import noise, plateau, saddle
from bench.diagnostics.memory import memory
from bench.diagnostics.ride import ADAMW, SGD, Contestant
from bench.diagnostics.robustness import determinism, recovery, sparse

DIAGNOSTICS: tuple[Diagnostic, ...] = (scale, rotation, saddle, plateau, sparse, recovery, noise, *memory, determinism)
"""All diagnostics, in the order in which they are shown."""

__all__ = [
    "ADAMW",
    "DIAGNOSTICS",
    "SGD",
    "Contestant",
    "Diagnostic",
    "Finding",
    "Overhead",
    "diagnose",
    "examine",
    "overhead",
]


def diagnose(contestant: Contestant) -> list[Finding]:
    """Return what every diagnostic finds of ``contestant``."""
    return [examine(diagnostic, contestant) for diagnostic in DIAGNOSTICS]
