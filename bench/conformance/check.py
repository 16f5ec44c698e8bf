"""What a check is, how it fails, and how the checks of one kind are gathered."""

from __future__ import annotations

import re
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.algorithm import Algorithm, slots
from bench.checkpoint import random_state, set_random_state
from bench.entry import Entry
from bench.registry import Registry

T = TypeVar("T")


class CheckFailed(AssertionError):
    """A property that does not hold: what was expected, and what was found."""


class CheckSkipped(unittest.SkipTest):
    """A property that means nothing for this algorithm, and why; pytest and unittest report it as skipped."""


@dataclass(frozen=True)
class Subject:
    """The algorithm that is checked: its name, and the registry that lists it."""

    name: str
    registry: Registry

    @property
    def cls(self) -> type[Algorithm]:
        """The class of the algorithm."""
        return self.registry.algorithm_class(self.name)

    @property
    def entry(self) -> Entry:
        """What listings show of it."""
        return self.registry.algorithms[self.name]

    def algorithm(self) -> Algorithm:
        """Build the algorithm with its defaults."""
        return self.registry.algorithm(self.name)

    def fills(self, *wanted: str) -> bool:
        """Whether it fills one of the slots ``wanted``."""
        return bool(set(wanted) & set(slots(self.cls)))


Body = Callable[[Subject], None]


@dataclass(frozen=True)
class Property:
    """A property that algorithms of one kind have: ``kind/name``, one sentence, and what proves it."""

    name: str
    what: str
    body: Body = field(repr=False)


@dataclass(frozen=True)
class Check:
    """One property of one algorithm. Call it: nothing happens if the property holds.

    Raises :class:`CheckFailed` if it does not, :class:`CheckSkipped` if it means nothing here. Whatever the algorithm
    raises is a failure as well. The global random generators, torch's default dtype, its thread count and whether
    gradients are recorded are afterwards what they were before.
    """

    name: str
    what: str
    subject: Subject = field(repr=False)
    body: Body = field(repr=False)

    def __call__(self) -> None:
        """Run the check."""
        with _undisturbed():
            try:
                self.body(self.subject)
            except (CheckFailed, CheckSkipped):
                raise
            except AssertionError as error:
                raise CheckFailed(_one_paragraph(str(error))) from error
            except (Exception, SystemExit) as error:
                raise CheckFailed(f"it raised {type(error).__name__}: {_one_paragraph(str(error))}") from error

    def __str__(self) -> str:
        return self.name


class Kind:
    """The properties of one kind; used as a decorator, it adds a function whose first sentence says what it proves."""

    def __init__(self, name: str, applies: Callable[[Subject], bool]) -> None:
        self.name = name
        self.applies = applies
        self.properties: list[Property] = []

    def __call__(self, body: Body) -> Body:
        """Add the property that ``body`` proves."""
        name = f"{self.name}/{getattr(body, '__name__', '').replace('_', '-')}"
        what = " ".join((body.__doc__ or "").partition("\n\n")[0].split())
        self.properties.append(Property(name, what, body))
        return body

    def checks(self, subject: Subject) -> list[Check]:
        """Return the checks of ``subject``; none where this kind is not its own."""
        if not self.applies(subject):
            return []
        return [Check(each.name, each.what, subject, each.body) for each in self.properties]


# -- what checks say -------------------------------------------------------------------------------------------------
def expect(condition: object, message: str) -> None:
    """Raise :class:`CheckFailed` with ``message`` unless ``condition``."""
    if not condition:
        raise CheckFailed(message)


def expect_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise unless both hold the same tensors bit for bit; the message counts the values that differ."""
    gap = difference(found, expected)
    if gap:
        raise CheckFailed(f"{what}: expected the same bits, found that {gap}")


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return in words where two mappings of tensors differ first; empty if they do not."""
    if found.keys() != expected.keys():
        one, other = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
        return f"{one[:3] or 'nothing'} came and {other[:3] or 'nothing'} went"
    for key, value in expected.items():
        text = tensor_difference(found[key], value)
        if text:
            return f"{key} {text}"
    return ""


def tensor_difference(found: Tensor, expected: Tensor) -> str:
    """Return in words how two tensors differ; empty if they are equal in dtype, shape and every bit, NaN included."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"is {found.dtype} of shape {tuple(found.shape)} instead of {expected.dtype} of {tuple(expected.shape)}"
    if found.is_meta or expected.is_meta:
        return ""
    unlike = (found != expected) & ~((found != found) & (expected != expected))  # noqa: PLR0124 - where it is NaN
    count = int(unlike.sum())
    if not count:
        return ""
    most = float((found.detach()[unlike].double() - expected.detach()[unlike].double()).abs().max())
    return f"differs in {count} of {found.numel()} values, by up to {most:.3g}"


def first(problems: Iterable[str]) -> str:
    """Return the first of ``problems`` that is not empty."""
    return next(filter(None, problems), "")


# -- what checks leave behind: nothing -------------------------------------------------------------------------------
@contextmanager
def _undisturbed() -> Iterator[None]:
    """Run the body with one thread, and put back what an algorithm may have changed of the process."""
    before: dict[str, Any] = random_state()
    threads, dtype, recording = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_num_threads(1)  # on a busy machine two threads make toy steps a hundred times slower
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(recording)
        set_random_state(before)


def _one_paragraph(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r" +", " ", printable).strip()
