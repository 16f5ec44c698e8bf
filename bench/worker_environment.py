"""What an executor and its workers agree on before torch is loaded."""

from __future__ import annotations

import os

DIE_WITH_PARENT = "BENCH_DIE_WITH_PARENT"
"""Set by an executor whose workers must not outlive it, to the number of its process."""


def prepare() -> None:
    """Let idle OpenMP threads sleep instead of spin; must run before torch is imported.

    On a machine that others use too, a spinning thread keeps the one it waits for from running: a step of two threads
    took minutes where sleeping ones took 0.6 s. Whoever sets the policy keeps it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
