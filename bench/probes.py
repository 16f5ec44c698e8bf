"""Memory and energy of a trial: the process, torch's allocator, the optimizer's state, and the device (NVML).

Every value that cannot be measured is null and comes with the reason; nothing is estimated here.
"""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.energy import EnergyMeter, EnergyReading
from bench.nvml_probe import NvmlProbe, NvmlReadings

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "AllocatorPeaks",
    "AllocatorReading",
    "EnergyMeter",
    "EnergyReading",
    "NvmlProbe",
    "NvmlReadings",
    "Reading",
    "adapter_bytes",
    "optimizer_state_bytes",
    "rss_peak",
    "rss_peak_bytes",
]

_DEPTH = 8
"""How deep tensors are looked for inside a state; deeper objects are a plugin's machinery, not its state."""

_CODE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


@dataclass(frozen=True)
class Reading:
    """A number of bytes and how it was read; ``source`` is the reason where ``value`` is null."""

    value: int | None
    source: str


def rss_peak(status: Path = Path("/proc/self/status")) -> Reading:
    """Return the largest resident size of this process since its exec, bytes.

    Linux: ``VmHWM``. Children are not included. ``ru_maxrss`` is never taken on Linux, where an exec'd child inherits
    its parent's peak; on macOS it belongs to the task alone and is the fallback. Elsewhere: null.
    """
    if sys.platform == "darwin":
        import resource

        return Reading(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "ru_maxrss")
    try:
        lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Reading(None, f"no {status} on {sys.platform}")
    for line in lines:
        if line.startswith("VmHWM:"):
            return Reading(int(line.split()[1]) * 1024, "VmHWM")
    return Reading(None, f"no VmHWM line in {status}")


def rss_peak_bytes() -> int | None:
    """Return the value of :func:`rss_peak`, null where this system does not tell."""
    return rss_peak().value


@dataclass(frozen=True, kw_only=True)
class AllocatorReading:
    """Peaks of torch's caching allocator, bytes: live tensors, and segments taken from the device."""

    allocator_peak_bytes: int | None
    reserved_peak_bytes: int | None
    allocator_source: str


class AllocatorPeaks:
    """The CUDA allocator's peaks over the windows between :meth:`resume` and :meth:`pause`.

    Exact, so it catches a workspace that lives between two polls of NVML. A new object is open and counts from its
    creation. What an evaluation allocates is left out of ``allocator_peak_bytes`` by pausing; the segments that it made
    the allocator take stay taken, so ``reserved_peak_bytes`` can include them, as NVML does.

    Args:
        device: the trial's device; on anything but CUDA the peaks are null.
    """

    def __init__(self, device: torch.device | str) -> None:
        import torch

        self._device = torch.device(device)
        self._measured = self._device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Forget the peaks and count from now."""
        self._allocated = self._reserved = 0
        self._open = False
        self.resume()

    def resume(self) -> None:
        """Open a window: what is allocated now is its first peak."""
        if self._measured and not self._open:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        self._open = True

    def pause(self) -> None:
        """Close the window."""
        if self._open:
            self._gather()
        self._open = False

    def read(self) -> AllocatorReading:
        """Return the peaks so far, of the open window too."""
        if not self._measured:
            reason = f"torch counts no allocations on {self._device.type}"
            return AllocatorReading(allocator_peak_bytes=None, reserved_peak_bytes=None, allocator_source=reason)
        if self._open:
            self._gather()
        return AllocatorReading(
            allocator_peak_bytes=self._allocated,
            reserved_peak_bytes=self._reserved,
            allocator_source="torch.cuda.max_memory_allocated",
        )

    def _gather(self) -> None:
        if self._measured:
            import torch

            self._allocated = max(self._allocated, torch.cuda.max_memory_allocated(self._device))
            self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self._device))


def adapter_bytes(model: nn.Module, base_buffers: Collection[int] | None) -> int | None:
    """Return the bytes of what an adapted ``model`` has to store beside its base.

    That is every trainable parameter, and every buffer that a state dictionary holds and whose identity is not among
    ``base_buffers``, those of the base. ``None`` as ``base_buffers`` says that nothing adapted the model.
    """
    if base_buffers is None:
        return None
    stored = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    added = [b for b in model.buffers() if id(b) in stored and id(b) not in base_buffers]
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*trained, *added))


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of the unique storages in an optimizer's state.

    Tensors are found in ``optimizer.state``, and in the state of the optimizers that it holds, through mappings,
    sequences, sets and the attributes of objects. A storage counts once and whole, however many tensors view it; tensor
    subclasses that wrap others count by what they wrap; the parameters' own storages and Python numbers do not count.
    Works on the meta device.
    """
    optimizers = list(_with_inner(optimizer, {}))
    parameters = (parameter for one in optimizers for group in one.param_groups for parameter in group["params"])
    excluded = {key for parameter in parameters for key, _ in _storages(parameter)}
    sizes = {key: size for one in optimizers for tensor in _tensors(one.state) for key, size in _storages(tensor)}
    return sum(size for key, size in sizes.items() if key not in excluded)


def _with_inner(optimizer: torch.optim.Optimizer, seen: dict[int, Any]) -> Iterator[torch.optim.Optimizer]:
    """Yield the optimizer and those that it holds as attributes, alone or in a list, tuple or mapping."""
    import torch

    if id(optimizer) in seen:
        return
    seen[id(optimizer)] = optimizer
    yield optimizer
    for value in vars(optimizer).values():
        for item in _children(value) if isinstance(value, Mapping | list | tuple) else (value,):
            if isinstance(item, torch.optim.Optimizer):
                yield from _with_inner(item, seen)


def _tensors(root: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a nest of containers and plain objects.

    Breadth first, so that what is reached by several ways is met at its least depth.
    """
    import torch

    seen = {id(root): root}  # holds what it lists: an id of something freed could be given out again
    waiting = deque([(root, 0)])
    while waiting:
        value, depth = waiting.popleft()
        if isinstance(value, torch.Tensor):
            yield value
            continue
        for child in _children(value) if depth < _DEPTH else ():
            if id(child) not in seen:
                seen[id(child)] = child
                waiting.append((child, depth + 1))


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, _CODE):
        return ()
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    held = [getattr(value, name) for name in slots if hasattr(value, name)]
    return [*held, *getattr(value, "__dict__", {}).values()]


def _storages(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Yield identity and bytes of the storages behind a tensor: one, or those of the tensors that it is made of."""
    import torch

    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _storages(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield from _storages(tensor._indices())  # noqa: SLF001 - the public form refuses a tensor not yet coalesced
        yield from _storages(tensor._values())  # noqa: SLF001 - as above
    else:
        storage = tensor.untyped_storage()
        yield storage._cdata, storage.nbytes()  # noqa: SLF001 - data_ptr() is 0 for every storage on the meta device
