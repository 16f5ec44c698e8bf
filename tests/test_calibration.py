"""The calibration probe, the contention flag, CPU seconds and pinned threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from bench import calibration
from bench.calibration import Calibration, CalibrationReading, Pinning, measure, pin_threads
from bench.errors import BadValue

has_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no core affinity")


def calibrated(*readings):
    waiting = iter(readings)
    series = Calibration("cpu", probe=lambda _: CalibrationReading(*next(waiting)))
    for _ in readings:
        series.measure()
    return series


def test_the_probe_takes_a_moment_of_both_kinds_of_work():
    reading = measure("cpu")
    assert 1e-5 < reading.matmul_s < 5.0
    assert 1e-5 < reading.copy_s < 5.0


def test_the_probe_leaves_torch_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    settings = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    measure("cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert settings == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())


def test_the_probe_is_float32_work_whatever_surrounds_it(monkeypatch):
    kinds = set()
    product = torch.mm

    def spy(left, right, *, out):
        result = product(left, right, out=out)
        kinds.add((left.dtype, result.dtype, tuple(result.shape)))
        return result

    monkeypatch.setattr(torch, "mm", spy)
    calibration._cpu_buffer.cache_clear()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            measure("cpu")
    finally:
        torch.set_default_dtype(default)
        calibration._cpu_buffer.cache_clear()
    assert kinds == {(torch.float32, torch.float32, (512, 512))}


@pytest.mark.parametrize(
    ("readings", "contended"),
    [
        ([(1.0, 1.0), (1.09, 1.0), (1.0, 1.09)], False),
        ([(1.0, 1.0), (1.11, 1.0)], True),
        ([(1.0, 1.0), (1.0, 1.0), (1.0, 1.11), (1.0, 1.0)], True),
        ([(1.11, 1.0), (1.0, 1.0)], True),
        ([(1.05, 1.0), (0.95, 1.0)], True),
        ([(2.0, 3.0), (2.0, 3.0)], False),
    ],
)
def test_contended_means_that_either_series_differs_by_more_than_a_tenth(readings, contended):
    assert calibrated(*readings).contended is contended


def test_fewer_than_two_readings_cannot_tell():
    assert calibrated().contended is None
    assert calibrated((1.0, 1.0)).contended is None


def test_the_columns_are_the_least_seconds_and_the_spread():
    assert calibrated((1.0, 0.5), (1.5, 0.25)).columns() == {
        "calibration_matmul_s": 1.0,
        "calibration_copy_s": 0.25,
        "calibration_matmul_spread": 1.5,
        "calibration_copy_spread": 2.0,
        "calibration_readings": 2,
        "contended": True,
    }


def test_without_a_reading_the_columns_are_null():
    columns = calibrated().columns()
    assert columns.pop("calibration_readings") == 0
    assert set(columns.values()) == {None}


def test_a_resumed_trial_keeps_the_readings_from_before():
    second = calibrated((1.0, 1.0))
    # through JSON, as a checkpoint or an event may carry it
    second.load_state_dict(json.loads(json.dumps(calibrated((2.0, 1.0), (1.0, 1.0)).state_dict())))
    assert second.readings == [CalibrationReading(2.0, 1.0), CalibrationReading(1.0, 1.0), CalibrationReading(1.0, 1.0)]
    assert second.contended is True


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, None])
def test_a_number_of_threads_that_is_none_is_refused_with_its_type(value):
    with pytest.raises(BadValue, match=rf"threads is .*\({type(value).__name__}\), but must be a positive integer"):
        pin_threads(value)


PINNING = """
import json, os, threading
from dataclasses import asdict
import torch
from bench.calibration import pin_threads

threading.Thread(target=threading.Event().wait, daemon=True).start()
def pin(n):
    said = asdict(pin_threads(n))
    tasks = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
    return said, torch.get_num_threads(), tasks
print(json.dumps([pin(1), pin(64)]))
"""


@has_affinity
def test_threads_that_exist_are_pinned_too_and_an_inherited_mask_is_never_widened():
    answer = subprocess.run([sys.executable, "-c", PINNING], capture_output=True, text=True, check=True)
    first, second = json.loads(answer.stdout)
    core = min(os.sched_getaffinity(0))
    words = f"1 torch threads on cores {core}"
    for (said, threads, tasks), did in ((first, words), (second, f"{words} (64 asked, 1 available)")):
        said["cores"] = tuple(said["cores"])
        assert Pinning(**said) == Pinning(1, (core,), did)
        assert threads == 1
        assert len(tasks) >= 2
        assert all(cores == [core] for cores in tasks)


def test_without_core_affinity_only_torchs_threads_are_set(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    before = torch.get_num_threads()
    try:
        said = pin_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert said == Pinning(1, None, "1 torch threads, not pinned: this system has no core affinity")


def test_a_system_that_forbids_pinning_is_said(monkeypatch):
    def forbid(thread, cores):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", forbid, raising=False)
    before = torch.get_num_threads()
    try:
        said = pin_threads(1)
    finally:
        torch.set_num_threads(before)
    assert said == Pinning(1, None, "1 torch threads, not pinned: Operation not permitted")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_real_gpu_the_probe_waits_for_the_device_and_frees_its_memory():
    before = torch.cuda.memory_allocated(0)
    reading = measure("cuda:0")
    assert torch.cuda.memory_allocated(0) == before
    assert 1e-5 < reading.matmul_s < 1.0
    assert 1e-5 < reading.copy_s < 1.0
