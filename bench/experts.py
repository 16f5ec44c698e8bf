"""Trained models that are to become one: a sequence that builds each of them when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from torch import nn


class Experts(Sequence["nn.Module"]):
    """The models to merge, built anew at each access, so that memory is what a merging method itself keeps.

    ``build(i)`` returns model number i; ``pretrained()`` returns the model that all of them were trained from, and is
    ``None`` where they share no start. Slices are sequences of the same kind.
    """

    def __init__(
        self, count: int, build: Callable[[int], nn.Module], pretrained: Callable[[], nn.Module] | None = None
    ) -> None:
        self._numbers: Sequence[int] = range(count)
        self._build = build
        self._pretrained = pretrained

    @property
    def pretrained(self) -> nn.Module | None:
        """The common start, built anew; ``None`` if there is none."""
        return None if self._pretrained is None else self._pretrained()

    def behind(self, wrap: Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]) -> Experts:
        """Return the same models, built by functions of which ``wrap`` returns what may be seen."""
        pretrained = None if self._pretrained is None else wrap(self._pretrained)
        hidden = Experts(0, wrap(self._build), pretrained)
        hidden._numbers = self._numbers
        return hidden

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Experts: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Experts:
        if not isinstance(index, slice):
            return self._build(self._numbers[index])
        part = Experts(0, self._build, self._pretrained)
        part._numbers = self._numbers[index]
        return part

    def __iter__(self) -> Iterator[nn.Module]:
        for number in self._numbers:
            yield self._build(number)
