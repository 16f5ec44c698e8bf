"""From names and a track to files: all of them are rendered before the first one is written."""

from __future__ import annotations

import ast
import datetime as dt
import importlib.metadata
import json
import shutil
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.entry import TRACKS
from bench.errors import BadValue, UnknownName
from bench.scaffold.example import Example, example

if TYPE_CHECKING:
    from bench.registry import Registry
    from bench.scaffold.names import Names

LONGEST_AUTHOR = 100

_COMMON = {
    "pyproject.toml": "pyproject.toml.j2",
    "README.md": "readme.md.j2",
    "LICENSE": "license.j2",
    ".gitignore": "gitignore.j2",
    ".github/workflows/test.yml": "workflow.yml.j2",
    "tests/test_conformance.py": "test_conformance.py.j2",
}
"""The templates that all tracks share, by the files that they make."""


def render(found: Names, track: str, registry: Registry, author: str = "") -> dict[str, str]:
    """Return every file of the package by its path inside the package's folder.

    Raises:
        UnknownName: there is no such track.
        BadValue: ``author`` is no single line of printable text, or a class would hide what its module imports.
    """
    if track not in TRACKS:
        raise UnknownName("track", track, TRACKS)
    facts = tomllib.loads(_text(f"{track}/facts.toml"))
    values = {
        "author": _author(author) or f"the authors of {found.distribution}",
        "bench_version": importlib.metadata.version("bench-training"),
        "names": found,
        "track": track,
        "year": dt.datetime.now(tz=dt.UTC).year,
        "example": example(registry, facts["slot"], facts["offers"]) or Example(),
        **facts,
    }
    source = f"src/{found.package}"
    templates = {path: f"common/{template}" for path, template in _COMMON.items()} | {
        f"{source}/__init__.py": "common/entries.py.j2",
        f"{source}/py.typed": "common/py.typed.j2",
        f"{source}/{found.module}.py": f"{track}/algorithm.py.j2",
        f"{source}/{found.module}.claims.toml": "common/claims.toml.j2",
        f"tests/test_{found.module}.py": f"{track}/test_algorithm.py.j2",
    }
    environment = _environment()
    files = {path: environment.get_template(template).render(values) for path, template in templates.items()}
    _refuse_hidden(found, files)
    return files


def create(found: Names, track: str, registry: Registry, *, folder: Path, author: str = "") -> Path:
    """Write the package into a new folder of ``folder`` and return it; nothing that exists is touched.

    Raises:
        BadValue: ``folder`` is no folder, holds something of that name already, or cannot be written.
    """
    files = render(found, track, registry, author)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise BadValue(f"--dir {str(folder)!r} {what}", hint="name a folder that exists; default: the current one")
    root = folder / found.distribution
    try:
        root.mkdir()
    except FileExistsError:
        raise BadValue(
            f"{str(root)!r} exists already", hint="choose another name, or another folder by --dir"
        ) from None
    except OSError as error:
        raise _unwritable(root, error) from None
    try:
        for path, text in files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        shutil.rmtree(root, ignore_errors=True)  # a moment ago it was not there
        raise _unwritable(root, error) from None
    return root


def _unwritable(root: Path, error: OSError) -> BadValue:
    return BadValue(f"{str(root)!r} cannot be written: {error.strerror}", hint="name a folder of your own by --dir")


def _refuse_hidden(found: Names, files: Mapping[str, str]) -> None:
    """Refuse names of which one file would bind the same one twice: a class called after an import of its module."""
    for path, text in files.items():
        bound: list[str] = []
        for node in ast.walk(ast.parse(text)) if path.endswith(".py") else ():
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                bound += [alias.asname or alias.name for alias in node.names]
            elif isinstance(node, ast.ClassDef):
                bound.append(node.name)
        if twice := sorted({name for name in bound if bound.count(name) > 1}):
            raise BadValue(
                f"NAME {found.name!r} makes a class {found.cls}, but {', '.join(twice)} is imported in {path}",
                hint=f"say more: {found.name}-descent",
            )


def _author(author: str) -> str:
    if not author.isprintable() or author != author.strip() or len(author) > LONGEST_AUTHOR:
        raise BadValue(
            f"--author is {author[:80]!r} ({len(author)} characters)",
            hint=f"one line of printable text without space at its ends, at most {LONGEST_AUTHOR} characters",
        )
    return author


def _text(name: str) -> str:
    return resources.files("bench.scaffold").joinpath("templates", *name.split("/")).read_text("utf-8")


def _environment() -> Environment:
    # What is rendered is Python, TOML and Markdown, where HTML's escapes would be wrong.
    environment = Environment(  # noqa: S701
        loader=PackageLoader("bench.scaffold", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = _quoted
    return environment


def _quoted(value: Any) -> str:
    """Return a text as a TOML string: JSON's escapes are among TOML's."""
    return json.dumps(str(value), ensure_ascii=False)
