"""Tensors that take minutes to make and are the same each time: made once, kept in a cache, known by their hash.

A workload after training starts from trained models. What trains them is a *recipe*: facts that determine the result,
a version among them. The bits may still differ between processors, so the hash of what was made goes into the record.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor

from bench.trial import digest

CACHE = "BENCH_CACHE"
"""Environment variable that names the folder of the cache."""

Tensors = dict[str, Tensor]


def cache_folder() -> Path:
    """Return the folder of the cache: that of :data:`CACHE`, else the user's own for this program."""
    named = os.environ.get(CACHE)
    return Path(named) if named else user_cache_path("bench-training")


def cached(kind: str, recipe: Mapping[str, Any], build: Callable[[], Tensors]) -> tuple[Tensors, str]:
    """Return the tensors of ``recipe`` and their SHA-256; ``build`` makes them if the cache has none.

    ``recipe`` is all that determines the result, as JSON. Of several processes that ask at once one builds and the
    others wait. A file that cannot be read is made anew. Where the folder cannot be written, what is made is kept for
    the life of the process.
    """
    folder = cache_folder() / kind
    path = folder / f"{digest(dict(recipe))[:20]}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            state = _read(path)
            if state is None:
                state = build()
                _write(path, state)
    except OSError:
        state = _KEPT[path] if path in _KEPT else _KEPT.setdefault(path, build())
    return state, tensors_sha256(state)


_KEPT: dict[Path, Tensors] = {}
"""What could not be written."""


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and contents."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _read(path: Path) -> Tensors | None:
    if not path.exists():
        return None
    try:
        state: Tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return state


def _write(path: Path, state: Tensors) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    torch.save(state, temporary)
    temporary.replace(path)
