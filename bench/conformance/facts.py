"""What an algorithm says of itself: its record, its docstring, its hyperparameters, its entry, its sources."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from bench.algorithm import INFORMATION
from bench.beside import CLAIMS
from bench.claims import broken_claims
from bench.conformance import sources
from bench.conformance.check import CheckFailed, CheckSkipped, Kind, Subject, expect
from bench.errors import BadValue
from bench.hyperparameter import Choice, Linear, Log, domain, search_space
from bench.registry import Broken, Registry

facts = Kind("facts", lambda _: True)

MOST_SEARCHED = 4
"""How many hyperparameters a tuning protocol may search."""


@facts
def frozen_keyword_only_record(subject: Subject) -> None:
    """The class is a frozen, keyword-only dataclass: nothing can be put on it."""
    cls = subject.cls
    parameters: Any = getattr(cls, "__dataclass_params__", None)
    expect(parameters is not None and parameters.frozen, f"{cls.__name__} is no frozen dataclass")
    positional = [field.name for field in dataclasses.fields(cls) if not field.kw_only]
    expect(not positional, f"the fields {positional} are not keyword-only")
    try:
        cls().anything = 1  # type: ignore[attr-defined]
    except FrozenInstanceError:
        return
    raise CheckFailed("an attribute could be set on an instance")


@facts
def class_facts_have_their_types(subject: Subject) -> None:
    """Closure is a bool, passes a number from 1, deviations and needs tuples of texts, information a known kind."""
    cls = subject.cls
    expect(isinstance(cls.closure, bool), f"closure is {cls.closure!r}")
    right = isinstance(cls.passes, int) and not isinstance(cls.passes, bool) and cls.passes >= 1
    expect(right, f"passes is {cls.passes!r}")
    for name, texts in (("deviations", cls.deviations), ("needs", cls.needs)):
        expect(isinstance(texts, tuple), f"{name} is {texts!r:.60}; one text needs a comma behind it to be a tuple")
        expect(all(isinstance(text, str) and text for text in texts), f"{name} holds something that is no text")
    unended = [text for text in cls.deviations if not text.endswith(".")]
    expect(not unended, f"a deviation is a sentence and ends in a full stop, unlike {unended[:1]}")
    kind = cls.information
    expect(kind in INFORMATION, f"information is {kind!r}, not one of {', '.join(INFORMATION)}")


@facts
def docstring_names_its_source(subject: Subject) -> None:
    """The docstring has a line Source: and, where the class declares deviations, a line Deviations:."""
    cls = subject.cls
    text = cls.__doc__ or ""
    own = not text.startswith(f"{cls.__name__}(")  # what dataclass puts in place of a docstring
    expect(text and own, f"{cls.__name__} has no docstring")
    expect("Source:" in text, "the docstring has no line 'Source:'")
    said = "Deviations:" in text or not cls.deviations
    expect(said, f"{len(cls.deviations)} deviations are declared, and the docstring has no line 'Deviations:'")


@facts
def entry_is_two_lines(subject: Subject) -> None:
    """Its entry says in one line each where it comes from and what it is."""
    for name in ("paper", "summary"):
        text = getattr(subject.entry, name)
        fine = isinstance(text, str) and text.strip() == text and text and len(text.splitlines()) == 1
        expect(fine, f"{name} is {text!r:.80}; one line without space at its ends is wanted")


@facts
def listing_is_light(subject: Subject) -> None:
    """The module that lists it imports neither torch nor anything else that takes seconds."""
    module = sources.entry_module(subject)
    if module is None:
        raise CheckSkipped("no module lists it")
    heavy = sources.heavy_imports(module, tuple(sys.path))
    expect(not heavy, f"importing {module} imports {', '.join(heavy)}; name the class by target and import it there")


# -- hyperparameters -------------------------------------------------------------------------------------------------
@facts
def hyperparameters_have_help_and_domain(subject: Subject) -> None:
    """Every hyperparameter has a line of help, a domain with bounds, and a default inside it of its own type."""
    cls = subject.cls
    cls()
    for field in dataclasses.fields(cls):
        words = domain(cls, field.name)
        expect(field.metadata.get("help"), f"{field.name} has no help: declare it by hyper(default, help=...)")
        expect(words not in {"float", "int", "str"}, f"{field.name} is any {words}: it has no bounds")
        if words.startswith("float") and field.default is not None:
            expect(isinstance(field.default, float), f"{field.name} is a float, its default {field.default!r} is not")


@facts
def search_ranges_inside_the_domain(subject: Subject) -> None:
    """At most four hyperparameters have a search range, and each range lies inside the domain of its field."""
    cls = subject.cls
    searched = search_space(cls)
    expect(
        len(searched) <= MOST_SEARCHED, f"{len(searched)} hyperparameters are searched, {MOST_SEARCHED} at most may be"
    )
    for name, search in searched.items():
        for value in _ends(search):
            try:
                cls.check(**{name: value})
            except BadValue as error:
                raise CheckFailed(f"the search range of {name} reaches outside: {error.message}") from error
        expect(_in_order(search), f"the search range of {name}, {search}, is empty or upside down")


def _ends(search: Log | Linear | Choice) -> tuple[Any, ...]:
    return search.values if isinstance(search, Choice) else (search.low, search.high)


def _in_order(search: Log | Linear | Choice) -> bool:
    if isinstance(search, Choice):
        return len(set(search.values)) == len(search.values) > 1
    return search.low < search.high and (search.low > 0 or isinstance(search, Linear))


@facts
def bad_values_are_refused(subject: Subject) -> None:
    """A value outside the domain raises BadValue, which names the hyperparameter and the value."""
    cls, tried = subject.cls, 0
    for name, value in _outside(cls):
        tried += 1
        try:
            cls(**{name: value})
        except BadValue as error:
            told = name in error.message and repr(value) in error.message
            expect(told, f"the message for {name} = {value!r} names neither: {error.message}")
        except Exception as error:
            raise CheckFailed(f"{name} = {value!r} raises {type(error).__name__}, not BadValue: {error}") from error
        else:
            raise CheckFailed(f"{name} = {value!r} is accepted; allowed is {domain(cls, name)}")
    if not tried:
        raise CheckSkipped("it has no hyperparameters")


def _outside(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield values outside the domain of every field: another type, no number, and just beyond each bound."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if name not in {field.name for field in dataclasses.fields(cls)}:
            continue
        yield name, ["a list"]
        words = domain(cls, name)
        if words.startswith("float"):
            yield from ((name, value) for value in (math.nan, math.inf, -math.inf))
        whole = words.startswith("int")
        for part in (hint, *get_args(hint)):
            for bound in getattr(part, "__metadata__", ()):
                yield from ((name, value) for value in _beyond(bound, whole=whole))


def _beyond(bound: Any, *, whole: bool) -> Iterator[int | float]:
    step = 1 if whole else 1e-6
    for key, distance in (("gt", 0), ("ge", -step), ("lt", 0), ("le", step)):
        edge = getattr(bound, key, None)
        if edge is not None:
            yield int(edge + distance) if whole else float(edge + distance)


# -- sources ---------------------------------------------------------------------------------------------------------
@facts
def names_no_workload(subject: Subject) -> None:
    """No text in its sources, outside of what is written for people, is a workload's name: nothing to branch on."""
    found = sources.named_workloads(sources.parsed(subject), subject.registry.workloads)
    told = [f"{name!r} in {place}" for place, name in found]
    expect(not found, f"its sources name {'; '.join(told[:3])}")


@facts
def uses_public_modules_only(subject: Subject) -> None:
    """Of other packages it imports no private modules and no private names."""
    found = sources.private_imports(sources.parsed(subject))
    told = [f"{name} in {place}" for place, name in found]
    expect(not found, f"it imports {'; '.join(told[:3])}")


@lru_cache(maxsize=8)
def _broken(registry: Registry) -> list[Broken]:
    return broken_claims(registry)


@facts
def claims_are_valid(subject: Subject) -> None:
    """The file of published claims beside its module, where there is one, is valid."""
    file = f"{subject.entry.target.partition(':')[0]}{CLAIMS}"
    broken = [found.reason for found in _broken(subject.registry) if found.name == file]
    expect(not broken, "; ".join(broken))
