"""Figures as SVG for a page, and as files; the same figure always makes the same bytes."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import matplotlib as mpl

from bench.errors import BadValue
from bench.figures.style import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
_SVG = "http://www.w3.org/2000/svg"


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``, as its ending says: ``.svg``, ``.png`` (150 dots an inch) or ``.pdf``.

    Raises:
        BadValue: another ending, or a path that cannot be written.
    """
    if path.suffix not in _UNDATED:
        raise BadValue(f"a figure's file must end in {', '.join(_UNDATED)}, and {str(path)!r} does not")
    content = _rendered(figure, path.suffix.removeprefix("."), metadata=_UNDATED[path.suffix], dpi=150)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BadValue(f"the figure cannot be written to {str(path)!r}: {error.strerror}") from None


def figure_svg(figure: Figure, title: str, alt: str, *, name: str) -> str:
    """Return ``figure`` as SVG text to stand in an HTML page.

    ``title`` and ``alt`` become its ``<title>`` and ``<desc>``. ``name`` tells the page's figures apart: every id in
    the SVG begins with it. The picture is as wide as its container. What matplotlib draws in black takes the page's
    text colour (``currentColor``) and the page's font, and the background is transparent, so the figure follows the
    page into dark mode.
    """
    content = _rendered(figure, "svg", metadata=_UNDATED[".svg"], transparent=True)
    root = ET.fromstring(content)  # noqa: S314 - it comes from matplotlib, not from outside
    prefix = identifier(name)
    _drop_unwanted(root)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _attribute(key, value, prefix) for key, value in element.items()}
        element.tail = None
        if element.tag not in {"text", "tspan"}:
            element.text = None
    _describe(root, plain(title), plain(alt), prefix)
    return ET.tostring(root, encoding="unicode")


def identifier(name: str) -> str:
    """Return ``name`` as a prefix of ids; two different names never share one, whatever characters they have."""
    safe = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
    if safe == name and name[:1].isalpha():
        return name
    return f"f-{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _rendered(figure: Figure, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with _rendering():
        figure.savefig(buffer, format=form, **options)
    return buffer.getvalue()


@contextmanager
def _rendering() -> Iterator[None]:
    """Fix what makes bytes vary, and keep text as text; matplotlib takes both from its settings only."""
    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none"}), warnings.catch_warnings():
        # A name may have characters that matplotlib's own font lacks; the reader's font may well have them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def _drop_unwanted(root: ET.Element) -> None:
    """Remove the metadata, and the style sheet, which would style the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in {"metadata", "style"}:
                parent.remove(child)


def _attribute(key: str, value: str, prefix: str) -> str:
    local = key.rpartition("}")[2]
    if local == "id":
        return f"{prefix}-{value}"
    if local == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if local in {"style", "fill", "stroke"}:
        value = _restyled(value) if local == "style" else value
        value = value.replace("#000000", "currentColor")
    return value.replace("url(#", f"url(#{prefix}-")


def _restyled(declarations: str) -> str:
    kept = [each.strip() for each in declarations.split(";") if each.strip()]
    return "; ".join(each for each in kept if not each.startswith("font-family:"))


def _describe(root: ET.Element, title: str, alt: str, prefix: str) -> None:
    shape = {"xmlns": _SVG, "viewBox": root.attrib["viewBox"], "width": "100%"}
    names = {"role": "img", "aria-labelledby": f"{prefix}-title", "aria-describedby": f"{prefix}-desc"}
    # matplotlib leaves black out where it is what SVG fills with anyway; the joins were the style sheet's.
    defaults = {"fill": "currentColor", "stroke-linejoin": "round", "stroke-linecap": "butt"}
    root.attrib = shape | names | defaults
    for place, (tag, text) in enumerate((("title", title), ("desc", alt))):
        element = ET.Element(tag, {"id": f"{prefix}-{tag}"})
        element.text = text
        root.insert(place, element)
