"""The clock: sections add up, what is not charged is not in them, and misuse is caught."""

from __future__ import annotations

import pytest
import torch

from bench import clock as module
from bench.clock import ASIDE, SECTIONS, Clock
from bench.record import TRIALS


class Time:
    """A clock on the wall that moves only when it is told to; every second of it costs two of the processor."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def process_time(self):
        return 2 * self.now


class Window:
    def __init__(self, time):
        self.time, self.calls = time, []

    def resume(self):
        self.calls.append(("resume", self.time.now))

    def pause(self):
        self.calls.append(("pause", self.time.now))


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


@pytest.fixture
def clock(time):
    return Clock(torch.device("cpu"))


def test_sections_add_up_to_the_total(clock, time):
    clock.resume("data")
    time.now += 1
    clock.enter("step")
    time.now += 2
    clock.enter("gradient")
    time.now += 4
    clock.enter("step")
    time.now += 8
    clock.pause()
    assert clock.seconds == {"setup": 0, "data": 1, "gradient": 4, "step": 10, "finish": 0}
    assert clock.total_s == 15
    assert clock.cpu_s == 30


def test_nothing_is_charged_while_the_clock_is_paused(clock, time):
    for _ in range(3):
        with clock.charge("step"):
            time.now += 1
        time.now += 1000
    assert clock.total_s == 3
    assert clock.cpu_s == 6


def test_the_running_section_is_charged_at_the_pause(clock, time):
    clock.resume("step")
    time.now += 5
    assert clock.running
    assert clock.total_s == 0
    clock.pause()
    assert not clock.running
    assert clock.total_s == 5


def test_asides_are_timed_and_not_charged(clock, time):
    with clock.set_aside("evaluation"):
        time.now += 7
    with clock.set_aside("evaluation"):
        time.now += 1
    assert clock.aside == {"evaluation": 8, "checkpoint": 0, "warmup": 0}
    assert clock.total_s == 0
    assert clock.cpu_s == 0


def test_what_raises_is_charged_all_the_same(clock, time):
    def fail(section):
        with section:
            time.now += 3
            raise OSError("full")

    for section in (clock.charge("setup"), clock.set_aside("checkpoint")):
        with pytest.raises(OSError, match="full"):
            fail(section)
    assert not clock.running
    assert (clock.seconds["setup"], clock.aside["checkpoint"]) == (3, 3)


def test_windows_open_and_close_with_the_clock(time):
    window = Window(time)
    clock = Clock(torch.device("cpu"), windows=(window,))
    clock.resume("data")
    time.now += 1
    clock.enter("step")
    clock.pause()
    with clock.set_aside("evaluation"):
        time.now += 1
    assert window.calls == [("resume", 100.0), ("pause", 101.0)]


def test_a_restored_clock_goes_on_where_the_other_stopped(clock, time):
    with clock.charge("step"):
        time.now += 5
    with clock.set_aside("warmup"):
        time.now += 2
    other = Clock(torch.device("cpu"))
    other.load_state_dict(clock.state_dict())
    with clock.charge("step"):
        time.now += 100
    with other.charge("step"):
        time.now += 1
    assert other.seconds["step"] == 6
    assert other.aside["warmup"] == 2
    assert other.cpu_s == 12


def test_the_columns_are_columns_of_the_record(clock, time):
    with clock.charge("data"):
        time.now += 5
    columns = clock.columns()
    assert set(columns) <= set(TRIALS.names)
    assert set(columns) == {"time_s", "cpu_s", *(f"{name}_s" for name in (*SECTIONS, *ASIDE))}
    assert columns["time_s"] == columns["data_s"] == 5


@pytest.mark.parametrize(
    ("misuse", "why"),
    [
        (lambda clock: clock.pause(), "does not run"),
        (lambda clock: clock.enter("step"), "does not run"),
        (lambda clock: clock.resume("lunch"), "lunch"),
        (lambda clock: (clock.resume("step"), clock.enter("lunch")), "lunch"),
        (lambda clock: (clock.resume("step"), clock.resume("step")), "runs already"),
        (lambda clock: (clock.resume("step"), clock.set_aside("warmup").__enter__()), "the clock runs"),
        (lambda clock: clock.set_aside("lunch").__enter__(), "lunch"),
    ],
)
def test_misuse_is_caught(clock, misuse, why):
    with pytest.raises(AssertionError, match=why):
        misuse(clock)


def test_a_real_clock_moves_forward():
    clock = Clock(torch.device("cpu"))
    with clock.charge("step"):
        torch.ones(200, 200) @ torch.ones(200, 200)
    assert 0 < clock.seconds["step"] == clock.total_s
    assert clock.cpu_s > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_what_the_device_does_is_charged_to_the_section_that_asked_for_it():
    device = torch.device("cuda")
    clock = Clock(device)
    matrix = torch.ones(4096, 4096, device=device)
    torch.cuda.synchronize()
    clock.resume("gradient")
    for _ in range(20):
        matrix @ matrix
    clock.enter("data")
    clock.pause()
    assert clock.seconds["gradient"] > 10 * clock.seconds["data"]
