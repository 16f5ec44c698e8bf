"""The embedded corpus: documents of an invented language, generated from a seed, the same bytes on every platform.

Only integers take part, and all randomness is SHAKE-128 of (version, seed, split, index): no floating point, no `random`, no order of
a set or dictionary, no locale. Any document can be had without those before it.

The language has something to learn at every scale: spelling (syllables), words (about 1,500, with Zipf frequencies that depend on one of
12 topics), grammar (gender and number agree between determiner, adjective and noun; the verb agrees with a subject that may stand a
relative clause earlier; the tense is that of the document), and the document (four names that occur in no lexicon and must be copied,
stock phrases that return).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256, shake_128
from typing import Final, Literal

from bench.errors import BadData

Split = Literal["train", "validation"]

CORPUS_VERSION: Final = 1
SEED: Final = 20_240_229
TOPICS: Final = 12
PINNED_TRAIN_DOCUMENTS: Final = 1_400
PINNED_VALIDATION_DOCUMENTS: Final = 160
CORPUS_SHA256: Final = "c42574a4acaf64b9935617a851b91e3e8e19a5a5534d32de839fb961d7b79574"

_NOUNS, _VERBS, _ADJECTIVES, _ADVERBS, _SAYING, _PREPOSITIONS, _SUBORDINATORS = 660, 340, 300, 164, 8, 10, 6
_BLOCK: Final = 512
_UNPACK: Final = struct.Struct(f"<{_BLOCK}I").unpack
_ONSETS: Final = (
    "b",
    "d",
    "f",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "k",
    "l",
    "m",
    "s",
    "t",
    "dr",
    "kr",
    "st",
    "tr",
)
_VOWELS: Final = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai")
_CODAS: Final = ("", "", "", "", "", "", "n", "r", "l", "s")
# (share in percent, shortest, longest) target length in bytes; a document ends with the sentence that passes its target.
_LENGTHS: Final = (
    (11, 40, 170),
    (14, 300, 600),
    (25, 600, 1000),
    (25, 1000, 1700),
    (15, 1700, 2400),
    (8, 2400, 2900),
    (2, 2900, 6000),
)

_Table = tuple[list[int], list[tuple[str, ...]]]
"""Cumulative integer weights, and at each place the inflected forms of one word."""


class _Draws:
    """Uniform integers from SHAKE-128 in counter mode."""

    def __init__(self, *key: object) -> None:
        self._values = self._stream("/".join(map(str, (CORPUS_VERSION, SEED, *key))))

    @staticmethod
    def _stream(key: str) -> Iterator[int]:
        block = 0
        while True:
            yield from _UNPACK(shake_128(f"{key}/{block}".encode("ascii")).digest(4 * _BLOCK))
            block += 1

    def below(self, bound: int) -> int:
        """Return an integer in [0, bound); the bias is below bound / 2**32."""
        return (next(self._values) * bound) >> 32

    def choice(self, items: Sequence[str]) -> str:
        return items[(next(self._values) * len(items)) >> 32]

    def word(self, table: _Table) -> tuple[str, ...]:
        cumulative, words = table
        return words[bisect_right(cumulative, (next(self._values) * cumulative[-1]) >> 32)]

    def shuffled(self, count: int) -> list[int]:
        """Return a permutation of range(count) (Fisher and Yates)."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


