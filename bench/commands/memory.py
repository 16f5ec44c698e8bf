"""``bench memory``: weights, gradients and optimizer states of any tier, without allocating any of it."""

from __future__ import annotations

from typing import Any

import click

from bench.commands._options import format_option
from bench.commands._print import bytes_text, show_table
from bench.errors import BadValue, SlotMismatch


@click.command("memory")
@click.option("--plugin", "plugins", required=True, metavar="P[,P...]", help="Algorithms to count.")
@click.option("--workload", required=True, metavar="W", help="The fixed problem.")
@click.option("--tier", metavar="T", help="Its size; default: every tier.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a hyperparameter.")
@format_option
def command(plugins: str, workload: str, tier: str | None, settings: tuple[str, ...], form: str) -> None:
    """Count what a tier needs in memory, on tensors without storage: pure bf16, and fp32 weights and states."""
    from bench.memory import PRECISIONS, estimate
    from bench.registry import Registry
    from bench.request import Request, open_workload, stacks

    registry = Registry()
    names = [name.strip() for name in plugins.split(",") if name.strip()]
    if not names:
        raise BadValue(f"--plugin {plugins!r} names no algorithm", hint="see: bench list")
    tiers = [tier] if tier is not None else list(registry.workload_class(workload).tiers)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for precision, label in PRECISIONS:
        for size in tiers:
            opened = open_workload(registry, workload, size)
            request = Request(plugins=names, workload=workload, settings=settings, reference=False)
            for name, algorithms in stacks(registry, request, opened).items():
                try:
                    found = estimate(algorithms, opened, precision)
                except SlotMismatch as mismatch:
                    if len(names) == 1:
                        raise
                    left_out[f"{size}, {name}"] = mismatch.message
                    continue
                rows.append(
                    {
                        "precision": label,
                        "tier": size,
                        "plugin": name,
                        "parameters": found.parameters,
                        "weights_bytes": found.weights_bytes,
                        "gradients_bytes": found.gradients_bytes,
                        "states_bytes": found.states_bytes,
                        "weights_and_states_bytes": found.weights_and_states_bytes,
                        "total_bytes": found.total_bytes,
                    }
                )
    for what, why in left_out.items():
        click.echo(f"left out: {what}: {why}", err=True)
    if form in {"json", "csv"}:
        show_table(rows, form)
        return
    for _, label in PRECISIONS:
        click.echo(f"{label}:\n")
        show_table([_for_people(row) for row in rows if row["precision"] == label], form)
        click.echo()
    click.echo("Activations, workspaces and the allocator's rounding come on top.")


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "tier": row["tier"],
        "plugin": row["plugin"],
        "parameters": f"{row['parameters'] / 1e6:,.2f}M",
        "weights": bytes_text(row["weights_bytes"]),
        "gradients": bytes_text(row["gradients_bytes"]),
        "states": bytes_text(row["states_bytes"]),
        "weights+states": bytes_text(row["weights_and_states_bytes"]),
        "total": bytes_text(row["total_bytes"]),
    }
