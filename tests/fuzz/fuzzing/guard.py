"""What no input may cause, watched while one runs: writes elsewhere, foreign code, processes, sockets, time, memory.

The hook of :func:`sys.addaudithook` cannot be removed, so it is installed once per process and armed for an input.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import CodeType
from typing import Any

import bench
from fuzzing.hostile import CANARY

LIMIT_S, AGAIN_S = 5.0, 30.0
"""How long an input may take; and how long when it is run again, but then no more than the first of processor time."""

LIMIT_BYTES = 2**30
_MARK = CANARY.encode()


class Violation(BaseException):  # not an Exception: nothing under test may swallow it
    """An input made the program do what no input may."""


class Hang(BaseException):
    """An input took longer than :data:`LIMIT_S`."""


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    **dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), slice(1)),
    **dict.fromkeys(("os.setxattr", "os.removexattr", "shutil.rmtree"), slice(1)),
    "os.rename": slice(2),
    **dict.fromkeys(("os.link", "os.symlink"), slice(1, 2)),
}
"""Audit events of changes to the file system, with those of their arguments that are paths which change."""

OWN_PROGRAM = [sys.executable, "-I", str(Path(bench.__file__).parent / "bundle" / "table_child.py")]
"""The one program that inputs start: it reads the tables of a bundle, with little memory, and nothing else."""

FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "os.kill",
    "pty.spawn",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostby",
    "socket.sendto",
    "urllib.",
    "http.client",
    "ftplib.",
    "smtplib.",
    "webbrowser.",
    "pickle.find_class",
    "code.__new__",
    "sqlite3.connect",
    "ctypes.dlopen",
)
"""Beginnings of the names of audit events that no input may cause at all."""


class Guard:
    """Watches inputs; ``allowed`` is the folder that they may write to."""

    def __init__(self, allowed: Path) -> None:
        self._allowed = os.path.realpath(allowed)
        self._armed = False
        self._importing = 0
        self._known = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), "bench"}
        self._known -= {"antigravity", "this", "idlelib", "turtledemo", "turtle"}  # running code is what they are for
        self.violations: list[str] = []
        signal.signal(signal.SIGALRM, _hang)
        sys.addaudithook(self._audit)

    @contextmanager
    def watching(self, limit_s: float = LIMIT_S) -> Iterator[None]:
        """Arm the guard; afterwards raise :class:`Violation` for what was prevented, even if somebody swallowed it."""
        self.violations.clear()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + LIMIT_BYTES, limits[1]))
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, limits)
            if self.violations:  # whatever became of them
                raise Violation(self.violations[0])

    # -- events ----------------------------------------------------------------------------------------------------
    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        self._armed = False  # what the check itself does is not the input's
        try:
            found = self._found(event, arguments)
        finally:
            self._armed = True
        if found is not None:
            self.violations.append(found)
            raise Violation(found)

    def _found(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            return self._opened(*arguments)
        if event == "import":
            return self._imported(str(arguments[0]))
        if event in {"compile", "exec"}:
            return _ran(event, arguments[0])
        if event in CHANGES:
            outside = [path for path in arguments[CHANGES[event]] if not self._inside(path)]
            return f"{event} of {outside[0]!r}" if outside else None
        forbidden = event.startswith(FORBIDDEN) and not _own(event, arguments)
        return f"{event} {str(arguments)[:200]}" if forbidden else None

    def _opened(self, path: Any, mode: str | None, flags: int) -> str | None:
        writes = any(letter in mode for letter in "wax+") if mode is not None else bool(flags & WRITES)
        return f"open of {path!r} to write" if writes and not self._inside(path) else None

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True  # a descriptor that was opened before, and checked then
        place = os.path.realpath(os.fsdecode(path))
        return place == self._allowed or place.startswith(self._allowed + os.sep) or place == os.devnull

    def _imported(self, name: str) -> str | None:
        top = name.partition(".")[0]
        if top in self._known or PathFinder.find_spec(top) is None:  # what is nowhere cannot run
            return None
        return f"import of {name!r}"


def _own(event: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether it is a library of an installed package that is opened, or our own program that is started."""
    if event == "ctypes.dlopen":
        return arguments[0] is None or str(arguments[0]).startswith(sys.prefix)
    return event == "subprocess.Popen" and list(arguments[1]) == OWN_PROGRAM


def _ran(event: str, what: Any) -> str | None:
    if isinstance(what, CodeType):
        texts = repr((what.co_names, what.co_consts, what.co_filename))
        return f"{event} of code that names {CANARY}" if CANARY in texts else None
    source = what.encode(errors="replace") if isinstance(what, str) else what
    return f"{event} of text of the input" if isinstance(source, bytes) and _MARK in source else None


def _hang(*_: object) -> None:
    raise Hang("no end in time")


def _virtual_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - a thousand times a second
        return int(file.read().split()[0]) * resource.getpagesize()
