"""Memory of the process, of torch's allocator and of the optimizer's state."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from bench.probes import AllocatorPeaks, optimizer_state_bytes, rss_peak, rss_peak_bytes

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")

MIB = 2**20


@on_linux
def test_the_peak_of_a_child_is_its_own_and_keeps_what_was_freed():
    program = (
        "import json; from bench.probes import rss_peak_bytes; before = rss_peak_bytes();"
        "block = bytearray(b'x') * (96 * 2**20); del block; print(json.dumps([before, rss_peak_bytes()]))"
    )
    # this process is much larger than the child, which must not inherit its peak
    ballast = bytearray(b"x") * (256 * MIB)
    answer = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    before, after = json.loads(answer.stdout)
    assert len(ballast) == 256 * MIB
    assert before < 128 * MIB
    assert after - before + MIB >= 96 * MIB
    assert after < 256 * MIB


@on_linux
def test_the_peak_is_read_in_kibibytes(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t   2048 kB\nVmRSS:\t    7 kB\n")
    assert (rss_peak(status).value, rss_peak(status).source) == (2048 * 1024, "VmHWM")


@on_linux
def test_where_the_system_does_not_tell_the_peak_is_null_with_a_reason(tmp_path):
    status = tmp_path / "status"
    assert rss_peak(status).value is None
    assert rss_peak(status).source.startswith(f"no {status} on ")
    status.write_text("VmRSS:\t    7 kB\n")
    assert (rss_peak(status).value, rss_peak(status).source) == (None, f"no VmHWM line in {status}")


def test_the_peak_is_a_positive_number_here():
    assert rss_peak_bytes() is None or rss_peak_bytes() > MIB


def test_on_the_cpu_the_allocators_peaks_are_null_with_a_reason():
    peaks = AllocatorPeaks("cpu")
    peaks.pause()
    peaks.resume()
    reading = peaks.read()
    assert (reading.allocator_peak_bytes, reading.reserved_peak_bytes) == (None, None)
    assert reading.allocator_source == "torch counts no allocations on cpu"


class ScriptedAllocator:
    """torch.cuda's statistics: a peak that follows the current size until it is reset."""

    def __init__(self, monkeypatch):
        self.now = self.peak = self.reserved = 0
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.peak)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: self.reserved)

    def reset(self, _):
        self.peak = self.reserved = self.now

    def use(self, size):
        self.now = size
        self.peak = max(self.peak, size)
        self.reserved = max(self.reserved, 2 * size)


def test_an_evaluation_outside_the_windows_does_not_raise_the_peak(monkeypatch):
    allocator = ScriptedAllocator(monkeypatch)
    peaks = AllocatorPeaks("cuda:0")
    for size in (100, 300, 100):
        allocator.use(size)
    peaks.pause()
    for size in (900, 100):
        allocator.use(size)
    peaks.resume()
    allocator.use(200)
    reading = peaks.read()
    assert (reading.allocator_peak_bytes, reading.reserved_peak_bytes) == (300, 600)
    assert reading.allocator_source == "torch.cuda.max_memory_allocated"


def test_resume_inside_a_window_forgets_nothing_and_reset_forgets_all(monkeypatch):
    allocator = ScriptedAllocator(monkeypatch)
    peaks = AllocatorPeaks("cuda:0")
    allocator.use(700)
    allocator.use(100)
    peaks.resume()
    assert peaks.read().allocator_peak_bytes == 700
    peaks.reset()
    assert peaks.read().allocator_peak_bytes == 100


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_real_gpu_the_peak_holds_a_workspace_that_was_freed():
    peaks = AllocatorPeaks("cuda:0")
    before = torch.cuda.memory_allocated(0)
    block = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda:0")
    del block
    peaks.pause()
    block = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda:0")
    del block
    peaks.resume()
    assert peaks.read().allocator_peak_bytes == before + 64 * MIB


def stepped(optimizer, *parameters):
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_adamw_holds_two_moments_and_a_step_per_parameter(device):
    weight = torch.nn.Parameter(torch.ones(12, 20, device=device))
    bias = torch.nn.Parameter(torch.ones(20, device=device))
    optimizer = stepped(torch.optim.AdamW([weight, bias], foreach=False), weight, bias)
    assert optimizer_state_bytes(optimizer) == 2 * 4 * (12 * 20 + 20) + 2 * 4


