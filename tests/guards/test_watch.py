"""The smaller guards, each with the change that it is there for; and what a look costs."""

from __future__ import annotations

import _thread
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from bench.clock import Clock
from bench.errors import GuardTripped
from bench.guards import draws, machine, settings
from bench.guards.tensors import BatchMarks, TrainingMarks
from bench.guards.threads import Threads
from bench.guards.watch import Watch
from bench.guards.witness import Witness

CPU = torch.device("cpu")


# -- settings ----------------------------------------------------------------------------------------------------------
SETTINGS = {
    "default dtype": (torch.set_default_dtype, torch.float64, torch.float32),
    "number of threads": (torch.set_num_threads, 2, 1),
    "gradient mode": (torch.set_grad_enabled, False, True),
    "function modes": (torch.set_default_device, "cpu", None),
    "deterministic algorithms": (torch.use_deterministic_algorithms, True, False),
    "float32 matrix product precision": (torch.set_float32_matmul_precision, "medium", "highest"),
    "autocast on the CPU": (lambda on: torch.set_autocast_enabled("cpu", on), True, False),
    "autocast on CUDA": (lambda on: torch.set_autocast_enabled("cuda", on), True, False),
}


@pytest.mark.parametrize(("put", "new", "old"), SETTINGS.values(), ids=SETTINGS.keys())
def test_setting_of_torch_is_seen_and_named(request, put, new, old):
    before = settings.read()
    put(new)
    try:
        with pytest.raises(GuardTripped, match=f"^somebody changed torch's .*{request.node.callspec.id}.* from .* to "):
            settings.check(before, "somebody")
    finally:
        put(old)
    settings.check(before, "somebody")


def _handle(put: bool) -> None:
    signal.signal(signal.SIGUSR1, (lambda *_: None) if put else signal.SIG_DFL)


def _hook(put: bool, kept: list[object] = []) -> None:  # noqa: B006 - the handle between two calls
    if put:
        kept.append(nn.modules.module.register_module_forward_hook(lambda *_: None))
    else:
        kept.pop().remove()


MACHINE = {
    "the garbage collector": lambda put: gc.disable() if put else gc.enable(),
    "the thread switch interval": lambda put: sys.setswitchinterval(0.5 if put else 0.005),
    "the profile function": lambda put: sys.setprofile((lambda *_: None) if put else None),
    f"the handler of signal {int(signal.SIGUSR1)}": _handle,
    "the timer ITIMER_VIRTUAL": lambda put: signal.setitimer(signal.ITIMER_VIRTUAL, 1000.0 if put else 0.0),
    "cuDNN's flags": lambda put: setattr(torch.backends.cudnn, "benchmark", put),
    "TF32 in cuDNN": lambda put: setattr(torch.backends.cudnn, "allow_tf32", not put),
    "hooks on every module or optimizer": _hook,
    "anomaly detection": lambda put: torch.autograd.set_detect_anomaly(put, check_nan=True),
}


@pytest.mark.parametrize(("what", "change"), MACHINE.items(), ids=MACHINE.keys())
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_setting_of_the_process_is_seen_and_named(what, change):
    before, quick = machine.read(), settings.read()
    change(True)
    try:
        with pytest.raises(GuardTripped, match=f"^somebody changed {what} from "):
            machine.check(before, quick, "somebody")
    finally:
        change(False)
    machine.check(before, quick, "somebody")


