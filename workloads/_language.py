"""An invented language: about 1,500 words with inflected forms, and their frequencies in 12 topics.

Only integers take part, and all randomness is SHAKE-128 of a key: no floating point, no ``random``, no order of a set
or dictionary, no locale. So the same words come out on every platform and Python.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from functools import lru_cache
from hashlib import shake_128
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION: Final = 1
SEED: Final = 20_240_229
TOPICS: Final = 12

_BLOCK: Final = 512
_UNPACK: Final = struct.Struct(f"<{_BLOCK}I").unpack
_ONSETS: Final = (*"bdfghklmnprstvz", *"klmst", "dr", "kr", "st", "tr")
_VOWELS: Final = (*"aeiou", *"aeio", "ai")
_CODAS: Final = ("", "", "", "", "", "", "n", "r", "l", "s")

Word = tuple[str, ...]
"""The inflected forms of one word."""
Table = tuple[list[int], list[Word]]
"""Cumulative integer weights, and the word at each place."""


class Draws:
    """Uniform integers from SHAKE-128 in counter mode; the key names the stream."""

    def __init__(self, *key: str | int) -> None:
        self._values = self._stream("/".join(map(str, (VERSION, SEED, *key))))

    @staticmethod
    def _stream(key: str) -> Iterator[int]:
        block = 0
        while True:
            yield from _UNPACK(shake_128(f"{key}/{block}".encode("ascii")).digest(4 * _BLOCK))
            block += 1

    def below(self, bound: int) -> int:
        """Return an integer in [0, bound), with a bias below bound / 2**32."""
        return (next(self._values) * bound) >> 32

    def choice(self, items: Sequence[str]) -> str:
        """Return one of the items, all equally likely."""
        return items[(next(self._values) * len(items)) >> 32]

    def word(self, table: Table) -> Word:
        """Return a word with the frequency that the table gives it."""
        cumulative, words = table
        return words[bisect_right(cumulative, (next(self._values) * cumulative[-1]) >> 32)]

    def permutation(self, count: int) -> list[int]:
        """Return a random order of 0, 1, ..., count - 1 (Fisher and Yates)."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def syllables(self, count: int) -> str:
        """Return a pronounceable string."""
        return "".join(self.choice(_ONSETS) + self.choice(_VOWELS) + self.choice(_CODAS) for _ in range(count))


class Lexicon:
    """All words; nouns, verbs, adjectives and adverbs are numbered from the most to the least frequent.

    Forms: noun (gender, singular, plural); adjective [2 * gender + number]; verb [2 * tense + number];
    ``determiners`` [definiteness][gender][number]; ``relative`` [number].
    """

    def __init__(self) -> None:
        self._draws = Draws("lexicon")
        self._taken: set[str] = set()
        self.determiners = [[[self._stem(1) for _ in range(2)] for _ in range(2)] for _ in range(2)]
        self.relative = (self._stem(1), self._stem(1))
        self.that, self.and_ = self._stem(1), self._stem(1)
        self.prepositions = [self._stem(1) for _ in range(10)]
        self.subordinators = [self._stem(1 + place % 2) for place in range(6)]
        self.saying = [self._verb(1) for _ in range(8)]
        self.nouns = [self._noun(place % 2, self._length(place)) for place in range(660)]
        self.verbs = [self._verb(self._length(place)) for place in range(340)]
        self.adjectives = [self._adjective(self._length(place)) for place in range(300)]
        self.adverbs: list[Word] = [(self._stem(self._length(place)) + "im",) for place in range(164)]

    def __len__(self) -> int:
        """Return the number of words, not counting inflected forms."""
        return len(self._taken)

    def _length(self, place: int) -> int:
        """Return a number of syllables; frequent words are short, as in every natural language."""
        return 1 + (place > 20) + (place > 80 and self._draws.below(3) == 0)

    def _stem(self, syllables: int) -> str:
        while (stem := self._draws.syllables(syllables)) in self._taken:
            pass
        self._taken.add(stem)
        return stem

    def _noun(self, gender: int, syllables: int) -> Word:
        singular = self._stem(syllables) + "ao"[gender]
        return (str(gender), singular, singular + "s")

    def _adjective(self, syllables: int) -> Word:
        stem = self._stem(syllables)
        return (stem + "na", stem + "nas", stem + "no", stem + "nos")

    def _verb(self, syllables: int) -> Word:
        stem = self._stem(syllables)
        return (stem + "et", stem + "en", stem + "id", stem + "iden")


class Topic:
    """Word frequencies of one topic: Zipf's law over all words, plus twice that over a topic's own order of them."""

    def __init__(self, number: int) -> None:
        words, draws = lexicon(), Draws("topic", number)
        self.nouns = _table(draws, words.nouns)
        self.verbs = _table(draws, words.verbs)
        self.adjectives = _table(draws, words.adjectives)
        self.adverbs = _table(draws, words.adverbs)


def _table(draws: Draws, words: list[Word]) -> Table:
    weights = [1_000_000 // (place + 2) for place in range(len(words))]
    for rank, place in enumerate(draws.permutation(len(words))):
        weights[place] += 2_000_000 // (rank + 2)
    cumulative, total = [], 0
    for weight in weights:
        total += weight
        cumulative.append(total)
    return cumulative, words


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """Return the words of the language."""
    return Lexicon()


@lru_cache(maxsize=TOPICS)
def topic(number: int) -> Topic:
    """Return the word frequencies of topic ``number`` in [0, 12)."""
    return Topic(number)
