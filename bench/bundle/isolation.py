"""Run trials in a process that knows little: no secrets in its environment, no home, no network where that can be had.

It is a fence and no wall: code that runs as a user can read what the user can read. Who does not trust a source reads
it first, or runs it on a machine that has nothing to lose.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.registry import PIN

PASSED = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SYSTEMROOT", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "NO_COLOR", "COLUMNS"),
)
"""The variables that the process keeps; all others are left out, tokens and passwords among them."""

DATA = {"HF_HOME": "~/.cache/huggingface"}
"""Where data lies that a workload reads; without a network it is read from there or not at all."""


def environment(home: Path, site: Path | None, entry_points: Sequence[str]) -> dict[str, str]:
    """Return the environment of an isolated process with the private folder ``home``.

    ``site`` holds packages that are found before the installed ones; ``entry_points`` pins the plugins that load.
    """
    found = {name: os.environ[name] for name in PASSED if name in os.environ}
    for name, usual in DATA.items():
        folder = Path(os.environ.get(name) or usual).expanduser()
        found |= {name: str(folder)} if folder.is_dir() else {}
    folders = [str(site)] if site is not None else []
    folders += [str(Path(part).absolute()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    found |= {"PYTHONPATH": os.pathsep.join(folders)} if folders else {}
    found |= {PIN: ",".join(entry_points)} if entry_points else {}
    private = {name: home / folder for name, folder in (("HOME", "home"), ("TMPDIR", "tmp"), ("BENCH_CACHE", "cache"))}
    for folder in private.values():
        folder.mkdir(parents=True, exist_ok=True)
    return found | {name: str(folder) for name, folder in private.items()} | {"HF_HUB_OFFLINE": "1"}


def without_network() -> list[str]:
    """Return the words that start a command without a network; none where this system does not let us."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    words = [unshare, "--map-root-user", "--net", "--"]
    try:
        tried = subprocess.run([*words, "true"], capture_output=True, check=False, timeout=30)  # noqa: S603 - a fixed command
    except (OSError, subprocess.TimeoutExpired):
        return []
    return words if tried.returncode == 0 else []


def run_isolated(
    results: Path, trial_ids: Sequence[str], variables: dict[str, str], tell: Callable[[str], None]
) -> bool:
    """Run the trials ``trial_ids``, whose ``trial.json`` lie in ``results``; return whether there was no network.

    ``tell`` gets a line for each. Ctrl-C ends them in order.
    """
    words = without_network()
    process = subprocess.Popen(  # noqa: S603 - our own program
        [*words, sys.executable, "-P", "-m", "bench.bundle.isolated", str(results.absolute()), *trial_ids],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=variables,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None, "it is a pipe"
    try:
        for line in process.stdout:
            tell(line.rstrip())
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        raise BenchError(f"the isolated process ended with code {code}", hint="its message is above")
    return bool(words)
