"""Locks between processes: a file in a trial's folder that one process holds, and that a kill lets go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bench.errors import TrialBusy
from bench.files import cannot_write


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file ``path``; raise :class:`~bench.errors.TrialBusy` with ``busy`` where another process does.

    A lock that cannot be made, in a folder that is gone or not to be written, is
    :class:`~bench.errors.CannotWrite`; the folder is not made.
    """
    lock = FileLock(path, timeout=0)
    try:
        path.parent.stat()  # filelock would make a folder that is gone
        lock.acquire()
    except Timeout:
        raise TrialBusy(busy, hint="wait for it") from None
    except NotImplementedError as error:  # what filelock says of a file system without locks
        raise cannot_write(path, OSError(None, str(error))) from error
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock file ``path``; one that cannot be asked counts as not held."""
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
