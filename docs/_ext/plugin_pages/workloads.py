"""One page for each registered workload, with its tiers."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator

from bench.after_training import PostTier
from bench.commands._print import seconds_text
from bench.workload import Tier

from . import docstring
from .context import Context
from .markdown import code, escape, fence, page, sentence, table, terms, toctree


def pages(context: Context) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of the page of each workload, and of their index."""
    names = sorted(context.registry.workloads)
    rows = [
        (
            f"[{code(name)}]({name}.md)",
            escape(context.registry.workloads[name].summary),
            escape(", ".join(context.registry.workloads[name].tiers)),
        )
        for name in names
    ]
    yield (
        "workloads/index.md",
        page("# Workloads", table(("workload", "what it is", "tiers"), rows), toctree(names)),
    )
    for name in names:
        yield f"workloads/{name}.md", _page(context, name)


def _page(context: Context, name: str) -> str:
    entry, cls = context.registry.workloads[name], context.registry.workload_class(name)
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    summary, _, rest = text.partition("\n\n")
    lead = summary.partition(": ")[2] or summary
    tiers: list[str] = []
    for tier_name, tier in cls.tiers.items():
        tiers += [f"### {escape(tier_name)}", *_tier(tier)]
    return page(
        f"# {escape(name)}",
        escape(sentence(entry.summary)),
        terms(
            [
                ("Version", escape(cls.version)),
                ("Metric", escape(f"{cls.metric}, {'less' if cls.direction == 'min' else 'more'} is better")),
                ("Data", escape(", ".join(cls.sources))),
                ("Calls", ", ".join(f"[{code(slot)}](../../slots.md#{slot})" for slot in cls.slots)),
                ("Package", escape(f"{context.registry.packages[name]} {context.registry.version(name)}")),
                ("Pages", _own_pages(context, name)),
                ("Boards", _boards(context, name)),
            ]
        ),
        "## What it is",
        docstring.inline(sentence(" ".join(lead.split()))),
        docstring.markdown(rest, context.links("../")),
        "## Tiers",
        table(
            ("tier", "target", "steps", "batch", "evaluated", "precision", "data", "takes", "on"),
            [_row(tier_name, tier) for tier_name, tier in cls.tiers.items()],
        ),
        *tiers,
        "## Run it",
        fence(f"bench run --plugin NAME --workload {name}\nbench plan --plugin NAME --workload {name}", "sh"),
        "`bench plan` lists the trials with their expected time and runs nothing.",
    )


def _row(name: str, tier: Tier) -> list[str]:
    points = isinstance(tier, PostTier)
    return [
        code(name),
        escape(f"{tier.target.value:g}" if tier.target else "none yet"),
        f"{tier.steps} point{'' if tier.steps == 1 else 's'}" if points else f"{tier.steps:,}",
        "–" if points else _batch(tier),
        "at each point" if points else f"every {tier.evaluate_every:,}",
        escape(tier.precision),
        escape(tier.source),
        escape(seconds_text(tier.expected_s if tier.expected_s is not None else math.nan)),
        escape(tier.device_class),
    ]


def _batch(tier: Tier) -> str:
    return f"{tier.batch_size}" + (
        f" as {math.ceil(tier.batch_size / tier.micro_batch_size)} of {tier.micro_batch_size}"
        if tier.micro_batch_size < tier.batch_size
        else ""
    )


def _tier(tier: Tier) -> list[str]:
    reference = "; ".join(
        code(f"{part}({', '.join(f'{key}={value}' for key, value in values.items())})")
        for part, values in tier.reference.items()
    )
    target = f"{tier.target.value:g}. {docstring.inline(sentence(tier.target.how))}" if tier.target else "none yet"
    takes = f"{tier.expected_s:g} s on {escape(tier.device_class)}" if tier.expected_s is not None else ""
    shown = [
        ("Reference", reference),
        ("How it was tuned", docstring.inline(sentence(tier.tuning))),
        ("Target", target),
        ("Spread of steps", f"{tier.predicted_cv:.1%} over seeds is to be expected" if tier.predicted_cv else ""),
        ("Budget", f"{tier.budget_s:g} s" if tier.budget_s is not None else ""),
        ("After the target", _patience(tier)),
        ("Expected time", takes),
        ("Default on", escape(", ".join(tier.default_on))),
        ("Points", escape("; ".join(map(str, tier.points))) if isinstance(tier, PostTier) else ""),
    ]
    return [terms(shown)]


def _patience(tier: Tier) -> str:
    if isinstance(tier, PostTier):
        return ""
    return "it goes on to the end of the budget" if tier.patience_steps is None else f"{tier.patience_steps} steps more"


def _own_pages(context: Context, name: str) -> str:
    """Return links to the hand-written pages whose beginning names the workload."""
    found = []
    for path in sorted((context.root / "docs").glob("*-tiny.md")):
        head = path.read_text(encoding="utf-8").split("\n## ")[0]
        if f"`{name}`" in head or f" {name}:" in head:
            title = head.partition("\n")[0].lstrip("# ").strip()
            found.append(f"[{title}](../../{path.name})")
    return ", ".join(found)


def _boards(context: Context, name: str) -> str:
    views = [view for view in context.evidence.views if view.board.shared["workload"] == name]
    return escape(f"{len(views)} in results/: {'; '.join(view.label for view in views)}") if views else "none yet"
