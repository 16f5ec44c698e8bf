"""Bundles: what was measured of one algorithm as one file that a stranger can check without running anything of it."""

from __future__ import annotations

from bench.bundle.agreement import Quantity
from bench.bundle.choice import SEEDS
from bench.bundle.contents import Bundle, Run, read
from bench.bundle.packing import pack
from bench.bundle.reproduction import Reproduction, Wanted, reproduce
from bench.bundle.rules import RULES
from bench.bundle.verdict import Verdict
from bench.bundle.verification import verify

__all__ = [
    "RULES",
    "SEEDS",
    "Bundle",
    "Quantity",
    "Reproduction",
    "Run",
    "Verdict",
    "Wanted",
    "pack",
    "read",
    "reproduce",
    "verify",
]
