"""A device before the trial starts CUDA: bytes in use, processes, idle watts."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.nvml import Device, NvmlUnavailable, ProcessUse

IDLE_BYTES = 256 * 2**20
"""More than this in use before CUDA starts means that somebody else is on the device, listed or not."""

_REFUSALS = frozenset({3, 4})  # not supported, no permission: the device is well, it only does not tell

BASELINE_POLLS = 10
BASELINE_S = 0.5
"""Idle watts are the median over this many readings in this time; newer devices average each over a second."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A device before CUDA starts. ``occupied`` says who else is on it, empty for nobody."""

    used_bytes: int
    pids: frozenset[int]
    idle_w: float | None
    occupied: str


def list_processes(device: Device) -> tuple[ProcessUse, ...]:
    """Return the device's processes; none where the driver will not list them (containers, sandboxes)."""
    try:
        return device.processes()
    except NvmlUnavailable as error:
        if error.code in _REFUSALS:
            return ()
        raise


class _Look:
    """What is gathered of one device before CUDA starts."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pids: set[int] = set()
        self._watts: list[float] = []

    def again(self) -> None:
        self._pids.update(process.pid for process in list_processes(self._device))
        try:
            self._watts.append(self._device.power_w())
        except NvmlUnavailable as error:
            if error.code not in _REFUSALS:
                raise

    def baseline(self) -> Baseline:
        used_bytes = self._device.used_bytes()
        occupied = ""
        if self._pids:
            occupied = "another process was on the device before CUDA started"
        elif used_bytes > IDLE_BYTES:
            occupied = f"{used_bytes >> 20} MiB of the device were in use before CUDA started"
        idle = self._watts and not occupied and not self._device.is_partitioned()
        idle_w = statistics.median(self._watts) if idle else None
        return Baseline(used_bytes=used_bytes, pids=frozenset(self._pids), idle_w=idle_w, occupied=occupied)


def read_baselines(
    devices: Sequence[Device], *, polls: int = BASELINE_POLLS, seconds: float = BASELINE_S
) -> dict[str, Baseline]:
    """Look at all devices at once, for a moment; a device that fails gets no baseline."""
    looks = {device.uuid: _Look(device) for device in devices}
    for poll in range(polls):
        if poll:
            time.sleep(seconds / (polls - 1))
        for uuid, look in list(looks.items()):
            try:
                look.again()
            except NvmlUnavailable:
                del looks[uuid]
    baselines = {}
    for uuid, look in looks.items():
        with contextlib.suppress(NvmlUnavailable):
            baselines[uuid] = look.baseline()
    return baselines
