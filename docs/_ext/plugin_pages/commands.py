"""One page for each command, from the same declarations that ``--help`` prints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from bench.cli import VERBS, cli

from .context import Context
from .markdown import code, escape, fence, page, sentence, table, toctree


def pages(context: Context) -> Iterator[tuple[str, str]]:  # noqa: ARG001 - all writers are called alike
    """Yield the path and the text of the page of each command, and of their index."""
    rows = [(f"[{code(f'bench {verb}')}]({verb}.md)", _text(words)) for verb, words in VERBS.items()]
    exits = (
        "Exit codes: 0 done, 1 a trial failed (its outcome is in the record) or something is broken, 2 user error, "
        "3 internal error, 130 interrupted."
    )
    told = "A user error is one message: what was wrong, what is allowed, what to do. `--debug` adds the traceback."
    yield (
        "commands/index.md",
        page("# Commands", table(("command", "what it does"), rows), exits, told, toctree([*VERBS])),
    )
    context_ = click.Context(cli, info_name="bench", **cli.context_settings)
    for verb in VERBS:
        command = cli.get_command(context_, verb)
        assert command is not None, verb
        yield f"commands/{verb}.md", page(*_command(command, click.Context(command, context_, verb), 1))


def _command(command: click.Command, context: click.Context, level: int) -> list[str]:
    blocks = [
        f"{'#' * level} {code(context.command_path)}",
        *(_text(part) for part in inspect.cleandoc(command.help or "").split("\n\n")),
        fence(f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"),
    ]
    rows = [_option(parameter, context) for parameter in command.get_params(context) if _is_shown(parameter)]
    blocks.append(table(("option", "what it does", "default"), rows))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            part = command.get_command(context, name)
            assert part is not None, name
            blocks += _command(part, click.Context(part, context, name), level + 1)
    return blocks


def _is_shown(parameter: click.Parameter) -> bool:
    return not getattr(parameter, "hidden", False)


def _option(parameter: click.Parameter, context: click.Context) -> tuple[str, str, str]:
    if not isinstance(parameter, click.Option):
        return code(parameter.make_metavar(context)), "", "" if parameter.required else _default(parameter)
    shape = "" if parameter.is_flag else f" {parameter.make_metavar(context)}"
    names = ", ".join(code(name) for name in parameter.opts[:-1])
    last = code(f"{parameter.opts[-1]}{shape}")
    told = _text(parameter.help or "")
    told += " May be given several times." if parameter.multiple else ""
    default = "required" if parameter.required else "" if parameter.is_flag else _default(parameter)
    return ", ".join(filter(None, (names, last))), told, default


def _default(parameter: click.Parameter) -> str:
    if parameter.default is None or callable(parameter.default) or not str(parameter.default).strip():
        return ""
    if type(parameter.default).__module__.startswith("click") or parameter.default == ():
        return ""
    return code(parameter.default)


def _text(words: str) -> str:
    """Return a help text as one paragraph; what stands between backticks is code."""
    parts = " ".join(words.split()).split("`")
    if len(parts) % 2 == 0:
        return escape(sentence(" ".join(words.split())))
    shown = "".join(code(part) if place % 2 else escape(part) for place, part in enumerate(parts))
    return sentence(shown)
