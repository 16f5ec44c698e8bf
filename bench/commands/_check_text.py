"""How ``bench check`` is printed: for people, for a page, for programs."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click

from bench.commands._print import echo, seconds_text, show_table, words

Row = Mapping[str, Any]


def echo_json(name: str, sections: Mapping[str, Any], form: str) -> None:  # noqa: ARG001 - as its sister
    """Print one object; what is infinite or no number becomes the text for it, which JSON has no number for."""
    click.echo(json.dumps({"name": name, **_plain(sections)}, indent=1))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def echo_text(name: str, sections: Mapping[str, Any], form: str) -> None:
    """Print the sections one below the other, as tables that fit the terminal or as Markdown."""
    rows = sections["conformance"]
    counts = Counter(row["result"] for row in rows)
    told = ", ".join(f"{counts[result]} {result}" for result in ("passed", "failed", "skipped"))
    _heading(f"{name}: conformance, {told}", form)
    if form == "md":
        show_table([{key: row[key] for key in ("check", "result", "reason")} for row in rows], form)
    else:
        _results(rows)
    if sections.get("diagnostics"):
        _heading("what it is like, with torch's AdamW (lr 0.001) and SGD (lr 0.1) beside it", form)
        show_table([_diagnostic(row) for row in sections["diagnostics"]], form, fold=["reading", "quantity"])
    if sections.get("overhead"):
        _heading("what it costs, one thread, median of pairs with its 95% interval", form)
        show_table([_cost(row) for row in sections["overhead"]], form, fold=["divided by"])
    if "review" in sections:
        _review(sections["review"], form)


def _results(rows: Sequence[Row]) -> None:
    for row in rows:
        echo(f"{row['result']:<8} {row['check']}")
        if row["result"] == "failed":
            echo(_wrapped(row["what"], "table", indent=9))
        if row["reason"]:
            echo(_wrapped(row["reason"], "table", indent=9))


def _heading(text: str, form: str) -> None:
    echo(f"\n## {words(text, form)}\n" if form == "md" else f"\n{text}\n")


def _diagnostic(row: Row) -> dict[str, str]:
    numbers = {key: _number(value) for key, value in row.items() if key not in {"diagnostic", "quantity", "reading"}}
    return {"diagnostic": row["diagnostic"], "quantity": row["quantity"], **numbers, "reading": row["reading"]}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}"


def _cost(row: Row) -> dict[str, str]:
    interval = f"{row['low']:.3g} to {row['high']:.3g}" if row["pairs"] > 1 else "exact"
    takes = "-" if row["seconds"] is None else _short(row["seconds"])
    return {
        "cost": row["name"],
        "takes": takes,
        "ratio": f"{row['ratio']:.3g}",
        "interval": interval,
        "divided by": row["beside"],
    }


def _short(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else seconds_text(seconds)


def _review(facts: Row, form: str) -> None:
    _heading("for the reviewer", form)
    claims = facts["claims"]
    lines = {
        "track": facts["track"],
        "slots": ", ".join(facts["slots"]),
        "class": facts["class"],
        "package": f"{facts['package']} {facts['version']}",
        "paper": facts["paper"],
        "source": facts["source_sha256"],
        "imports": _listed(facts["imports"], "nothing besides torch, numpy, Python's own and bench"),
        "needs": _listed(facts["needs"], "nothing special"),
        "facts": f"closure {facts['closure']}, passes {facts['passes']}, information {facts['information']}",
        "roles": _listed([f"{key}: {role}" for key, role in facts["adapter_roles"].items()], "no new parameters"),
        "searched": _listed([f"{key} = {said}" for key, said in facts["searched"].items()], "nothing"),
        "fixed": _listed([f"{key} = {value}" for key, value in facts["hyperparameters"].items()], "nothing"),
        "claims": f"{claims} published" if claims else "no file of published claims",
        "documentation": _listed([f"docstring of {facts['docstring_lines']} lines", *facts["documentation"]], "none"),
    }
    _facts(lines, form)
    echo()
    show_table(_sources(facts["sources"]), form, fold=["module"])
    for deviation in facts["deviations"]:
        echo("\n" + _wrapped(f"Deviation: {deviation}", form))


def _listed(texts: Sequence[str], nothing: str) -> str:
    return "; ".join(map(str, texts)) or nothing


def _facts(lines: Mapping[str, str], form: str) -> None:
    width, longest = shutil.get_terminal_size((100, 24)).columns, max(map(len, lines))
    for key, text in lines.items():
        if form == "md":
            echo(f"- **{key}**: {words(text, form)}")
            continue
        wrapped = textwrap.wrap(text, max(20, width - longest - 2), break_on_hyphens=False) or [""]
        echo(f"{key:<{longest}}  {wrapped[0]}")
        for line in wrapped[1:]:
            echo(f"{'':<{longest}}  {line}")


def _wrapped(text: str, form: str, indent: int = 0) -> str:
    if form == "md":
        return words(text, form)
    width, margin = max(20 + indent, shutil.get_terminal_size((100, 24)).columns), " " * indent
    return textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)


def _sources(files: Sequence[Row]) -> list[dict[str, Any]]:
    return [{"module": file["module"], "lines": file["lines"], "sha256": file["sha256"][:16]} for file in files]
