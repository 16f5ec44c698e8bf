"""Tensors that must stay as they are for a while: their versions, which every in-place operation counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from bench.errors import GuardTripped

_DEPTH = 4
"""How deep the tensors of an optimizer's state are looked for."""


def _mark(tensor: Tensor) -> tuple[int, int]:
    """Return version and address; an inference tensor has no version, and one without storage no address."""
    version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - torch's own name for it
    try:
        return version, tensor.data_ptr()
    except RuntimeError:  # sparse tensors, and those that wrap others
        return version, 0


class BatchMarks:
    """A batch as it was handed over: a step must not write into it."""

    __slots__ = ("_batch", "_items")

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._batch = batch
        self._items = [(k, v, v._version if isinstance(v, Tensor) else 0) for k, v in batch.items()]  # noqa: SLF001 - as above

    def check(self, who: str) -> None:
        """Raise :class:`~bench.errors.GuardTripped` if the batch is not what it was."""
        if len(self._batch) != len(self._items) or any(self._batch.get(key) is not old for key, old, _ in self._items):
            raise GuardTripped(
                f"{who} changed the batch itself, from the keys {[key for key, *_ in self._items]} to "
                f"{list(self._batch)} or the tensors under them",
                hint="return a new mapping: {**batch, ...}",
            )
        for key, tensor, version in self._items:
            if isinstance(tensor, Tensor) and tensor._version != version:  # noqa: SLF001 - as above
                raise GuardTripped(
                    f"{who} wrote into the batch: {key!r} went from version {version} to {tensor._version}",  # noqa: SLF001 - as above
                    hint="work on a copy",
                )


class TrainingMarks:
    """Everything that training has made, while an evaluation looks at it."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        named: list[tuple[str, str, Tensor]] = []
        named += [("parameter", name, tensor) for name, tensor in model.named_parameters()]
        named += [("buffer", name, tensor) for name, tensor in model.named_buffers()]
        named += [("state of the optimizer", "", tensor) for tensor in _tensors(getattr(optimizer, "state", {}), 0)]
        self._marks = [(kind, name, tensor, _mark(tensor)) for kind, name, tensor in named]

    def check(self, who: str) -> None:
        """Raise :class:`~bench.errors.GuardTripped` if anything was written to since."""
        for kind, name, tensor, mark in self._marks:
            if (now := _mark(tensor)) != mark:
                what = f"the {kind} {name!r}" if name else f"a {kind}"
                raise GuardTripped(
                    f"{who} changed {what} during an evaluation (version and address {mark}, then {now})",
                    hint="a model must not learn while it is evaluated",
                )


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth < _DEPTH and isinstance(value, (Mapping, list, tuple)):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(child, depth + 1)
