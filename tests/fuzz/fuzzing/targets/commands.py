"""The command line: every verb with hostile arguments. Nothing trains: where a run could begin, results are a file."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random

from bench import cli
from bench.cli import VERBS, main
from bench.errors import BenchError
from bench.registry import Registry
from fuzzing import hostile, mutate
from fuzzing.case import Case
from fuzzing.targets import samples

NAMES = ("adamw", "sgd", "lion", "galore", "muon", "lora", "wanda", "no-such")
WORKLOADS = ("llama-c4", "ft-markov", "merge-subspace", "compress-llama", "no-such")
RUN = {
    "--plugin": NAMES,
    "--workload": WORKLOADS,
    "--tier": ("tiny", "60m", "no-such"),
    "--set": ("lr=0.1", "adamw.lr=0.1", "lr", "=", "beta1=1", "lion.beta2=.5"),
    "--with": NAMES,
    "--protocol": ("quick", "default", "external", "self-tuning", "grid-lr", "no-such"),
    "--seed": hostile.NUMBERS,
    "--seeds": ("1", "2", *hostile.NUMBERS),
    "--device": ("cpu", "cuda", "cuda:0", "cuda:99", "cuda:-1", "cpu:0", "mps", "meta"),
    "--data": ("embedded", "local", "c4", "no-such"),
    "--data-dir": hostile.PATHS,
    "--model-dir": hostile.PATHS,
    "--tokenizer": ("bytes", *hostile.PATHS),
    "--no-reference": None,
    "--debug-not": None,
}
FORMAT = {"--format": ("table", "json", "csv", "md", "xml", "")}
BY = {"--by": ("time", "steps", "memory", "energy", "quality", "pareto", "speed")}
ONLY = {"--workload": WORKLOADS, "--tier": ("tiny", "7b"), "--protocol": ("default", "quick")}
OPTIONS = {
    "run": RUN,
    "plan": RUN | FORMAT,
    "resume": {},
    "list": FORMAT | {"--track": ("optimizer", "peft", "solver")},
    "show": {},
    "leaderboard": ONLY | BY | FORMAT | {"--write": None, "--figure": ("x.svg", "x.exe", "no/x.svg", "folder")},
    "compare": ONLY | BY | FORMAT,
    "report": {"--format": ("html", "md", "pdf"), "--figures": ("figures", "file")},
    "import": {},
    "memory": {"--set": RUN["--set"]} | FORMAT,
    "worker": {},
    "doctor": {},
    "repair": {"--dry-run": None, "--format": ("table", "json", "csv")},
    "check": {"--only": ("*", "[", "optimizer/*"), "--format": ("table", "json", "xml"), "--no-overhead": None},
    "new-plugin": {
        "--author": hostile.TEXTS,
        "--dir": ("folder", "file", "no/such", "link", "loop", "späce here", "x" * 300),
    },
    "pack": ONLY,
    "verify": {"--format": ("table", "json", "csv")},
    "reproduce": ONLY | {"--trials": hostile.NUMBERS, "--seed": hostile.NUMBERS, "--salt": hostile.TEXTS},
}
"""The options of every verb, with values that are sound or nearly so; ``None``: a switch."""
POSITIONAL = {
    "list": ("plugins", "workloads", "protocols", "devices", "plugin"),
    "show": (*NAMES, *WORKLOADS),
    "compare": NAMES,
    "import": ("algoperf", "mlperf", "x.csv"),
    "worker": hostile.PATHS,
    "check": ("no-such", "llama-c4"),
    "new-plugin": ("tiny-sgd", "adamw", "../up", "a/b", "Import", "class", "-x", "bench", "torch", "a" * 300),
    "verify": ("x.zip", "x.csv", *hostile.PATHS),
    "reproduce": ("x.zip", "x.csv", *hostile.PATHS),
}
COUNTS = {"list": (0, 1), "compare": (2,), "import": (2,)}
NEEDED = {
    "run": ("--plugin", "--workload"),
    "plan": ("--plugin", "--workload"),
    "compare": ("--workload",),
    "pack": ("--plugin",),
    "memory": ("--plugin", "--workload"),
    "new-plugin": ("--track",),
}
TRACK = {"--track": ("optimizer", "peft", "compression", "merging", "solver")}
SOUND = (
    ("list",),
    ("show", "llama-c4"),
    ("leaderboard", "--figure", "x.svg"),
    ("compare", "adamw", "lion", "--workload", "llama-c4"),
    *(("plan", "--plugin", "adamw", "--workload", name) for name in ("llama-c4", "ft-markov")),
    ("memory", "--plugin", "galore", "--workload", "llama-c4", "--tier", "tiny"),
)
A_FILE = ("--results", "file")
"""Ends what could train, write much or take long: results cannot be in a file."""
BLOCKED = {"run", "report", "doctor", "resume"}
OUTS = ("x.html", "x.md", "x", "no/x.html", "folder", "a\0b", "-")
STORES = ("results", "file", "folder", "no/results", "loop", "pipe", "späce here/ü", "x" * 300, "a\0b", "/dev/null")


class Commands:
    """Gives one command line to ``bench``."""

    def __init__(self, home: Path) -> None:
        samples.store(home / "results")
        self._home = home
        self._algorithms = set(Registry().algorithms)
        here = Path.cwd()
        os.chdir(home)
        for arguments in SOUND:  # imports what commands import, so that an input's memory and time are its own
            command(arguments)
        os.chdir(here)

    def make(self, random: Random) -> Case:
        verb = random.choice(list(OPTIONS))
        if verb == "doctor" or random.random() < 0.05:
            return {"arguments": _anything(random)}
        arguments = _sound(random, verb)
        if random.random() < 0.35 and arguments:
            here = random.randrange(len(arguments))
            arguments[here] = mutate.text(random, arguments[here]) if random.random() < 0.5 else hostile.text(random)
        if random.random() < 0.1:
            arguments.insert(random.randrange(len(arguments) + 1), hostile.text(random))
        if verb == "check":  # what checks a plugin runs it
            arguments = [text for text in arguments if text not in self._algorithms]
        return {"arguments": [verb, *_harmless(random, verb, arguments)]}

    def run(self, case: Case, folder: Path) -> None:
        self._furnish(folder)
        os.chdir(folder / "work" / "here")
        command([text for text in case["arguments"] if text != "--debug"])

    def _furnish(self, folder: Path) -> None:
        """Make a folder of work with all that names of paths can mean; three folders deep, for paths that go up."""
        here = folder / "work" / "here"
        (here / "folder").mkdir(parents=True)
        (here / "späce here").mkdir()
        (here / "file").write_text("{}\n")
        (here / "x.csv").write_text("ruleset,submission\n")
        (here / "link").symlink_to("file")
        (here / "loop").symlink_to("loop")
        os.mkfifo(here / "pipe")
        (here / "x.zip").write_bytes(b"PK\5\6" + bytes(18))
        shutil.copytree(self._home / "results", here / "results")


def command(arguments: Sequence[str]) -> None:
    """Give a command line to ``bench``; a refusal becomes a ``BenchError``, anything else that is no success raises."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    before = list(sys.argv)
    sys.argv = ["bench", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(arguments)
            out.flush()
            err.flush()
    finally:
        sys.argv = before
    said = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]
    messages = re.findall("^Error: ", said[1], re.MULTILINE)
    if "Traceback (most recent call last)" in said[0] + said[1]:
        raise AssertionError(f"a traceback: {said[1][-2000:]}")
    if re.search(r"^/.*: \w*Warning: ", said[1], re.MULTILINE):
        raise AssertionError(f"a warning for programmers: {said[1][-500:]}")
    obeyed = re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", said[1])
    if obeyed is not None:
        raise AssertionError(f"prints {obeyed.group()!r}, which a terminal obeys: {said[1][:300]!r}")
    if code == 2:
        if len(messages) != 1:
            raise AssertionError(f"{len(messages)} messages: {said[1][:500]}")
        raise BenchError(said[1])
    if code not in {0, 1, 4}:
        raise InternalError(f"exit code {code}: {said[1][:500]}") from LAST[0]


