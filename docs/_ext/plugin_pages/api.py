"""The public names of ``bench``: one page for each module that they come from."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import bench
from bench import errors

from . import docstring
from .context import Context
from .markdown import code, fence, page, table, toctree
from .signatures import signature

FURTHER = ("bench.conformance", "bench.diagnostics", "bench.bundle")
"""Packages that others may import too, each with the names of its ``__all__``."""


def pages(context: Context) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of the page of each module, and of their index."""
    homes: dict[str, list[str]] = {}
    for name, home in sorted(bench._HOME.items()):  # noqa: SLF001 - our own
        homes.setdefault(f"bench.{home}", []).append(name)
    public = [
        (f"[{code(name)}]({_file(home)}.md#{name.lower()})", _summary(home, name), f"[{code(home)}]({_file(home)}.md)")
        for home, names in homes.items()
        for name in names
    ]
    homes["bench.errors"] = _errors()
    homes |= {home: sorted(importlib.import_module(home).__all__) for home in FURTHER}
    further = [
        (f"[{code(home)}]({_file(home)}.md)", docstring.first_sentence(importlib.import_module(home).__doc__))
        for home in ("bench.errors", *FURTHER)
    ]
    told = "Everything in this table is `from bench import NAME`. Importing `bench` loads neither torch nor pandas."
    blocks = [
        table(("name", "what it is", "defined in"), sorted(public)),
        "## Modules of their own",
        table(("module", "what it is"), further),
        "Nothing that is not listed on these pages is promised to stay.",
    ]
    yield "api/index.md", page("# Python API", told, *blocks, toctree([_file(home) for home in homes]))
    for home, names in homes.items():
        yield f"api/{_file(home)}.md", _page(context, home, names)


def _file(home: str) -> str:
    return home.removeprefix("bench.")


def _errors() -> list[str]:
    """Return the names of all errors, the base first."""
    found = vars(errors).items()
    return [name for name, value in found if isinstance(value, type) and issubclass(value, errors.BenchError)]


def _page(context: Context, home: str, names: list[str]) -> str:
    module = importlib.import_module(home)
    links = context.links("../")
    blocks = [f"# {code(module.__name__)}", docstring.markdown(module.__doc__, links)]
    for name in names:
        blocks += [f"## {code(name)}", *_told(definition(module, name), name, links)]
    return page(*blocks)


def _summary(home: str, name: str) -> str:
    return docstring.first_sentence(description(importlib.import_module(home), name))


def definition(module: ModuleType, name: str) -> ModuleType:
    """Return the module in which a public name of ``module`` is defined: itself, or one below it."""
    found = getattr(module, name)
    if isinstance(found, type) or inspect.isfunction(found):
        return sys.modules[found.__module__]
    below = [sys.modules[key] for key in sorted(sys.modules) if key.startswith(f"{module.__name__}.")]
    return next((each for each in (module, *below) if name in strings(each)), module)


def description(module: ModuleType, name: str) -> str:
    """Return the docstring of a public name; of a constant or an alias the string below its assignment."""
    home, found = definition(module, name), getattr(module, name)
    own = isinstance(found, type) or inspect.isfunction(found)
    return (found.__doc__ if own and home.__name__.startswith("bench") else strings(home).get(name)) or ""


@cache
def strings(module: ModuleType) -> dict[str, str]:
    """Return the strings that stand below assignments of a module, by the assigned name."""
    body = ast.parse(inspect.getsource(module)).body
    found: dict[str, str] = {}
    for node, after in pairwise(body):
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found |= dict.fromkeys(_assigned(node), after.value.value)
    return found


def _assigned(node: ast.stmt) -> list[str]:
    """Return the names that a statement assigns to."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _told(module: ModuleType, name: str, links: Any) -> list[str]:
    found, text = getattr(module, name), description(module, name)
    shown = docstring.markdown(text, links)
    if isinstance(found, type) and found.__module__ == module.__name__:
        return [_class_line(found), shown, *_fields(found), *_methods(found, links)]
    if inspect.isfunction(found):
        return [signature(found), shown]
    return [fence(_assignment(module, name), "py"), shown]


def _class_line(found: type) -> str:
    if dataclasses.is_dataclass(found) or "__init__" in vars(found):
        return signature(found)
    return fence(f"class {found.__name__}({', '.join(base.__name__ for base in found.__bases__)})", "py")


LONGEST = 8
"""Of a constant with more lines only name and type are shown."""


def _assignment(module: ModuleType, name: str) -> str:
    source = inspect.getsource(module)
    node = next((node for node in ast.parse(source).body if name in _assigned(node)), None)
    text = (ast.get_source_segment(source, node) if node is not None else None) or name
    return text if len(text.splitlines()) <= LONGEST else f"{text.partition(' = ')[0]} = ..."


def _fields(found: type) -> list[str]:
    """Return class facts and members, which a signature does not show."""
    if issubclass(found, bench.Role):
        return [", ".join(code(f"{found.__name__}.{member.name}") for member in found)]
    rows = [
        (code(key), code(hint), code(repr(vars(found)[key])) if key in vars(found) else "")
        for key, hint in vars(found).get("__annotations__", {}).items()
        if isinstance(hint, str) and hint.startswith("ClassVar") and not key.startswith("_")
    ]
    return ["**Class facts**", table(("name", "type", "default"), rows)] if rows else []


def _methods(found: type, links: Any) -> list[str]:
    blocks: list[str] = []
    for name, value in vars(found).items():
        called = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if name.startswith("_") or not (inspect.isfunction(called) or isinstance(value, property)):
            continue
        if isinstance(value, property):
            back = inspect.signature(value.fget).return_annotation if value.fget else ""
            blocks += [f"### {code(name)}", fence(f"{name}: {back}", "py"), docstring.markdown(value.__doc__, links)]
        else:
            blocks += [f"### {code(name)}", signature(called, name), docstring.markdown(called.__doc__, links)]
    return blocks
