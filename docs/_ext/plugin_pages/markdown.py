"""Text as Markdown: what is escaped, what is code, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]<>{}|~$#&])")
_STARTS = re.compile(r"^(\d*)([-+=:.)])(?=\s|$)")


def escape(text: object) -> str:
    """Return ``text`` as Markdown that means nothing but itself within a line."""
    return _SPECIAL.sub(r"\\\1", str(text))


def paragraph(text: str) -> str:
    """Return Markdown of one line whose beginning makes it no list, quotation or heading."""
    return _STARTS.sub(r"\1\\\2", text.strip())


def code(text: object) -> str:
    """Return a code span; its fence is longer than any run of backticks inside."""
    shown = " ".join(str(text).split())
    if not shown:
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def fence(text: str, language: str = "text") -> str:
    """Return ``text`` as a block of code."""
    marks = "`" * (1 + max(2, *map(len, re.findall("`+", text)), 0))
    return f"{marks}{language}\n{text}\n{marks}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown, one line each. In a table even code must not hold a bare pipe."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def terms(pairs: Iterable[tuple[str, str]]) -> str:
    """Return facts, a term and its value in Markdown each, as a table; empty ones are left out."""
    rows = [(f"**{escape(term)}**", value) for term, value in pairs if value]
    return ":::{table}\n:class: facts\n\n" + table(("", ""), rows) + "\n:::"


def page(*blocks: str) -> str:
    """Return blocks as a file; empty ones are left out."""
    return "\n\n".join(block.strip("\n") for block in blocks if block.strip()) + "\n"


def toctree(names: Sequence[str], *, hidden: bool = True, depth: int = 1) -> str:
    """Return a table of contents of the pages ``names``."""
    options = f":maxdepth: {depth}" + ("\n:hidden:" if hidden else "")
    return "```{toctree}\n" + options + "\n\n" + "\n".join(names) + "\n```"


def sentence(text: str) -> str:
    """Return ``text`` as a sentence: a capital first, a full stop last."""
    shown = text.strip()
    return shown[:1].upper() + shown[1:] + ("" if shown.endswith((".", "!", "?")) else ".")
