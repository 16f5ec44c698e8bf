"""Energy counts the windows that the clock opens, and nothing that the driver cannot vouch for."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from bench.energy import SOURCE, EnergyMeter, EnergyReading
from bench.nvml import Driver
from bench.nvml_poller import Report
from bench.nvml_probe import energy_columns


@pytest.fixture
def double(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "doubles"))
    return importlib.import_module("nvml_double")


class Bench:
    """A device that draws 100 W, and a clock that the test moves."""

    def __init__(self, double, **changes):
        self.time_s = 0.0
        self.now = double.device(**changes)
        device = Driver(double.Double({"devices": [self.now]})).device(double.UUID)
        self.meter = EnergyMeter(device, now=lambda: self.time_s)

    def wait(self, seconds):
        self.time_s += seconds
        if self.now["energy_mj"] is not None:
            self.now["energy_mj"] += int(100_000 * seconds)

    def window(self, seconds):
        self.meter.resume()
        self.wait(seconds)
        self.meter.pause()


def test_only_open_windows_count(double):
    bench = Bench(double)
    bench.window(1.5)
    bench.wait(10.0)
    bench.window(2.5)
    assert bench.meter.read() == EnergyReading(energy_j=400.0, energy_window_s=4.0, energy_source=SOURCE)


def test_an_open_window_is_not_in_the_total_yet(double):
    bench = Bench(double)
    bench.window(3.0)
    bench.meter.resume()
    bench.wait(3.0)
    assert bench.meter.read().energy_j == 300.0


def test_resume_and_pause_twice_count_once(double):
    bench = Bench(double)
    bench.meter.pause()
    bench.meter.resume()
    bench.wait(1.0)
    bench.meter.resume()
    bench.wait(2.0)
    bench.meter.pause()
    bench.wait(5.0)
    bench.meter.pause()
    assert bench.meter.read() == EnergyReading(energy_j=300.0, energy_window_s=3.0, energy_source=SOURCE)


def test_under_two_seconds_is_null_with_the_window_and_the_reason(double):
    bench = Bench(double)
    bench.window(1.99)
    reading = bench.meter.read()
    assert (reading.energy_j, reading.energy_window_s) == (None, 1.99)
    assert reading.energy_source == "window of 1.99 s is shorter than 2 s"


def test_an_unsupported_counter_is_null_never_zero(double):
    bench = Bench(double, energy_mj=None)
    bench.window(5.0)
    reading = bench.meter.read()
    assert reading.energy_j is None
    assert reading.energy_source == "energy counter: not supported by this device"


def test_a_counter_that_stands_still_is_null_never_zero(double):
    bench = Bench(double)
    bench.meter.resume()
    bench.time_s += 5.0
    bench.meter.pause()
    assert bench.meter.read() == EnergyReading(
        energy_j=None, energy_window_s=5.0, energy_source="the energy counter did not move"
    )


def test_a_counter_that_is_reset_spoils_the_total_for_good(double):
    bench = Bench(double)
    bench.window(5.0)
    bench.meter.resume()
    bench.now["energy_mj"] = 0
    bench.meter.pause()
    bench.window(5.0)
    assert bench.meter.read().energy_j is None
    assert "went backwards" in bench.meter.read().energy_source


def test_a_device_lost_inside_a_window_spoils_the_total_and_raises_nothing(double):
    bench = Bench(double)
    bench.window(5.0)
    bench.meter.resume()
    bench.now["errors"] = {"all": double.LOST}
    bench.meter.pause()
    assert bench.meter.read() == EnergyReading(
        energy_j=None, energy_window_s=None, energy_source="energy counter: the NVIDIA device was lost"
    )


def test_without_a_device_the_reason_is_the_given_one():
    meter = EnergyMeter(None, "the trial runs on the CPU")
    meter.resume()
    meter.pause()
    assert meter.read().energy_source == "the trial runs on the CPU"


def test_a_resumed_trial_goes_on_from_its_closed_windows(double):
    first, second = Bench(double), Bench(double)
    first.window(1.5)
    second.meter.load_state_dict(first.meter.state_dict())
    second.window(1.5)
    assert second.meter.read() == EnergyReading(energy_j=300.0, energy_window_s=3.0, energy_source=SOURCE)


def test_a_total_that_was_spoilt_before_the_resume_stays_null(double):
    first, second = Bench(double, energy_mj=None), Bench(double)
    first.window(5.0)
    second.meter.load_state_dict(first.meter.state_dict())
    second.window(5.0)
    assert second.meter.read().energy_j is None


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (Report(occupied="another process used the device"), "another process used the device"),
        (Report(partitioned=True), "the device is partitioned (MIG)"),
        (Report(error="lost"), "whether the device was shared is unknown: lost"),
    ],
)
def test_energy_of_a_device_that_was_not_ours_alone_is_null(report, reason):
    measured = EnergyReading(energy_j=400.0, energy_window_s=4.0, energy_source=SOURCE)
    assert energy_columns(measured, report) == EnergyReading(energy_j=None, energy_window_s=4.0, energy_source=reason)


def test_energy_of_our_own_device_stands():
    measured = EnergyReading(energy_j=400.0, energy_window_s=4.0, energy_source=SOURCE)
    assert energy_columns(measured, Report(polls=3, own_peak_bytes=5)) == measured
