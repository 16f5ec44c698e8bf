"""The ``bench`` command with a checkpoint at every evaluation instead of every ten seconds.

It also takes Ctrl-C when the test runner was started in the background of a shell, which leaves SIGINT ignored.
"""

from __future__ import annotations

import signal
import sys

import bench.plan
from bench.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
bench.plan.CHECKPOINT_EVERY_S = 0.0
sys.exit(main())
