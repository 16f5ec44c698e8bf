"""Values that programs choke on: texts, numbers, names, paths. Many would leave a trace if anything ran them."""

from __future__ import annotations

from random import Random
from typing import Any

CANARY = "fuzz_canary"
"""A module that can be imported while inputs run, and must not be; the word marks texts that must not be compiled."""

DEEP = "nested deeper than Python's stack"
"""Stands for arrays nested so deeply that no value in memory can be."""

TEXTS = (
    "",
    " ",
    "\t",
    "\n",
    "\r\n",
    "\0",
    "a\0b",
    "\x1b[31mred\x1b[0m",
    "\x07",
    "\x7f",
    "\u202egnp.exe",
    "\ufeff",
    "\u200b",
    "é",
    "e\u0301",
    "ﷺ",
    "𝕬𝖉𝖆𝖒",
    "İ",
    "ß",
    "\U0010ffff",
    "\ud800",
    "\udcff",
    "None",
    "null",
    "NULL",
    "none",
    "True",
    "undefined",
    "{}",
    "[]",
    "{0.__class__.__mro__}",
    "%s%n%x",
    "${HOME}",
    "~root",
    "$(touch fuzz_canary)",
    "`touch fuzz_canary`",
    "; touch fuzz_canary",
    "| touch fuzz_canary",
    "__import__('fuzz_canary')",
    "exec('import fuzz_canary')",
    "fuzz_canary:Algorithm",
    "fuzz_canary.inner:Algorithm",
    "os:system",
    "!!python/object/apply:fuzz_canary.touch []",
    "cfuzz_canary\ntouch\n(tR.",
    "<script>fuzz_canary()</script>",
    "' OR 1=1 --",
    "a" * 300,
    "a" * 70_000,
    "[" * 100_000,
    '{"a":' * 20_000,
    "(" * 3_000,
    "," * 1_000,
    "=" * 100,
    "../" * 40 + "etc/passwd",
    "adamw",
    "lr",
    "tiny",
    "quick",
    "@adamw",
    "@/etc/passwd",
    "-",
    "--",
    "-1",
    "--help",
    "-h",
    "--debug",
    "--version",
    "CON",
    "a/b",
    "a\\b",
    ".",
    "..",
    ".hidden",
    "*",
    "?",
)

NUMBERS = (
    "0",
    "-0",
    "+5",
    "1",
    "-1",
    "00",
    "1.",
    ".5",
    "1e5",
    "1e309",
    "-1e309",
    "1e-400",
    "5e-324",
    "1.7976931348623157e308",
    "nan",
    "-nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "1_000",
    "1,5",
    "0x10",
    "0b1",
    "1j",
    "٣",
    "１２",
    "²",
    "½",
    " 7 ",
    "7\n",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "9" * 400,
    "9" * 5_000,
    "1" + "0" * 100_000,
    "0." + "0" * 5_000 + "1",
    "1e" + "9" * 50,
    "true",
    "false",
    "yes",
    "on",
)

PATHS = (
    "",
    ".",
    "..",
    "/",
    "/dev/null",
    "/dev/null/x",
    "/dev/zero",
    "/dev/full",
    "/proc/self/mem",
    "/proc/self/environ",
    "/proc/1/root",
    "/etc/passwd",
    "not/here",
    "a\0b",
    "\0",
    "x" * 300,
    "x/" * 3_000,
    "\udcff",
    "\ud800",
    "\n",
    "~",
    "$HOME",
    "-",
    "@file",
    "file",
    "folder",
    "link",
    "loop",
    "pipe",
    "folder/../file",
    "file/x",
    "späce here/ü",
    "http://127.0.0.1:9/x",
    "file:///etc/passwd",
    "s3://bucket/x",
    "hf://datasets/x",
    "\\\\host\\share",
)

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    255,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    10**400,
)
REALS = (0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, -1e308, 1e16, float("nan"), float("inf"), float("-inf"))


def text(random: Random) -> str:
    """Return a hostile text: one of the lists, a number as text, random characters, or several joined."""
    kind = random.random()
    if kind < 0.5:
        return random.choice(TEXTS)
    if kind < 0.75:
        return random.choice(NUMBERS)
    if kind < 0.85:
        return random.choice(PATHS)
    if kind < 0.95:
        return characters(random, random.randrange(1, 30))
    return "".join(random.choice(TEXTS[:40]) for _ in range(random.randrange(2, 5)))


def characters(random: Random, length: int) -> str:
    """Return random characters from all planes, most of them ASCII; lone surrogates among them."""
    ends = (0x80, 0x80, 0x80, 0x20, 0x250, 0x3000, 0x11000, 0x110000)
    return "".join(chr(random.randrange(random.choice(ends))) for _ in range(length))


def scalar(random: Random) -> Any:
    """Return a hostile JSON scalar; NaN and infinities among them."""
    kind = random.random()
    if kind < 0.1:
        return None
    if kind < 0.2:
        return random.random() < 0.5
    if kind < 0.45:
        return random.choice(INTEGERS)
    if kind < 0.65:
        return random.choice(REALS)
    return text(random)


def value(random: Random, depth: int = 3) -> Any:
    """Return a hostile JSON value."""
    kind = random.random()
    if depth == 0 or kind < 0.7:
        return scalar(random)
    if kind < 0.85:
        return [value(random, depth - 1) for _ in range(random.randrange(4))]
    if kind < 0.98:
        return {text(random)[:50]: value(random, depth - 1) for _ in range(random.randrange(4))}
    if random.random() < 0.3:
        return DEEP
    nested: Any = scalar(random)
    for _ in range(random.choice((10, 50))):
        nested = [nested] if random.random() < 0.5 else {"a": nested}
    return nested


def deepened(random: Random, content: str) -> str:
    """Return JSON or TOML with :data:`DEEP`, as a quoted text, replaced by nested arrays."""
    if DEEP not in content:
        return content
    depth = random.choice((120, 600, 1_200, 100_000))
    return content.replace(f'"{DEEP}"', "[" * depth + random.choice(("", "]" * depth)))
