"""The parent's side of NVML: one object per trial that ends as the record's memory and energy columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from bench.energy import EnergyMeter, EnergyReading
from bench.nvml import Driver, NvmlUnavailable
from bench.nvml_poller import Report

PROCESS_TREE = "process-tree"
DEVICE_MINUS_BASELINE = "device-minus-baseline"
UNLISTED = "device-minus-baseline (processes unlisted)"
"""The ``nvml_source`` of a value that is not null; the last one says that a newcomer on the device would go unseen."""

ANSWER_S = 30.0
"""The poller answers within milliseconds once it has read its baseline; after this it is given up."""


@dataclass(frozen=True, kw_only=True)
class NvmlReadings:
    """The record's NVML columns. ``nvml_source`` and ``energy_source`` say how, or why the value is null."""

    nvml_peak_bytes: int | None
    nvml_source: str
    nvml_steady_bytes: int | None
    energy_j: float | None
    energy_window_s: float | None
    energy_source: str
    idle_w: float | None


def memory_columns(report: Report) -> tuple[int | None, int | None, str]:
    """Return peak and steady bytes and their source, by the first rule that holds.

    The own process tree, where the driver's PIDs match it; else the device minus its baseline, where nobody else is on
    it; else null and the reason.
    """
    if report.error:
        return None, None, report.error
    if report.own_peak_bytes is not None:
        return report.own_peak_bytes, report.own_steady_bytes, PROCESS_TREE
    reason = ""
    if report.partitioned:
        reason = "the device is partitioned (MIG) and its processes cannot be matched"
    elif report.baseline_bytes is None:
        reason = "CUDA ran before the baseline was read and the device's processes cannot be matched"
    elif report.occupied:
        reason = report.occupied
    if reason or report.baseline_bytes is None or report.device_peak_bytes is None:
        return None, None, reason or "the device was never polled"
    peak = max(0, report.device_peak_bytes - report.baseline_bytes)
    steady = max(0, (report.device_steady_bytes or 0) - report.baseline_bytes)
    return peak, steady, DEVICE_MINUS_BASELINE if report.processes_listed else UNLISTED


def energy_columns(energy: EnergyReading, report: Report) -> EnergyReading:
    """Return the energy, or null with the reason where it is not this trial's alone."""
    if energy.energy_j is None:
        return energy
    reason = ""
    if report.error:
        reason = f"whether the device was shared is unknown: {report.error}"
    elif report.partitioned:
        reason = "the device is partitioned (MIG)"
    elif report.occupied:
        reason = report.occupied
    if not reason:
        return energy
    return EnergyReading(energy_j=None, energy_window_s=energy.energy_window_s, energy_source=reason)


class NvmlProbe:
    """Memory and energy of one device during one trial.

    The order matters: :meth:`start` first thing in the process, :meth:`ready` before the first CUDA call (the baseline
    must be read before), :meth:`attach` when CUDA is up and the device's UUID known, then windows of :attr:`energy`,
    then :meth:`finish`. No method raises because of the driver; where there is nothing to measure the columns are null
    with the reason.
    """

    def __init__(self, reason: str, driver: Driver | None = None, process: subprocess.Popen[str] | None = None) -> None:
        self._reason = reason
        self._driver = driver
        self._process = process
        self.energy = EnergyMeter(None, reason or "the probe was not attached to a device")

    @classmethod
    def start(cls, device: str, *, module: str = "pynvml", interval_s: float = 0.025) -> NvmlProbe:
        """Start the poller and return at once.

        Args:
            device: the trial's device, ``"cpu"`` or ``"cuda:N"``.
            module: the module that provides NVML.
            interval_s: seconds between polls.
        """
        if device == "cpu":
            return cls("the trial runs on the CPU")
        try:
            driver = Driver.load(module)
        except NvmlUnavailable as error:
            return cls(str(error))
        program = [sys.executable, "-P", "-m", "bench.nvml_poller", "--parent", str(os.getpid()), "--module", module]
        program += ["--interval", str(interval_s)]
        if cuda_is_started():
            program.append("--cuda-started")
        pipe = subprocess.PIPE
        process = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, text=True)  # noqa: S603 - our own module
        return cls("", driver, process)

    def ready(self) -> None:
        """Wait until the device's state before CUDA is known."""
        self._ask("ready")

    def attach(self, uuid: str) -> None:
        """Watch this device from now on; ``uuid`` is torch's (``torch.cuda.get_device_properties(i).uuid``) or NVML's.

        :attr:`energy` is a new meter afterwards.
        """
        if self._reason or self._driver is None:
            return
        self._ask(f"watch {uuid}")
        try:
            self.energy = EnergyMeter(self._driver.device(uuid))
        except NvmlUnavailable as error:
            self.energy = EnergyMeter(None, str(error))

    def finish(self) -> NvmlReadings:
        """Stop watching and return the columns."""
        self.energy.pause()
        report = self._ask("report")
        self.close()
        peak, steady, source = memory_columns(report)
        energy = energy_columns(self.energy.read(), report)
        return NvmlReadings(
            nvml_peak_bytes=peak, nvml_source=source, nvml_steady_bytes=steady, idle_w=report.idle_w, **asdict(energy)
        )

    def close(self) -> None:
        """End the poller; harmless when it has ended."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._reason = self._reason or "the probe was closed"
        try:
            process.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:  # a driver call that never returns
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: str) -> Report:
        """Send a request and return its answer; a poller that does not answer becomes the reason, for good."""
        answers: list[str] = []
        process = self._process
        if self._reason or process is None:
            return Report(error=self._reason)
        questions, replies = process.stdin, process.stdout
        assert questions is not None, "opened as a pipe"
        assert replies is not None, "opened as a pipe"
        try:
            questions.write(request + "\n")
            questions.flush()
        except OSError:
            self._reason = self._obituary(process)
            return Report(error=self._reason)
        # Pipes have no timeout of their own everywhere; the thread lives only as long as the question.
        reader = threading.Thread(target=lambda: answers.append(replies.readline()), daemon=True)
        reader.start()
        reader.join(ANSWER_S)
        if not answers:
            self._reason = f"the NVML poller did not answer within {ANSWER_S:g} s"
            process.kill()
            reader.join()
        elif not answers[0]:
            self._reason = self._obituary(process)
        return Report(error=self._reason) if self._reason else Report(**json.loads(answers[0]))

    @staticmethod
    def _obituary(process: subprocess.Popen[str]) -> str:
        _, complaints = process.communicate()
        last = complaints.strip().rsplit("\n", 1)[-1] if complaints else ""
        return f"the NVML poller ended early (exit code {process.returncode}){': ' if last else ''}{last}"


def cuda_is_started() -> bool:
    """Whether this process already uses CUDA; asks without importing torch or starting anything."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
