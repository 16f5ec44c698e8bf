"""From documents to token sequences of a fixed length."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bench.errors import BadValue
from bench.workload import DataIdentity

from ._tokenizers import EOS, PAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ._corpus import Split
    from ._documents import Source
    from ._tokenizers import Tokenizer, Tokens


class Cut(Protocol):
    """How documents become sequences: ``items`` are what is shuffled, ``rows`` makes sequences of them."""

    @property
    def length(self) -> int:
        """Tokens per sequence, T."""

    def items(self, documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[Any]:
        """Yield one item per sequence."""

    def rows(self, items: Sequence[Any], tokenizer: Tokenizer) -> list[Tokens]:
        """Return the at most T tokens of each item, without padding."""


@dataclass(frozen=True)
class Truncate:
    """One document is one sequence: its first ``length`` - 1 tokens and EOS; the rest of the document is discarded.

    A truncated sequence, too, ends with EOS: Hugging Face tokenizers reserve its place when ``truncation=True``, and
    the scripts of the GaLore lineage call them so. Items are the documents themselves, tokenised when their batch is
    made, so that documents which are skipped on resuming cost no tokenising.
    """

    length: int = 256

    def __post_init__(self) -> None:
        """Refuse a length without room for EOS."""
        if self.length < 1:
            raise BadValue(f"length {self.length!r} is not positive", hint="256 in the protocol")

    def items(self, documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[str]:
        """Yield the documents."""
        del tokenizer
        yield from documents

    def rows(self, items: Sequence[str], tokenizer: Tokenizer) -> list[Tokens]:
        """Return one sequence per document."""
        return [_with_eos(tokens[: self.length - 1]) for tokens in tokenizer.encode(items)]


@dataclass(frozen=True)
class Windows:
    """A document and its EOS are cut into consecutive windows of ``length`` tokens.

    The last one is dropped when it has fewer than ``minimum`` tokens; so is a whole document as short as that.
    """

    length: int = 256
    minimum: int = 32

    def __post_init__(self) -> None:
        """Refuse a minimum that keeps empty windows or none."""
        if not 1 <= self.minimum <= self.length:
            raise BadValue(f"minimum {self.minimum!r} is not in [1, length = {self.length!r}]", hint="32 for 256")

    def items(self, documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[Tokens]:
        """Yield the windows of one document after the other."""
        for document in documents:
            tokens = _with_eos(tokenizer.encode([document])[0])
            for start in range(0, len(tokens) - self.minimum + 1, self.length):
                yield tokens[start : start + self.length]

    def rows(self, items: Sequence[Tokens], tokenizer: Tokenizer) -> list[Tokens]:
        """Return the windows as they are."""
        del tokenizer
        return list(items)


def _with_eos(tokens: Tokens) -> Tokens:
    return np.append(tokens, np.uint16(EOS))


@dataclass(frozen=True)
class Sequences:
    """The token sequences of a data source: where documents come from, how they are tokenised, how they are cut."""

    source: Source
    tokenizer: Tokenizer
    cut: Cut

    @property
    def identity(self) -> DataIdentity:
        """What decides every sequence: source, content, tokenizer and cut.

        Raises:
            BadData: the data is missing.
        """
        content, tokenizer = self.source.content, self.tokenizer.identity
        return DataIdentity(
            source=self.source.name,
            sha256=sha256(f"{self.source.name} {content} {tokenizer} {self.cut!r}".encode()).hexdigest(),
            label=f"{self.source.label}, content {content[:12]}, tokenizer {tokenizer[:15]}, {self.cut!r}",
        )

    def items(self, split: Split, *, seed: int = 0, epoch: int = 0) -> Iterator[Any]:
        """Yield one item per sequence of a split, for ``matrix``."""
        return self.cut.items(self.source.documents(split, seed=seed, epoch=epoch), self.tokenizer)

    def matrix(self, items: Sequence[Any]) -> Tokens:
        """Return the sequences (B, T) of some items, padded on the right."""
        matrix = np.full((len(items), self.cut.length), PAD, dtype=np.uint16)
        for row, tokens in zip(matrix, self.cut.rows(items, self.tokenizer), strict=True):
            row[: len(tokens)] = tokens
        return matrix
