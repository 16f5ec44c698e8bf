"""Threads and child processes: whatever works while the clock stands still is work that nobody counts."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bench.errors import GuardTripped

_POOL = str(Path(torch.__file__).parent / "_inductor" / "compile_worker")
"""torch's own compile workers: a thread that waits for child processes, idle while nothing is compiled."""
_STANDARD = (str(Path(threading.__file__).parent), "<frozen")
thread_count = _thread._count  # noqa: SLF001 - the number of Python threads, in 20 nanoseconds
_frames = sys._current_frames  # noqa: SLF001 - the only one that also shows threads started below threading
_Adopted = threading._DummyThread  # noqa: SLF001 - what threading makes of a thread that it did not start


class Threads:
    """Those that may live: what was there before the slots were called, and what the workload's own code starts.

    Threads without Python code, which torch's back ends start, are not seen, nor need they be: they wait for work.
    """

    def __init__(self) -> None:
        self.threads: set[int] = set(_frames())
        self.children: set[int] = set(children())

    def call(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, set[int]]:
        """Call a function of the workload; return its result and the threads that it started, which may live.

        ``Thread.start`` returns once the thread runs; what appears here by that way was started here. A thread made
        below ``threading`` may have been left by a slot before and run its first line only now: it is not excused.
        The number of threads tells nothing: as one is started, an earlier one may end.
        """
        before = set(_frames())  # the numbers alone: a frame that holds itself keeps its callers' tensors alive
        result = function(*arguments)
        fresh = _frames().keys() - before
        if fresh:
            fresh &= {thread.ident for thread in threading.enumerate() if not isinstance(thread, _Adopted)}
            self.threads |= fresh
        return result, fresh

    def check(self, who: str, started: Sequence[str]) -> None:
        """Raise :class:`~bench.errors.GuardTripped` if anything else is alive.

        ``started`` are the slots that were seen to start a thread or a process.
        """
        who = started[-1] if started else who
        frames = _frames()
        self.threads &= frames.keys()  # the number of a thread that ended is given to the next one
        strangers = {number: frame for number, frame in frames.items() if number not in self.threads}
        del frames  # this one is among them, see above
        for number, frame in strangers.items():
            if not _is_pool(frame):
                names = [f"{one.name!r}" for one in threading.enumerate() if one.ident == number]
                code = frame.f_code
                raise GuardTripped(
                    f"{who} left the thread {names[0] if names else number} running, in {code.co_name} "
                    f"({Path(code.co_filename).name})",
                    hint="join it before the slot returns",
                )
        for child in children():
            if child not in self.children and not _is_pool_process(child):
                raise GuardTripped(
                    f"{who} left the process {child} running", hint="wait for its end before the slot returns"
                )


def children() -> list[int]:
    """Return the living children of this process, dead ones that nobody waited for left out; empty off Linux."""
    tasks = Path("/proc/self/task")
    lists = tasks.glob("*/children") if tasks.is_dir() else ()
    found = []
    for path in lists:
        try:
            found += [int(number) for number in path.read_text(encoding="ascii").split()]
        except OSError:  # the thread ended meanwhile
            continue
    return [child for child in found if not _is_dead(child)]


def _is_dead(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}


def _is_pool(frame: FrameType | None) -> bool:
    """Whether a thread is torch's own: all of its code lies there or in Python's library."""
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return any(file.startswith(_POOL) for file in files) and all(file.startswith((_POOL, *_STANDARD)) for file in files)


def _is_pool_process(process: int) -> bool:
    try:
        return _POOL.encode() in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return True  # it ended meanwhile
