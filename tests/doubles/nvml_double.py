"""A driver that tests script: the functions of pynvml that the suite uses, over a state of plain JSON.

In process: ``Double(state)``, whose ``state`` the test changes as it goes. In a poller: this module itself, named by
``--module``; its state is the file that the environment variable NVML_DOUBLE names, read anew at every call.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, NO_LIBRARY, LOST = 3, 4, 6, 12, 15
GIB = 2**30
UUID = "GPU-12345678-9ABC-def0-1234-56789abcdef0"
TORCH_UUID = "12345678-9abc-def0-1234-56789abcdef0"


def device(**changes):
    """Return an idle device that supports everything."""
    idle = {
        "uuid": UUID,
        "used": 0,
        "reserved": 0,
        "processes": [],
        "energy_mj": 1_000_000,
        "power_mw": 70_000,
        "mig": 0,
        "knows_version_2": True,
        "errors": {},
    }
    return idle | changes


class NVMLError(Exception):
    """As pynvml's: the code is ``value``."""

    def __init__(self, value):
        super().__init__(f"NVML error {value}")
        self.value = value


class Double:
    """``pynvml`` over a state: ``init_error``, ``driver``, ``devices``, ``slices`` (MIG)."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 0x02000028  # noqa: N815

    def __init__(self, state):
        self._state = state

    @property
    def state(self):
        return self._state() if callable(self._state) else self._state

    def _device(self, uuid, function):
        (found,) = [one for one in self._all() if one["uuid"] == uuid]
        if function in found["errors"]:
            raise NVMLError(found["errors"][function])
        if "all" in found["errors"]:
            raise NVMLError(found["errors"]["all"])
        return found

    def _all(self):
        return self.state["devices"] + self.state.get("slices", [])

    def nvmlInit(self):  # noqa: N802
        if self.state.get("init_error"):
            raise NVMLError(self.state["init_error"])

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.1"

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.state["devices"])

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        uuid = self.state["devices"][index]["uuid"]
        self._device(uuid, "handle")
        return uuid

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid.lower() not in [one["uuid"].lower() for one in self._all()]:
            raise NVMLError(NOT_FOUND)
        return next(one["uuid"] for one in self._all() if one["uuid"].lower() == uuid.lower())

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return self._device(handle, "uuid")["uuid"]

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):  # noqa: N802
        found = self._device(handle, "memory")
        if version and not found["knows_version_2"]:
            raise NVMLError(NOT_SUPPORTED)
        return SimpleNamespace(used=found["used"] + (0 if version else found["reserved"]))

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        listed = self._device(handle, "processes")["processes"]
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in listed]

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        mode = self._device(handle, "mig")["mig"]
        if mode is None:
            raise NVMLError(NOT_SUPPORTED)
        return [mode, mode]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return self._supported(handle, "energy_mj")

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return self._supported(handle, "power_mw")

    def _supported(self, handle, field):
        value = self._device(handle, field)[field]
        if value is None:
            raise NVMLError(NOT_SUPPORTED)
        return value


_FROM_FILE = Double(lambda: json.loads(Path(os.environ["NVML_DOUBLE"]).read_text(encoding="utf-8")))


def __getattr__(name):
    return getattr(_FROM_FILE, name)
