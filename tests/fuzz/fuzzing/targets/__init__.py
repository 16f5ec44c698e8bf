"""What reads what others wrote, by name; each module is imported when its target is prepared."""

from __future__ import annotations

import importlib
from typing import Any

TARGETS = {
    "commands": ("commands:Commands", 8),
    "bundles": ("bundles:Bundles", 6),
    "hyperparameters": ("hyperparameters:Hyperparameters", 18),
    "claims": ("claims:Claims", 12),
    "protocols": ("protocols:Protocols", 9),
    "events": ("events:Events", 12),
    "trials": ("trials:Trials", 11),
    "markers": ("markers:Markers", 5),
    "tables": ("tables:StoredTables", 8),
    "boards": ("boards:Boards", 1),
    "checkpoints": ("checkpoints:Checkpoints", 4),
    "algoperf": ("algoperf:Algoperf", 3),
    "entries": ("entries:Entries", 3),
}
"""Where each target is, and how many hundredths of all inputs it gets."""


def target(name: str) -> Any:
    """Return the class of a target."""
    module, _, attribute = TARGETS[name][0].partition(":")
    return getattr(importlib.import_module(f"fuzzing.targets.{module}"), attribute)


def split(inputs: int) -> dict[str, int]:
    """Return how many of ``inputs`` each target gets: its share, at least one, all of them together exactly."""
    total = sum(share for _, share in TARGETS.values())
    found = {name: max(1, inputs * share // total) for name, (_, share) in TARGETS.items()}
    found[max(found, key=lambda name: TARGETS[name][1])] += inputs - sum(found.values())
    return found
