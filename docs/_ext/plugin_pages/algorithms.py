"""One page for each registered algorithm: what its module says, and what the committed records say of it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from bench.algorithm import TRAINING_SLOTS, Algorithm, slots
from bench.entry import TRACKS
from bench.hyperparameter import domain

from . import docstring, measured
from .context import Context
from .markdown import code, escape, fence, page, sentence, table, terms, toctree
from .signatures import signature

HOMES = {
    "optimizer": ("llama-c4",),
    "schedule": ("llama-c4",),
    "data-selection": ("llama-c4-mixture",),
    "parameterization": ("llama-c4",),
    "peft": ("ft-markov",),
    "compression": ("compress-llama",),
    "merging": ("merge-subspace", "merge-permuted-digits"),
}
"""The workloads that a page names to try an algorithm on; the first one that offers what it needs."""

TITLES = {
    "optimizer": "Optimizers",
    "schedule": "Schedules",
    "data-selection": "Data selection",
    "parameterization": "Parameterizations",
    "peft": "Fine-tuning",
    "compression": "Compression",
    "merging": "Merging",
}
"""What the pages of the tracks are called."""

_REFERRED = re.compile(r":(?:class|func):`~?([\w.]+)`")


def pages(context: Context) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of the page of each algorithm, and of their index."""
    by_track = {
        track: sorted(entry.name for entry in context.registry.algorithms.values() if entry.track == track)
        for track in TRACKS
    }
    yield "algorithms/index.md", _index(context, by_track)
    for track, names in by_track.items():
        yield f"algorithms/{track}.md", _track(context, track, names)
        for name in names:
            yield f"algorithms/{name}.md", _page(context, name)


def _index(context: Context, by_track: Mapping[str, list[str]]) -> str:
    number = sum(map(len, by_track.values()))
    lists = [
        f"**[{TITLES[track]}]({track}.md)**: " + ", ".join(f"[{escape(name)}]({name}.md)" for name in names)
        for track, names in by_track.items()
    ]
    return page(
        "# Algorithms",
        f"{number} algorithms in {len(by_track)} tracks. Each page is written from the algorithm's module when "
        f"this site is built, and from the records in `results/`: {context.told}.",
        *lists,
        toctree([track for track, names in by_track.items() if names]),
    )


def _track(context: Context, track: str, names: list[str]) -> str:
    entries = [context.registry.algorithms[name] for name in names]
    rows = [
        (f"[{code(entry.name)}]({entry.name}.md)", escape(entry.summary), docstring.papers(entry.paper))
        for entry in entries
    ]
    told = f"The track {code(track)}: {code(f'bench list --track {track}')}."
    listed = table(("algorithm", "what it does", "paper"), rows)
    return page(f"# {TITLES[track]}", told, listed, toctree(names))


def _page(context: Context, name: str) -> str:
    entry, cls = context.registry.algorithms[name], context.registry.algorithm_class(name)
    return page(
        f"# {escape(name)}",
        escape(sentence(entry.summary)),
        terms(_facts(context, name, cls)),
        "## What it does",
        *_rule(context, cls),
        "## Hyperparameters",
        _hyperparameters(cls),
        "## Deviations",
        "\n".join(f"- {docstring.inline(told)}" for told in cls.deviations)
        or "None are declared: nothing is known to differ from the paper and its code.",
        *measured.claims(context, name),
        *measured.boards(context, name),
        "## Run it",
        *_run(context, name, cls),
        "## Outside the suite",
        *_outside(cls),
    )


# -- facts -----------------------------------------------------------------------------------------------------------
def _facts(context: Context, name: str, cls: type[Algorithm]) -> list[tuple[str, str]]:
    entry = context.registry.algorithms[name]
    after = set(slots(cls)) - set(TRAINING_SLOTS)
    states = [docstring.state(found.__doc__) for found in _told(cls)]
    test = f"tests/papers/test_{name.replace('-', '_')}.py"
    proven = f"{code(test)}; [how near to other packages](../../parity.md)" if (context.root / test).exists() else ""
    return [
        ("Paper", docstring.papers(entry.paper)),
        ("Track", escape(entry.track)),
        ("Package", escape(f"{context.registry.packages[name]} {context.registry.version(name)}")),
        ("Class", code(entry.target)),
        ("Fills", ", ".join(f"[{code(slot)}](../../slots.md#{slot})" for slot in slots(cls))),
        ("Looks at", escape(cls.information) if after else ""),
        ("Needs", escape(", ".join(cls.needs))),
        ("Closure", "its optimizer calls the closure itself" if cls.closure else ""),
        ("Passes per step", str(cls.passes) if cls.passes != 1 else ""),
        ("State", next(filter(None, states), "").removeprefix("State: ")),
        ("Proven by", proven),
    ]


