"""The private place of a trial: a temporary folder that goes with it, and nothing of the command that started it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "bench-trial-"
_LOCK = "lock"
_FOLDERS = ("BENCH_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TORCH_HOME", "PYTHONPATH")
"""Environment variables that name folders, which must go on to mean the same ones from another working directory."""
_CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "torchinductor"}
"""Compiled kernels are kept in the private place, unless the user named another."""


@contextlib.contextmanager
def private_place() -> Iterator[Path]:
    """Work in a temporary folder of one's own until the body ends; command line and working directory are forgotten.

    The folder is locked while it is in use. What a killed process leaves is removed by the next one.
    """
    sweep()
    root, lock = _make()
    folder = root / "tmp"
    folder.mkdir()
    environment, arguments, path = dict(os.environ), (sys.argv[:], sys.orig_argv[:]), sys.path[:]
    before, temporary = _working_directory(), tempfile.tempdir
    try:
        _move(folder)
        yield folder
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[:], sys.orig_argv[:] = arguments
        sys.path[:], tempfile.tempdir = path, temporary
        lock.release()
        shutil.rmtree(root, ignore_errors=True)


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # removed under the feet of whoever gave the command
        return Path(os.sep)


def _move(folder: Path) -> None:
    for name in _FOLDERS:
        if name in os.environ:
            os.environ[name] = os.pathsep.join(
                str(Path(part).absolute()) for part in os.environ[name].split(os.pathsep)
            )
    sys.path[:] = [str(Path(part).absolute()) if Path(part).exists() else part for part in sys.path]
    for name, kind in _CACHES.items():
        os.environ.setdefault(name, str(folder / kind))
    os.environ |= {"TMPDIR": str(folder), "PWD": str(folder)}
    os.environ.pop("OLDPWD", None)
    os.chdir(folder)
    tempfile.tempdir = None
    sys.argv[:] = sys.orig_argv[:] = ["bench", "worker"]


def _make() -> tuple[Path, FileLock]:
    """Return a new folder and the lock that says that it is in use; its name shows it only when it is locked."""
    hidden = Path(tempfile.mkdtemp(prefix=".bench-new-"))
    lock = FileLock(hidden / _LOCK, timeout=0)
    lock.acquire()
    root = hidden.with_name(PREFIX + hidden.name.removeprefix(".bench-new-"))
    hidden.rename(root)
    return root, lock


def sweep() -> None:
    """Remove the private places of processes that were killed."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            if root.is_symlink() or not os.access(root, os.W_OK):
                continue
            with FileLock(root / _LOCK, timeout=0):
                shutil.rmtree(root, ignore_errors=True)
