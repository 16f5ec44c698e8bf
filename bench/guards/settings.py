"""What torch is set to: read before and after every call of a slot, so it must cost next to nothing."""

from __future__ import annotations

from typing import Any

import torch

from bench.errors import GuardTripped

# Bound once: a look through the module costs more than most of these calls.
_dtype, _threads, _grad, _inference = (
    torch.get_default_dtype,
    torch.get_num_threads,
    torch.is_grad_enabled,
    torch.is_inference_mode_enabled,
)
_functions = torch._C._len_torch_function_stack  # noqa: SLF001 - the public form takes 4 microseconds
_dispatches = torch._C._len_torch_dispatch_stack  # noqa: SLF001 - there is no public form
_deterministic, _precision = torch.are_deterministic_algorithms_enabled, torch.get_float32_matmul_precision
_autocast = torch.is_autocast_enabled
_WHAT = (
    "torch's default dtype",
    "torch's number of threads",
    "torch's gradient mode",
    "torch's inference mode",
    "torch's stack of function modes (a default device is one of them)",
    "torch's stack of dispatch modes",
    "torch's deterministic algorithms",
    "torch's float32 matrix product precision",
    "torch's autocast on the CPU",
    "torch's autocast on CUDA",
    "the current CUDA stream",
)

Settings = tuple[Any, ...]


def read() -> Settings:
    """Return the settings as they stand, in the order of the names above."""
    return (
        _dtype(),
        _threads(),
        _grad(),
        _inference(),
        _functions(),
        _dispatches(),
        _deterministic(),
        _precision(),
        _autocast("cpu"),
        _autocast("cuda"),
        torch.cuda.current_stream() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    )


def changes(before: Settings, after: Settings) -> str:
    """Return the first difference in words, empty if there is none."""
    for what, old, new in zip(_WHAT, before, after, strict=True):
        if old != new and not (what == "the current CUDA stream" and old is None):  # none before CUDA was first used
            return f"{what} from {old} to {new}"
    return ""


def check(before: Settings, who: str) -> None:
    """Raise :class:`~bench.errors.GuardTripped` if the settings are not what they were ``before``."""
    after = read()
    if after != before and (what := changes(before, after)):
        raise GuardTripped(f"{who} changed {what}", hint="put it back before the slot returns")
