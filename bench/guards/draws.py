"""The global random generators of torch, numpy and Python: has anything drawn from one, or seeded it?

Read around every call that has no business with them, so the states are not copied where their position tells enough:
torch's 5 KB are, in a microsecond; numpy's and Python's, which would take 50, are looked at in place.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.errors import GuardTripped

Reading = tuple[Any, ...]
_WORDS = 624
"""Length of the Mersenne twister's state: after each 624 draws all of its words are new."""


def _words_at(position: int, first: int) -> Callable[[], Reading]:
    """Return what reads a position and a first word at these addresses; a seed or 624 draws change the word."""
    place, word = ctypes.c_int.from_address(position), ctypes.c_uint32.from_address(first)
    return lambda: (place.value, word.value)


def _python_view(generator: random.Random) -> Callable[[], Reading]:
    """Return what reads a generator of Python in place; its whole state where this Python keeps it otherwise."""
    start = id(generator) + object.__basicsize__
    view, other = _words_at(start, start + 4), random.Random(0)  # noqa: S311 - no secret
    start = id(other) + object.__basicsize__
    probe = _words_at(start, start + 4)
    for _ in range(3):
        words = other.getstate()[1]
        if probe() != (words[-1], words[0]):
            return generator.getstate
        other.random()
    return view


def _numpy_view() -> Callable[[], Reading]:
    """Return what reads position and first word of numpy's global generator, as its documented C interface has them."""
    address = np.random.mtrand._rand._bit_generator.ctypes.state_address  # noqa: SLF001 - the global one
    view = _words_at(address + 4 * _WORDS, address)
    _, keys, place, *_ = _numpy_state()
    return view if view() == (place, int(keys[0])) else lambda: (_numpy_state()[1].tobytes(), *_numpy_state()[2:])


def _numpy_state() -> tuple[Any, ...]:
    state: Any = np.random.get_state()  # noqa: NPY002 - the global generator is what is watched
    return tuple(state)


_read_numpy = _numpy_view()
_read_python = _python_view(random._inst)  # noqa: SLF001 - the one behind random.random
_NAMES = ("torch's", "numpy's", "Python's", "the CUDA device's")


def _torch_cpu() -> bytes:
    state = torch.default_generator.get_state()
    return ctypes.string_at(state.data_ptr(), state.numel())


def read(device: torch.device) -> Reading:
    """Return where the generators stand."""
    cuda = None
    if device.type == "cuda":
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        cuda = (generator.initial_seed(), generator.get_offset())
    return _torch_cpu(), _read_numpy(), _read_python(), cuda


def check(before: Reading, device: torch.device, who: str) -> None:
    """Raise :class:`~bench.errors.GuardTripped` if a generator is not where it was ``before``."""
    after = read(device)
    if after != before:
        names = [name for name, old, new in zip(_NAMES, before, after, strict=True) if old != new]
        raise GuardTripped(
            f"{who} drew from {' and '.join(names)} global random generator, or seeded it",
            hint="draw from run.rng(purpose), which is the algorithm's own",
        )
