"""Claims files: TOML beside a third party's plugin."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

from bench.claims import read_claims
from bench.registry import Registry
from fuzzing import hostile, mutate
from fuzzing.case import Case

GOOD = {
    "id": "half-the-state",
    "statement": "It keeps half of the state.",
    "source": "arXiv:2302.06675, Table 1",
    "algorithm": "lion",
    "baseline": "sgd",
    "metric": "optimizer_state",
    "direction": "lower",
    "comparison": "ratio",
    "published_value": 1.0,
    "published_baseline_value": 2.0,
    "workload": "llama-c4",
    "tier": "60m",
    "smallest_tier": "tiny",
    "note": "as the paper counts it",
}
WORDS = {
    "metric": ("time_to_target", "steps_to_target", "memory", "optimizer_state", "energy", "quality"),
    "direction": ("lower", "higher"),
    "comparison": ("ratio", "difference"),
    "published_unit": ("metric", "perplexity"),
    "baseline": ("sgd", "adamw", "lion"),
    "published_on": ("a cluster",),
    "smallest_tier": ("tiny", "60m", "7b"),
}
SNIPPETS = (
    "a = 1979-05-27T07:32:00Z",
    "a = 9999-12-31",
    "a = 25:61:00",
    "a = inf",
    "a = -nan",
    "a = 0xfffffffffffffffffffff",
    "a = " + "9" * 5_000,
    "a = 1e999999",
    "a = " + "[" * 3_000,
    "a = " + "[" * 400 + "]" * 400,
    "a = " + "{a=" * 500,
    "[" + "a." * 5_000 + "a]",
    "a.b = 1\na.b.c = 2",
    "claim = 1",
    "claim = []",
    "claim = [1]",
    "[claim]",
    "[[claim]]",
    "[[claim.id]]",
    '""" open',
    "'''",
    '"\\ud800" = 1',
    '"\\U00110000" = 1',
    "\\",
    "# \x00",
    "\x1b]0;title\x07",
)


class Claims:
    """Reads one claims file."""

    def __init__(self, home: Path) -> None:  # noqa: ARG002 - a target's signature
        self._registry = Registry()

    def make(self, random: Random) -> Case:
        claims: list[Any] = [dict(GOOD, id=f"claim-{number}") for number in range(random.choice((1, 1, 2, 30)))]
        for claim in claims:
            if random.random() < 0.4:
                key = random.choice(list(WORDS))
                claim[key] = random.choice(WORDS[key])
        if random.random() < 0.7:
            claims = mutate.structure(random, claims)
        content = hostile.deepened(random, toml(claims))
        if random.random() < 0.3:
            content = mutate.text(random, content)
        if random.random() < 0.2:
            content = random.choice(SNIPPETS) + "\n" + content
        raw = content.encode("utf-8", errors="surrogatepass")
        return {"file": mutate.data(random, raw) if random.random() < 0.3 else raw}

    def run(self, case: Case, folder: Path) -> None:  # noqa: ARG002 - a target's signature
        for claim in read_claims(case["file"], "lion.claims.toml", ["lion"], self._registry):
            if not (math.isfinite(claim.published_effect) and claim.published_at):
                raise AssertionError(f"accepted without an effect or a place: {claim}")


def toml(value: Any) -> str:
    """Return claims, or what became of them, as TOML."""
    claims = value if isinstance(value, list) else [value]
    lines = []
    for claim in claims:
        pairs = claim if isinstance(claim, dict) else {"claim": claim}
        lines += ["[[claim]]", *(f"{_key(str(key))} = {_value(item)}" for key, item in pairs.items())]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(str(key))} = {_value(item)}' for key, item in value.items())}}}"
    return json.dumps(value)
