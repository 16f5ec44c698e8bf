"""What NVIDIA's management library says about a device: memory, processes, energy, power.

A thin reading of ``nvidia-ml-py`` that knows devices by UUID, never by index (NVML ignores ``CUDA_VISIBLE_DEVICES``, so
its index 0 need not be torch's), and turns every driver failure into :class:`NvmlUnavailable` with a reason in words.
Nothing here starts CUDA, so a baseline can be read before the first context exists.
"""
# ruff: noqa: D102, N802 - the protocol spells the functions as NVML does, whose manual documents them

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")

_REASONS = {
    3: "not supported by this device",
    4: "no permission to ask the NVIDIA driver",
    6: "no such NVIDIA device",
    9: "the NVIDIA driver is not loaded",
    12: "no NVIDIA driver",
    13: "the NVIDIA driver is too old",
    15: "the NVIDIA device was lost",
    16: "the NVIDIA device needs a reset",
    18: "NVIDIA driver and library versions differ",
    28: "the NVIDIA device was lost",
}


class Memory(Protocol):
    """The part of NVML's memory structure that is read."""

    @property
    def used(self) -> int: ...  # bytes


class Process(Protocol):
    """The part of NVML's process structure that is read."""

    @property
    def pid(self) -> int: ...  # as the driver numbers it, perhaps outside this PID namespace
    @property
    def usedGpuMemory(self) -> int | None: ...  # bytes, None where the driver does not tell


class Nvml(Protocol):
    """The functions of ``pynvml`` that are used; the driver boundary that tests replace."""

    NVMLError: type[Exception]
    nvmlMemory_v2: int  # noqa: N815

    def nvmlInit(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> str: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Memory: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Sequence[Process]: ...
    def nvmlDeviceGetMigMode(self, handle: Any) -> Sequence[int]: ...
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int: ...
    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int: ...


class NvmlUnavailable(Exception):
    """NVML did not answer; ``str`` is the reason in words. ``code`` is NVML's, or None where it never got that far."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


def bare_uuid(uuid: str) -> str:
    """Return a UUID without NVML's prefix and in lower case, the form in which torch's and NVML's spellings agree."""
    lowered = uuid.strip().lower()
    return lowered.removeprefix("gpu-").removeprefix("mig-")


@dataclass(frozen=True)
class ProcessUse:
    """One process on a device: the driver's PID and its bytes (None where the driver does not tell)."""

    pid: int
    used_bytes: int | None


class Device:
    """One device (or MIG slice) as NVML sees it; every reading raises :class:`NvmlUnavailable` when it fails."""

    def __init__(self, driver: Driver, handle: Any, uuid: str, *, is_slice: bool = False) -> None:
        self.uuid = bare_uuid(uuid)
        self._driver = driver
        self._handle = handle
        self._is_slice = is_slice
        self._memory_version: int | None = driver.nvml.nvmlMemory_v2

    def used_bytes(self) -> int:
        """Bytes in use on the whole device. Without the driver's own reserve where the driver can tell them apart."""
        if self._memory_version is not None:
            try:
                return self._read(lambda nvml: nvml.nvmlDeviceGetMemoryInfo(self._handle, self._memory_version).used)
            except NvmlUnavailable as error:
                if error.code not in {3, 13, 24, 25}:  # not "this driver does not know version 2"
                    raise
                self._memory_version = None  # for good: the two versions must not be mixed within one difference
        return self._read(lambda nvml: nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def processes(self) -> tuple[ProcessUse, ...]:
        """Return the processes with a compute context on the device; one that forked contexts is listed once."""
        listed = self._read(lambda nvml: nvml.nvmlDeviceGetComputeRunningProcesses(self._handle))
        return tuple(ProcessUse(process.pid, process.usedGpuMemory) for process in listed)

    def is_partitioned(self) -> bool:
        """Whether the device is a MIG slice, or is cut into slices, so that its totals are not one user's."""
        if self._is_slice:
            return True
        try:
            return self._read(lambda nvml: nvml.nvmlDeviceGetMigMode(self._handle))[0] == 1
        except NvmlUnavailable as error:
            if error.code == 3:
                return False
            raise

    def energy_j(self) -> float:
        """Joules since the driver was loaded."""
        return self._read(lambda nvml: nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def power_w(self) -> float:
        """Watts that the device draws (newer devices average over one second)."""
        return self._read(lambda nvml: nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3

    def _read(self, ask: Callable[[Nvml], T]) -> T:
        return self._driver.ask(ask)


class Driver:
    """NVML after ``nvmlInit``."""

    def __init__(self, nvml: Nvml) -> None:
        self.nvml = nvml
        self.ask(lambda nvml: nvml.nvmlInit())

    @classmethod
    def load(cls, module: str = "pynvml") -> Driver:
        """Import the binding and initialise NVML.

        Raises:
            NvmlUnavailable: there is no binding, no driver, or the driver refuses.
        """
        try:
            nvml = importlib.import_module(module)
        except ImportError as error:
            raise NvmlUnavailable(f"the Python package that provides {module} is not installed") from error
        return cls(cast("Nvml", nvml))

    def ask(self, ask: Callable[[Nvml], T]) -> T:
        """Call into NVML and translate its error into a reason."""
        try:
            return ask(self.nvml)
        except self.nvml.NVMLError as error:
            code = getattr(error, "value", None)
            reason = _REASONS.get(code, f"NVML failed: {error}") if isinstance(code, int) else f"NVML failed: {error}"
            raise NvmlUnavailable(reason, code) from error

    def version(self) -> str:
        """Return the driver's version, as in ``"580.159.04"``."""
        return self.ask(lambda nvml: nvml.nvmlSystemGetDriverVersion())

    def devices(self) -> tuple[Device, ...]:
        """Return all physical devices; a device that does not answer is left out, as it cannot be matched by UUID."""
        found = []
        for index in range(self.ask(lambda nvml: nvml.nvmlDeviceGetCount())):
            try:
                found.append(self._device_at(index))
            except NvmlUnavailable:
                continue
        return tuple(found)

    def _device_at(self, index: int) -> Device:
        handle = self.ask(lambda nvml: nvml.nvmlDeviceGetHandleByIndex(index))
        return Device(self, handle, self.ask(lambda nvml: nvml.nvmlDeviceGetUUID(handle)))

    def device(self, uuid: str) -> Device:
        """Return the device, or the MIG slice, that has this UUID (with or without NVML's prefix)."""
        wanted = bare_uuid(uuid)
        for device in self.devices():
            if device.uuid == wanted:
                return device
        handle = self.ask(lambda nvml: nvml.nvmlDeviceGetHandleByUUID(f"MIG-{wanted}"))
        return Device(self, handle, wanted, is_slice=True)
