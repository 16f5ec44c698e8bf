"""Hyperparameters: domains, texts of the command line, and what a bad value says."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BadValue, UnknownName
from bench.hyperparameter import Choice, Linear, Log, check, compound, domain, hyper, parse


@dataclass(frozen=True, kw_only=True)
class Toy:
    lr: Annotated[float, Gt(0)] = hyper(0.1, search=Log(1e-3, 1.0), help="learning rate")
    beta: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, search=Choice((0.9, 0.99)), help="decay")
    rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank; none: all of it")
    share: Annotated[float, Ge(0), Le(1)] = hyper(0.5, search=Linear(0.0, 1.0), help="a share")
    nesterov: bool = hyper(True, help="look ahead")
    decay: Literal["none", "cosine"] = hyper("cosine", help="kind of decay")
    note: str = hyper("", help="free text")


def bad(name, value):
    with pytest.raises(BadValue) as caught:
        check(Toy, "toy", {name: value})
    return caught.value


def test_a_field_carries_default_help_and_search_range():
    field = next(field for field in dataclasses.fields(Toy) if field.name == "lr")
    assert field.default == 0.1
    assert field.metadata == {"help": "learning rate", "search": Log(1e-3, 1.0)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lr", "float > 0"),
        ("beta", "float >= 0 and < 1"),
        ("rank", "int >= 1 or none"),
        ("share", "float >= 0 and <= 1"),
        ("nesterov", "bool"),
        ("decay", "one of 'none', 'cosine'"),
        ("note", "str"),
    ],
)
def test_a_domain_reads_as_words(name, words):
    assert domain(Toy, name) == words


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 1e-9), ("lr", 3), ("beta", 0.0), ("rank", None), ("rank", 7), ("nesterov", False), ("decay", "none")],
)
def test_values_inside_the_domain_pass(name, value):
    assert check(Toy, "toy", {name: value}) == {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("lr", None),
        ("lr", True),
        ("beta", 1.0),
        ("beta", -0.1),
        ("rank", 0),
        ("rank", 1.5),
        ("rank", "4"),
        ("nesterov", 1),
        ("decay", "linear"),
        ("note", None),
    ],
)
def test_values_outside_the_domain_or_of_another_type_are_refused(name, value):
    error = bad(name, value)
    assert error.message == f"toy: {name} = {value!r} ({type(value).__name__}) is not allowed"
    assert error.hint == f"{name} is {domain(Toy, name)}"


def test_an_unknown_hyperparameter_suggests_a_known_one():
    for use in (lambda: check(Toy, "toy", {"betta": 0.9}), lambda: parse(Toy, "toy", {"betta": "0.9"})):
        with pytest.raises(UnknownName, match="no hyperparameter of toy named 'betta'") as caught:
            use()
        assert caught.value.hint == "did you mean 'beta'?"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "3e-4", 3e-4),
        ("lr", "1", 1.0),
        ("rank", "128", 128),
        ("rank", "none", None),
        ("rank", "None", None),
        ("rank", "null", None),
        ("nesterov", "false", False),
        ("nesterov", "yes", True),
        ("decay", "cosine", "cosine"),
        ("decay", "none", "none"),
        ("note", "none", "none"),
    ],
)
def test_texts_become_values_of_the_right_type(name, text, value):
    found = parse(Toy, "toy", {name: text})[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lr", "0"),
        ("lr", "nan"),
        ("lr", "inf"),
        ("lr", "1e999"),
        ("lr", "fast"),
        ("lr", ""),
        ("lr", "none"),
        ("rank", "1.5"),
        ("rank", "0"),
        ("nesterov", "maybe"),
        ("decay", "linear"),
    ],
)
def test_ill_typed_texts_are_refused_as_they_were_typed(name, text):
    with pytest.raises(BadValue) as caught:
        parse(Toy, "toy", {name: text})
    assert caught.value.message == f"toy: {name} = {text!r} (str) is not allowed"
    assert caught.value.hint == f"{name} is {domain(Toy, name)}"


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False))
def test_every_number_survives_being_typed(value):
    assert parse(Toy, "toy", {"lr": repr(value)}) == {"lr": value}


def test_fields_that_json_cannot_carry_are_found():
    @dataclass(frozen=True, kw_only=True)
    class Mixed:
        rate: Annotated[float, Gt(0)] = 1.0
        rank: Annotated[int, Ge(1)] | None = None
        side: Literal["left", "right"] = "left"
        betas: tuple[float, float] = (0.9, 0.99)
        table: dict[str, float] | None = None

    assert compound(Mixed) == ["betas", "table"]