# -- chance ------------------------------------------------------------------------------------------------------------
DRAWS = {
    "torch's": (lambda: torch.rand(1), lambda: torch.manual_seed(3)),
    "numpy's": (lambda: np.random.rand(), lambda: np.random.seed(3)),  # noqa: NPY002, PLW0108
    "Python's": (random.random, lambda: random.seed(3)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_each_draw_and_each_seed_is_seen(name):
    for act in DRAWS[name]:
        for _ in range(700):  # over the end of the Mersenne twister's 624 words
            before = draws.read(CPU)
            draws.check(before, CPU, "somebody")
            act()
            with pytest.raises(GuardTripped, match=f"^somebody drew from {name} global random generator"):
                draws.check(before, CPU, "somebody")
            if act is not DRAWS[name][0]:
                DRAWS[name][0]()  # or the same seed again would change nothing


def test_generator_of_ones_own_is_no_concern():
    before = draws.read(CPU)
    torch.rand(3, generator=torch.Generator().manual_seed(1))
    np.random.default_rng(1).random()
    random.Random(1).random()
    draws.check(before, CPU, "somebody")


# -- tensors -----------------------------------------------------------------------------------------------------------
def test_batch_may_be_viewed_copied_and_replaced_and_not_written_into():
    batch = {"inputs": torch.ones(4, 2), "labels": torch.zeros(4)}
    marks = BatchMarks(batch)
    _ = {**batch, "weights": torch.ones(4)}, batch["inputs"][:2] * 2, batch["inputs"].clone().mul_(3)
    marks.check("somebody")
    batch["inputs"][:2].mul_(2)
    with pytest.raises(GuardTripped, match=r"^somebody wrote into the batch: 'inputs' went from version 0 to 1"):
        marks.check("somebody")
    marks = BatchMarks(batch)
    batch["labels"] = torch.ones(4)
    with pytest.raises(GuardTripped, match=r"^somebody changed the batch itself"):
        marks.check("somebody")


@pytest.mark.parametrize("what", ["parameter 'weight'", "buffer 'running_mean'", "state of the optimizer"])
def test_everything_that_training_made_must_stay_during_an_evaluation(what):
    model = nn.BatchNorm1d(2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    optimizer.state[model.weight]["nested"] = {"list": [torch.zeros(2)]}
    marks = TrainingMarks(model, optimizer)
    model.eval()
    model(torch.randn(3, 2))
    marks.check("somebody")
    changed = {
        "parameter 'weight'": model.weight.detach(),
        "buffer 'running_mean'": model.running_mean,
        "state of the optimizer": optimizer.state[model.weight]["nested"]["list"][0],
    }
    changed[what].add_(1)
    with pytest.raises(GuardTripped, match=f"^somebody changed (the|a) {what} during an evaluation"):
        marks.check("somebody")


def test_parameter_whose_storage_was_exchanged_is_seen():
    model = nn.Linear(2, 2)
    marks = TrainingMarks(model, None)
    model.weight.data = torch.zeros(2, 2)
    with pytest.raises(GuardTripped, match="the parameter 'weight'"):
        marks.check("somebody")


# -- threads -----------------------------------------------------------------------------------------------------------
def test_threads_of_the_workload_may_live_and_others_must_have_ended():
    threads, stop = Threads(), threading.Event()
    started = []

    def start(name: str) -> threading.Thread:
        started.append(threading.Thread(target=stop.wait, name=name))
        started[-1].start()
        return started[-1]

    try:
        loader, fresh = threads.call(start, "loader")
        assert fresh == {loader.ident}
        threads.check("somebody", [])
        start("stranger")
        with pytest.raises(
            GuardTripped, match=r"^a\.slot left the thread 'stranger' running, in \w+ \(threading\.py\)"
        ):
            threads.check("somebody", ["a.slot"])
    finally:
        stop.set()
        for thread in started:
            thread.join()
    threads.check("somebody", [])


@pytest.mark.parametrize("adopted", [False, True], ids=["unknown", "adopted by threading"])
def test_thread_whose_first_line_runs_within_the_workload_is_not_the_workloads(adopted):
    threads, stop, done = Threads(), threading.Event(), threading.Event()

    def left_behind() -> None:
        if adopted:
            threading.current_thread()
        stop.wait()
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # the new thread gets its turn when this one waits, and no earlier
    try:
        _thread.start_new_thread(left_behind, ())
        _, fresh = threads.call(time.sleep, 0.2)
    finally:
        sys.setswitchinterval(interval)
    assert fresh == set()
    try:
        with pytest.raises(GuardTripped, match=r"^somebody left the thread "):
            threads.check("somebody", [])
    finally:
        stop.set()
        done.wait(10)


def test_thread_of_the_workload_may_live_though_an_earlier_one_ended_meanwhile():
    ends, stop = threading.Event(), threading.Event()
    earlier = threading.Thread(target=ends.wait)
    earlier.start()
    threads = Threads()

    def load() -> threading.Thread:
        loader = threading.Thread(target=stop.wait)
        loader.start()
        ends.set()
        earlier.join()
        return loader

    loader, _ = threads.call(load)
    try:
        threads.check("somebody", [])
    finally:
        stop.set()
        loader.join()


@pytest.mark.parametrize("look", [lambda threads: threads.call(dict), lambda threads: threads.check("somebody", [])])
def test_look_at_the_threads_keeps_nothing_of_its_callers_alive(look):
    threads = Threads()

    def step() -> weakref.ref[nn.Module]:
        batch = nn.Linear(2, 2)
        look(threads)
        return weakref.ref(batch)

    gc.disable()  # what waits for the collector counts as memory of the algorithm until then
    try:
        assert step()() is None
    finally:
        gc.enable()


def test_number_of_a_thread_that_ended_excuses_no_other():
    stop = threading.Event()
    loader = threading.Thread(target=stop.wait)
    loader.start()
    threads = Threads()
    assert loader.ident in threads.threads
    stop.set()
    loader.join()
    threads.check("somebody", [])
    assert loader.ident not in threads.threads


@pytest.mark.skipif(sys.platform != "linux", reason="children are listed in /proc")
def test_child_that_lives_is_found_and_one_that_ended_is_not():
    threads = Threads()
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        with pytest.raises(GuardTripped, match=f"^somebody left the process {child.pid} running"):
            threads.check("somebody", [])
        child.stdin.close()
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is None:
            time.sleep(0.01)
        threads.check("somebody", [])  # nobody has waited for it, but it does nothing any more


# -- the clock ---------------------------------------------------------------------------------------------------------
def test_clocks_that_agree_say_nothing():
    witness = Witness()
    for seconds in (0.0, 0.02):
        begin = time.perf_counter()
        witness.start()
        time.sleep(seconds)
        witness.stop()
        witness.charge(time.perf_counter() - begin)
    assert witness.look() == ""
    assert witness.jumps == []


@pytest.mark.parametrize(("charged_s", "told"), [(0.04, False), (0.2, True), (-0.2, True)])
def test_clocks_that_differ_by_more_than_the_tolerance_are_told_once(charged_s, told):
    witness = Witness()
    witness.start()
    witness.stop()
    witness.charge(charged_s)
    assert bool(witness.look()) is told
    assert witness.look() == ""
    assert len(witness.jumps) == told


def test_sleep_of_the_machine_is_told(monkeypatch):
    """The clock that measures stands still while the machine sleeps; another one does not."""
    slept = [0.0]
    monkeypatch.setattr(
        "bench.guards.witness._seconds", lambda kind: time.monotonic() + (slept[0] if kind == "boot" else 0)
    )
    monkeypatch.setattr("bench.guards.witness._BOOT", "boot")
    clock = Clock(CPU)
    clock.resume("step")
    slept[0] = 3600.0
    clock.pause()
    assert "s were charged where the clock that counts sleep says 3600" in clock.witness.look()


def test_jumps_survive_a_checkpoint():
    clock, other = Clock(CPU), Clock(CPU)
    clock.witness.jumps.append("one")
    other.load_state_dict(clock.state_dict())
    assert other.witness.jumps == ["one"]


def test_device_is_waited_for_before_the_clock_stops(monkeypatch):
    """A double of CUDA: its queue must be empty when the second clock is read and when the laps are added up."""
    queue: list[str] = []

    class Event:
        def __init__(self, **_):
            self.stamp = 0.0

        def record(self, _):
            queue.append("event")

        def elapsed_time(self, other):
            assert queue == [], "the device is still at work"
            return 1000.0 * (other.stamp - self.stamp)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: queue.clear())
    clock = Clock(torch.device("cuda"))
    seen = []
    monkeypatch.setattr(clock.witness, "stop", lambda: seen.append(list(queue)))
    monkeypatch.setattr(clock.witness, "charge", lambda _: None)
    clock.resume("gradient")
    queue.append("a kernel")
    clock.enter("step")
    clock.pause()
    assert seen == [[]]


# -- the whole ---------------------------------------------------------------------------------------------------------
def test_watch_that_was_not_begun_sees_nothing():
    watch = Watch()
    watch.listed()
    watch.begin("somebody", [], [])
    assert watch.workload(lambda value: value + 1, 2) == 3
    watch.look()


def test_watch_over_a_process_ends_with_its_body(tmp_path, micro):
    with Watch.over_process() as watch:
        watch.listed()
        watch.opened(micro.Micro)
        watch.begin("somebody", ["a_plugin."], [tmp_path])
        watch.look()
    from bench.guards.fence import FENCE

    assert not FENCE.armed
