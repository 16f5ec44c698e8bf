"""A second clock beside the one that measures, read through references taken when this module was imported."""

from __future__ import annotations

import time

_read_ns = getattr(time, "clock_gettime_ns", None)
_RAW, _BOOT = getattr(time, "CLOCK_MONOTONIC_RAW", None), getattr(time, "CLOCK_BOOTTIME", None)

TOLERANCE, LEAST_S = 0.01, 0.05
"""Two clocks may differ by 1% (the system's clock is slewed by at most 0.05%), and by 50 ms over short times."""


def _seconds(kind: int | None) -> float | None:
    return None if _read_ns is None or kind is None else float(_read_ns(kind)) * 1e-9


class Witness:
    """Adds up what two other clocks say of the same laps: one that nobody slews, and one that runs through a sleep.

    ``jumps`` tells of every look that found the clock in disagreement with them.
    """

    def __init__(self) -> None:
        self.jumps: list[str] = []
        self._start: tuple[float | None, float | None] = (None, None)
        self._spans: list[float | None] = [None, None]
        self._forget()

    def _forget(self) -> None:
        self._charged, self._raw, self._boot = 0.0, 0.0, 0.0

    def start(self) -> None:
        """Begin a stretch of time."""
        self._start = (_seconds(_RAW), _seconds(_BOOT))

    def stop(self) -> None:
        """End it; :meth:`charge` must follow."""
        stop = (_seconds(_RAW), _seconds(_BOOT))
        pairs = zip(self._start, stop, strict=True)
        self._spans = [None if begin is None or end is None else end - begin for begin, end in pairs]

    def charge(self, charged_s: float) -> None:
        """Put what the clock that measures made of the stretch beside it."""
        raw, boot = (charged_s if span is None else span for span in self._spans)
        self._charged, self._raw, self._boot = self._charged + charged_s, self._raw + raw, self._boot + boot

    def look(self) -> str:
        """Return how the clocks differ since the last look, empty if they agree; begins anew."""
        charged, said = self._charged, {"the raw monotonic clock": self._raw, "the clock that counts sleep": self._boot}
        self._forget()
        for name, seconds in said.items():
            if abs(seconds - charged) > max(LEAST_S, TOLERANCE * max(charged, seconds)):
                self.jumps.append(f"{charged:.3f} s were charged where {name} says {seconds:.3f} s")
                return self.jumps[-1]
        return ""
