"""The driver boundary, the look before CUDA, the polls, and which memory figure they support."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.nvml import Driver, NvmlUnavailable, bare_uuid
from bench.nvml_baseline import read_baselines
from bench.nvml_poller import Poller, Report, Watch, descends, steady
from bench.nvml_probe import DEVICE_MINUS_BASELINE, PROCESS_TREE, UNLISTED, memory_columns

OWN, STRANGER, OTHER_STRANGER = 100, 900, 901


@pytest.fixture
def double(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "doubles"))
    return importlib.import_module("nvml_double")


def only_root(pid, root):
    return pid == root


class Scene:
    """One device, its state, and a watch over it that began before the trial."""

    def __init__(self, double, **changes):
        self.now = double.device(**changes)
        self.driver = Driver(double.Double({"devices": [self.now]}))
        self.device = self.driver.device(double.TORCH_UUID)
        self.baseline = read_baselines([self.device], seconds=0).get(double.TORCH_UUID)
        self.watch = Watch(self.device, self.baseline, OWN, only_root)

    def poll(self, **changes):
        self.now.update(changes)
        self.watch.poll()
        return self

    @property
    def memory(self):
        return memory_columns(self.watch.report())


@pytest.mark.parametrize(
    ("code", "reason"),
    [(12, "no NVIDIA driver"), (9, "not loaded"), (18, "versions differ"), (15, "lost"), (77, "NVML error 77")],
)
def test_a_driver_that_fails_gives_its_reason_in_words(double, code, reason):
    with pytest.raises(NvmlUnavailable, match=reason) as caught:
        Driver(double.Double({"init_error": code, "devices": []}))
    assert caught.value.code == code


def test_a_binding_that_is_not_installed_is_a_reason_not_an_import_error():
    with pytest.raises(NvmlUnavailable, match="no_such_binding is not installed"):
        Driver.load("no_such_binding")


def test_an_error_that_is_not_the_drivers_is_not_swallowed(double):
    with pytest.raises(ZeroDivisionError):
        Driver(double.Double({"devices": []})).ask(lambda _: 1 // 0)


def test_torchs_and_nvmls_spelling_of_a_uuid_agree(double):
    assert bare_uuid(double.UUID) == bare_uuid(double.TORCH_UUID) == double.TORCH_UUID


def test_a_device_is_found_by_uuid_whatever_its_index(double):
    devices = [double.device(uuid="GPU-aaaa", used=1), double.device(used=2), double.device(uuid="GPU-bbbb", used=3)]
    assert Driver(double.Double({"devices": devices})).device(double.TORCH_UUID).used_bytes() == 2


def test_a_broken_neighbour_does_not_hide_our_device(double):
    devices = [double.device(uuid="GPU-aaaa", errors={"handle": double.LOST}), double.device(used=2)]
    assert Driver(double.Double({"devices": devices})).device(double.TORCH_UUID).used_bytes() == 2


def test_an_unknown_uuid_is_refused_with_its_reason(double):
    with pytest.raises(NvmlUnavailable, match="no such NVIDIA device"):
        Driver(double.Double({"devices": [double.device()]})).device("ffff")


def test_a_mig_slice_is_found_by_its_own_uuid_and_known_as_partitioned(double):
    state = {"devices": [double.device(uuid="GPU-aaaa", mig=1)], "slices": [double.device(uuid="MIG-cccc", used=7)]}
    driver = Driver(double.Double(state))
    assert driver.device("cccc").used_bytes() == 7
    assert driver.device("cccc").is_partitioned()
    assert driver.device("aaaa").is_partitioned()


def test_a_device_that_knows_no_mig_is_not_partitioned(double):
    assert not Driver(double.Double({"devices": [double.device(mig=None)]})).device(double.TORCH_UUID).is_partitioned()


def test_the_drivers_reserve_is_left_out_where_it_can_be(double):
    new, old = double.device(used=5, reserved=100), double.device(used=5, reserved=100, knows_version_2=False)
    assert Driver(double.Double({"devices": [new]})).device(double.TORCH_UUID).used_bytes() == 5
    assert Driver(double.Double({"devices": [old]})).device(double.TORCH_UUID).used_bytes() == 105


def test_the_two_memory_versions_never_mix_within_one_difference(double):
    state = double.device(used=5, reserved=100, knows_version_2=False)
    device = Driver(double.Double({"devices": [state]})).device(double.TORCH_UUID)
    first = device.used_bytes()
    state.update(knows_version_2=True, used=9)
    assert device.used_bytes() - first == 4


def test_units_are_joules_and_watts(double):
    device = Driver(double.Double({"devices": [double.device(energy_mj=2500, power_mw=71_500)]})).device(double.UUID)
    assert (device.energy_j(), device.power_w()) == (2.5, 71.5)


def test_the_baseline_of_an_idle_device_has_its_watts_and_nobody_on_it(double):
    baseline = Scene(double, used=3 * 2**20).baseline
    assert baseline is not None
    assert (baseline.used_bytes, baseline.idle_w, baseline.occupied) == (3 * 2**20, 70.0, "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"processes": [(STRANGER, 5)]}, "another process was on the device before"),
        ({"used": 300 * 2**20}, "300 MiB of the device were in use before"),
    ],
)
def test_a_device_that_is_occupied_before_has_no_idle_watts(double, changes, reason):
    baseline = Scene(double, **changes).baseline
    assert baseline is not None
    assert reason in baseline.occupied
    assert baseline.idle_w is None


def test_idle_watts_are_null_where_the_device_is_partitioned_or_cannot_tell(double):
    for changes in ({"mig": 1}, {"power_mw": None}):
        baseline = Scene(double, **changes).baseline
        assert baseline is not None
        assert baseline.idle_w is None


def test_a_device_that_fails_gets_no_baseline_and_the_others_get_theirs(double):
    devices = [double.device(uuid="GPU-aaaa", errors={"processes": double.LOST}), double.device()]
    driver = Driver(double.Double({"devices": devices}))
    assert list(read_baselines(driver.devices(), seconds=0)) == [double.TORCH_UUID]


def test_matched_pids_give_the_own_trees_bytes_only(double):
    scene = Scene(double)
    scene.poll(used=50, processes=[(OWN, 10), (STRANGER, 30)])
    scene.poll(used=90, processes=[(OWN, 40), (STRANGER, 30)])
    scene.poll(used=60, processes=[(OWN, 20), (STRANGER, 30)])
    scene.poll(used=60, processes=[(OWN, 20), (STRANGER, 30)])
    assert scene.memory == (40, 20, PROCESS_TREE)
    assert scene.watch.report().occupied == "another process used the device"


def test_the_bytes_of_a_whole_tree_add_up(double):
    scene = Scene(double)
    scene.watch = Watch(scene.device, scene.baseline, OWN, lambda pid, root: pid in {root, root + 1})
    scene.poll(processes=[(OWN, 10), (OWN + 1, 5)])
    assert scene.memory == (15, 15, PROCESS_TREE)
    assert scene.watch.report().occupied == ""


def test_unmatched_pids_on_an_idle_device_give_device_minus_baseline(double):
    scene = Scene(double, used=1000)
    scene.poll(used=5000, processes=[(STRANGER, 3900)])
    scene.poll(used=3000, processes=[(STRANGER, 1900)])
    assert scene.memory == (4000, 2000, DEVICE_MINUS_BASELINE)
    assert scene.watch.report().occupied == ""


@pytest.mark.parametrize("error", ["NOT_SUPPORTED", "NO_PERMISSION", None])
def test_a_driver_that_lists_no_processes_is_said_in_the_source(double, error):
    scene = Scene(double, used=1000, errors={"processes": getattr(double, error)} if error else {})
    assert scene.poll(used=5000).memory == (4000, 4000, UNLISTED)


def test_a_process_without_a_figure_counts_as_unmatched(double):
    scene = Scene(double, used=1000).poll(used=5000, processes=[(OWN, None)])
    assert scene.memory == (4000, 4000, DEVICE_MINUS_BASELINE)


def test_a_second_unmatched_process_makes_the_figure_null(double):
    scene = Scene(double)
    scene.poll(used=10, processes=[(STRANGER, 10)])
    scene.poll(used=30, processes=[(STRANGER, 10), (OTHER_STRANGER, 20)])
    scene.poll(used=10, processes=[(STRANGER, 10)])
    assert scene.memory == (None, None, "another process used the device")


def test_unmatched_pids_on_an_occupied_device_give_null(double):
    scene = Scene(double, processes=[(STRANGER, 10)])
    peak, steady_bytes, source = scene.poll(used=50, processes=[(STRANGER, 10), (OTHER_STRANGER, 20)]).memory
    assert (peak, steady_bytes) == (None, None)
    assert source == "another process was on the device before CUDA started"


def test_a_strangers_pid_that_happens_to_equal_ours_is_not_taken_for_ours(double):
    scene = Scene(double, used=10, processes=[(OWN, 10)])
    peak, _, source = scene.poll(used=99, processes=[(OWN, 10), (STRANGER, 80)]).memory
    assert peak is None
    assert source == "another process was on the device before CUDA started"


def test_without_a_baseline_only_matched_pids_count(double):
    scene = Scene(double)
    scene.watch = Watch(scene.device, None, OWN, only_root)
    scene.poll(used=50, processes=[(STRANGER, 10)])
    assert scene.memory[:2] == (None, None)
    assert "CUDA ran before the baseline" in scene.memory[2]
    assert scene.poll(processes=[(OWN, 10)]).memory[2] == PROCESS_TREE


def test_a_partitioned_device_counts_matched_pids_and_no_totals(double):
    scene = Scene(double, mig=1).poll(used=50, processes=[(STRANGER, 10)])
    assert scene.memory[0] is None
    assert "MIG" in scene.memory[2]
    assert scene.poll(processes=[(OWN, 10)]).memory[2] == PROCESS_TREE


def test_a_device_lost_in_the_middle_gives_null_not_the_peak_so_far(double):
    scene = Scene(double).poll(used=50, processes=[(OWN, 50)])
    scene.poll(errors={"all": double.LOST}).poll(errors={})
    assert scene.memory == (None, None, "the NVIDIA device was lost")
    assert scene.watch.report().polls == 1


def test_a_device_lost_before_it_is_watched_gives_the_reason(double):
    scene = Scene(double, errors={"mig": double.LOST})
    assert scene.poll().memory == (None, None, "the NVIDIA device was lost")


def test_less_than_the_baseline_is_zero_bytes_not_negative(double):
    assert Scene(double, used=1000).poll(used=400).memory[:2] == (0, 0)


def test_steady_is_the_median_of_the_second_half():
    assert steady([900, 900, 900, 10, 30, 20]) == 20
    assert steady([900, 10, 30]) == 20
    assert steady([7]) == 7


def test_a_device_that_was_never_polled_gives_null():
    assert memory_columns(Report(baseline_bytes=0)) == (None, None, "the device was never polled")


def test_the_poller_says_when_no_device_is_watched_and_when_it_is_unknown(double):
    poller = Poller(Driver(double.Double({"devices": []})), os.getpid(), cuda_started=False)
    assert poller.answer("ready\n").error == "no device is watched"
    assert poller.answer("watch ffff\n").error == "no such NVIDIA device"
    assert poller.answer("report\n").error == "no such NVIDIA device"


def test_descent_follows_real_processes_and_ends_at_strangers():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert descends(child.pid, os.getpid()) == Path("/proc").is_dir()
        assert descends(os.getpid(), os.getpid())
        assert not descends(os.getpid(), child.pid)
        assert not descends(2**22 + 1, os.getpid())
        child.communicate(b"\n")
