"""Pages of the repository that belong into the site: how to contribute, what changed, what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from .context import Context

SOURCES = {
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
    "results.md": "results/README.md",
}
"""The generated pages, and the files that they show."""

_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def pages(context: Context) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each, its links as seen from the folder of the generated pages."""
    for name, source in SOURCES.items():
        path = context.root / source
        text = path.read_text(encoding="utf-8")
        home = path.parent.relative_to(context.root).as_posix()
        yield name, _LINK.sub(partial(_moved, home), text)


def _moved(home: str, link: re.Match[str]) -> str:
    """Return a link of a file in the folder ``home`` as seen from ``docs/generated``."""
    target = link[1]
    inside = target.removeprefix("../") if target.startswith("../") else f"{home}/{target}" if home != "." else target
    return f"](../{inside.removeprefix('docs/')})" if inside.startswith("docs/") else f"](../../{inside})"
