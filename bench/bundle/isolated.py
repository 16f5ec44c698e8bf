"""``python -m bench.bundle.isolated RESULTS TRIAL...``: what :mod:`bench.bundle.isolation` starts; runs the trials."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.executor import run_trial
from bench.store import Store, read_trial

LARGEST_FILE_BYTES = 8 * 2**30


def main(arguments: Sequence[str]) -> int:
    """Run each trial in a worker of its own, as a plan does; one that is recorded already is not run again."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        store = Store(Path(arguments[0]))
        for trial_id in arguments[1:]:
            trial = read_trial(store.root / "runs" / trial_id)
            _limit(cpu=trial.device == "cpu")
            done = store.finished(trial)
            row = store.finalise(trial) if done is not None else run_trial(trial, store)
            what = f"{trial.algorithm.name}, seed {trial.seed}: {row['outcome']} {row['outcome_reason'] or ''}".rstrip()
            sys.stdout.write(f"{what}\n" if done is None else f"{what} (recorded already)\n")
            sys.stdout.flush()
    except BenchError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _limit(*, cpu: bool) -> None:
    """Let neither this process nor a worker leave a core file, write a file without end, or hold all memory."""
    if sys.platform == "win32":
        return
    import resource

    most = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: LARGEST_FILE_BYTES}
    if cpu and sys.platform == "linux":  # CUDA maps more than there is
        most[resource.RLIMIT_DATA] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for kind, limit in most.items():
        hard = resource.getrlimit(kind)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
