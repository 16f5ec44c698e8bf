"""The embedded mixture: six sources of documents in one invented language, the same bytes on every platform.

``prose`` is the embedded corpus. The other five are written in the same words, but each of them has something of its
own to learn: who speaks and what a reply takes up (``dialogue``), products and a running total (``ledger``), names that
must be defined before they are used (``code``), the inflected forms of a word (``glossary``), and carrying (``sums``).
Document ``index`` of a source and split depends on these three only; the order is from frequent to rare.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from bench.errors import BadData

from . import _corpus
from ._language import TOPICS, Draws, lexicon, topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._corpus import Split

WEIGHTS: Final[Mapping[str, int]] = {"prose": 40, "dialogue": 30, "ledger": 12, "code": 8, "glossary": 6, "sums": 4}
"""Of a hundred training samples, how many come from each source."""

PINNED_TRAIN_DOCUMENTS: Final[Mapping[str, int]] = {
    "prose": 300,
    "dialogue": 300,
    "ledger": 120,
    "code": 80,
    "glossary": 60,
    "sums": 40,
}
PINNED_VALIDATION_DOCUMENTS: Final = 12
MIXTURE_VERSION: Final = 1
MIXTURE_SHA256: Final = "10754f197b60f1442922a4a83172c55e4b88a68e3544fefb4429a13b3aef502c"

_SHORTEST: Final = 600
_LONGEST: Final = 1_400


def _dialogue(draws: Draws) -> Iterator[str]:
    """Two take turns; every other reply begins with what the question ended with."""
    words, about = lexicon(), topic(draws.below(TOPICS))
    speakers = [draws.syllables(2 + draws.below(2)).capitalize() for _ in range(2)]
    last, turn = "", draws.below(2)
    while True:
        noun, number = draws.word(about.nouns), draws.below(3) // 2
        thing = f"{words.determiners[draws.below(2)][int(noun[0])][number]} {noun[1 + number]}"
        verb = draws.word(about.verbs)
        if last and draws.below(2):
            yield f"{speakers[turn]}: {last}, {draws.word(about.adverbs)[0]}.\n"
            last = ""
        else:
            yield f"{speakers[turn]}: {verb[draws.below(2)]} {draws.choice(words.prepositions)} {thing}?\n"
            last = thing
        turn = 1 - turn


def _ledger(draws: Draws) -> Iterator[str]:
    """Numbers of things at a price, what they make, and the total so far."""
    about, total = topic(draws.below(TOPICS)), 0
    while True:
        count, price = 2 + draws.below(11), 1 + draws.below(12)
        total = (total + count * price) % 1_000
        yield f"{count} {draws.word(about.nouns)[2]} at {price} is {count * price}, all {total}\n"


def _code(draws: Draws) -> Iterator[str]:
    """Functions of one or two arguments; a name is used only after it was defined."""
    words, functions = lexicon(), ["id"]
    while True:
        name = words.verbs[draws.below(80)][0]
        names = [words.nouns[draws.below(40)][1] for _ in range(1 + draws.below(2))]
        yield f"def {name}({', '.join(names)}):\n"
        for _ in range(1 + draws.below(3)):
            value = f"{draws.choice(functions)}({draws.choice(names)}) + {draws.choice(names)}"
            names.append(words.nouns[draws.below(40)][1])
            yield f"  {names[-1]} = {value}\n"
        yield f"  return {draws.choice(functions)}({names[-1]})\n"
        functions.append(name)


def _glossary(draws: Draws) -> Iterator[str]:
    """A word of any kind and all its forms."""
    words = lexicon()
    kinds = (words.nouns, words.verbs, words.adjectives)
    while True:
        place = draws.below(3)
        forms = kinds[place][draws.below(len(kinds[place]))]
        stem = forms[1][:-1] if place == 0 else forms[0][:-2]
        yield f"{stem} - {', '.join(forms[1:] if place == 0 else forms)}\n"


def _sums(draws: Draws) -> Iterator[str]:
    """Sums and differences of numbers below 100."""
    while True:
        a, b = sorted((draws.below(100), draws.below(100)))
        yield f"{a} + {b} = {a + b}\n" if draws.below(2) else f"{b} - {a} = {b - a}\n"


_WRITERS: Final[Mapping[str, Callable[[Draws], Iterator[str]]]] = {
    "dialogue": _dialogue,
    "ledger": _ledger,
    "code": _code,
    "glossary": _glossary,
    "sums": _sums,
}


def document(source: str, index: int, split: Split) -> str:
    """Return document ``index`` (0, 1, ...) of a source and split: ASCII text of some 600 to 1,400 bytes."""
    if index < 0:
        raise BadData(f"document index {index!r} (int) is negative", hint="embedded documents are numbered from 0")
    if source == "prose":
        return _corpus.document(index, split)
    draws = Draws("mixture", MIXTURE_VERSION, source, split, index)
    room, parts = _SHORTEST + draws.below(_LONGEST - _SHORTEST), []
    for line in _WRITERS[source](draws):
        parts.append(line)
        room -= len(line)
        if room <= 0:
            break
    return "".join(parts).rstrip("\n")


Documents = dict[str, "dict[Split, tuple[str, ...]]"]


def mixture_digest(documents: Documents) -> str:
    """Return the SHA-256 over all sources and splits; source, split and length stand before each document."""
    digest = sha256()
    for source, splits in documents.items():
        for split, texts in splits.items():
            for text in texts:
                data = text.encode("ascii")
                digest.update(f"{source} {split} {len(data)}\n".encode("ascii") + data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def pinned_documents() -> Documents:
    """Return the first documents of every source (those of tier ``tiny``), checked against ``MIXTURE_SHA256``.

    Raises:
        BadData: this installation generates other bytes than the pinned ones.
    """
    sizes: dict[str, dict[Split, int]] = {
        source: {"train": PINNED_TRAIN_DOCUMENTS[source], "validation": PINNED_VALIDATION_DOCUMENTS}
        for source in WEIGHTS
    }
    documents: Documents = {
        source: {
            split: tuple(document(source, index, split) for index in range(size)) for split, size in splits.items()
        }
        for source, splits in sizes.items()
    }
    found = mixture_digest(documents)
    if found != MIXTURE_SHA256:
        raise BadData(
            f"the embedded mixture (version {MIXTURE_VERSION}) has SHA-256 {found}, expected {MIXTURE_SHA256}",
            hint="the generator was changed or is damaged: install bench anew; whoever meant to change the mixture "
            "raises its version and pins the new hash",
        )
    return documents
