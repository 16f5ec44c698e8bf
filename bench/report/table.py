"""Tables as data: what HTML and Markdown both show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.report.text import NONE, known


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: its ``text``, a second line in ``detail``, and the ``value`` by which it sorts (``None``: last).

    ``anchor`` makes the text a link within the page; ``tone`` (``good``, ``bad``, ``open``, ``muted``) colours it and
    never stands alone for a meaning; ``code`` sets it in the typeface of code.
    """

    text: str
    detail: str = ""
    value: float | str | None = None
    anchor: str = ""
    tone: str = ""
    code: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return self.text in {"", NONE} and not self.detail


EMPTY = Cell(text=NONE)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; ``key`` finds its cells, ``head`` is its heading, ``help`` explains it in a few words."""

    key: str
    head: str
    help: str = ""
    numeric: bool = False
    header: bool = False
    """Whether its cells name their rows."""
    wide: bool = False
    """Whether its cells are sentences."""
    keep: bool = False
    """Whether it stays where every cell is empty."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: cells by the keys of the columns; ``group`` (0: none) shows as bands, ``reference`` as a mark."""

    cells: dict[str, Cell]
    group: int = 0
    starts_group: bool = False
    reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its identifier and caption."""

    anchor: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    sortable: bool = True
    notes: Sequence[str] = field(default=())

    @property
    def wordy(self) -> bool:
        """Whether it has sentences, so that its rows are better stacked where the page is narrow."""
        return any(column.wide for column in self.columns)

    @property
    def banded(self) -> bool:
        """Whether the rows form more than one group."""
        return len({row.group for row in self.rows}) > 1


def table(anchor: str, caption: str, columns: Sequence[Column], rows: Sequence[Row], **more: Any) -> Table:
    """Return a table without the columns in which no row has anything."""
    kept = [
        column
        for column in columns
        if column.keep or column.header or any(not row.cells.get(column.key, EMPTY).empty for row in rows)
    ]
    return Table(anchor=anchor, caption=caption, columns=kept, rows=rows, **more)


def cell(text: str, value: Any = None, **more: Any) -> Cell:
    """Return a cell that sorts by ``value``: a number, or a text; NaN and ``None`` sort last."""
    usable = value if known(value) or isinstance(value, str) else None
    return Cell(text=text, value=usable, **more)


def name_cell(text: str, **more: Any) -> Cell:
    """Return a cell that sorts by its text."""
    return Cell(text=text, value=text.casefold(), **more)
