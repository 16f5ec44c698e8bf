"""Weights that a user names: files with a state dict, or folders of such files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.artifacts import tensors_sha256
from bench.errors import BadData

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pt", ".pth")
"""The kinds of files that are read: safetensors, and what ``torch.save(model.state_dict(), file)`` writes."""


def state_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the named files; a folder stands for its files, with numbers in their names in numerical order.

    Raises :class:`~bench.errors.BadData` for what is missing, for other kinds of files and for empty folders.
    """
    return tuple(file for path in paths for file in _files_of(path))


def _files_of(path: Path) -> list[Path]:
    kinds = ", ".join(SUFFIXES)
    if path.is_dir():
        found = sorted((file for file in path.iterdir() if file.suffix in SUFFIXES), key=_natural)
        if not found:
            raise BadData(f"--model-dir {path}: the folder has no file {kinds}", hint="name the folder of the weights")
        return found
    if not path.exists():
        raise BadData(f"--model-dir {path}: there is no such file or folder", hint="check the path")
    if path.suffix not in SUFFIXES:
        raise BadData(f"--model-dir {path} is no folder and no file of a kind that is read", hint=f"one of {kinds}")
    return [path]


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors in ``path``; nothing in the file is executed."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise BadData(
            f"{path} cannot be read as a state dict: {str(error).splitlines()[0]}",
            hint="write it with torch.save(model.state_dict(), file)",
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadData(
            f"{path} holds {type(state).__name__}, not a state dict of tensors alone",
            hint="write it with torch.save(model.state_dict(), file)",
        )
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise BadData(
            f"{path} needs the package 'safetensors', which cannot be imported: {error}",
            hint="pip install safetensors, or save a state dict with torch.save",
        ) from error
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadData(f"{path} cannot be read: {error}", hint="write it with safetensors.torch.save_file") from error
    return state


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Return ``model`` with the weights of ``state``, which was read from ``path`` and must fit tensor by tensor."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != given:
        differences = [
            f"{name} is {_shape(given.get(name))}, but must be {_shape(wanted.get(name))}"
            for name in [*wanted, *sorted(given.keys() - wanted.keys())]
            if wanted.get(name) != given.get(name)
        ]
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise BadData(
            f"{path} does not fit the architecture: {'; '.join(differences[:3])}{more}",
            hint="all models have the names and shapes that the workload's page lists",
        )
    model.load_state_dict(state)
    return model


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(shape)


def states_sha256(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the tensors in ``files``, in this order, whatever the kinds of the files."""
    return tensors_sha256(
        {f"{number}.{name}": value for number, file in enumerate(files) for name, value in read_state(file).items()}
    )
