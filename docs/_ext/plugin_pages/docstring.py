"""Docstrings as Markdown.

Ours are plain text: paragraphs, equations and examples indented below them, ``literals``, references, and the sections
``Args:`` and ``Raises:``. Indentation means "as it stands", so an equation keeps its columns.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping

from bench.report.document import source

from .markdown import code, escape, fence, paragraph

_INLINE = re.compile(r"``(?P<literal>[^`]+)``|:[a-z]+:`~?(?P<role>[^`]+)`|(?<!`)`(?P<span>[^`\n]+)`(?!`)")
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$")
_ITEM = re.compile(r"^(?P<name>[\w*.]+): ?(?P<text>.*)$")
_OPENS = re.compile(r"^(Source|Deviations|State|Published)\b(?=[^:.]*:)")
"""What begins a paragraph of its own."""
_STATE = re.compile(r"\bState\b[\w ,()]*: .+?\.(?= [A-Z`a-z]|$)")


def markdown(docstring: str | None, links: Mapping[str, str] | None = None) -> str:
    """Return a docstring as Markdown; ``links`` maps what is referred to (its last name) to addresses."""
    found, section = [], ""
    for lines in _runs(inspect.cleandoc(docstring or "").splitlines()):
        text = textwrap.dedent("\n".join(lines))
        if section:
            found.append(_items(text, section, links or {}))
            section = ""
        elif lines[0].startswith((" ", ">>>")):
            found.append(_as_it_stands(text))
        elif len(lines) == 1 and _SECTION.match(lines[0]):
            section = lines[0].rstrip(":")
        else:
            found += [paragraph(inline(text, links)) for text in _paragraphs(lines)]
    return "\n\n".join(found)


def first_sentence(docstring: str | None, links: Mapping[str, str] | None = None) -> str:
    """Return the first paragraph of a docstring."""
    lines = next(_runs(inspect.cleandoc(docstring or "").splitlines()), [])
    return inline(" ".join(lines), links)


def state(docstring: str | None) -> str:
    """Return the sentence that says what state an algorithm keeps; empty where none does."""
    for lines in _runs(inspect.cleandoc(docstring or "").splitlines()):
        match = _STATE.search(" ".join(lines))
        if match and not lines[0].startswith(" "):
            return paragraph(inline(match[0]))
    return ""


def inline(text: str, links: Mapping[str, str] | None = None) -> str:
    """Return a paragraph as Markdown: literals and references as code, papers as links, the rest escaped."""
    found, end = [], 0
    for match in _INLINE.finditer(text):
        found.append(papers(text[end : match.start()]))
        end = match.end()
        if match["role"]:
            name = match["role"].rpartition(".")[2]
            target = (links or {}).get(name)
            found.append(f"[{code(name)}]({target})" if target else code(name))
        else:
            found.append(code(match["literal"] or match["span"]))
    return "".join([*found, papers(text[end:])])


def papers(text: str) -> str:
    """Return plain text, references to arXiv and DOIs as links."""
    return "".join(
        f"[{escape(piece.text)}]({piece.url})" if piece.url else escape(piece.text) for piece in source(text)
    )


def _runs(lines: list[str]) -> Iterator[list[str]]:
    """Yield runs of lines that are all indented or all not; an indented run goes on over blank lines."""
    run: list[str] = []
    for number, line in enumerate([*lines, ""]):
        after = next((later for later in lines[number:] if later.strip()), "")
        ends = not line.strip() and not (run and run[0].startswith(" ") and after.startswith(" "))
        if run and (ends or (line.strip() and line.startswith(" ") != run[0].startswith(" "))):
            yield run
            run = []
        if line.strip() or run:
            run.append(line)


def _paragraphs(lines: list[str]) -> Iterator[str]:
    start = 0
    for number in range(1, len(lines) + 1):
        if number == len(lines) or _OPENS.match(lines[number]):
            yield " ".join(line.strip() for line in lines[start:number])
            start = number


def _as_it_stands(text: str) -> str:
    examples = text.startswith(">>>")
    plain = text if examples else _INLINE.sub(lambda match: match["literal"] or match["role"] or match[0], text)
    return fence(plain, "pycon" if examples else "text")


def _items(text: str, section: str, links: Mapping[str, str]) -> str:
    items: list[list[str]] = []
    for line in text.splitlines():
        if _ITEM.match(line) or not items:
            items.append([line])
        else:
            items[-1].append(line)
    found = []
    for item in items:
        joined = " ".join(line.strip() for line in item)
        match = _ITEM.match(joined)
        found.append(
            f"- {code(match['name'])}: {inline(match['text'], links)}" if match else f"- {inline(joined, links)}"
        )
    return f"*{section}*\n\n" + "\n".join(found)
