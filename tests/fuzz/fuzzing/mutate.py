"""Mutations: of bytes, of texts, and of JSON values by structure. All are drawn from the generator that they get."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

from fuzzing import hostile

EDGES = (
    b"\x00" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PAR1",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\r\n",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"../",
    b'"',
    b"\n",
    b"{",
    b"[",
)


def data(random: Random, content: bytes, *, start: int = 0, times: int | None = None) -> bytes:
    """Return ``content`` after one to four mutations at or beyond ``start``."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4)) if times is None else times):
        _one(random, found, min(start, len(found)))
    return bytes(found)


def _one(random: Random, content: bytearray, start: int) -> None:
    here = random.randrange(start, len(content) + 1)
    there = min(len(content), here + random.choice((1, 1, 2, 4, 8, 16, 64, 512)))
    kind = random.randrange(10)
    if kind <= 2 and here < len(content):
        content[here] ^= 1 << random.randrange(8)
    elif kind == 3 and here < len(content):
        content[here] = random.randrange(256)
    elif kind == 4:
        del content[here:there]
    elif kind == 5:
        content[here:here] = content[here:there] * random.choice((1, 2, 50))
    elif kind == 6:
        del content[here:]
    elif kind == 7:
        edge = random.choice(EDGES)
        content[here : here + random.choice((0, len(edge)))] = edge
    elif kind == 8:
        content[here:there] = bytes(there - here)
    else:
        content[here:there] = random.randbytes(there - here)


def text(random: Random, content: str) -> str:
    """Return ``content`` after one to three mutations of its characters."""
    for _ in range(random.choice((1, 1, 2, 3))):
        here = random.randrange(len(content) + 1)
        there = min(len(content), here + random.choice((1, 1, 3, 10, 80)))
        kind = random.randrange(6)
        if kind == 0:
            content = content[:here] + content[there:]
        elif kind == 1:
            content = content[:here] + hostile.text(random) + content[there:]
        elif kind == 2:
            content = content[:here] + hostile.text(random) + content[here:]
        elif kind == 3:
            content = content[:there] + content[here:]
        elif kind == 4:
            content = content[:here]
        else:
            content = content[:here] + hostile.characters(random, 1) + content[there:]
    return content


def structure(random: Random, value: Any, times: int | None = None) -> Any:
    """Return a copy of a JSON value after one to three changes of its structure or its leaves."""
    root = [copy.deepcopy(value)]
    for _ in range(random.choice((1, 1, 1, 2, 3)) if times is None else times):
        owner, key = _place(random, root)
        _change(random, owner, key)
    return root[0]


def _place(random: Random, root: list[Any]) -> tuple[Any, Any]:
    """Return a container and one of its keys, drawn on a walk from the root."""
    owner, key = root, 0
    while isinstance(owner[key], (dict, list)) and owner[key] and random.random() < 0.85:
        owner = owner[key]
        key = random.choice(list(owner)) if isinstance(owner, dict) else random.randrange(len(owner))
    return owner, key


def _change(random: Random, owner: Any, key: Any) -> None:
    kind = random.randrange(10)
    if kind <= 4:
        owner[key] = hostile.value(random)
    elif kind == 5:
        owner[key] = _other_type(random, owner[key])
    elif kind == 6 and isinstance(owner, dict):
        del owner[key]
    elif kind == 7 and isinstance(owner, dict):
        owner[hostile.text(random)[:80]] = owner[key] if random.random() < 0.5 else owner.pop(key)
    elif isinstance(owner[key], str):
        owner[key] = text(random, owner[key])
    elif isinstance(owner[key], list) and owner[key]:
        items = owner[key]
        items.insert(random.randrange(len(items) + 1), random.choice(items))
    else:
        owner[key] = [owner[key]] if random.random() < 0.5 else {"": owner[key]}


def _other_type(random: Random, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return random.choice((0, 1, "true", "null", []))
    if isinstance(value, (int, float)):
        finite = isinstance(value, int) or math.isfinite(value)
        texts = (str(value)[:50], -value, [value], value != 0)
        return random.choice((*texts, int(value) if finite else 0, float(value) if abs(value) < 1e300 else 0.5))
    if isinstance(value, str):
        return random.choice(
            (len(value), [value], {value[:50]: value[:50]}, None, value.encode(errors="replace")[:1].hex())
        )
    if isinstance(value, list):
        return random.choice(({str(i): item for i, item in enumerate(value[:20])}, "", None, value * 2))
    return random.choice((list(value), list(value.values()), "", None))


def as_json(random: Random, value: Any) -> bytes:
    """Return a JSON value as bytes; sometimes as no careful program would write it."""
    kind = random.random()
    content = json.dumps(value, ensure_ascii=kind < 0.5, indent=random.choice((None, None, 1)))
    content = hostile.deepened(random, content)
    raw = content.encode("utf-8", errors="surrogatepass")
    if kind > 0.97:
        return content.encode(random.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig")), errors="replace")
    return raw
