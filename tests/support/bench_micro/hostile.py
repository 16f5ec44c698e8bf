"""Algorithms that do what a measurement must not suffer: each does one thing, most of them in their sixth step.

Those that must name a file take it from the environment (``BENCH_MICRO_TARGET``).
"""

# ruff: noqa: ARG002, ARG005 - a slot takes its contract's arguments, used or not
# ruff: noqa: S110, SIM105, BLE001, PLW0108, PTH208, TRY301 - swallowing what the guards raise is the point

from __future__ import annotations

import _thread
import ctypes
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bench
import bench.calibration
import bench.clock
from bench import Algorithm

AT_STEP = 5
TARGET = "BENCH_MICRO_TARGET"
GO_HOME = threading.Event()
"""Ends the threads that are left behind, so that a test can clean up."""

LEFT: list[subprocess.Popen[bytes]] = []
"""Processes that are left behind."""


def target() -> str:
    return os.environ[TARGET]


def swallowed(act: Callable[[], Any]) -> None:
    """Do it, and hide how it went."""
    try:
        act()
    except Exception:
        pass


# -- in a slot's call --------------------------------------------------------------------------------------------------
class InSchedule(Algorithm):
    """Does its deed when the learning rate of the sixth step is asked for."""

    def deed(self) -> None:
        raise NotImplementedError

    def schedule(self, run):
        def factor(step: int) -> float:
            if step == AT_STEP:
                self.deed()
            return 1.0

        return factor


class InStep(Algorithm):
    """Does its deed in the optimizer's sixth step."""

    def deed(self, optimizer: Any) -> None:
        raise NotImplementedError

    def optimizer(self, named_parameters, run):
        algorithm = self

        class Acting(torch.optim.SGD):
            steps = 0

            def step(self, closure=None):
                loss = super().step(closure)
                if self.steps == AT_STEP:
                    algorithm.deed(self)
                self.steps += 1
                return loss

        return Acting(list(named_parameters), lr=0.1, momentum=0.9)


class InSelector(Algorithm):
    """Does its deed with the sixth batch."""

    def deed(self, batch: Any) -> Any:
        raise NotImplementedError

    def selector(self, run):
        count = iter(range(10**9))
        return lambda batch, model: self.deed(batch) if next(count) == AT_STEP else batch


class InForward(Algorithm):
    """Does its deed in the forward passes of the model, which a hook lets it see."""

    def deed(self, model: nn.Module) -> None:
        raise NotImplementedError

    def adapt(self, model, run):
        model.register_forward_hook(lambda module, inputs, output: self.deed(module))
        return model


# -- settings ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class SetsDtype(InSchedule):
    name = "sets-dtype"

    def deed(self):
        torch.set_default_dtype(torch.float64)


@dataclass(frozen=True, kw_only=True)
class SetsThreads(InStep):
    name = "sets-threads"

    def deed(self, optimizer):
        torch.set_num_threads(3)


@dataclass(frozen=True, kw_only=True)
class SetsDevice(Algorithm):
    name = "sets-device"

    def adapt(self, model, run):
        torch.set_default_device("meta")
        return model


@dataclass(frozen=True, kw_only=True)
class StopsGradients(Algorithm):
    name = "stops-gradients"

    def freezer(self, model, run):
        return lambda step: torch.set_grad_enabled(mode=False) and None if step == AT_STEP else None


@dataclass(frozen=True, kw_only=True)
class SetsThreadsInForward(InForward):
    """Outside every slot; found at the next evaluation."""

    name = "sets-threads-in-forward"

    def deed(self, model):
        torch.set_num_threads(2)


@dataclass(frozen=True, kw_only=True)
class StopsCollector(InStep):
    name = "stops-collector"

    def deed(self, optimizer):
        gc.disable()


@dataclass(frozen=True, kw_only=True)
class TakesSignals(InStep):
    name = "takes-signals"

    def deed(self, optimizer):
        signal.signal(signal.SIGUSR2, lambda number, frame: None)


@dataclass(frozen=True, kw_only=True)
class MovesCores(InStep):
    name = "moves-cores"

    def deed(self, optimizer):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


# -- what everybody shares ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class PatchesClock(InStep):
    name = "patches-clock"

    def deed(self, optimizer):
        real = time.perf_counter
        time.perf_counter = lambda: 100.0 + real()


@dataclass(frozen=True, kw_only=True)
class TurnsClockBack(InStep):
    name = "turns-clock-back"

    def deed(self, optimizer):
        real = time.perf_counter
        time.perf_counter = lambda: real() - 100.0


