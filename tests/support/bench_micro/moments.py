"""Lets a test reach into a worker that runs: at a named moment it kills itself, or waits for what the test does.

The order travels in the environment, so that it is no part of the trial's identity: ``kill batch 12``,
``wait save 3``. A worker that waits writes its process number into the file that ``BENCH_MICRO_SIGN`` names.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from bench.guards.fence import FENCE

ORDER, SIGN = "BENCH_MICRO_ORDER", "BENCH_MICRO_SIGN"


def meet(moment: str) -> None:
    """Carry out the order for this moment, if there is one."""
    action, _, awaited = os.environ.get(ORDER, "").partition(" ")
    if awaited != moment:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sign = Path(os.environ[SIGN])
    temporary = sign.with_suffix(".tmp")
    with FENCE.around(""):  # what a test does in a slot is not the algorithm's doing
        temporary.write_text(str(os.getpid()))
        temporary.replace(sign)
    while True:
        time.sleep(0.05)
