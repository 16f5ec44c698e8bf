"""Write the report, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bench.errors import BadValue
from bench.registry import Registry
from bench.report.evidence import gather
from bench.report.page import build
from bench.report.render import html, markdown

Form = Literal["html", "md"]
FORMS: dict[str, Form] = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}
"""The form of a report by the ending of its file."""


def write_report(
    out: Path,
    folders: Sequence[Path],
    *,
    form: Form | None = None,
    figures: Path | None = None,
    registry: Registry | None = None,
) -> None:
    """Write the report of the stores in ``folders`` to ``out``.

    ``form`` follows from the ending of ``out`` where it is not given. With ``figures`` every figure is written into
    that folder too, as SVG and as PNG, and a Markdown report links to them. The same input gives the same bytes.

    Raises:
        BadValue: ``out`` or ``figures`` cannot be written, or the ending of ``out`` tells no form.
        BadStore: a folder is no store, is unreadable or of a newer schema, or nothing is recorded in any.
    """
    _refuse_bad_place(out)
    form = form or _form(out)
    evidence = gather(folders, registry or Registry())
    if figures is not None:
        _make(figures)
    page = build(evidence, figures)
    if form == "html":
        text = html(page)
    else:
        text = markdown(page, None if figures is None else Path(os.path.relpath(figures, out.parent)).as_posix())
    _write(out, text)


def _form(out: Path) -> Form:
    try:
        return FORMS[out.suffix.lower()]
    except KeyError:
        raise BadValue(
            f"--out {str(out)!r} ends in {out.suffix!r}, which is no form of a report",
            hint=f"end it in {', '.join(FORMS)}, or say --format html or --format md",
        ) from None


def _refuse_bad_place(out: Path) -> None:
    """Refuse what could not be written, before minutes of work."""
    if out.is_dir():
        raise BadValue(f"--out {str(out)!r} is a folder", hint=f"name a file, such as {out / 'report.html'}")
    if not out.parent.is_dir():
        raise BadValue(
            f"--out {str(out)!r}: there is no folder {str(out.parent)!r}", hint=f"make it: mkdir -p {out.parent}"
        )
    if not os.access(out.parent, os.W_OK):
        raise _unwritable(out, "permission denied")


def _unwritable(out: Path, reason: str | None) -> BadValue:
    return BadValue(f"--out {str(out)!r} cannot be written: {reason}", hint="name a file in a folder of your own")


def _make(figures: Path) -> None:
    try:
        figures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadValue(
            f"--figures {str(figures)!r} cannot be made: {error.strerror}", hint="name a folder of your own"
        ) from None


def _write(out: Path, text: str) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(out, error.strerror) from None
