"""The ``bench`` command: one module per verb under ``commands/``, imported when it is used."""

from __future__ import annotations

import importlib
import io
import keyword
import sys
import traceback
from collections.abc import Sequence

import click

from bench.errors import BenchError

VERBS = {
    "run": "train a workload with an algorithm and record what it took",
    "plan": "show the trials that `run` would do; run nothing",
    "resume": "go on with trials that were interrupted",
    "list": "list plugins, workloads, protocols or devices",
    "show": "show everything about one plugin or workload",
    "leaderboard": "rank what has been recorded",
    "compare": "hold two algorithms against each other",
    "report": "write everything that is recorded as one page",
    "import": "import public results of others into a folder of their own",
    "memory": "estimate weights, gradients and states of any tier",
    "doctor": "check this machine, the plugins and the results",
    "worker": "run one trial from its trial.json (what executors start)",
}
"""The verbs with one line of help each; ``bench.commands.<verb>`` holds the command."""

EXIT_DONE, EXIT_TRIAL_FAILED, EXIT_USER, EXIT_INTERNAL, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class Verbs(click.Group):
    """A group whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs, in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import the command ``cmd_name``."""
        if cmd_name not in VERBS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = importlib.import_module(f"bench.commands.{module}").command
        debug = click.Option(["--debug"], is_flag=True, expose_value=False, help="Show a traceback for every error.")
        if not any(parameter.name == "debug" for parameter in command.params):
            command.params.append(debug)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say which verbs there are when somebody types another one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from bench.errors import UnknownName

            raise UnknownName("command", args[0], VERBS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bench-training", prog_name="bench")
def cli() -> None:
    """Benchmark neural-network training algorithms: time, memory, energy, quality."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return its exit code.

    0 done, 1 a trial failed (its outcome is in the record), 2 user error, 3 internal error, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters shows question marks
    try:
        code = cli.main(arguments, prog_name="bench", standalone_mode=False)
    except SystemExit as error:
        if error.code != 1:
            raise
        return EXIT_DONE  # so click and rich end, and nothing else does, when the reader of a pipe went away
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort: a message, not a traceback
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = _explain(error)
        click.echo(f"Error: {message}", err=True)
    return int(code or EXIT_DONE)


def _explain(error: BaseException) -> tuple[int, str]:
    """Return exit code and message for what ended a command."""
    if isinstance(error, BenchError):
        return EXIT_USER, str(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return EXIT_USER, f"no command\n\n{error.format_message()}"
    if isinstance(error, click.ClickException):
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "bench"
        return EXIT_USER, f"{error.format_message()}\n\nHint: {where} --help"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return EXIT_INTERRUPTED, "interrupted; give the same command again to go on"
    hint = "run it again with --debug and report the traceback"
    return EXIT_INTERNAL, f"internal error: {type(error).__name__}: {error}\n\nHint: {hint}"
