"""Where time is measured: laps of named sections, synchronised only when the clock is paused or resumed.

Inside a lap nothing waits for the device: on CUDA each section change records an event in the stream, which is read
when the clock pauses. So the timer adds no synchronisation to the hot path, and what the device did is charged to the
section that asked for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from bench.errors import GuardTripped
from bench.guards.witness import Witness

SECTIONS = ("setup", "data", "gradient", "step", "finish")
"""What is charged: slots called before training; waiting for batches and the selector; forward and backward; optimizer,
freezer and schedule; what makes the model ready for an evaluation."""


ASIDE = ("evaluation", "checkpoint", "warmup")
"""What is timed and not charged."""


class Window(Protocol):
    """Something that measures exactly while the clock runs (an energy meter)."""

    def resume(self) -> None:
        """The clock starts to run."""

    def pause(self) -> None:
        """The clock stops."""


class Clock:
    """Accumulates the seconds charged to each section, and the process's CPU seconds over the same time."""

    def __init__(self, device: torch.device, windows: Sequence[Window] = ()) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(SECTIONS, 0.0)
        self.aside: dict[str, float] = dict.fromkeys(ASIDE, 0.0)
        self.cpu_s = 0.0
        self.witness = Witness()
        self._device = device
        self._windows = windows
        self._laps: list[tuple[str, Any]] = []
        self._cpu_start = 0.0

    @property
    def running(self) -> bool:
        """Whether a section is being charged at the moment."""
        return bool(self._laps)

    @property
    def total_s(self) -> float:
        """All seconds charged up to the last pause."""
        return sum(self.seconds.values())

    def resume(self, section: str) -> None:
        """Synchronise the device and begin to charge ``section``."""
        assert not self.running, "the clock runs already"
        assert section in self.seconds, section
        self._synchronise()
        for window in self._windows:
            window.resume()
        self._cpu_start = time.process_time()
        self.witness.start()
        self._laps.append((section, self._stamp()))

    def enter(self, section: str) -> None:
        """Charge ``section`` from here on; does not wait for the device."""
        assert self.running, "the clock does not run"
        assert section in self.seconds, section
        self._laps.append((section, self._stamp()))

    def pause(self) -> None:
        """Synchronise the device, stop, and add up the laps; one that goes backwards is refused."""
        assert self.running, "the clock does not run"
        end = self._stamp()
        self._synchronise()
        self.witness.stop()
        self.cpu_s += time.process_time() - self._cpu_start
        for window in self._windows:
            window.pause()
        stamps = [stamp for _, stamp in self._laps] + [end]
        laps = [
            (section, self._between(start, stop)) for (section, start), stop in zip(self._laps, stamps[1:], strict=True)
        ]
        self._laps.clear()
        for section, seconds in laps:
            if seconds < 0:
                raise GuardTripped(f"the clock went backwards, by {-seconds:g} s in {section!r}: somebody changed it")
            self.seconds[section] += seconds
        self.witness.charge(sum(seconds for _, seconds in laps))

    @contextmanager
    def charge(self, section: str) -> Iterator[None]:
        """Charge the body to ``section``."""
        self.resume(section)
        try:
            yield
        finally:
            self.pause()

    @contextmanager
    def set_aside(self, section: str) -> Iterator[None]:
        """Time the body, which is not charged; the clock must stand still."""
        assert not self.running, "the clock runs"
        assert section in self.aside, section
        self._synchronise()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronise()
            self.aside[section] += time.perf_counter() - start

    def columns(self) -> dict[str, float]:
        """Return the record columns that the clock feeds."""
        charged = {f"{section}_s": seconds for section, seconds in self.seconds.items()}
        aside = {f"{section}_s": seconds for section, seconds in self.aside.items()}
        return {"time_s": self.total_s, **charged, **aside, "cpu_s": self.cpu_s}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        state = {"seconds": dict(self.seconds), "aside": dict(self.aside), "cpu_s": self.cpu_s}
        return state | {"jumps": list(self.witness.jumps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.seconds = dict(state["seconds"])
        self.aside = dict(state["aside"])
        self.cpu_s = float(state["cpu_s"])
        self.witness.jumps = list(state["jumps"])

    # -- the two kinds of device ----------------------------------------------------------------------------------
    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _stamp(self) -> Any:
        if self._device.type == "cuda":
            event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            return event
        return time.perf_counter()

    def _between(self, start: Any, stop: Any) -> float:
        if self._device.type == "cuda":
            return float(start.elapsed_time(stop)) / 1000.0
        return float(stop - start)
