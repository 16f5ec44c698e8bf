"""The embedded corpus: documents of an invented language, generated from a seed, the same bytes on every platform.

There is something to learn at every scale: spelling; words, whose frequencies depend on the topic; grammar
(determiner, adjective and noun agree in gender and number, the verb agrees with a subject that may stand a relative
clause earlier, the tense is that of the document); and the document itself (four names that stand in no lexicon and
must be copied, stock phrases that return). Document ``index`` of a split depends on seed, split and index only.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal

from bench.errors import BadData

from ._language import TOPICS, VERSION, Draws, lexicon, topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Split = Literal["train", "validation"]

PINNED_TRAIN_DOCUMENTS: Final = 1_400
PINNED_VALIDATION_DOCUMENTS: Final = 160
CORPUS_VERSION: Final = VERSION
CORPUS_SHA256: Final = "c42574a4acaf64b9935617a851b91e3e8e19a5a5534d32de839fb961d7b79574"

_NAMES: Final = 4
_STOCK_PHRASES: Final = 3
_STOPS: Final = ("." * 6) + "!?"
# (share in percent, shortest, longest) target length in bytes; the sentence that passes it is the last.
_LENGTHS: Final = (
    (11, 40, 170),
    (14, 300, 600),
    (25, 600, 1_000),
    (25, 1_000, 1_700),
    (15, 1_700, 2_400),
    (8, 2_400, 2_900),
    (2, 2_900, 6_000),
)


class _Writer:
    """Writes the sentences of one document; holds its topic, tense, names and stock phrases.

    A subject or noun phrase comes with its number, 0 singular or 1 plural.
    """

    def __init__(self, draws: Draws) -> None:
        self.draws, self.lexicon = draws, lexicon()
        self.topic = topic(draws.below(TOPICS))
        self.tense = draws.below(2)
        self.names: list[str] = []
        while len(self.names) < _NAMES:
            name = draws.syllables(2 + draws.below(2)).capitalize()
            if name not in self.names:
                self.names.append(name)
        self.stock: list[tuple[str, int]] = []
        self.stock = [self.noun_phrase() for _ in range(_STOCK_PHRASES)]
        self.patterns: tuple[Callable[[], str], ...] = (
            self.clause,
            self.adverbial,
            self.subordinate,
            self.relative,
            self.reported,
        )

    def noun_phrase(self) -> tuple[str, int]:
        """Return a stock phrase; or determiner, perhaps adjective, and noun."""
        kind = self.draws.below(16)
        if kind < 4 and self.stock:
            return self.stock[self.draws.below(len(self.stock))]
        number = self.draws.below(3) // 2
        noun = self.draws.word(self.topic.nouns)
        gender = int(noun[0])
        words = [self.lexicon.determiners[kind % 2][gender][number]]
        if kind < 9:
            words.append(self.draws.word(self.topic.adjectives)[2 * gender + number])
        words.append(noun[1 + number])
        return " ".join(words), number

    def subject(self) -> tuple[str, int]:
        """Return a name or a noun phrase."""
        if self.draws.below(5) < 2:
            return self.draws.choice(self.names), 0
        return self.noun_phrase()

    def verb(self, number: int) -> str:
        """Return a verb in the document's tense."""
        return self.draws.word(self.topic.verbs)[2 * self.tense + number]

    def place(self) -> str:
        """Return preposition and noun phrase."""
        return f"{self.draws.choice(self.lexicon.prepositions)} {self.noun_phrase()[0]}"

    def clause(self) -> str:
        """Pattern 1: the miller greets a horse."""
        subject, number = self.subject()
        kind = self.draws.below(8)
        verb = self.verb(number)
        if kind == 0:
            return f"{subject} {verb} {self.draws.choice(self.names)}"
        return f"{subject} {verb} {self.place() if kind < 3 else self.noun_phrase()[0]}"

    def adverbial(self) -> str:
        """Pattern 2: slowly, Ada walks behind the mill."""
        adverb = self.draws.word(self.topic.adverbs)[0]
        place = self.place()
        return f"{adverb}, {self.draws.choice(self.names)} {self.verb(0)} {place}"

    def subordinate(self) -> str:
        """Pattern 3: when the miller greets a horse, the mills turn."""
        return f"{self.draws.choice(self.lexicon.subordinators)} {self.clause()}, {self.clause()}"

    def relative(self) -> str:
        """Pattern 4: the millers who greet the horse walk slowly."""
        subject, number = self.noun_phrase()
        inner = f"{self.lexicon.relative[number]} {self.verb(number)} {self.noun_phrase()[0]}"
        return f"{subject} {inner} {self.verb(number)} {self.draws.word(self.topic.adverbs)[0]}"

    def reported(self) -> str:
        """Pattern 5: Ada and Max say that the miller greets a horse."""
        speaker, number = self.draws.choice(self.names), self.draws.below(4) // 3
        if number:
            other = self.draws.choice([name for name in self.names if name != speaker])
            speaker = f"{speaker} {self.lexicon.and_} {other}"
        said = self.lexicon.saying[self.draws.below(len(self.lexicon.saying))][2 * self.tense + number]
        return f"{speaker} {said} {self.lexicon.that} {self.clause()}"

    def sentence(self) -> str:
        """Return a sentence of one of the five patterns."""
        text = self.patterns[self.draws.below(len(self.patterns))]()
        return text[0].upper() + text[1:] + self.draws.choice(_STOPS)


