"""Device classes against the facts of real machines, and the values of ``--device``."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from bench import devices
from bench.cores import usable_cores
from bench.devices import DeviceFacts, DeviceRule, detect, gather, listed, parse_device
from bench.errors import BadValue, BenchError

MIB = 2**20

# name and memory as drivers and torch report them
REAL = [
    ("NVIDIA H100 80GB HBM3", 81_089, "h100-80gb-x1"),
    ("NVIDIA H100 80GB HBM3", 81_559, "h100-80gb-x1"),
    ("NVIDIA H100 PCIe", 81_081, "h100-80gb-pcie-x1"),
    ("NVIDIA H100 NVL", 95_320, "h100-94gb-x1"),
    ("NVIDIA H200", 143_156, "h200-141gb-x1"),
    ("NVIDIA H200", 143_771, "h200-141gb-x1"),
    ("NVIDIA H200 NVL", 143_156, "h200-141gb-nvl-x1"),
    ("NVIDIA GH200 480GB", 96_768, "gh200-96gb-x1"),
    ("NVIDIA B200", 182_642, "b200-180gb-x1"),
    ("NVIDIA A100-SXM4-40GB", 40_339, "a100-40gb-x1"),
    ("A100-SXM4-40GB", 40_537, "a100-40gb-x1"),
    ("NVIDIA A100-SXM4-80GB", 81_154, "a100-80gb-x1"),
    ("NVIDIA A100-PCIE-40GB", 40_390, "a100-40gb-pcie-x1"),
    ("NVIDIA A100 80GB PCIe", 81_038, "a100-80gb-pcie-x1"),
    ("NVIDIA GeForce RTX 4090", 24_081, "rtx4090-24gb-x1"),
    ("NVIDIA GeForce RTX 4090", 24_564, "rtx4090-24gb-x1"),
    ("NVIDIA GeForce RTX 3090", 24_268, "rtx3090-24gb-x1"),
    ("GeForce RTX 3090", 24_268, "rtx3090-24gb-x1"),
    ("NVIDIA GeForce RTX 5090", 32_120, "rtx5090-32gb-x1"),
    ("NVIDIA GeForce RTX 4080", 16_072, "rtx4080-16gb-x1"),
    ("NVIDIA GeForce RTX 3060", 12_044, "rtx3060-12gb-x1"),
    ("NVIDIA L40S", 45_488, "l40s-48gb-x1"),
    ("NVIDIA L4", 22_478, "l4-24gb-x1"),
    ("Tesla T4", 15_102, "t4-16gb-x1"),
    ("NVIDIA A10", 22_515, "a10-24gb-x1"),
    ("NVIDIA A10G", 22_723, "a10g-24gb-x1"),
    ("NVIDIA A40", 45_634, "a40-48gb-x1"),
    ("NVIDIA RTX A6000", 48_685, "a6000-48gb-x1"),
    ("NVIDIA RTX 6000 Ada Generation", 48_647, "rtx6000ada-48gb-x1"),
    ("Tesla V100-SXM2-16GB", 16_160, "v100-16gb-x1"),
    ("Tesla V100-SXM2-32GB", 32_510, "v100-32gb-x1"),
    ("Tesla V100-SXM3-32GB", 32_510, "v100-32gb-x1"),
    ("Tesla V100-PCIE-16GB", 16_160, "v100-16gb-pcie-x1"),
    ("Tesla V100-PCIE-32GB", 32_510, "v100-32gb-pcie-x1"),
]

# near misses: a slice, a virtual GPU, a laptop's chip, another board or memory under a listed name's prefix
UNLISTED = [
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9_728, "unlisted:nvidia-a100-sxm4-80gb-mig-1g-10gb-10gib-x1"),
    ("NVIDIA A100-SXM4-80GB", 19_968, "unlisted:nvidia-a100-sxm4-80gb-20gib-x1"),
    ("GRID A100D-20C", 20_475, "unlisted:grid-a100d-20c-20gib-x1"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 15_948, "unlisted:nvidia-geforce-rtx-4090-laptop-gpu-16gib-x1"),
    ("NVIDIA GeForce RTX 4090 D", 24_081, "unlisted:nvidia-geforce-rtx-4090-d-24gib-x1"),
    ("NVIDIA GeForce RTX 3090 Ti", 24_081, "unlisted:nvidia-geforce-rtx-3090-ti-24gib-x1"),
    ("NVIDIA GeForce RTX 3060", 8_192, "unlisted:nvidia-geforce-rtx-3060-8gib-x1"),
    ("NVIDIA L40", 45_488, "unlisted:nvidia-l40-44gib-x1"),
    ("NVIDIA H100 64GB HBM2", 64_512, "unlisted:nvidia-h100-64gb-hbm2-63gib-x1"),
    ("AMD Instinct MI300X", 196_592, "unlisted:amd-instinct-mi300x-192gib-x1"),
]


def gpu(name, mib, count=1):
    return DeviceFacts(kind="cuda", hardware=name, memory_bytes=mib * MIB, count=count)


@pytest.mark.parametrize(("name", "mib", "expected"), REAL)
def test_real_gpus_get_their_class(name, mib, expected):
    found = detect("cuda:0", gpu(name, mib))
    assert (found.name, found.listed, found.kind) == (expected, True, "cuda")
    assert (found.hardware, found.memory_bytes, found.cores) == (name, mib * MIB, None)


@pytest.mark.parametrize(("name", "mib", "expected"), UNLISTED)
def test_near_misses_are_unlisted_under_a_name_of_their_own(name, mib, expected):
    found = detect("cuda:0", gpu(name, mib))
    assert (found.name, found.listed) == (expected, False)
    assert name in found.description


def test_two_gpus_are_not_one():
    assert detect("cuda:0", gpu("NVIDIA H200", 143_156, count=2)).name == "unlisted:nvidia-h200-140gib-x2"


def test_a_gpu_without_a_memory_figure_is_unlisted():
    facts = DeviceFacts(kind="cuda", hardware="NVIDIA H200")
    assert detect("cuda:0", facts).name == "unlisted:nvidia-h200-x1"


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 16, 32, 64])
def test_processors_are_classed_by_usable_cores(cores):
    found = detect("cpu", DeviceFacts(kind="cpu", hardware="AMD EPYC", cores=cores))
    assert (found.name, found.listed, found.cores) == (f"cpu-{cores}", True, cores)


@pytest.mark.parametrize("cores", [3, 6, 12, 96])
def test_other_numbers_of_cores_are_unlisted(cores):
    found = detect("cpu", DeviceFacts(kind="cpu", hardware="AMD EPYC", cores=cores))
    assert (found.name, found.listed) == (f"unlisted:cpu-{cores}", False)


def test_every_listed_class_is_named_by_its_rule_and_met_by_a_real_machine():
    names = [rule.name for rule in listed()]
    met = {expected for _, _, expected in REAL} | {rule.name for rule in listed() if rule.kind == "cpu"}
    assert len(names) == len(set(names))
    assert set(names) == met
    for rule in listed():
        form = r"cpu-\d+" if rule.kind == "cpu" else rf"[a-z0-9]+-\d+gb(-[a-z]+)?-x{rule.count}"
        assert re.fullmatch(form, rule.name)
        assert rule.description


def test_no_real_machine_meets_two_rules():
    for name, mib, _ in REAL:
        assert sum(rule.admits(gpu(name, mib)) for rule in listed()) == 1


def test_a_rule_admits_its_memory_bounds_and_nothing_beyond():
    rule = DeviceRule(name="a", kind="cuda", description="a", pattern="A", memory_gib=(1.0, 2.0))
    assert [rule.admits(gpu("A", mib)) for mib in (1023, 1024, 2048, 2049)] == [False, True, True, False]
    assert not rule.admits(gpu("AB", 1500))


def test_this_machines_processor_is_detected_from_its_own_facts():
    facts = gather("cpu")
    assert facts.cores == usable_cores()
    assert detect("cpu").cores == facts.cores
    assert facts.hardware


@pytest.fixture
def cuda(monkeypatch):
    """A torch that was built with CUDA; ``cuda(n)`` gives it n devices."""

    def devices_are(count):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return devices_are


def test_devices_that_are_here_are_accepted_in_one_spelling(cuda):
    cuda(2)
    assert [parse_device(text) for text in ("cpu", "cuda", "cuda:0", "cuda:1")] == ["cpu", "cuda:0", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    "text", ["", "CPU", "cuda:", "cuda:-1", "cuda:01", "cuda:x", "cuda 0", "tpu", "cpu:0", "cuda:0\n"]
)
def test_what_is_no_device_is_refused_with_what_is_allowed(text):
    with pytest.raises(BadValue) as caught:
        parse_device(text)
    assert caught.value.message == f"device is {text!r} (str), but must be cpu, cuda or cuda:N"


def test_a_device_that_is_no_text_is_refused_with_its_type():
    with pytest.raises(BadValue, match=r"device is 0 \(int\), but must be cpu"):
        parse_device(0)


@pytest.mark.parametrize("text", ["gpu", "cuda0", "CUDA", "nvidia"])
def test_near_misses_get_a_hint(text):
    with pytest.raises(BadValue) as caught:
        parse_device(text)
    assert caught.value.hint == "did you mean 'cuda'?"


def test_an_index_out_of_range_says_how_many_there_are(cuda):
    cuda(2)
    with pytest.raises(BadValue) as caught:
        parse_device("cuda:2")
    assert caught.value.message == "device is 'cuda:2', but this machine has 2 CUDA device(s)"
    assert caught.value.hint == "use cuda:0 to cuda:1"


def test_without_a_gpu_cuda_is_refused_with_the_reason(cuda, monkeypatch):
    cuda(0)
    with pytest.raises(BenchError, match="torch finds no CUDA device") as caught:
        parse_device("cuda")
    assert caught.value.hint == "use --device cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="this torch is built without CUDA"):
        parse_device("cuda")


def test_a_device_that_does_not_start_is_a_user_error_with_the_drivers_words(cuda, monkeypatch):
    cuda(1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices._ask_another_process.cache_clear()
    # the process that is asked is a real one, and this machine's device 0 is hidden from it
    with pytest.raises(BadValue, match=r"device is 'cuda:0', which does not start: .*(CUDA|cuda|NVIDIA)"):
        detect("cuda:0")


def test_listing_imports_no_torch():
    program = "import sys; from bench.devices import listed; listed(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_real_gpu_both_ways_to_ask_agree_and_the_first_keeps_no_cuda_here():
    program = (
        "import torch; from bench.devices import cuda_facts, gather; asked = gather('cuda:0');"
        "assert not torch.cuda.is_initialized(); assert asked == cuda_facts(0); print(asked.hardware)"
    )
    answer = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert answer.stdout.strip()
