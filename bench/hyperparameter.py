"""Hyperparameters: the fields of an algorithm, each with its domain, its search range and one line of help.

The domain is part of the type (``Annotated[float, Gt(0)]``) and is what may be set at all; the search range is what a
tuning protocol draws from. Both are written once, in the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bench.errors import BadValue, UnknownName

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass(frozen=True)
class Log:
    """Search range, uniform in the logarithm, from ``low`` to ``high``."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"log {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Linear:
    """Search range, uniform from ``low`` to ``high``."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Choice:
    """Search range of equally likely values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


def hyper(default: T, *, help: str, search: Log | Linear | Choice | None = None) -> T:  # noqa: A002 - the field's term
    """Declare a hyperparameter with its published default, a line of help and the range that tuning may search."""
    field: T = dataclasses.field(default=default, metadata={"help": help, "search": search})
    return field


@cache
def _adapters(cls: type) -> dict[str, TypeAdapter[Any]]:
    from pydantic import ConfigDict, TypeAdapter  # imported late: listings do not need it

    config = ConfigDict(allow_inf_nan=False)
    hints = get_type_hints(cls, include_extras=True)
    return {
        field.name: TypeAdapter(hints[field.name], config=config) for field in dataclasses.fields(cls) if field.init
    }


def search_space(cls: type) -> dict[str, Log | Linear | Choice]:
    """Return the hyperparameters of ``cls`` that tuning may search, with their ranges, in the order of the fields."""
    found = {field.name: field.metadata.get("search") for field in dataclasses.fields(cls) if field.init}
    return {name: search for name, search in found.items() if search is not None}


def compound(cls: type) -> list[str]:
    """Return the fields of ``cls`` that hold something else than one number, text, switch or nothing.

    Such values do not survive the way through ``trial.json``: JSON has no tuples and no enumerations.
    """
    hints = get_type_hints(cls, include_extras=True)
    return [field.name for field in dataclasses.fields(cls) if not _simple(hints[field.name])]


def _simple(hint: Any) -> bool:
    if hasattr(hint, "__metadata__"):
        return _simple(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return all(type(value) in _SIMPLE for value in get_args(hint))
    if get_origin(hint) in {Union, UnionType}:
        return all(_simple(part) for part in get_args(hint))
    return hint in _SIMPLE


_SIMPLE = frozenset({int, float, bool, str, type(None)})


def domain(cls: type, name: str) -> str:
    """Return in words what the hyperparameter ``name`` of ``cls`` may be, such as ``float > 0``."""
    return _words(get_type_hints(cls, include_extras=True)[name])


def _words(hint: Any) -> str:
    if hint is type(None):
        return "none"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(hint))
    if hasattr(hint, "__metadata__"):
        kind, *bounds = get_args(hint)
        limits = " and ".join(word for word in map(_bound, bounds) if word)
        return f"{_words(kind)} {limits}".rstrip()
    if get_args(hint):
        return " or ".join(_words(part) for part in get_args(hint))
    return str(getattr(hint, "__name__", hint))


def _bound(bound: object) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    parts = [f"{sign} {getattr(bound, key)}" for key, sign in signs.items() if getattr(bound, key, None) is not None]
    return " and ".join(parts)


def check(cls: type, owner: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` as the fields of ``cls`` hold them (an int for a float field becomes a float).

    One outside the domain of its field raises :class:`~bench.errors.BadValue`.
    """
    adapters = _adapters(cls)
    checked = {}
    for name, value in values.items():
        if name not in adapters:
            raise UnknownName(f"hyperparameter of {owner}", name, adapters)
        checked[name] = _validated(cls, owner, name, value, strings=False)
    return checked


def parse(cls: type, owner: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Turn the texts of ``--set name=value`` into values of the fields of ``cls``; ill-typed ones raise."""
    adapters = _adapters(cls)
    values = {}
    for name, text in texts.items():
        if name not in adapters:
            raise UnknownName(f"hyperparameter of {owner}", name, adapters)
        values[name] = _validated(cls, owner, name, text, strings=True)
    return values


def _validated(cls: type, owner: str, name: str, value: Any, *, strings: bool) -> Any:
    from pydantic import ValidationError

    adapter = _adapters(cls)[name]
    if strings and value.lower() in {"none", "null"} and "none" in domain(cls, name).split(" or "):
        return None
    try:
        return adapter.validate_strings(value) if strings else adapter.validate_python(value, strict=True)
    except ValidationError:
        raise BadValue(
            f"{owner}: {name} = {value!r} ({type(value).__name__}) is not allowed",
            hint=f"{name} is {domain(cls, name)}",
        ) from None
