"""Device classes: the named hardware on which times are compared, and what this machine is.

The classes are data (``devices.toml``); hardware that matches none is ``unlisted:...`` and is ranked by steps only.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Literal

from bench.cores import usable_cores
from bench.errors import BadValue
from bench.provenance import cpu_model

Kind = Literal["cpu", "cuda"]

_CUDA = re.compile(r"cuda(?::(0|[1-9][0-9]*))?")


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What identifies the hardware under a trial.

    ``hardware`` is the processor's or the driver's name for it; ``cores`` (CPU) are those that the process may use;
    ``memory_bytes`` (CUDA) is what torch reports; ``count`` is the number of devices that the trial uses.
    """

    kind: Kind
    hardware: str
    cores: int | None = None
    memory_bytes: int | None = None
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """What a trial runs on: the name that its record carries, whether the name is listed, and the facts behind it."""

    name: str
    listed: bool
    description: str
    kind: Kind
    cores: int | None
    memory_bytes: int | None
    hardware: str


@dataclass(frozen=True, kw_only=True)
class DeviceRule:
    """One class of ``devices.toml``: the hardware that it admits. ``cores`` rules a CPU, the rest a CUDA device."""

    name: str
    kind: Kind
    description: str
    cores: int | None = None
    pattern: str | None = None
    memory_gib: tuple[float, float] | None = None
    count: int = 1

    def admits(self, facts: DeviceFacts) -> bool:
        """Whether hardware with these facts belongs to the class."""
        if facts.kind != self.kind or facts.count != self.count:
            return False
        if self.kind == "cpu":
            return facts.cores == self.cores
        if self.pattern is None or self.memory_gib is None or facts.memory_bytes is None:
            return False
        least, most = self.memory_gib
        return re.fullmatch(self.pattern, facts.hardware) is not None and least <= facts.memory_bytes / 2**30 <= most


@functools.cache
def listed() -> tuple[DeviceRule, ...]:
    """Return the named classes in the order of the file; imports nothing heavy."""
    text = resources.files("bench").joinpath("devices.toml").read_text(encoding="utf-8")
    rules = []
    for table in tomllib.loads(text)["device"]:
        memory = table.pop("memory_gib", None)
        rules.append(DeviceRule(**table, memory_gib=None if memory is None else (float(memory[0]), float(memory[1]))))
    return tuple(rules)


def detect(device: str, facts: DeviceFacts | None = None) -> DeviceClass:
    """Return the class of a device of this machine.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        facts: the hardware's facts, gathered from this machine if left out.

    Raises:
        BadValue: there is no such device here.
    """
    if facts is None:
        facts = gather(device)
    found = next((rule for rule in listed() if rule.admits(facts)), None)
    return DeviceClass(
        name=found.name if found else f"unlisted:{_slug(facts)}",
        listed=found is not None,
        description=found.description if found else f"{facts.hardware} (no named device class)",
        kind=facts.kind,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        hardware=facts.hardware,
    )


def gather(device: str) -> DeviceFacts:
    """Ask this machine for the facts of a device. Raises :class:`BadValue` if there is no such device."""
    device = parse_device(device)
    if device == "cpu":
        return DeviceFacts(kind="cpu", hardware=cpu_model(), cores=usable_cores())
    import torch

    index = int(device.removeprefix("cuda:"))
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return cuda_facts(index) if started else _ask_another_process(index)


def cuda_facts(index: int) -> DeviceFacts:
    """Ask torch for the facts of a CUDA device; starts CUDA in this process."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    return DeviceFacts(kind="cuda", hardware=properties.name, memory_bytes=properties.total_memory)


@functools.cache
def _ask_another_process(index: int) -> DeviceFacts:
    """Ask a process that ends at once: one that keeps CUDA would stand on the device beside the trials it plans."""
    program = [sys.executable, "-P", "-m", "bench.devices", str(index)]
    answer = subprocess.run(program, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if answer.returncode:
        reason = answer.stderr.strip().rsplit("\n", 1)[-1] or f"exit code {answer.returncode}"
        raise BadValue(f"device is 'cuda:{index}', which does not start: {reason}", hint="see bench doctor")
    return DeviceFacts(**json.loads(answer.stdout))


def parse_device(text: str) -> str:
    """Return ``"cpu"`` or ``"cuda:N"`` for a value of ``--device``.

    Raises:
        BadValue: the value is neither, CUDA is not available, or there is no device N.
    """
    if text == "cpu":
        return text
    allowed = "must be cpu, cuda or cuda:N"
    match = _CUDA.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        near = "did you mean 'cuda'?" if str(text).lower().startswith(("gpu", "cud", "nvidia")) else ""
        raise BadValue(f"device is {text!r} ({type(text).__name__}), but {allowed}", hint=near)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise BadValue(f"device is {text!r}, but {reason}", hint="use --device cpu")
    index = int(match[1] or 0)
    if index >= count:
        known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise BadValue(f"device is {text!r}, but this machine has {count} CUDA device(s)", hint=f"use {known}")
    return f"cuda:{index}"


def _slug(facts: DeviceFacts) -> str:
    """Name unlisted hardware by what a class would be named by, so that equal machines get equal names."""
    if facts.kind == "cpu":
        return f"cpu-{facts.cores}"
    hardware = re.sub(r"[^a-z0-9]+", "-", facts.hardware.lower()).strip("-")
    size = "" if facts.memory_bytes is None else f"-{round(facts.memory_bytes / 2**30)}gib"
    return f"{hardware}{size}-x{facts.count}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(cuda_facts(int(sys.argv[1])))))