def _target_length_bytes(draws: Draws) -> int:
    percent = draws.below(100)
    for share, shortest, longest in _LENGTHS:
        if percent < share:
            return shortest + draws.below(longest - shortest)
        percent -= share
    raise AssertionError("the shares of _LENGTHS do not sum to 100")


def document(index: int, split: Split) -> str:
    """Return document ``index`` (0, 1, ...) of a split: ASCII sentences, one paragraph per line.

    The splits are different streams over the same lexicon and grammar.
    """
    if index < 0:
        raise BadData(f"document index {index!r} (int) is negative", hint="embedded documents are numbered from 0")
    draws = Draws(split, index)
    target_bytes = _target_length_bytes(draws)
    writer = _Writer(draws)
    parts = [writer.sentence()]
    length_bytes = len(parts[0])
    while length_bytes < target_bytes:
        parts.append("\n" if draws.below(5) == 0 else " ")
        parts.append(writer.sentence())
        length_bytes += 1 + len(parts[-1])
    return "".join(parts)


def corpus_digest(train: Iterable[str], validation: Iterable[str]) -> str:
    """Return the SHA-256 over both splits; split and length stand before each document, so that no byte can move."""
    digest = sha256()
    for split, texts in (("train", train), ("validation", validation)):
        for text in texts:
            data = text.encode("ascii")
            digest.update(f"{split} {len(data)}\n".encode("ascii"))
            digest.update(data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def pinned_documents() -> dict[Split, tuple[str, ...]]:
    """Return the first documents of both splits (those of tier ``tiny``), checked against ``CORPUS_SHA256``.

    Raises:
        BadData: this installation generates other bytes than the pinned ones.
    """
    train = tuple(document(index, "train") for index in range(PINNED_TRAIN_DOCUMENTS))
    validation = tuple(document(index, "validation") for index in range(PINNED_VALIDATION_DOCUMENTS))
    found = corpus_digest(train, validation)
    if found != CORPUS_SHA256:
        raise BadData(
            f"the embedded corpus (version {CORPUS_VERSION}) has SHA-256 {found}, expected {CORPUS_SHA256}",
            hint="the generator was changed or is damaged: install bench anew; whoever meant to change the corpus "
            "raises its version and pins the new hash",
        )
    return {"train": train, "validation": validation}