class InternalError(Exception):
    """A command ended with an exit code that is no user's error; the cause is what it said it with."""


def _remembered(error: BaseException) -> tuple[int, str]:
    LAST[:] = [error]
    return EXPLAIN(error)


LAST: list[BaseException] = []
EXPLAIN = cli._explain
cli._explain = _remembered


def _sound(random: Random, verb: str) -> list[str]:
    """Return arguments that are sound, or nearly so."""
    count = random.choice(COUNTS.get(verb, (1,) if verb in POSITIONAL else (0,)))
    arguments = [random.choice(POSITIONAL[verb]) for _ in range(count)]
    options = OPTIONS[verb]
    chosen = [name for name in NEEDED.get(verb, ()) if random.random() < 0.95]
    chosen += random.sample(list(options), min(len(options), random.choice((0, 1, 1, 2, 3))))
    for name in chosen:
        values = (RUN | TRACK | options)[name]
        arguments += [name] if values is None else [name, _argument(random, values)]
    return arguments


def _harmless(random: Random, verb: str, arguments: list[str]) -> list[str]:
    """Return the arguments with what keeps a command from training, from taking long and from writing elsewhere."""
    if verb == "memory":  # larger tiers than this take seconds
        arguments = [*arguments, "--tier", "tiny"]
    if verb in BLOCKED:
        arguments = [*A_FILE, *arguments, *A_FILE]
    elif verb in {"leaderboard", "compare", "plan", "import", "repair", "pack"} and random.random() < 0.5:
        arguments = [*arguments, "--results", random.choice(STORES)]
    if verb in {"report", "pack"}:
        arguments = [*arguments, "--out", random.choice(OUTS)]
    return arguments


def _argument(random: Random, values: Sequence[str]) -> str:
    if random.random() < 0.75:
        return random.choice(values)
    return ",".join(
        random.choice((random.choice(values), hostile.text(random))) for _ in range(random.choice((1, 1, 2, 3)))
    )


def _anything(random: Random) -> list[str]:
    """Return hostile texts alone, so that no verb that does something is among them."""
    found = [hostile.text(random) for _ in range(random.randrange(4))]
    return found if not found or found[0] not in VERBS else ["no-such"]