class _Lexicon:
    """All words of the language with their inflected forms; content words are numbered from the most to the least frequent."""

    def __init__(self) -> None:
        self._draws = _Draws("lexicon")
        self._taken: set[str] = set()
        # [definite, indefinite][gender][number]
        self.determiners = [[[self._stem(1) for _ in range(2)] for _ in range(2)] for _ in range(2)]
        self.relative = (self._stem(1), self._stem(1))
        self.that, self.both = self._stem(1), self._stem(1)
        self.prepositions = [self._stem(1) for _ in range(_PREPOSITIONS)]
        self.subordinators = [self._stem(1 + place % 2) for place in range(_SUBORDINATORS)]
        self.saying = [self._verb(1) for _ in range(_SAYING)]
        self.nouns = [self._noun(place % 2, self._syllables(place)) for place in range(_NOUNS)]
        self.verbs = [self._verb(self._syllables(place)) for place in range(_VERBS)]
        self.adjectives = [self._adjective(self._syllables(place)) for place in range(_ADJECTIVES)]
        self.adverbs = [(self._stem(self._syllables(place)) + "im",) for place in range(_ADVERBS)]

    def __len__(self) -> int:
        return (
            8 + 4 + sum(map(len, (self.prepositions, self.subordinators, self.saying)))
            + sum(map(len, (self.nouns, self.verbs, self.adjectives, self.adverbs)))
        )  # fmt: skip

    def _syllables(self, place: int) -> int:
        """Frequent words are short, as in every natural language."""
        return 1 + (place > 20) + (place > 80 and self._draws.below(3) == 0)

    def _stem(self, syllables: int) -> str:
        while True:
            stem = "".join(syllable(self._draws) for _ in range(syllables))
            if len(stem) > 1 and stem not in self._taken:
                self._taken.add(stem)
                return stem

    def _noun(self, gender: int, syllables: int) -> tuple[str, ...]:
        stem = self._stem(syllables)
        return (str(gender), stem + "ao"[gender], stem + "ao"[gender] + "s")

    def _adjective(self, syllables: int) -> tuple[str, ...]:
        stem = self._stem(syllables)
        return (stem + "na", stem + "nas", stem + "no", stem + "nos")

    def _verb(self, syllables: int) -> tuple[str, ...]:
        stem = self._stem(syllables)
        return (stem + "et", stem + "en", stem + "id", stem + "iden")


def syllable(draws: _Draws) -> str:
    return draws.choice(_ONSETS) + draws.choice(_VOWELS) + draws.choice(_CODAS)


