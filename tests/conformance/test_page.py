"""docs/check.md lists every check and every diagnostic with the sentence that the library has for it."""

from __future__ import annotations

import re
from pathlib import Path

from bench.conformance import properties
from bench.diagnostics import DIAGNOSTICS

PAGE = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([\w/-]+)` \| (?:(.*?) \| )?(.*?) \|$", PAGE, re.MULTILINE)


def test_the_page_lists_every_check_with_its_sentence_in_their_order():
    checks = [(name, what) for name, quantity, what in ROWS if not quantity]
    assert checks == [(each.name, each.what) for each in properties()]


def test_the_page_lists_every_diagnostic_with_its_quantity_and_question():
    diagnostics = [row for row in ROWS if row[1]]
    assert diagnostics == [(each.name, each.quantity, each.what) for each in DIAGNOSTICS]


def test_every_sentence_is_one():
    for each in properties():
        assert re.fullmatch(r"[A-Zrsa][^|]*\.", each.what), each
    for each in DIAGNOSTICS:
        assert re.fullmatch(r"[A-Z][^|]*\?", each.what), each
