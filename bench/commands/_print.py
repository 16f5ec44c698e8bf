"""Tables for people and for programs. Imports nothing heavy: ``bench list`` prints through it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import click

NARROWEST = 16
"""No column is folded to fewer characters than this."""


def echo(text: str = "", *, err: bool = False) -> None:
    """Print ``text`` for people, with whatever strangers wrote in it as :func:`printable` shows it."""
    click.echo(printable(text), err=err)


def printable(text: str) -> str:
    r"""Return ``text`` with escapes such as ``\x1b`` for what a terminal would obey instead of showing it.

    That is every control character but the end of a line and a tab, what turns the direction of writing around or has
    no width, and what no encoding has: names, reasons and notes may come from anybody's records.
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _OBEYED else ascii(char)[1:-1] for char in text
    )


def words(text: str, form: str) -> str:
    """Return ``text``, a line of people's words, so that as Markdown (``md``) it links nowhere and is no HTML."""
    if form != "md":
        return text
    return re.sub(r"\](?=[(\[:])", r"\\]", text.translate(_MARKUP))


_MARKUP = str.maketrans({"\\": r"\\", "&": "&amp;", "<": "&lt;", ">": "&gt;"})
_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of controls, formats, surrogates and of the separators of lines and paragraphs."""


def show_table(rows: Sequence[Mapping[str, Any]], form: str, *, fold: Sequence[str] = ()) -> None:
    """Print ``rows``, all with the same keys, as ``table``, ``json``, ``csv`` or ``md``.

    ``fold`` names the columns that give way on a narrow terminal, the first one first; where that does not help, each
    row is printed as a block of ``key  value`` lines.
    """
    click.echo(render(rows, form, width=shutil.get_terminal_size((100, 24)).columns, fold=fold))


def render(rows: Sequence[Mapping[str, Any]], form: str, *, width: int, fold: Sequence[str] = ()) -> str:
    """Return ``rows`` as text; see :func:`show_table`."""
    if form == "json":
        return json.dumps([{key: _json(value) for key, value in row.items()} for row in rows], indent=1)
    if form == "csv":
        return _csv(rows)
    if not rows:
        return "(nothing)"
    from tabulate import tabulate

    cells = [{_cell(key): _cell(value) for key, value in row.items()} for row in rows]
    if form == "md":
        escaped = [{_md_cell(key): _md_cell(text) for key, text in row.items()} for row in cells]
        return tabulate(escaped, headers="keys", tablefmt="github", disable_numparse=True)
    limits = _limits(cells, width, [_cell(key) for key in fold])
    if limits is None:
        return "\n\n".join(_block(row) for row in cells)
    widths = [limits.get(key) for key in cells[0]]
    return tabulate(cells, headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=widths)


def _limits(cells: Sequence[Mapping[str, str]], width: int, fold: Sequence[str]) -> dict[str, int] | None:
    """Return to how many characters which columns are folded, so that the table fits; ``None``: it cannot."""
    heads = {key: len(key) + 2 for key in cells[0]}  # tabulate leaves at least two columns beside a heading
    widths = {key: max(heads[key], *(len(row[key]) for row in cells)) for key in cells[0]}
    spare = width - sum(widths.values()) - 2 * (len(widths) - 1)
    limits: dict[str, int] = {}
    for key in filter(widths.__contains__, fold):
        limit = max(NARROWEST, heads[key], widths[key] + spare)
        if spare < 0 and limit < widths[key]:
            limits[key] = limit
            spare += widths[key] - limit
    return limits if spare >= 0 else None


def _block(row: Mapping[str, str]) -> str:
    told = {key: value for key, value in row.items() if value} or row  # here no empty cell has to keep a place
    longest = max(map(len, told))
    return "\n".join(f"{key:<{longest}}  {value}" for key, value in told.items())


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return " ".join(printable(str(value)).split("\n")).replace("\t", " ")  # a row is a line, whatever its cells say


def _md_cell(text: str) -> str:
    return words(text, "md").replace("|", r"\|")


def bytes_text(value: float | None) -> str:
    """Return a number of bytes for people: decimal units, three digits."""
    if value is None or math.isnan(value):
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f} B"


def seconds_text(value: float | None) -> str:
    """Return a number of seconds for people."""
    if value is None or math.isnan(value):
        return "-"
    if value < 120:
        return f"{value:.1f} s"
    minutes, hours = value / 60, value / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"
