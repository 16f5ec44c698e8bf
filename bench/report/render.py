"""From the document to text: one HTML file that needs nothing else, or Markdown.

Every text is escaped on its way out: by jinja2's autoescape in HTML, by :func:`markdown` in Markdown. The HTML allows
one script, ours, by its hash, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bench.report.document import Page, Picture, Piece
from bench.report.table import EMPTY, Cell, Column, Row, Table
from bench.report.text import clean

LONG = 40
"""A fact with more characters has a line of its own."""


def html(page: Page) -> str:
    """Return the page as HTML5: styles, script and figures inside, nothing loaded from anywhere."""
    script = _resource("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (
        _html()
        .get_template("base.html.j2")
        .render(
            page=page,
            empty=EMPTY,
            style=Markup(_resource("style.css")),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=f"sha256-{digest}",
        )
    )
    return _tidy(text)


def markdown(page: Page, folder: str | None = None) -> str:
    """Return the page as Markdown; figures link to the SVG files in ``folder``, as seen from the page's file."""
    environment = _markdown()
    environment.filters["image"] = lambda picture: _image(picture, folder)
    return _tidy(environment.get_template("report.md.j2").render(page=page))


def _tidy(text: str) -> str:
    """Return ``text`` with no more than one empty line in a row, and one newline at its end."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"


@cache
def _resource(name: str) -> str:
    return resources.files("bench.report").joinpath("templates", name).read_text("utf-8")


def _environment(**options: Any) -> Environment:
    loader = PackageLoader("bench.report", "templates")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)  # noqa: S701 - each caller sets autoescape or an equal


# -- HTML ----------------------------------------------------------------------------------------------------------
def _html() -> Environment:
    environment = _environment(autoescape=True, finalize=_cleaned)
    environment.filters["drawing"] = _drawing
    environment.filters["long"] = lambda pieces: sum(len(piece.text) for piece in pieces) > LONG
    environment.filters["breakable"] = _breakable
    environment.filters["table_class"] = _table_class
    environment.filters["row_class"] = _row_class
    environment.filters["cell_class"] = _cell_class
    environment.filters["sort_value"] = _sort_value
    return environment


def _cleaned(value: Any) -> Any:
    return value if isinstance(value, Markup) else clean(value)


def _drawing(svg: str) -> Markup:
    return Markup(clean(svg))  # noqa: S704 - bench.figures escapes what it writes


def _breakable(text: str) -> Markup:
    """Return a name that a narrow column may break after an underscore."""
    return escape(clean(text)).replace("_", Markup("_<wbr>"))


def _table_class(table: Table) -> Markup:
    return _classes([name for name in ("sortable" * table.sortable, "wordy" * table.wordy) if name])


def _row_class(row: Row, banded: bool) -> Markup:
    names = {
        "band": banded and row.group % 2 == 1,
        "starts": banded and row.starts_group,
        "reference": row.reference,
    }
    return _classes([name for name, on in names.items() if on])


def _cell_class(cell: Cell, column: Column) -> Markup:
    return _classes([name for name in ("number" * column.numeric, "words" * column.wide, cell.tone) if name])


def _classes(names: Sequence[str]) -> Markup:
    return Markup(' class="{}"').format(" ".join(names)) if names else Markup("")


def _sort_value(cell: Cell) -> Markup:
    if cell.value is None:
        return Markup("")
    infinite = isinstance(cell.value, float) and math.isinf(cell.value)
    value = ("Infinity" if cell.value > 0 else "-Infinity") if infinite else cell.value  # type: ignore[operator]
    return Markup(' data-value="{}"').format(clean(value))


# -- Markdown ------------------------------------------------------------------------------------------------------
class _Raw(str):
    """Markdown of our own making."""

    __slots__ = ()


def _markdown() -> Environment:
    environment = _environment(
        autoescape=False, finalize=lambda value: value if isinstance(value, _Raw) else _md(value)
    )
    environment.filters |= {"raw": _Raw, "inline": _inline, "fenced": _fenced, "pipes": _pipes}
    return environment


_SPECIAL = re.compile(r"([\\`*\[\]~$|])")
_EDGES = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_STARTS = re.compile(r"^(\d*)([-+#=:](?!\d)|(?<=\d)[.)](?!\d))")


def _md(value: object) -> _Raw:
    """Return ``value`` as Markdown in one line that means nothing but itself."""
    text = _SPECIAL.sub(r"\\\1", _entities(_line(value)))
    return _Raw(_STARTS.sub(r"\1\\\2", _EDGES.sub(r"\\_", text)))


def _line(value: object) -> str:
    return re.sub(r"\s+", " ", clean(value))


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _inline(pieces: Sequence[Piece]) -> _Raw:
    return _Raw("".join(map(_piece, pieces)))


def _piece(piece: Piece) -> str:
    if piece.url:
        return f"[{_md(piece.text)}]({piece.url})"
    if piece.code:
        return _code(piece.text)
    return f"**{_md(piece.text)}**" if piece.strong and piece.text.strip() else _md(piece.text)


def _code(text: str) -> str:
    """Return a code span whose fence is longer than any run of backticks inside."""
    line = _line(text).strip()
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def _fenced(lines: Sequence[str]) -> _Raw:
    text = clean("\n".join(lines))
    fence = "`" * (1 + max(2, *map(len, re.findall("`+", text)), 0))
    return _Raw(f"{fence}text\n{text}\n{fence}")


def _pipes(table: Table) -> _Raw:
    """Return a table in GitHub's form."""
    lines: list[list[str]] = [
        [_md(column.head) for column in table.columns],
        ["---:" if column.numeric else "---" for column in table.columns],
        *(
            [_md_cell(row.cells.get(column.key, EMPTY), row, head=column.header) for column in table.columns]
            for row in table.rows
        ),
    ]
    return _Raw("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _md_cell(cell: Cell, row: Row, *, head: bool) -> str:
    # In a table even code must not hold a bare pipe.
    text = _code(cell.text).replace("|", r"\|") if cell.code else _md(cell.text)
    parts = [text, _md(cell.detail), "(reference)" if head and row.reference else ""]
    return " ".join(part for part in parts if part)


def _image(picture: Picture, folder: str | None) -> _Raw:
    if folder is None:
        return _Raw("")
    path = quote(f"{folder}/{picture.name}.svg" if folder != "." else f"{picture.name}.svg")
    return _Raw(f"![{_md(picture.title)}]({path})")
