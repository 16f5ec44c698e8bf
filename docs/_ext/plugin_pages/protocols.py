"""One page for each protocol: its rules and its points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib import resources

from bench.protocol import Protocol, protocols

from .context import Context
from .markdown import code, escape, fence, page, sentence, table, toctree


def pages(context: Context) -> Iterator[tuple[str, str]]:  # noqa: ARG001 - all writers are called alike
    """Yield the path and the text of the page of each protocol, and of their index."""
    found = protocols()
    rows = [
        (f"[{code(name)}]({name}.md)", escape(one.version), "yes" if one.ranked else "no", escape(one.summary))
        for name, one in found.items()
    ]
    told = "What the rules mean, and what is repeated and selected, is in [the protocol reference](../../protocols.md)."
    yield (
        "protocols/index.md",
        page(
            "# The protocols",
            told,
            table(("protocol", "version", "ranked", "what it does"), rows),
            toctree(list(found)),
        ),
    )
    for name, one in found.items():
        yield f"protocols/{name}.md", _page(name, one)


def _page(name: str, one: Protocol) -> str:
    fields = {field.name: field for field in dataclasses.fields(one)}
    rows = [
        (code(key), code(getattr(one, key)), "" if field.default is dataclasses.MISSING else code(field.default))
        for key, field in fields.items()
        if key not in {"name", "summary", "points"}
    ]
    return page(
        f"# {escape(name)}",
        escape(sentence(one.summary)),
        _comment(name),
        "## Rules",
        table(("rule", "here", "where a file leaves it out"), rows),
        f"A rank needs {one.replicates} independent repetitions, each of which is a {one.replicate}. The hash of "
        "the rules, which is part of every trial's identity:",
        fence(one.sha256),
        *_points(one),
        "## Run it",
        fence(f"bench run --plugin NAME --workload WORKLOAD --protocol {name}", "sh"),
    )


def _comment(name: str) -> str:
    """Return the comment at the top of the protocol's file."""
    text = resources.files("bench.protocols").joinpath(f"{name}.toml").read_text("utf-8")
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return escape(" ".join(lines))


def _points(one: Protocol) -> list[str]:
    if not one.points:
        return []
    width = len(one.points[0][0])
    rows = [
        (str(study), str(number), *(f"{value:.6f}" for value in point))
        for study, points in enumerate(one.points)
        for number, point in enumerate(points)
    ]
    told = f"In the unit cube, drawn once by {code(one.generator)}; each algorithm maps them through its own ranges."
    return ["## Points", told, table(("study", "point", *(f"u{place + 1}" for place in range(width))), rows)]