@dataclass(frozen=True, kw_only=True)
class PatchesLoss(InStep):
    name = "patches-loss"

    def deed(self, optimizer):
        real = nn.functional.cross_entropy
        nn.functional.cross_entropy = lambda *arguments, **named: 0.5 * real(*arguments, **named)


@dataclass(frozen=True, kw_only=True)
class PatchesDefaults(InStep):
    """The function stays, with another meaning."""

    name = "patches-defaults"

    def deed(self, optimizer):
        function = nn.functional.cross_entropy
        function.__defaults__ = (*function.__defaults__[:-1], 0.5)


@dataclass(frozen=True, kw_only=True)
class PatchesMethod(InStep):
    name = "patches-method"

    def deed(self, optimizer):
        real = nn.Linear.forward
        nn.Linear.forward = lambda self, inputs: real(self, inputs)


@dataclass(frozen=True, kw_only=True)
class PatchesHarness(InStep):
    name = "patches-harness"

    def deed(self, optimizer):
        bench.clock.Clock.columns = lambda self: {}


@dataclass(frozen=True, kw_only=True)
class PatchesConstant(InStep):
    name = "patches-constant"

    def deed(self, optimizer):
        bench.calibration.CONTENDED_ABOVE = 100.0


@dataclass(frozen=True, kw_only=True)
class PatchesWorkload(InStep):
    name = "patches-workload"

    def deed(self, optimizer):
        from .workload import Micro

        Micro.evaluate = lambda self, model, device: {"loss": 0.0, "accuracy": 1.0}


# -- threads and processes ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class LeavesThread(InStep):
    name = "leaves-thread"

    def deed(self, optimizer):
        threading.Thread(target=GO_HOME.wait, args=(60,), name="busy", daemon=True).start()


@dataclass(frozen=True, kw_only=True)
class LeavesRawThread(InStep):
    """Not one that ``threading`` knows."""

    name = "leaves-raw-thread"

    def deed(self, optimizer):
        _thread.start_new_thread(GO_HOME.wait, (60,))


@dataclass(frozen=True, kw_only=True)
class LeavesProcess(InStep):
    name = "leaves-process"

    def deed(self, optimizer):
        LEFT.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]))


@dataclass(frozen=True, kw_only=True)
class JoinsThreads(InStep):
    """Honest: threads and processes that end with the call that began them."""

    name = "joins-threads"

    def deed(self, optimizer):
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(abs, [-1, 2])) == [1, 2]
        subprocess.run([sys.executable, "-S", "-c", ""], check=True)


# -- evaluation --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class LearnsInEvaluation(InForward):
    name = "learns-in-evaluation"

    def deed(self, model):
        if not model.training:
            with torch.no_grad():
                model.hidden.weight.mul_(0.999)


@dataclass(frozen=True, kw_only=True)
class CountsInEvaluation(InForward):
    """Keeps a state that an evaluation changes."""

    name = "counts-in-evaluation"

    def adapt(self, model, run):
        model.register_buffer("seen", torch.zeros(()))
        return super().adapt(model, run)

    def deed(self, model):
        if not model.training:
            model.seen += 1


# -- chance ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class DrawsFromTorch(InStep):
    name = "draws-from-torch"

    def deed(self, optimizer):
        torch.rand(1)


@dataclass(frozen=True, kw_only=True)
class DrawsFromNumpy(InSchedule):
    name = "draws-from-numpy"

    def deed(self):
        np.random.rand()  # noqa: NPY002


@dataclass(frozen=True, kw_only=True)
class DrawsFromPython(Algorithm):
    name = "draws-from-python"

    def freezer(self, model, run):
        return lambda step: random.random() and None if step == AT_STEP else None


@dataclass(frozen=True, kw_only=True)
class Reseeds(InStep):
    name = "reseeds"

    def deed(self, optimizer):
        torch.manual_seed(7)


# -- the batch ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class WritesBatch(InSelector):
    name = "writes-batch"

    def deed(self, batch):
        batch["inputs"].mul_(0.5)
        return batch


@dataclass(frozen=True, kw_only=True)
class AddsToBatch(InSelector):
    name = "adds-to-batch"

    def deed(self, batch):
        batch["weights"] = torch.ones(len(batch["labels"]))
        return batch


@dataclass(frozen=True, kw_only=True)
class WritesBatchLate(Algorithm):
    """Keeps the batch in its selector and writes into it in its schedule."""

    name = "writes-batch-late"

    def selector(self, run):
        def keep(batch, model):
            kept[:] = [batch]
            return batch

        kept = self._kept(run)
        return keep

    def schedule(self, run):
        kept = self._kept(run)
        return lambda step: kept[0]["labels"].zero_() is None or 1.0 if step == AT_STEP else 1.0

    @staticmethod
    def _kept(run, found={}):  # noqa: B006 - what two slots share
        return found.setdefault(id(run.generators), [])


