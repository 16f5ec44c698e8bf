"""The Sphinx extension: write the pages before the sources are read, remove them when the site is built."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bench.registry import Registry

from . import algorithms, api, commands, project, protocols, workloads
from .context import Context

FOLDER = "generated"
"""The folder below the sources that this extension owns: what lies in it is written anew by each build."""

WRITERS = (algorithms, workloads, protocols, commands, api, project)


def pages(context: Context) -> dict[str, str]:
    """Return every generated page by its path below :data:`FOLDER`."""
    return {path: text for writer in WRITERS for path, text in writer.pages(context)}


def write(sources: Path) -> int:
    """Write the pages below ``sources``, the folder of the documentation, and return how many."""
    folder = sources / FOLDER
    remove(sources)
    found = pages(Context(root=sources.parent, registry=Registry()))
    for path, text in found.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", newline="\n")
    return len(found)


def remove(sources: Path) -> None:
    """Remove the pages below ``sources``."""
    shutil.rmtree(sources / FOLDER, ignore_errors=True)


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    app.connect("build-finished", lambda app, _: remove(Path(app.srcdir)))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
