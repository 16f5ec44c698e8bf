"""What code of an algorithm must not reach for: results and data, the network, frames, what all objects are.

Python tells its audit hook before it opens a file or hands out a frame. While code of an algorithm runs, what is out of
bounds is refused there, and remembered: a plugin that swallows the refusal is found when its slot returns.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.errors import GuardTripped
from bench.guards.hook import listen

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_IMPORTER = "<frozen importlib._bootstrap_external>"
_COMMANDS = re.compile(r"/proc/[^/]+/(task/[^/]+/)?(cmdline|environ)")
_FRAMES = frozenset({"tb_frame", "gi_frame", "cr_frame", "ag_frame"})
_DEVICES = frozenset({"/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr"})
_get_ident, _get_frame, _real = threading.get_ident, sys._getframe, os.path.realpath  # noqa: SLF001 - there is no public form


@dataclass
class Fence:
    """What runs, where the bounds are, and who crossed them.

    ``who`` names the algorithm and the slot whose code runs, and is empty where none does; ``hidden`` are folders that
    it must not look into, ``writable`` those that it may write to; ``packages`` are those that algorithms come from;
    ``free`` are the threads that are not theirs.
    """

    who: str = ""
    armed: bool = False
    hidden: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    free: set[int] = field(default_factory=set)
    crossed: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    _busy: int = 0

    def arm(self, hidden: tuple[str, ...], writable: tuple[str, ...], packages: tuple[str, ...]) -> None:
        """Draw the bounds; from here on they hold while ``who`` is set."""
        # A folder that holds Python itself cannot be out of bounds.
        self.hidden = tuple(folder for folder in map(_real, hidden) if not _within(_real(sys.prefix), (folder,)))
        self.writable, self.packages = tuple(map(_real, writable)), packages
        self.crossed.clear()
        self.started.clear()
        self.armed = True

    def disarm(self) -> None:
        """Let everything pass."""
        self.armed, self.who = False, ""
        self.free.clear()
        self.crossed.clear()

    @contextmanager
    def around(self, who: str) -> Iterator[None]:
        """Hold ``who`` answerable for what the body does; with an empty text it is the workload's, which may do all."""
        outside, self.who = self.who, who
        try:
            yield
        finally:
            self.who = outside

    def check(self) -> None:
        """Raise :class:`~bench.errors.GuardTripped` if the bounds were crossed, however that was hidden."""
        if self.crossed:
            raise GuardTripped(self.crossed[0])

    @property
    def closed(self) -> bool:
        """Whether the thread that asks is held by the bounds at the moment."""
        return bool(self.who) and self.armed and _get_ident() not in self.free and self._busy != _get_ident()

    def refuse(self, what: str) -> None:
        """Remember and raise that ``who`` did ``what``."""
        self.crossed.append(f"{self.who} {what}")
        raise GuardTripped(self.crossed[-1])

    def caller(self) -> Any:
        """Return the frame whose code Python asked about, leaving out this package and ``inspect``."""
        self._busy = _get_ident()
        try:
            frame: Any = _get_frame(1)
            while frame is not None and _module(frame).startswith(("bench.guards.", "inspect.")):
                frame = frame.f_back
            return frame
        finally:
            self._busy = 0

    def is_plugin(self, frame: Any) -> bool:
        """Whether a frame runs code of the package of an algorithm under test."""
        return frame is not None and _module(frame).startswith(self.packages)


FENCE = Fence()
"""The fence of this process."""


def _module(frame: Any) -> str:
    """Return the name of the module whose code a frame runs, with a dot behind it."""
    return f"{frame.f_globals.get('__name__', '')}."


def _within(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _named(path: Any) -> str | None:
    """Return a path as text with its links followed; ``None`` for a descriptor."""
    try:
        return _real(os.fsdecode(path))
    except (TypeError, ValueError):
        return None


def _on_open(path: Any, mode: Any = None, flags: Any = 0) -> None:
    if not FENCE.closed:
        return
    del mode
    name = _named(path)
    if name is None or _within(name, FENCE.writable):
        return
    if _within(name, FENCE.hidden) or _COMMANDS.fullmatch(name):
        FENCE.refuse(f"reached for {name!r}, which algorithms do not see")
    if isinstance(flags, int) and flags & _WRITING:
        _refuse_change("wrote to", name)


def _on_look(path: Any = None) -> None:
    if FENCE.closed and (name := _named(path)) is not None and _within(name, FENCE.hidden):
        FENCE.refuse(f"looked into {name!r}, which algorithms do not see")


def _on_change(path: Any = None, *_: Any) -> None:
    if FENCE.closed and (name := _named(path)) is not None and not _within(name, FENCE.writable):
        _refuse_change("changed", name)


def _refuse_change(did: str, name: str) -> None:
    if name in _DEVICES or FENCE.caller().f_code.co_filename == _IMPORTER:  # compiled modules are kept beside them
        return
    FENCE.refuse(f"{did} {name!r}, outside its own temporary folder (TMPDIR)")


def _refuser(what: str) -> Callable[..., None]:
    def refuse(*_: Any) -> None:
        if FENCE.closed:
            FENCE.refuse(what)

    return refuse


def _plugin_refuser(what: str) -> Callable[..., None]:
    def refuse(*_: Any) -> None:
        if FENCE.closed and FENCE.is_plugin(FENCE.caller()):
            FENCE.refuse(what)

    return refuse


def _on_attribute(_: Any, name: str = "", *__: Any) -> None:
    if name in _FRAMES and FENCE.closed and FENCE.is_plugin(FENCE.caller()):
        FENCE.refuse(f"asked for a frame ({name})")


def _on_start(*_: Any) -> None:
    if FENCE.closed:
        FENCE.started.append(FENCE.who)


def _on_hook(*_: Any) -> None:
    if FENCE.armed:  # whether slot code runs or not: a hook would see what opaque functions hide
        FENCE.crossed.append(f"{FENCE.who or 'a plugin'} added an audit hook")
        raise RuntimeError(FENCE.crossed[-1])


def _install() -> None:
    listen("open", _on_open)
    for event in ("os.listdir", "os.scandir"):
        listen(event, _on_look)
    for event in ("remove", "rename", "mkdir", "rmdir", "link", "symlink", "truncate", "chmod", "chown", "utime"):
        listen(f"os.{event}", _on_change)
    for event in ("connect", "bind", "sendto", "getaddrinfo", "gethostbyname"):
        listen(f"socket.{event}", _refuser("reached for the network"))
    for event in ("gc.get_objects", "gc.get_referrers", "sys._current_frames", "sys._current_exceptions"):
        listen(event, _refuser(f"called {event}, which shows what algorithms do not see"))
    for event in ("sys._getframe", "sys.settrace", "sys.setprofile"):
        listen(event, _plugin_refuser(f"called {event}, which shows what algorithms do not see"))
    for event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"):
        listen(event, _on_start)
    listen("object.__getattr__", _on_attribute)
    listen("sys.addaudithook", _on_hook)


_install()
