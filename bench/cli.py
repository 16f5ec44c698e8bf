"""The ``bench`` command: one module per verb under ``commands/``, imported when it is used."""

from __future__ import annotations

import contextlib
import importlib
import io
import keyword
import os
import sys
import traceback
from collections.abc import Sequence

import click

from bench.commands._print import echo
from bench.errors import BadValue, BenchError
from bench.files import FULL

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
    "check": "check a plugin: does it keep the rules, what is it like, what does it cost",
    "doctor": "check this machine, the plugins and the results",
    "repair": "put a damaged results folder in order",
    "new-plugin": "write a package for an algorithm of one's own",
    "pack": "pack what was measured of an algorithm into one file for others",
    "verify": "check such a file without running anything of it",
    "reproduce": "run chosen trials of such a file again and compare",
    "worker": "run one trial from its trial.json (what executors start)",
}
"""The verbs with one line of help each; ``bench.commands.<verb>`` holds the command (see :func:`_module`)."""

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
        command: click.Command = importlib.import_module(f"bench.commands.{_module(cmd_name)}").command
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


def _module(verb: str) -> str:
    """Return the name of the module of ``verb``: with underscores, and one behind a word of Python."""
    name = verb.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


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
        _check_characters(arguments)
        code = cli.main(arguments, prog_name="bench", standalone_mode=False)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()  # while what goes wrong can still be told
    except SystemExit as error:
        if error.code != 1:
            raise
        return EXIT_DONE  # so click and rich end, and nothing else does, when the reader of a pipe went away
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort: a message, not a traceback
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = _explain(error)
        with contextlib.suppress(OSError):
            echo(f"Error: {message}", err=True)
    return int(code or EXIT_DONE)


def _check_characters(arguments: Sequence[str]) -> None:
    """Refuse what no shell can pass on and no file can be called, so that no other place has to."""
    for argument in arguments:
        try:
            sound = b"\0" not in os.fsencode(argument)
        except UnicodeEncodeError:
            sound = False
        if not sound:
            raise BadValue(f"the argument {argument!r:.80} holds what is no character, or a null character")


def _explain(error: BaseException) -> tuple[int, str]:
    """Return exit code and message for what ended a command."""
    if isinstance(error, BenchError):
        return EXIT_USER, str(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return EXIT_USER, f"no command\n\n{error.format_message()}"
    if isinstance(error, click.ClickException):
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "bench"
        return EXIT_USER, f"{error.format_message()}\n\nHint: {where} --help"
    if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL):
        return EXIT_USER, _explain_system(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return EXIT_INTERRUPTED, "interrupted; give the same command again to go on"
    hint = "run it again with --debug and report the traceback"
    return EXIT_INTERNAL, f"internal error: {type(error).__name__}: {error}\n\nHint: {hint}"


def _explain_system(error: OSError) -> str:
    """Return the message for a path that somebody named, or for output that found no space."""
    if error.filename is not None:
        return f"cannot use {str(error.filename)!r}: {error.strerror}\n\nHint: see that it is there and yours"
    sys.stdout = io.StringIO()  # what the old one still holds would be tried again, and told again, at the end
    return f"cannot write what there is to say: {error.strerror}\n\nHint: see where the output goes"
