"""The probe and its poller, as two real processes over a scripted driver."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.energy import SOURCE
from bench.nvml_probe import DEVICE_MINUS_BASELINE, PROCESS_TREE, NvmlProbe

DOUBLES = str(Path(__file__).parent / "doubles")
NULLS = {
    "nvml_peak_bytes": None,
    "nvml_steady_bytes": None,
    "energy_j": None,
    "energy_window_s": None,
    "idle_w": None,
}


class Script:
    """The state of the scripted driver, in a file that this process and the poller read."""

    def __init__(self, path, double):
        self.path = path
        self.double = double
        self.device = double.device()
        self.set()

    def set(self, **changes):
        self.device.update(changes)
        fresh = self.path.with_suffix(".fresh")
        fresh.write_text(json.dumps({"devices": [self.double.device(uuid="GPU-aaaa", used=77), self.device]}))
        fresh.replace(self.path)


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(DOUBLES)
    monkeypatch.setenv("PYTHONPATH", DOUBLES, prepend=os.pathsep)
    monkeypatch.setenv("NVML_DOUBLE", str(tmp_path / "state.json"))
    return Script(tmp_path / "state.json", importlib.import_module("nvml_double"))


def columns(readings):
    return {name: getattr(readings, name) for name in readings.__dataclass_fields__}


def test_a_trial_with_matched_pids_gets_every_column(script, monkeypatch):
    monkeypatch.setattr("bench.energy.SHORTEST_WINDOW_S", 0.05)
    with NvmlProbe.start("cuda:0", module="nvml_double", interval_s=0.005) as probe:
        probe.ready()
        script.set(used=5000, processes=[[os.getpid(), 3000]])
        probe.attach(script.double.TORCH_UUID)
        probe.energy.resume()
        script.set(used=9000, processes=[[os.getpid(), 7000]])
        time.sleep(0.2)  # the poller must see the spike by itself: no request is made while it lasts
        script.set(used=6000, processes=[[os.getpid(), 4000]])
        time.sleep(0.6)
        script.set(energy_mj=1_500_000)
        readings = probe.finish()
    assert readings.energy_window_s == pytest.approx(0.8, abs=0.6)
    assert columns(readings) == {
        "nvml_peak_bytes": 7000,
        "nvml_steady_bytes": 4000,
        "nvml_source": PROCESS_TREE,
        "energy_j": 500.0,
        "energy_window_s": readings.energy_window_s,
        "energy_source": SOURCE,
        "idle_w": 70.0,
    }


def test_in_a_container_the_baseline_is_the_one_read_before_cuda(script):
    script.set(used=100)
    with NvmlProbe.start("cuda:0", module="nvml_double") as probe:
        probe.ready()
        script.set(used=5100, processes=[[99_999_999, 4900]])
        probe.attach(script.double.UUID)
        readings = probe.finish()
    assert (readings.nvml_peak_bytes, readings.nvml_source) == (5000, DEVICE_MINUS_BASELINE)
    assert readings.energy_source == "window of 0.00 s is shorter than 2 s"


def test_a_second_process_on_the_device_makes_memory_and_energy_null(script):
    with NvmlProbe.start("cuda:0", module="nvml_double") as probe:
        probe.ready()
        script.set(processes=[[99_999_998, 5], [99_999_999, 5]])
        probe.attach(script.double.UUID)
        readings = probe.finish()
    assert (readings.nvml_peak_bytes, readings.nvml_source) == (None, "another process used the device")
    assert readings.energy_j is None


def test_where_cuda_ran_before_there_is_no_baseline(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with NvmlProbe.start("cuda:0", module="nvml_double") as probe:
        script.set(used=5100, processes=[[99_999_999, 4900]])
        probe.attach(script.double.UUID)
        readings = probe.finish()
    assert readings.nvml_peak_bytes is None
    assert readings.nvml_source.startswith("CUDA ran before the baseline was read")


def test_a_device_that_nobody_attached_is_null_with_its_reason(script):
    with NvmlProbe.start("cuda:0", module="nvml_double") as probe:
        readings = probe.finish()
    assert readings.nvml_source == "no device is watched"
    assert readings.energy_source == "the probe was not attached to a device"


def test_a_poller_that_dies_is_a_reason_not_a_crash(script):
    with NvmlProbe.start("cuda:0", module="nvml_double") as probe:
        probe.ready()
        script.set(used="no number")
        probe.attach(script.double.UUID)
        readings = probe.finish()
    assert (readings.nvml_peak_bytes, readings.energy_j, readings.idle_w) == (None, None, None)
    assert readings.nvml_source.startswith("the NVML poller ended early (exit code 1): TypeError: ")


def test_the_poller_ends_when_the_probe_is_closed(script):
    probe = NvmlProbe.start("cuda:0", module="nvml_double")
    process = probe._process
    probe.ready()
    probe.close()
    probe.close()
    assert process.returncode == 0
    assert probe.finish().nvml_source == "the probe was closed"


def test_on_the_cpu_nothing_starts_and_the_reason_is_given():
    with NvmlProbe.start("cpu") as probe:
        probe.ready()
        probe.attach("ffff")
        probe.energy.resume()
        readings = probe.finish()
    reason = "the trial runs on the CPU"
    assert columns(readings) == NULLS | {"nvml_source": reason, "energy_source": reason}


def test_a_driver_that_is_missing_is_the_reason_in_both_sources(script):
    script.path.write_text(json.dumps({"init_error": script.double.NO_LIBRARY, "devices": []}))
    with NvmlProbe.start("cuda:0", module="nvml_double") as probe:
        probe.ready()
        probe.attach("ffff")
        readings = probe.finish()
    assert columns(readings) == NULLS | {"nvml_source": "no NVIDIA driver", "energy_source": "no NVIDIA driver"}


PARENT = """
import os, sys, time
from bench.nvml_probe import NvmlProbe
probe = NvmlProbe.start("cuda:0", module="nvml_double")
probe.ready()
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(60)
print(probe._process.pid, child, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc").is_dir(), reason="needs fork and /proc")
def test_the_poller_dies_with_a_parent_that_is_killed_even_if_a_fork_holds_its_input(script):
    with subprocess.Popen([sys.executable, "-P", "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        poller, fork = map(int, parent.stdout.readline().split())
        try:
            assert is_alive(poller)
            parent.kill()
            deadline = time.monotonic() + 10
            while is_alive(poller) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not is_alive(poller)
            assert is_alive(fork)
        finally:
            os.kill(fork, signal.SIGKILL)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_real_gpu_a_known_allocation_is_seen():
    program = """
import json, time, torch
from bench.nvml_probe import NvmlProbe
with NvmlProbe.start("cuda:0") as probe:
    probe.ready()
    torch.cuda.init()
    probe.attach(str(torch.cuda.get_device_properties(0).uuid))
    probe.energy.resume()
    block = torch.zeros(2**28, device="cuda:0")
    product = torch.randn(4096, 4096, device="cuda:0")
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        product @ product
        torch.cuda.synchronize()
    probe.energy.pause()
    print(json.dumps(vars(probe.finish())))
"""
    answer = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    readings = json.loads(answer.stdout)
    if readings["nvml_peak_bytes"] is not None:  # null on a shared device, with its reason
        assert 2**30 < readings["nvml_peak_bytes"] < 2**30 + 2**31
    else:
        assert readings["nvml_source"]
    if readings["energy_j"] is not None:
        assert 10 < readings["energy_j"] / readings["energy_window_s"] < 2000
    else:
        assert readings["energy_source"]
