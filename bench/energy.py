"""Energy of a device over the windows that the clock opens and closes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.nvml import Device, NvmlUnavailable

SOURCE = "nvmlDeviceGetTotalEnergyConsumption"
"""The ``energy_source`` of a value that is not null."""

SHORTEST_WINDOW_S = 2.0
"""The counter moves every 20 to 100 ms, so a shorter total would be known to no better than 5%."""


@dataclass(frozen=True, kw_only=True)
class EnergyReading:
    """The record's energy columns; ``energy_source`` is the reason where ``energy_j`` is null (it is never 0)."""

    energy_j: float | None
    energy_window_s: float | None
    energy_source: str


class EnergyMeter:
    """Sums the device's energy counter over windows, so that evaluations can be left out.

    The caller synchronises the device before :meth:`resume` and :meth:`pause`; both do nothing when there is nothing to
    open or close, and neither raises: a driver that fails turns the result into null with its reason, for good.

    Args:
        device: the device, or None where there is nothing to measure.
        reason: why there is nothing to measure; must be given where ``device`` is None.
        now: the clock, seconds.
    """

    def __init__(
        self, device: Device | None, reason: str = "", *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device = device
        self._reason = reason
        self._now = now
        self._opened: tuple[float, float] | None = None
        self._energy_j = 0.0
        self._window_s = 0.0

    def resume(self) -> None:
        """Open a window."""
        if self._opened is None:
            self._opened = self._sample()

    def pause(self) -> None:
        """Close the window and add it to the total."""
        if self._opened is None:
            return
        opened, self._opened = self._opened, None
        closed = self._sample()
        if closed is None:
            return
        if closed[0] < opened[0]:
            self._reason = "the energy counter went backwards (was the driver reloaded?)"
            return
        self._energy_j += closed[0] - opened[0]
        self._window_s += closed[1] - opened[1]

    def read(self) -> EnergyReading:
        """Return the total over the closed windows."""
        if self._reason:
            return EnergyReading(energy_j=None, energy_window_s=None, energy_source=self._reason)
        if self._window_s < SHORTEST_WINDOW_S:
            reason = f"window of {self._window_s:.2f} s is shorter than {SHORTEST_WINDOW_S:g} s"
        elif self._energy_j <= 0:
            reason = "the energy counter did not move"
        else:
            return EnergyReading(energy_j=self._energy_j, energy_window_s=self._window_s, energy_source=SOURCE)
        return EnergyReading(energy_j=None, energy_window_s=self._window_s, energy_source=reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the closed windows, so that a resumed trial goes on from them."""
        return {"energy_j": self._energy_j, "window_s": self._window_s, "reason": self._reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from another meter's closed windows; a total that was spoilt stays spoilt."""
        self._energy_j = float(state["energy_j"])
        self._window_s = float(state["window_s"])
        self._reason = self._reason or str(state["reason"])

    def _sample(self) -> tuple[float, float] | None:
        if self._device is None or self._reason:
            return None
        try:
            return self._device.energy_j(), self._now()
        except NvmlUnavailable as error:
            self._reason = f"energy counter: {error}"
            return None
