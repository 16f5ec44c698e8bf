"""The program that watches a device's memory while another process trains: ``python -m bench.nvml_poller``.

It runs in its own process so that a poll neither waits for Python's lock nor delays a training step, and it never
starts CUDA. It first reads what every device looks like before its parent starts CUDA (bytes in use, processes, idle
watts), since the UUID of the trial's device is known only afterwards. From ``watch UUID`` on it polls that device. It
writes one JSON line per request and nothing else, and ends when its input closes or its parent is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import statistics
import sys
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.nvml import Device, Driver, NvmlUnavailable, bare_uuid
from bench.nvml_baseline import Baseline, list_processes, read_baselines


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the poller saw of one device; all bytes.

    ``own_*`` are the process tree's (null: the driver's PIDs never matched it), ``device_*`` the whole device's;
    ``steady`` is the median over the second half of the polls. ``occupied`` says who else was on the device, ``error``
    why there is no result.
    """

    polls: int = 0
    own_peak_bytes: int | None = None
    own_steady_bytes: int | None = None
    device_peak_bytes: int | None = None
    device_steady_bytes: int | None = None
    baseline_bytes: int | None = None
    processes_listed: bool = False
    partitioned: bool = False
    occupied: str = ""
    idle_w: float | None = None
    error: str = ""


def descends(pid: int, root: int) -> bool:
    """Whether ``pid`` is ``root`` or one of its descendants (where there is no /proc: only ``root`` itself)."""
    while pid > 1:
        if pid == root:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        # the command name, in parentheses, may itself hold spaces and parentheses
        pid = int(stat[stat.rindex(")") + 1 :].split()[1])
    return False


class Watch:
    """The polls of one device.

    Args:
        device: what to poll.
        baseline: the device before CUDA started; None where CUDA was there first, or the device was not seen then.
        root: the process whose tree is measured.
        is_own: whether a PID belongs to the tree.
    """

    def __init__(
        self,
        device: Device,
        baseline: Baseline | None,
        root: int,
        is_own: Callable[[int, int], bool] = descends,
    ) -> None:
        self._device = device
        self._baseline = baseline
        self._root = root
        self._is_own = is_own
        self._known: dict[int, bool] = {}
        self._own = array("q")
        self._used = array("q")
        self._matched = False
        self._most_listed = 0
        self._error = ""
        self._partitioned = False
        try:
            self._partitioned = device.is_partitioned()
        except NvmlUnavailable as error:
            self._error = str(error)

    def poll(self) -> None:
        """Read the device once; after a failure nothing more is read, since the peak would be a guess."""
        if self._error:
            return
        try:
            used_bytes = self._device.used_bytes()
            processes = list_processes(self._device)
        except NvmlUnavailable as error:
            self._error = str(error)
            return
        own = [process for process in processes if self._owns(process.pid)]
        self._matched = self._matched or any(process.used_bytes is not None for process in own)
        self._most_listed = max(self._most_listed, len(processes))
        self._own.append(sum(process.used_bytes or 0 for process in own))
        self._used.append(used_bytes)

    def report(self) -> Report:
        """Summarise the polls so far."""
        baseline = self._baseline
        return Report(
            polls=len(self._used),
            own_peak_bytes=max(self._own) if self._matched else None,
            own_steady_bytes=steady(self._own) if self._matched else None,
            device_peak_bytes=max(self._used, default=None),
            device_steady_bytes=steady(self._used) if self._used else None,
            baseline_bytes=baseline.used_bytes if baseline else None,
            processes_listed=self._most_listed > 0,
            partitioned=self._partitioned,
            occupied=self._occupied(),
            idle_w=baseline.idle_w if baseline else None,
            error=self._error,
        )

    def _owns(self, pid: int) -> bool:
        if pid not in self._known:
            # A PID that was on the device before our CUDA is another namespace's, whatever number it has.
            before = self._baseline is not None and pid in self._baseline.pids
            self._known[pid] = not before and self._is_own(pid, self._root)
        return self._known[pid]

    def _occupied(self) -> str:
        if self._baseline and self._baseline.occupied:
            return self._baseline.occupied
        strangers = sum(not own for own in self._known.values())
        # Unmatched, one process is ours under the number that it has outside this container.
        if strangers if self._matched else self._most_listed > 1:
            return "another process used the device"
        return ""


def steady(series: Sequence[int]) -> int:
    """Return the median over the second half of a series that is not empty, bytes."""
    return int(statistics.median(series[len(series) // 2 :]))


class Poller:
    """Answers the parent's requests and polls in between."""

    def __init__(self, driver: Driver, root: int, *, cuda_started: bool) -> None:
        self._driver = driver
        self._root = root
        self._watch: Watch | None = None
        self._error = "no device is watched"
        # A device that fails here may be another than ours; if it is ours, the report says that there is no baseline.
        self._baselines = {} if cuda_started else read_baselines(driver.devices())

    def tick(self) -> None:
        """Poll, if there is something to watch."""
        if self._watch:
            self._watch.poll()

    def answer(self, request: str) -> Report:
        """Do what a request says (``ready``, ``watch UUID`` or ``report``) and return what is known now."""
        verb, _, uuid = request.strip().partition(" ")
        if verb == "watch":
            try:
                device = self._driver.device(uuid)
                self._watch = Watch(device, self._baselines.get(bare_uuid(uuid)), self._root)
            except NvmlUnavailable as error:
                self._error = str(error)
        self.tick()
        return self._watch.report() if self._watch else Report(error=self._error)


def serve(poller: Poller, root: int, interval_s: float) -> None:
    """Poll until the input closes or the parent is gone."""
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        # unbuffered: a thread that waits inside a buffered reader when the interpreter ends is a fatal error
        with open(0, "rb", buffering=0, closefd=False) as lines:
            for line in lines:
                requests.put(line.decode())
        requests.put("")

    threading.Thread(target=listen, daemon=True).start()
    # A child that the parent forked may hold our input open, so a closed input is not the only sign of its end.
    while os.name != "posix" or os.getppid() == root:
        try:
            request = requests.get(timeout=interval_s)
        except queue.Empty:
            poller.tick()
            continue
        if not request:
            return
        sys.stdout.write(json.dumps(asdict(poller.answer(request))) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.nvml_poller", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="the process whose tree is measured")
    parser.add_argument("--interval", type=float, default=0.025, help="seconds between polls")
    parser.add_argument("--module", default="pynvml", help="the module that provides NVML")
    parser.add_argument("--cuda-started", action="store_true", help="the parent already uses CUDA: no baseline")
    options = parser.parse_args()
    # An interrupt at the terminal reaches the whole group; the parent still wants the peaks of the interrupted trial.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    poller = Poller(Driver.load(options.module), options.parent, cuda_started=options.cuda_started)
    serve(poller, options.parent, options.interval)


if __name__ == "__main__":
    main()
