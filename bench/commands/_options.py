"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bench.errors import BadValue

if TYPE_CHECKING:
    from bench.request import Request

F = TypeVar("F", bound=Callable[..., Any])

results_option = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=True),
    default=Path("results"),
    show_default=True,
    help="Folder of the results.",
)
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "md"]),
    default="table",
    show_default=True,
    help="How to print; numbers in json are bytes, seconds, joules.",
)


def run_options(command: F) -> F:
    """Add the options that say what to run."""
    for option in reversed(
        [
            click.option("--plugin", "plugins", required=True, metavar="P[,P...]", help="Algorithms under test."),
            click.option("--workload", required=True, metavar="W", help="The fixed problem."),
            click.option("--tier", metavar="T", help="Its size; default: what fits the device."),
            click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a hyperparameter."),
            click.option("--with", "with_plugins", multiple=True, metavar="P", help="Fill another slot by P."),
            click.option("--protocol", default="quick", show_default=True, metavar="NAME", help="Tuning protocol."),
            click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="Run this seed only."),
            click.option("--seeds", type=click.IntRange(1, 1000), metavar="N", help="Run seeds 0 to N-1."),
            click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:i]", help="Where to train."),
            click.option("--data", "source", metavar="SOURCE", help="Data source; bench show WORKLOAD lists them."),
            click.option(
                "--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Folder of data files of one's own."
            ),
            click.option(
                "--model-dir",
                "models",
                multiple=True,
                type=click.Path(path_type=Path),
                metavar="DIR",
                help="Folder of trained weights of one's own; several where several are merged.",
            ),
            click.option("--tokenizer", metavar="FILE|bytes", help="Tokenizer of the data; default: the tier's own."),
            results_option,
            click.option("--no-reference", is_flag=True, help="Do not run the workload's reference beside it."),
        ]
    ):
        command = option(command)
    return command


def request_of(options: dict[str, Any]) -> Request:
    """Turn the parsed options into a request; contradictions raise."""
    from bench.provenance import command_line
    from bench.request import Request

    plugins = [name.strip() for name in options["plugins"].split(",") if name.strip()]
    if not plugins:
        raise BadValue(f"--plugin {options['plugins']!r} names no algorithm", hint="see: bench list")
    if len(set(plugins)) != len(plugins):
        raise BadValue(f"--plugin {options['plugins']!r} names an algorithm twice")
    if options["seed"] is not None and options["seeds"] is not None:
        raise BadValue("--seed and --seeds exclude each other", hint="--seed 3 runs seed 3; --seeds 3 runs 0, 1 and 2")
    if options["source"] is not None and options["data_dir"] is not None:
        raise BadValue("--data and --data-dir exclude each other", hint="a folder of shards is always source 'local'")
    seeds = [options["seed"]] if options["seed"] is not None else None
    return Request(
        plugins=plugins,
        workload=options["workload"],
        tier=options["tier"],
        settings=options["settings"],
        with_plugins=options["with_plugins"],
        protocol=options["protocol"],
        seeds=range(options["seeds"]) if options["seeds"] is not None else seeds,
        device=options["device"],
        source=options["source"],
        directory=options["data_dir"],
        tokenizer=options["tokenizer"],
        models=options["models"],
        reference=not options["no_reference"],
        command_line=command_line(),
    )
