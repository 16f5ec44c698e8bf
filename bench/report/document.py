"""The report as a document: sections of blocks, which HTML and Markdown render each in its own way.

Every text in here is plain text. Nothing is markup but the SVG of a :class:`Picture`, which our own figures wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bench.report.table import Table


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of text: plain, ``strong``, ``code``, or a link to an ``anchor`` of this page or to a ``url``."""

    text: str
    anchor: str = ""
    url: str = ""
    code: bool = False
    strong: bool = False


def pieces(*parts: str | Piece) -> tuple[Piece, ...]:
    """Return ``parts`` as pieces; a bare string is plain text."""
    return tuple(part if isinstance(part, Piece) else Piece(text=part) for part in parts)


_PAPERS = re.compile(r"arXiv:(?P<arxiv>\d{4}\.\d{4,5})(?:v\d+)?|doi:(?P<doi>10\.\d{4,9}/[\w.()/-]+)", re.ASCII)
"""References that are links; nothing else that a plugin names becomes one."""


def source(text: str) -> tuple[Piece, ...]:
    """Return the source of something, its papers as links."""
    found: list[Piece] = []
    end = 0
    for match in _PAPERS.finditer(text):
        home = f"https://arxiv.org/abs/{match['arxiv']}" if match["arxiv"] else f"https://doi.org/{match['doi']}"
        found += [Piece(text=text[end : match.start()]), Piece(text=match[0], url=home)]
        end = match.end()
    return tuple(piece for piece in [*found, Piece(text=text[end:])] if piece.text)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    pieces: tuple[Piece, ...]
    lead: bool = False


def text(*parts: str | Piece, lead: bool = False) -> Text:
    """Return a paragraph of ``parts``."""
    return Text(pieces=pieces(*parts), lead=lead)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Terms, each with what it is here."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, tuple[Piece, ...]]]
    wide: bool = False
    """Whether they are sentences rather than values."""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """A list of remarks under a small heading."""

    kind: ClassVar[str] = "notes"
    title: str
    items: Sequence[tuple[Piece, ...]]


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines to be shown as they are."""

    kind: ClassVar[str] = "code"
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """A table as a block."""

    kind: ClassVar[str] = "table"
    table: Table


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure: its drawing, what it shows in a sentence, and its alternative in words.

    ``name`` is the stem of its files where figures are written as files too.
    """

    anchor: str
    name: str
    title: str
    caption: str
    alternative: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Figures side by side where the page is wide enough."""

    kind: ClassVar[str] = "gallery"
    pictures: Sequence[Picture]


Block = Text | Facts | Notes | Code | Tabular | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section with its heading, blocks and subsections; ``short`` is its name in the table of contents."""

    anchor: str
    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = ()
    short: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def pictures(self) -> list[Picture]:
        """Return every figure, in the order of the page."""
        found: list[Picture] = []
        waiting = list(self.sections)
        while waiting:
            section = waiting.pop(0)
            found += [picture for block in section.blocks if isinstance(block, Gallery) for picture in block.pictures]
            waiting[:0] = section.sections
        return found
