"""Was the machine ours? A short fixed probe through the trial, CPU seconds, and threads pinned to cores."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BadValue

if TYPE_CHECKING:
    import torch

CONTENDED_ABOVE = 1.10
"""Readings of one probe that differ by more than this ratio say that the machine was shared."""


@dataclass(frozen=True)
class _Size:
    """The probe's work: an n x n matrix product ``products`` times, and ``copies`` copies of ``copy_bytes``."""

    n: int
    products: int
    copy_bytes: int
    copies: int
    repetitions: int


# A repetition on a CPU lasts about a scheduler's time slice (3 ms): a much shorter one would slip between two of them.
_CPU = _Size(n=512, products=1, copy_bytes=8 * 2**20, copies=8, repetitions=3)
# On a GPU many kernels per repetition hide the launch; the copies exceed the second-level cache.
_CUDA = _Size(n=2048, products=8, copy_bytes=32 * 2**20, copies=32, repetitions=4)


@dataclass(frozen=True)
class CalibrationReading:
    """Seconds of the fixed float32 matrix products and of the fixed copies, each the minimum of its repetitions."""

    matmul_s: float
    copy_s: float


def measure(device: torch.device | str) -> CalibrationReading:
    """Run the probe (about 20 ms on one CPU core) and return its reading.

    It uses torch's threads as they are set, draws no random numbers, and changes none of torch's settings. On a GPU
    its 64 MiB are live while it runs: pause the allocator's peaks around it. On a CPU it keeps 16 MiB.
    """
    import torch

    device = torch.device(device)
    size = _CUDA if device.type == "cuda" else _CPU
    square = size.n * size.n
    with torch.inference_mode():
        source, target = (_cpu_buffer(size) if device.type == "cpu" else _buffer(size, device)).chunk(2)
        left, right = (source[i * square : (i + 1) * square].view(size.n, size.n) for i in (0, 1))
        product = target[:square].view(size.n, size.n)

        def multiply() -> None:
            for _ in range(size.products):
                torch.mm(left, right, out=product)  # with out=, autocast leaves it alone

        def copy() -> None:
            for _ in range(size.copies):
                target.copy_(source)

        return CalibrationReading(
            matmul_s=_fastest(multiply, device, size.repetitions), copy_s=_fastest(copy, device, size.repetitions)
        )


def _buffer(size: _Size, device: torch.device) -> torch.Tensor:
    """Return both halves of the copy in one float32 buffer; the matrices are views of it."""
    import torch

    return torch.ones(2 * size.copy_bytes // 4, dtype=torch.float32, device=device)


@functools.cache
def _cpu_buffer(size: _Size) -> torch.Tensor:
    """Return the buffer on the CPU, kept: its page faults cost more than the probe, and RSS peaks hold it anyway."""
    import torch

    return _buffer(size, torch.device("cpu"))


def _fastest(work: Callable[[], None], device: torch.device, repetitions: int) -> float:
    """Return the seconds of the fastest repetition, synchronised at both ends; the first one also warms up."""
    import torch

    spent = []
    for _ in range(repetitions):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
    return min(spent)


class Calibration:
    """The readings of one trial: at its start, at evaluations and at its end, outside the clock.

    Args:
        device: the trial's device.
        probe: what takes one reading of a device.
    """

    def __init__(
        self, device: torch.device | str, probe: Callable[[torch.device | str], CalibrationReading] = measure
    ) -> None:
        self._device = device
        self._probe = probe
        self.readings: list[CalibrationReading] = []

    def measure(self) -> CalibrationReading:
        """Take one reading and keep it."""
        self.readings.append(self._probe(self._device))
        return self.readings[-1]

    @property
    def contended(self) -> bool | None:
        """Whether the readings of either probe differ by more than 10%; null with fewer than two of them.

        A machine that was equally busy all the time goes unseen here; then the seconds differ between trials.
        """
        if len(self.readings) < 2:
            return None
        return max(self._spread("matmul_s"), self._spread("copy_s")) > CONTENDED_ABOVE

    def columns(self) -> dict[str, Any]:
        """Return the record's columns: least seconds, spread (maximum / minimum), number of readings, flag."""
        taken = len(self.readings) > 0
        return {
            "calibration_matmul_s": min(reading.matmul_s for reading in self.readings) if taken else None,
            "calibration_copy_s": min(reading.copy_s for reading in self.readings) if taken else None,
            "calibration_matmul_spread": self._spread("matmul_s") if taken else None,
            "calibration_copy_spread": self._spread("copy_s") if taken else None,
            "calibration_readings": len(self.readings),
            "contended": self.contended,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the readings, so that a resumed trial keeps them."""
        return {"readings": [(reading.matmul_s, reading.copy_s) for reading in self.readings]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put another's readings before the own ones."""
        self.readings[:0] = [
            CalibrationReading(float(matmul_s), float(copy_s)) for matmul_s, copy_s in state["readings"]
        ]

    def _spread(self, name: str) -> float:
        values = [getattr(reading, name) for reading in self.readings]
        return float(max(values) / min(values))


@dataclass(frozen=True)
class Pinning:
    """What :func:`pin_threads` did: torch's threads, the cores they may run on (null: not pinned), and it in words."""

    threads: int
    cores: tuple[int, ...] | None
    did: str


def pin_threads(n: int) -> Pinning:
    """Let torch use ``n`` threads and the process ``n`` of the cores that it inherited; never more than those.

    Raises:
        BadValue: ``n`` is no positive integer.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise BadValue(f"threads is {n!r} ({type(n).__name__}), but must be a positive integer")
    import torch

    if not hasattr(os, "sched_setaffinity"):
        torch.set_num_threads(n)
        return Pinning(n, None, f"{n} torch threads, not pinned: this system has no core affinity")
    inherited = sorted(os.sched_getaffinity(0))
    cores = tuple(inherited[:n])
    for thread in _thread_ids():
        try:
            os.sched_setaffinity(thread, cores)
        except ProcessLookupError:  # a thread that ended meanwhile
            continue
        except PermissionError as error:
            torch.set_num_threads(len(cores))
            return Pinning(len(cores), None, f"{len(cores)} torch threads, not pinned: {error.strerror}")
    torch.set_num_threads(len(cores))
    fewer = f" ({n} asked, {len(cores)} available)" if len(cores) < n else ""
    return Pinning(len(cores), cores, f"{len(cores)} torch threads on cores {', '.join(map(str, cores))}{fewer}")


def _thread_ids() -> list[int]:
    """Return all threads of this process: affinity belongs to a thread, and pools may have started theirs already."""
    tasks = Path("/proc/self/task")
    return [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]
