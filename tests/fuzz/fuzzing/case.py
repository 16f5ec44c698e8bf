"""An input: named parts that survive a way through JSON, so that a found one is kept as a file and run again."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

Case = dict[str, Any]
"""JSON values, and bytes at any depth."""


def random_of(seed: int, target: str, number: int) -> Random:
    """Return the generator of one input: any input can be made again without those before it."""
    key = hashlib.sha256(f"{seed}/{target}/{number}".encode()).digest()
    return Random(key)


def encode(value: Any) -> Any:
    """Return ``value`` with its bytes, and what JSON or UTF-8 cannot hold, as tagged text."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, dict):
        return {"pairs": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """Return what :func:`encode` was given, lists for tuples."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if "base64" in value:
            return base64.b64decode(value["base64"])
        return {decode(key): decode(item) for key, item in value["pairs"]}
    return value


def write(path: Path, target: str, case: Case, why: str) -> None:
    """Keep an input of ``target`` as a file; ``why`` says what was found with it."""
    content = {"target": target, "why": why, "case": encode(case)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[str, Case, str]:
    """Return the target of a kept input, the input, and why it is kept."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["target"], decode(content["case"]), content["why"]