def test_sgd_without_momentum_holds_nothing():
    weight = torch.nn.Parameter(torch.ones(12, 20))
    assert optimizer_state_bytes(stepped(torch.optim.SGD([weight], lr=0.1), weight)) == 0


def test_before_the_first_step_there_is_no_state():
    assert optimizer_state_bytes(torch.optim.AdamW([torch.nn.Parameter(torch.ones(5))])) == 0


def with_state(state, parameter=None):
    parameter = torch.nn.Parameter(torch.ones(1000)) if parameter is None else parameter
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter].update(state)
    return optimizer


@dataclass
class Projector:
    basis: torch.Tensor
    rank: int = 4


@dataclass(slots=True)
class SlottedProjector:
    basis: torch.Tensor


class CallableProjector:
    def __init__(self, basis):
        self.basis = basis

    def __call__(self, gradient):
        return self.basis @ gradient


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda tensor: {"a": {"b": [tensor]}},
        lambda tensor: {"a": (1, "text", None, {"b": tensor})},
        lambda tensor: {"a": Projector(tensor)},
        lambda tensor: {"a": SlottedProjector(tensor)},
        lambda tensor: {"a": CallableProjector(tensor)},
        lambda tensor: {"a": [tensor, tensor, tensor.t(), tensor[1:], tensor.detach()]},
        lambda tensor: {"a": torch.nn.ParameterList([torch.nn.Parameter(tensor)])},
    ],
)
def test_a_storage_counts_once_and_whole_wherever_it_is_nested(nest, device):
    tensor = torch.ones(6, 7, device=device)
    assert optimizer_state_bytes(with_state(nest(tensor))) == 6 * 7 * 4


def test_a_small_view_keeps_its_whole_storage_alive_and_counts_it():
    assert optimizer_state_bytes(with_state({"a": torch.ones(1000)[:1]})) == 4000


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_different_storages_of_equal_size_both_count(device):
    state = {"a": torch.ones(10, device=device), "b": torch.ones(10, device=device)}
    assert optimizer_state_bytes(with_state(state)) == 80


def test_dtypes_count_by_their_own_size():
    state = {"a": torch.ones(10, dtype=torch.bfloat16), "b": torch.ones(10, dtype=torch.int8)}
    assert optimizer_state_bytes(with_state(state)) == 30


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_parameters_own_storages_do_not_count(device):
    parameter = torch.nn.Parameter(torch.ones(1000, device=device))
    state = {"alias": parameter.data, "view": parameter.detach()[3:], "copy": torch.ones(5, device=device)}
    assert optimizer_state_bytes(with_state(state, parameter)) == 20


def test_numbers_and_text_do_not_count():
    assert optimizer_state_bytes(with_state({"step": 17, "scale": 0.5, "mode": "left", "none": None})) == 0


def test_a_state_that_contains_itself_ends():
    loop = {"tensor": torch.ones(3)}
    loop["self"] = loop
    assert optimizer_state_bytes(with_state({"loop": loop})) == 12


def test_a_sparse_state_counts_indices_and_values():
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 2], [1, 0]]), torch.ones(2), (1000, 1000), check_invariants=True)
    assert optimizer_state_bytes(with_state({"a": sparse})) == 2 * 2 * 8 + 2 * 4


class Wrapped(torch.Tensor):
    """A tensor of 8-bit codes that says it is float32, as quantised states do."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, function, kinds, arguments=(), options=None):
        raise NotImplementedError(function)


def test_a_wrapped_tensor_counts_by_what_it_wraps():
    assert optimizer_state_bytes(with_state({"a": Wrapped(torch.zeros(100, dtype=torch.uint8))})) == 100


class Composite(torch.optim.Optimizer):
    """An optimizer made of others, as a hybrid of two methods is."""

    def __init__(self, first, second):
        super().__init__(first.param_groups + second.param_groups, {})
        self.first = first
        self.others = {"second": second}

    def step(self, closure=None):  # noqa: ARG002 - the signature is torch's
        self.first.step()
        self.others["second"].step()


def test_the_states_of_inner_optimizers_count_once():
    weight, bias = torch.nn.Parameter(torch.ones(10)), torch.nn.Parameter(torch.ones(3))
    composite = Composite(torch.optim.SGD([weight], lr=0.1, momentum=0.9), torch.optim.AdamW([bias], foreach=False))
    assert optimizer_state_bytes(stepped(composite, weight, bias)) == 10 * 4 + 2 * 3 * 4 + 4
