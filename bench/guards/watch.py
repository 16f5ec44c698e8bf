"""The guards of one process, in the order in which a trial meets them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.guards import machine, settings
from bench.guards.fence import FENCE
from bench.guards.names import Names
from bench.guards.place import private_place
from bench.guards.threads import Threads


class Watch:
    """Looks whether the process is still what it was; one that was not begun sees nothing and costs nothing.

    Outside a worker (in a test, in an estimate of memory) a process belongs to others, who may change it.
    """

    def __init__(self) -> None:
        self._who = ""
        self._names: Names | None = None
        self._threads: Threads | None = None
        self._machine: Any = None
        self._settings: Any = None
        self._folder: Path | None = None

    @classmethod
    @contextlib.contextmanager
    def over_process(cls) -> Iterator[Watch]:
        """Begin in a fresh process, before any plugin is imported; the body runs in a private place."""
        watch = cls()
        with private_place() as folder:
            watch._names, watch._folder = Names(), folder
            try:
                yield watch
            finally:
                FENCE.disarm()

    def listed(self) -> None:
        """Raise :class:`~bench.errors.GuardTripped` if listing the plugins changed what everybody shares."""
        if self._names is not None:
            self._names.check("importing the installed plugins")

    def opened(self, workload: type) -> None:
        """Note everything anew, the workload's modules among it: what it imported is not for algorithms to answer."""
        if self._names is None:
            return
        self._names = Names()
        for cls in workload.__mro__:
            if cls.__module__.split(".")[0] != "builtins":
                self._names.add_class(cls)
                self._names.add(sys.modules[cls.__module__])

    def begin(self, who: str, packages: Sequence[str], hidden: Sequence[Path]) -> None:
        """From here on code of algorithms may run: ``who`` is under test, from ``packages``; see ``Fence`` on both."""
        if self._names is None or self._folder is None:
            return
        self._who = who
        self._threads, self._machine, self._settings = Threads(), machine.read(), settings.read()
        caches = [os.environ[name] for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR") if name in os.environ]
        FENCE.arm(tuple(map(str, hidden)), (str(self._folder), *caches), tuple(packages))
        FENCE.free |= self._threads.threads - {threading.get_ident()}
        self._names.check(f"importing {who}")

    def look(self) -> None:
        """Raise :class:`~bench.errors.GuardTripped` if the process is not what it was."""
        if self._threads is None or self._names is None:
            return
        FENCE.check()
        self._threads.check(self._who, FENCE.started)
        FENCE.free &= self._threads.threads
        machine.check(self._machine, self._settings, self._who)
        self._names.check(self._who)

    def workload(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the workload; threads that it starts may live on."""
        if self._threads is None:
            return function(*arguments)
        result, fresh = self._threads.call(function, *arguments)
        if fresh:
            FENCE.free |= fresh
        return result
