"""Docstrings as blocks of the report: paragraphs, and what is indented below them as it stands."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

from bench.report.document import Block, Code, Piece, Text

_INLINE = re.compile(r"``(?P<literal>[^`]+)``|:[a-z]+:`~?(?P<role>[^`]+)`")
"""The two forms of inline markup that our docstrings use: literals and references."""


def prose(docstring: str | None) -> list[Block]:
    """Return a docstring as blocks; the examples (``>>>``) are left out."""
    blocks: list[Block] = []
    for lines in _chunks(inspect.cleandoc(docstring or "").splitlines()):
        if not lines[0].startswith(" "):
            blocks.append(Text(pieces=_inline(" ".join(line.strip() for line in lines))))
        elif not lines[0].lstrip().startswith(">>>"):
            plain = _INLINE.sub(lambda match: match["literal"] or match["role"], "\n".join(lines))
            blocks.append(Code(lines=textwrap.dedent(plain).splitlines()))
    return blocks


def _chunks(lines: list[str]) -> Iterator[list[str]]:
    """Yield runs of lines that are all indented or all not, without the blank lines around them."""
    run: list[str] = []
    for line in [*lines, ""]:
        if run and (not line.strip() or line.startswith(" ") != run[0].startswith(" ")):
            yield run
            run = []
        if line.strip():
            run.append(line)


def _inline(text: str) -> tuple[Piece, ...]:
    found: list[Piece] = []
    end = 0
    for match in _INLINE.finditer(text):
        found.append(Piece(text=text[end : match.start()]))
        shown = match["literal"] or match["role"]
        found.append(Piece(text=shown if match["literal"] else shown.rpartition(".")[2], code=True))
        end = match.end()
    return tuple(piece for piece in [*found, Piece(text=text[end:])] if piece.text)