# -- what must not be seen ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class ReadsResults(InStep):
    name = "reads-results"

    def deed(self, optimizer):
        Path(target()).read_text()


@dataclass(frozen=True, kw_only=True)
class ListsResultsQuietly(InStep):
    name = "lists-results-quietly"

    def deed(self, optimizer):
        swallowed(lambda: os.listdir(Path(target()).parent))


@dataclass(frozen=True, kw_only=True)
class ReadsResultsInForward(InForward):
    name = "reads-results-in-forward"

    def deed(self, model):
        if model.training:
            swallowed(lambda: open(target()))  # noqa: PTH123, SIM115


@dataclass(frozen=True, kw_only=True)
class ReadsCommand(InStep):
    name = "reads-command"

    def deed(self, optimizer):
        Path(f"/proc/{os.getppid()}/cmdline").read_bytes()


@dataclass(frozen=True, kw_only=True)
class CallsHome(InStep):
    name = "calls-home"

    def deed(self, optimizer):
        with socket.socket() as connection:
            connection.connect(("127.0.0.1", 9))


@dataclass(frozen=True, kw_only=True)
class SeesObjects(InStep):
    name = "sees-objects"

    def deed(self, optimizer):
        swallowed(lambda: [one for one in gc.get_objects() if hasattr(one, "evaluate")])


@dataclass(frozen=True, kw_only=True)
class WalksFrames(InStep):
    name = "walks-frames"

    def deed(self, optimizer):
        swallowed(lambda: sys._getframe(3).f_locals)


@dataclass(frozen=True, kw_only=True)
class WalksTraceback(InStep):
    name = "walks-traceback"

    def deed(self, optimizer):
        try:
            raise ValueError
        except ValueError as error:
            caught = error.__traceback__
            swallowed(lambda: caught.tb_frame.f_back)


@dataclass(frozen=True, kw_only=True)
class Traces(InStep):
    name = "traces"

    def deed(self, optimizer):
        swallowed(lambda: sys.settrace(lambda frame, event, argument: None))


@dataclass(frozen=True, kw_only=True)
class ListensIn(Algorithm):
    """Wants to hear what the guards hear."""

    name = "listens-in"

    def adapt(self, model, run):
        sys.addaudithook(lambda event, arguments: None)
        return model


@dataclass(frozen=True, kw_only=True)
class WritesOutside(InStep):
    name = "writes-outside"

    def deed(self, optimizer):
        swallowed(lambda: Path(target()).write_text("for the next trial"))


@dataclass(frozen=True, kw_only=True)
class RemovesOutside(InStep):
    name = "removes-outside"

    def deed(self, optimizer):
        swallowed(lambda: Path(target()).unlink())


_TRACES: list[str] = []


@dataclass(frozen=True, kw_only=True)
class LeavesTraces(Algorithm):
    """Leaves a file where it may, a variable of the environment and a global: the next trial must find none of them."""

    name = "leaves-traces"

    def optimizer(self, named_parameters, run):
        file = Path(tempfile.gettempdir()) / "traces"
        found = [*_TRACES, *([str(file)] if file.exists() else []), *filter(None, [os.environ.get("TRACES")])]
        if found and not os.environ.get("TRACES_SEED") == str(run.seed):
            raise RuntimeError(f"found {found}")
        file.write_text("a trace")
        os.environ["TRACES"] = os.environ["TRACES_SEED"] = str(run.seed)
        _TRACES.append("a trace")
        return torch.optim.SGD(list(named_parameters), lr=0.1)


@dataclass(frozen=True, kw_only=True)
class UsesTheLibrary(InStep):
    """Honest: libraries walk frames, import, compile and write below TMPDIR on its behalf."""

    name = "uses-the-library"

    def deed(self, optimizer):
        import logging
        import traceback
        import warnings
        import wave  # something that nobody has imported yet

        namedtuple("Pair", ["one", "two"])(1, 2)  # noqa: PYI024 - it asks for the caller's frame
        make_dataclass("Made", ["field"])(1)
        logging.getLogger(__name__).warning("a warning")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.warn("one more", stacklevel=2)
        try:
            json.loads("{")
        except ValueError:
            traceback.format_exc()
        with tempfile.TemporaryFile() as file:
            file.write(b"kept for a moment")
        (Path(tempfile.mkdtemp()) / "kept").write_text(wave.__name__)
        Path(__file__).read_text()
        ctypes.c_int(3)
