"""How something is called, in the words of its source."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from .markdown import fence

WIDEST = 96
"""A longer signature has a line for each parameter."""

_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def signature(found: Any, name: str = "") -> str:
    """Return the signature of a function or class as a block of code; empty where Python does not tell."""
    told = text(found, name)
    return fence(told, "py") if told else ""


def text(found: Any, name: str = "") -> str:
    """Return the signature as text, ``self`` and ``cls`` left out."""
    try:
        shown = inspect.signature(found)
    except (TypeError, ValueError):
        return ""
    parts = list(_parts(shown))
    back = "" if isinstance(found, type) else _annotation(shown.return_annotation, " -> ")
    called = name or found.__name__
    line = f"{called}({', '.join(parts)}){back}"
    if len(line) <= WIDEST:
        return line
    return f"{called}(\n" + "".join(f"    {part},\n" for part in parts) + f"){back}"


def _parts(shown: inspect.Signature) -> Iterator[str]:
    starred = False
    for parameter in shown.parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        starred = starred or parameter.kind is inspect.Parameter.VAR_POSITIONAL
        text = _STARS.get(parameter.kind, "") + parameter.name + _annotation(parameter.annotation, ": ")
        if parameter.default is not parameter.empty:
            equals = " = " if parameter.annotation is not parameter.empty else "="
            text += equals + _default(parameter.default)
        yield text


def _annotation(annotation: Any, before: str) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return before + (annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def _default(value: Any) -> str:
    """Return a default without addresses of this process's memory."""
    if inspect.isfunction(value) or isinstance(value, type):
        return str(value.__name__)
    shown = repr(value)
    return "..." if shown.startswith("<") else shown