class _Topic:
    """Word frequencies of one topic: a general Zipf law plus twice another one over a topic's own order of the words."""

    def __init__(self, lexicon: _Lexicon, topic: int) -> None:
        draws = _Draws("topic", topic)
        self.nouns = self._table(draws, lexicon.nouns)
        self.verbs = self._table(draws, lexicon.verbs)
        self.adjectives = self._table(draws, lexicon.adjectives)
        self.adverbs = self._table(draws, lexicon.adverbs)

    @staticmethod
    def _table(draws: _Draws, words: list[tuple[str, ...]]) -> _Table:
        weights = [1_000_000 // (place + 2) for place in range(len(words))]
        for rank, place in enumerate(draws.shuffled(len(words))):
            weights[place] += 2_000_000 // (rank + 2)
        cumulative, total = [], 0
        for weight in weights:
            total += weight
            cumulative.append(total)
        return cumulative, words


@lru_cache(maxsize=1)
def lexicon() -> _Lexicon:
    """Return the words of the language."""
    return _Lexicon()


@lru_cache(maxsize=TOPICS)
def _topic(topic: int) -> _Topic:
    return _Topic(lexicon(), topic)


class _Writer:
    """The state of one document: its topic, tense, names and stock phrases."""

    def __init__(self, draws: _Draws) -> None:
        self.draws, self.lexicon = draws, lexicon()
        self.topic = _topic(draws.below(TOPICS))
        self.tense = 2 * draws.below(2)
        self.names = [self._name() for _ in range(4)]
        self.stock: list[tuple[str, int]] = []
        self.stock = [self.noun_phrase() for _ in range(3)]
        self.patterns: tuple[Callable[[], str], ...] = (
            self.plain,
            self.adverbial,
            self.subordinate,
            self.relative,
            self.reported,
        )

    def _name(self) -> str:
        return "".join(syllable(self.draws) for _ in range(2 + self.draws.below(2))).capitalize()

    def noun_phrase(self) -> tuple[str, int]:
        """Return determiner, perhaps adjective, and noun, all of one gender and number; and the number (0 singular, 1 plural)."""
        draws = self.draws
        kind = draws.below(16)
        if kind < 4 and self.stock:
            return self.stock[draws.below(len(self.stock))]
        number = draws.below(3) >> 1
        noun = draws.word(self.topic.nouns)
        gender = int(noun[0])
        determiner = self.lexicon.determiners[kind & 1][gender][number]
        if kind < 9:
            return f"{determiner} {draws.word(self.topic.adjectives)[2 * gender + number]} {noun[1 + number]}", number
        return f"{determiner} {noun[1 + number]}", number

    def subject(self) -> tuple[str, int]:
        if self.draws.below(5) < 2:
            return self.draws.choice(self.names), 0
        return self.noun_phrase()

    def verb(self, number: int) -> str:
        return self.draws.word(self.topic.verbs)[self.tense + number]

    def clause(self) -> str:
        subject, number = self.subject()
        kind = self.draws.below(8)
        if kind == 0:
            return f"{subject} {self.verb(number)} {self.draws.choice(self.names)}"
        if kind < 3:
            return (
                f"{subject} {self.verb(number)} {self.draws.choice(self.lexicon.prepositions)} {self.noun_phrase()[0]}"
            )
        return f"{subject} {self.verb(number)} {self.noun_phrase()[0]}"

    def plain(self) -> str:
        return self.clause()

    def adverbial(self) -> str:
        adverb = self.draws.word(self.topic.adverbs)[0]
        place = f"{self.draws.choice(self.lexicon.prepositions)} {self.noun_phrase()[0]}"
        return f"{adverb}, {self.draws.choice(self.names)} {self.verb(0)} {place}"

    def subordinate(self) -> str:
        return f"{self.draws.choice(self.lexicon.subordinators)} {self.clause()}, {self.clause()}"

    def relative(self) -> str:
        subject, number = self.noun_phrase()
        inner = f"{self.lexicon.relative[number]} {self.verb(number)} {self.noun_phrase()[0]}"
        return f"{subject} {inner} {self.verb(number)} {self.draws.word(self.topic.adverbs)[0]}"

    def reported(self) -> str:
        speakers, number = self.draws.choice(self.names), self.draws.below(4) // 3
        if number:
            others = [name for name in self.names if name != speakers]
            speakers += f" {self.lexicon.both} {self.draws.choice(others)}" if others else ""
            number = 1 if others else 0
        said = self.lexicon.saying[self.draws.below(_SAYING)][self.tense + number]
        return f"{speakers} {said} {self.lexicon.that} {self.clause()}"

    def sentence(self) -> str:
        text = self.patterns[self.draws.below(len(self.patterns))]()
        return text[0].upper() + text[1:] + (".", ".", ".", ".", ".", ".", "!", "?")[self.draws.below(8)]


def _target_length(draws: _Draws) -> int:
    percent = draws.below(100)
    for share, shortest, longest in _LENGTHS:
        if percent < share:
            return shortest + draws.below(longest - shortest)
        percent -= share
    raise AssertionError("the shares of _LENGTHS do not sum to 100")


def document(index: int, split: Split) -> str:
    """Return document `index` (0, 1, ...) of a split: ASCII sentences in paragraphs, one paragraph per line.

    It depends on the seed, the split and the index only. The splits are different streams over the same lexicon and grammar.
    """
    if index < 0:
        raise BadData(
            f"document index {index!r} (int) is negative", hint="documents of the embedded corpus are numbered from 0"
        )
    draws = _Draws(split, index)
    target = _target_length(draws)
    writer = _Writer(draws)
    parts = [writer.sentence()]
    length = len(parts[0])
    while length < target:
        parts.append("\n" if draws.below(5) == 0 else " ")
        parts.append(writer.sentence())
        length += 1 + len(parts[-1])
    return "".join(parts)


def corpus_digest(train: Iterable[str], validation: Iterable[str]) -> str:
    """Return the SHA-256 over both splits, each document preceded by its split and length so that nothing can shift between them."""
    digest = sha256()
    for split, texts in (("train", train), ("validation", validation)):
        for text in texts:
            data = text.encode("ascii")
            digest.update(f"{split} {len(data)}\n".encode("ascii"))
            digest.update(data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def pinned_documents() -> dict[Split, tuple[str, ...]]:
    """Return the first documents of both splits (those of tier `tiny`), after checking them against `CORPUS_SHA256`.

    Raises:
        BadData: this installation generates other bytes than the pinned ones.
    """
    train = tuple(document(index, "train") for index in range(PINNED_TRAIN_DOCUMENTS))
    validation = tuple(document(index, "validation") for index in range(PINNED_VALIDATION_DOCUMENTS))
    found = corpus_digest(train, validation)
    if found != CORPUS_SHA256:
        raise BadData(
            f"the embedded corpus has SHA-256 {found}, expected {CORPUS_SHA256} (version {CORPUS_VERSION})",
            hint="workloads/_corpus.py was changed or is damaged: reinstall bench; after an intended change raise CORPUS_VERSION and pin the new hash",
        )
    return {"train": train, "validation": validation}
