"""User errors: one message, a hint, and a tree that the module's docstring draws."""

from __future__ import annotations

import re

import pytest

from bench import errors
from bench.errors import BadValue, BenchError, UnknownName

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and value.__module__ == "bench.errors"
}


def test_a_message_without_a_hint_is_all_that_is_printed():
    assert str(BenchError("the file is empty")) == "the file is empty"


def test_a_hint_follows_the_message_after_a_blank_line():
    error = BenchError("the file is empty", hint="give another one")
    assert (error.message, error.hint) == ("the file is empty", "give another one")
    assert str(error) == "the file is empty\n\nHint: give another one"


@pytest.mark.parametrize(("typed", "meant"), [("galor", "galore"), ("galore8bit", "galore-8bit"), ("mion", "muon")])
def test_an_unknown_name_suggests_the_nearest_one(typed, meant):
    error = UnknownName("plugin", typed, ["muon", "galore", "galore-8bit", "adamw"])
    assert error.message == f"no plugin named {typed!r}"
    assert error.hint == f"did you mean {meant!r}?"


def test_an_unknown_name_near_nothing_lists_what_is_known_in_order():
    assert UnknownName("tier of micro", "huge", ["tiny", "60m", "130m"]).hint == "known: 130m, 60m, tiny"


def test_an_unknown_name_among_none_says_so():
    assert UnknownName("plugin", "galore", iter(())).hint == "known: none"


def test_a_bad_value_is_a_value_error_too():
    with pytest.raises(ValueError, match="lr is -1"):
        raise BadValue("lr is -1", hint="positive")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_tree_in_the_docstring_names_every_error(name):
    tree = re.findall(r"^(?:[│ ]*[├└]── )?([A-Z]\w+)\s{2,}(\S.*)$", errors.__doc__, re.MULTILINE)
    assert name in dict(tree)


def test_the_tree_names_nothing_else_and_every_error_derives_from_the_base():
    tree = re.findall(r"^(?:[│ ]*[├└]── )?([A-Z]\w+)\s{2,}", errors.__doc__, re.MULTILINE)
    assert sorted(tree) == sorted(CLASSES)
    assert all(issubclass(cls, BenchError) for cls in CLASSES.values())
