"""``bench check``: the battery on one algorithm, what it is like, what it costs, and what a reviewer asks."""

from __future__ import annotations

import fnmatch
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from bench.commands._check_text import echo_json, echo_text
from bench.errors import BadValue

if TYPE_CHECKING:
    from bench.conformance import Check

Row = dict[str, Any]


@click.command("check")
@click.argument("name")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "md"]),
    default="table",
    show_default=True,
    help="How to print; numbers in json are bytes, seconds, and ratios to torch's AdamW.",
)
@click.option("--only", metavar="GLOB", help="Run the checks whose name matches, and nothing else: 'optimizer/*'.")
@click.option("--no-diagnostics", is_flag=True, help="Leave out the problems that show what an optimizer is like.")
@click.option("--no-overhead", is_flag=True, help="Leave out the timing beside torch's AdamW.")
@click.option("--debug", is_flag=True, help="Show a traceback for every check that failed, and for every error.")
@click.pass_context
def command(
    ctx: click.Context, name: str, form: str, only: str | None, no_diagnostics: bool, no_overhead: bool, debug: bool
) -> None:
    """Check the algorithm NAME; exit code 1 if it fails a check. docs/check.md explains every line."""
    from bench.conformance import checks
    from bench.conformance.review import review
    from bench.registry import Registry

    registry = Registry()
    chosen = _matching(checks(name, registry), only)
    sections: dict[str, Any] = {"conformance": _conformance(chosen, debug=debug)}
    if only is None:
        subject = chosen[0].subject
        if not no_diagnostics:
            sections["diagnostics"] = _diagnostics(subject)
        if not no_overhead:
            sections["overhead"] = _overhead(subject)
        sections["review"] = review(subject)
    (echo_json if form == "json" else echo_text)(name, sections, form)
    ctx.exit(1 if any(row["result"] == "failed" for row in sections["conformance"]) else 0)


def _matching(found: Sequence[Check], only: str | None) -> list[Check]:
    matching = [check for check in found if only is None or fnmatch.fnmatchcase(check.name, only)]
    if not matching:
        names = ", ".join(check.name for check in found[:3])
        raise BadValue(f"--only {only!r} matches none of {len(found)} checks", hint=f"checks are called {names}, ...")
    return matching


def _conformance(found: Sequence[Check], *, debug: bool) -> list[Row]:
    from bench.conformance import CheckFailed, CheckSkipped

    rows: list[Row] = []
    with _progress(found, "checking") as steps:
        for check in steps:
            result, reason = "passed", ""
            try:
                check()
            except CheckSkipped as skipped:
                result, reason = "skipped", str(skipped)
            except CheckFailed as failed:
                result, reason = "failed", str(failed)
                if debug:
                    traceback.print_exception(failed)
            rows.append({"check": check.name, "result": result, "reason": reason, "what": check.what})
    return rows


def _diagnostics(subject: Any) -> list[Row]:
    from bench.diagnostics import DIAGNOSTICS, Contestant, examine

    if not subject.fills("optimizer"):
        return []
    contestant = Contestant.of(subject.algorithm())
    rows = []
    with _progress(DIAGNOSTICS, "diagnosing") as steps:
        for diagnostic in steps:
            found = examine(diagnostic, contestant)
            values = {"value": found.value, **found.yardsticks}
            rows.append({"diagnostic": found.name, "quantity": found.quantity, **values, "reading": found.reading})
    return rows


def _overhead(subject: Any) -> list[Row]:
    import dataclasses

    from bench.diagnostics import overhead

    return [dataclasses.asdict(found) for found in overhead(subject)]


def _progress(items: Iterable[Any], label: str) -> Any:
    """Return a bar on a terminal, and nothing in a log."""
    if not sys.stderr.isatty():
        return nullcontext(items)
    return click.progressbar(items, label=label, file=sys.stderr, item_show_func=lambda item: getattr(item, "name", ""))