def _hyperparameters(cls: type[Algorithm]) -> str:
    rows = []
    for field in dataclasses.fields(cls):
        search, default = field.metadata.get("search"), field.default
        shown = "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
        words = escape(domain(cls, field.name)), "" if search is None else escape(search)
        rows.append((code(field.name), escape(shown), *words, escape(field.metadata.get("help", ""))))
    heads = ("name", "default", "domain", "search range", "what it is")
    return table(heads, rows) if rows else "It has none."


# -- the rule --------------------------------------------------------------------------------------------------------
def _told(cls: type[Algorithm]) -> list[Any]:
    """Return the class, what its docstring refers to, and what its slots are declared to return: there equations stand.

    Only what belongs to the plugin's own package.
    """
    module = sys.modules[cls.__module__]
    names = _REFERRED.findall(cls.__doc__ or "")
    names += [str(getattr(cls, slot).__annotations__.get("return", "")) for slot in slots(cls) if slot in vars(cls)]
    found = [cls, *(_resolve(module, name) for name in names)]
    return list(dict.fromkeys(each for each in found if each is not None))


def _resolve(module: ModuleType, name: str) -> Any:
    home, _, last = name.rpartition(".")
    found = getattr(sys.modules.get(home, module), last, None)
    mine = module.__name__.rpartition(".")[0]
    return found if getattr(found, "__module__", "").startswith(f"{mine}.") and found.__doc__ else None


def _rule(context: Context, cls: type[Algorithm]) -> list[str]:
    links = context.links("../")
    blocks = [docstring.markdown(cls.__doc__, links)]
    for found in _told(cls)[1:]:
        blocks += [f"### {code(found.__name__)}", signature(found), docstring.markdown(found.__doc__, links)]
    return blocks


def _public(cls: type[Algorithm]) -> list[Any]:
    """Return what the module of ``cls`` defines for use elsewhere, the algorithms themselves left out."""
    module = sys.modules[cls.__module__]
    return [
        found
        for name, found in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(found) or isinstance(found, type))
        and found.__module__ == module.__name__
        and not (isinstance(found, type) and issubclass(found, Algorithm))
        and found.__doc__
    ]


# -- use -------------------------------------------------------------------------------------------------------------
def _run(context: Context, name: str, cls: type[Algorithm]) -> list[str]:
    entry = context.registry.algorithms[name]
    for workload in HOMES.get(entry.track, ()):
        kind = context.registry.workload_class(workload)
        tiers = [tier for tier in kind.tiers if set(cls.needs) <= kind(tier).offers]
        if tiers:
            first = f"bench run --plugin {name} --workload {workload}"
            lines = f"{first}\n{first} --protocol default"
            told = (
                f"The first is one seed beside one of the reference, on the tier {code(tiers[0])} unless the device "
                f"asks for another; the second is a comparison. Workloads: "
                f"[{escape(workload)}](../workloads/{workload}.md) and [others](../workloads/index.md)."
            )
            return [fence(lines, "sh"), told]
    return ["None of the workloads here offers what it needs."]


def _outside(cls: type[Algorithm]) -> list[str]:
    found = _public(cls)
    if not found:
        return [f"Its module {code(cls.__module__)} has nothing but the algorithm, which belongs into a run."]
    first = next((each for each in _told(cls)[1:] if each in found), found[0])
    rows = [(code(each.__name__), docstring.first_sentence(each.__doc__)) for each in found]
    return [fence(f"from {cls.__module__} import {first.__name__}", "py"), table(("name", "what it is"), rows)]
