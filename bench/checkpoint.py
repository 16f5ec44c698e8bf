"""Save and restore everything stateful of a run, so that a killed trial goes on bit for bit on the CPU."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.assembly import Parts
from bench.errors import BadStore
from bench.files import archive_fault, replacing, writing


def save(path: Path, parts: Parts, progress: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; ``progress`` is the caller's own state (step, clock, calibration).

    Where it cannot be written, :class:`~bench.errors.CannotWrite` is raised and the checkpoint before is whole.
    """
    content = {
        "progress": dict(progress),
        "model": parts.model.state_dict(),
        "trainable": [name for name, parameter in parts.model.named_parameters() if parameter.requires_grad],
        "optimizer": parts.optimizer.state_dict(),
        "parts": {name: part.state_dict() for name, part in parts.stateful().items()},
        "generators": {
            owner: {purpose: generator.get_state() for purpose, generator in pool.items()}
            for owner, pool in parts.generators.items()
        },
        "random": random_state(),
    }
    temporary = path.with_suffix(".tmp")
    with writing(path), replacing(temporary, path), temporary.open("wb") as file:
        torch.save(content, file)  # into a file of Python's, whose errors say what the system said


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, tensors on the CPU; one that cannot be read raises ``BadStore``."""
    if fault := archive_fault(path):
        raise BadStore(f"the checkpoint of this trial cannot be read: {fault}")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes the library raise is no closed set
        raise BadStore(f"the checkpoint of this trial cannot be read: {type(error).__name__}") from error
    return content


def restore(content: Mapping[str, Any], parts: Parts) -> None:
    """Put the ``content`` of a checkpoint into freshly assembled ``parts`` and the global random generators."""
    device = parts.run.device
    parts.model.load_state_dict(content["model"])
    trainable = set(content["trainable"])
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_(name in trainable)
    parts.optimizer.load_state_dict(content["optimizer"])
    for name, part in parts.stateful().items():
        part.load_state_dict(content["parts"][name])
    for owner, pool in content["generators"].items():
        for purpose, state in pool.items():
            generator = parts.generators[owner].get(purpose) or torch.Generator(device)
            generator.set_state(state)
            parts.generators[owner][purpose] = generator  # type: ignore[index]
    set_random_state(content["random"])


def seed_random_state(seed: int) -> None:
    """Seed every global random generator."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - as below
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator, in types that a safe loader accepts."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - a plugin may use the global generator
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, [int(key) for key in keys], *rest],
        "python": [version, list(words), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
