"""Tables for people, whatever the width of their terminal, and for programs."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bench.commands._print import bytes_text, echo, printable, render, seconds_text, show_table, words

ROWS = [
    {
        "name": "galore",
        "track": "optimizer",
        "value": 1.5,
        "summary": "Adam on a low-rank projection of each gradient matrix",
    },
    {"name": "lion", "track": "optimizer", "value": math.nan, "summary": "step by a sign"},
    {"name": "x", "track": "schedule", "value": None, "summary": ""},
]


def lines(text):
    return text.splitlines()


# -- for people ------------------------------------------------------------------------------------------------------
def test_a_wide_terminal_shows_one_line_per_row():
    text = lines(render(ROWS, "table", width=100))
    assert text[0].split() == ["name", "track", "value", "summary"]
    assert set(text[1]) <= {"-", " "}
    assert len(text) == 2 + len(ROWS)
    assert "Adam on a low-rank projection of each gradient matrix" in text[2]


def test_what_is_unknown_is_a_dash():
    text = lines(render(ROWS, "table", width=100))
    assert text[3].split()[2] == "-"
    assert text[4].split() == ["x", "schedule", "-"]


@pytest.mark.parametrize("width", [60, 80])
def test_the_named_column_gives_way_on_a_narrow_terminal(width):
    text = lines(render(ROWS, "table", width=width, fold=["summary"]))
    assert set(text[1]) <= {"-", " "}
    assert max(map(len, text)) <= width
    assert "galore" in text[2]
    folded = " ".join(line[text[0].index("summary") :].strip() for line in text[2:])
    assert "Adam on a low-rank projection of each gradient matrix" in folded


@pytest.mark.parametrize("fold", [[], ["summary"], ["value"]])
def test_where_no_column_can_give_way_each_row_becomes_a_block(fold):
    blocks = render(ROWS, "table", width=40, fold=fold).split("\n\n")
    assert len(blocks) == len(ROWS)
    assert lines(blocks[1]) == ["name     lion", "track    optimizer", "value    -", "summary  step by a sign"]


def test_a_block_leaves_out_what_is_empty():
    blocks = render(ROWS, "table", width=40).split("\n\n")
    assert lines(blocks[2]) == ["name   x", "track  schedule", "value  -"]


def test_columns_give_way_one_after_the_other():
    rows = [{"id": "1", "first": "a " * 20, "second": "b " * 20}]
    text = lines(render(rows, "table", width=70, fold=["first", "second"]))
    assert max(map(len, text)) <= 70
    assert "b " * 19 + "b" in text[2]
    text = lines(render(rows, "table", width=45, fold=["first", "second"]))
    assert max(map(len, text)) <= 45


TEXTS = st.text(st.sampled_from("ab c|é-"), max_size=30)


@settings(max_examples=60)
@given(
    st.lists(st.fixed_dictionaries({"a": TEXTS, "b": TEXTS, "a rather long heading": TEXTS}), min_size=1, max_size=4),
    st.sampled_from([40, 60, 80]),
    st.lists(st.sampled_from(["a", "b", "a rather long heading"]), unique=True),
)
def test_a_table_is_never_wider_than_the_terminal(rows, width, fold):
    text = lines(render(rows, "table", width=width, fold=fold))
    if len(text) > 1 and set(text[1]) <= {"-", " "} and "-" in text[1]:
        assert max(map(len, text)) <= width


@pytest.mark.parametrize("form", ["table", "md"])
def test_no_rows_say_so(form):
    assert render([], form, width=80) == "(nothing)"


def test_numbers_are_shown_as_they_are():
    text = lines(render([{"a": "1e-3", "b": "010", "c": 1e-8}], "table", width=80))
    assert text[2].split() == ["1e-3", "010", "1e-08"]


def test_markdown_has_as_many_cells_in_each_line_whatever_they_hold():
    rows = [{"a": "x | y", "b": "1"}, {"a": "two\nlines", "b": None}]
    text = lines(render(rows, "md", width=10))
    assert len(text) == 4
    assert [line.replace(r"\|", "").count("|") for line in text] == [3] * 4
    assert r"x \| y" in text[2]


def test_the_width_of_the_terminal_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    show_table(ROWS, "table")
    assert lines(capsys.readouterr().out)[0] == "name     galore"
    monkeypatch.setenv("COLUMNS", "200")
    show_table(ROWS, "table")
    assert lines(capsys.readouterr().out)[0].split() == ["name", "track", "value", "summary"]


# -- for programs ----------------------------------------------------------------------------------------------------
def test_json_has_null_for_what_is_not_a_number():
    rows = [*ROWS, {"name": "y", "track": "", "value": math.inf, "summary": True}]
    found = json.loads(render(rows, "json", width=10), parse_constant=pytest.fail)
    assert [row["value"] for row in found] == [1.5, None, None, None]
    assert found[0] == ROWS[0]
    assert found[3]["summary"] is True
    assert json.loads(render([], "json", width=80)) == []


def test_csv_is_read_back_with_every_cell():
    rows = [{"a": 'say "x, y"', "b": 1.5}, {"a": "two\nlines", "b": None}]
    found = list(csv.DictReader(io.StringIO(render(rows, "csv", width=10))))
    assert found == [{"a": 'say "x, y"', "b": "1.5"}, {"a": "two\nlines", "b": ""}]
    assert render([], "csv", width=80) == ""


def test_programs_get_the_same_at_any_width():
    for form in ("json", "csv", "md"):
        assert render(ROWS, form, width=40, fold=["summary"]) == render(ROWS, form, width=200)


# -- units -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.536 kB"),
        (3_440_000, "3.44 MB"),
        (6_738_415_616, "6.738 GB"),
        (81_920_000_000, "81.92 GB"),
    ],
)
def test_bytes_read_in_decimal_units(value, text):
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0, "0.0 s"),
        (0.04, "0.0 s"),
        (63.21, "63.2 s"),
        (119.9, "119.9 s"),
        (120, "2.0 min"),
        (7199, "120.0 min"),
        (7200, "2.0 h"),
        (360_000, "100.0 h"),
    ],
)
def test_seconds_read_in_the_unit_that_fits(value, text):
    assert seconds_text(value) == text


# -- what strangers wrote ----------------------------------------------------------------------------------------------
STRANGE = "\x1b[2J\x1b]0;owned\x07 a\rb\x08c \u202egnp \u200b \ud800 \x9b31m \x00 \u2028"


@pytest.mark.parametrize("form", ["table", "md"])
def test_what_a_terminal_would_obey_is_shown_as_escapes(form):
    text = render([{STRANGE: STRANGE, "b": "1\n2\t3"}], form, width=1000, fold=[STRANGE])
    assert text.encode("utf-8")
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(lines(text)) == 3, "a row stays one line"
    shown = text.replace("\\\\", "\\")
    for part in (
        r"\x1b[2J\x1b]0;owned\x07",
        r"a\rb\x08c",
        r"\u202egnp",
        r"\u200b",
        r"\ud800",
        r"\x9b31m",
        r"\x00",
        "1 2 3",
    ):
        assert part in shown


@given(st.text())
def test_whatever_is_printed_is_printable_and_nothing_printable_changes(text):
    shown = printable(text)
    assert all(
        char.isprintable() or char in "\n\t" or unicodedata.category(char) in {"Zs", "Cn", "Co"} for char in shown
    )
    if text.isprintable():
        assert shown == text


def test_printed_words_keep_their_lines(capsys):
    echo("one \x1b[1m\n\ttwo")
    assert capsys.readouterr().out == "one \\x1b[1m\n\ttwo\n"


HOSTILE = (
    "<script>alert(1)</script> [x](javascript:alert(2)) ![y](http://x.y/z) [z][w] a\\|b | <img src=x onerror=alert(3)>"
)


def test_cells_and_words_of_markdown_are_no_markup():
    table = render([{"a": HOSTILE, HOSTILE: "1"}], "md", width=10)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(f"{table}\n\n{words(HOSTILE, 'md')}\n")
    flat = [*tokens, *(child for token in tokens for child in token.children or ())]
    assert {token.type for token in flat} & {"html_block", "html_inline", "link_open", "image"} == set()
    cells = [token.content for token in flat if token.type == "text"]
    assert "".join(cells).count("<script>alert(1)</script>") == 3
    assert len([token for token in flat if token.type == "td_open"]) == 2
    assert words(HOSTILE, "table") == HOSTILE
