"""Sources of documents that need no network: the embedded corpus, and local shards in C4's format.

A source names itself and its content, which become part of a record's identity, and yields the documents of a split. It
never falls back to another source: what is missing or damaged is a ``BadData``.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from bench.errors import BadData

from . import _corpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._corpus import Split

_SMALL_DOCUMENTS: Final = 20_000
_SMALL_BYTES: Final = 16 << 20
_LAYOUT: Final = (
    "--data-dir names a folder with c4-train.*.json.gz and c4-validation.*.json.gz, "
    "or one whose subfolder 'en' has them"
)


class Source(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str:
        """``embedded``, ``local`` or ``c4``."""

    @property
    def content(self) -> str:
        """SHA-256 (hexadecimal) of what decides the documents."""

    @property
    def label(self) -> str:
        """One line for people."""

    @property
    def small(self) -> bool:
        """Whether the tokenised training split may stay in memory (some ten thousand documents)."""

    @property
    def shuffled(self) -> bool:
        """Whether ``documents`` come in a random order already, set by seed and epoch."""

    def documents(self, split: Split, *, seed: int = 0, epoch: int = 0) -> Iterator[str]:
        """Yield each document of a split once; the validation split always comes in the same order."""


@dataclass(frozen=True)
class Embedded:
    """The corpus that this package generates.

    Args:
        train_documents: size of the training split; by default the pinned documents, those of tier ``tiny``. A larger
            split begins with them and goes on with documents that are generated as they are read.
        validation_documents: likewise for the validation split.

    ``content`` is the pinned SHA-256 (hashed with the sizes, where these are not the pinned ones).

    Raises:
        BadData: on reading, if this installation generates other bytes than the pinned ones.
    """

    train_documents: int = _corpus.PINNED_TRAIN_DOCUMENTS
    validation_documents: int = _corpus.PINNED_VALIDATION_DOCUMENTS
    name = "embedded"
    shuffled = False

    @property
    def content(self) -> str:
        """The pinned SHA-256, or that of it and the sizes."""
        sizes = (self.train_documents, self.validation_documents)
        if sizes == (_corpus.PINNED_TRAIN_DOCUMENTS, _corpus.PINNED_VALIDATION_DOCUMENTS):
            return _corpus.CORPUS_SHA256
        return sha256(f"{_corpus.CORPUS_SHA256} {sizes}".encode()).hexdigest()

    @property
    def label(self) -> str:
        """Version and size."""
        return f"embedded corpus v{_corpus.CORPUS_VERSION}, {self.train_documents:,} training documents"

    @property
    def small(self) -> bool:
        """Whether there are at most 20,000 training documents (25 MB)."""
        return self.train_documents <= _SMALL_DOCUMENTS

    def documents(self, split: Split, *, seed: int = 0, epoch: int = 0) -> Iterator[str]:
        """Yield the documents in the order of their index, whatever the seed and epoch."""
        del seed, epoch
        pinned = _corpus.pinned_documents()[split]
        size = self.train_documents if split == "train" else self.validation_documents
        yield from islice(pinned, size)
        for index in range(len(pinned), size):
            yield _corpus.document(index, split)


@dataclass(frozen=True)
class LocalShards:
    """Shards in C4's own format: gzipped JSON lines with the key ``text``, in files named as C4 names them.

    Args:
        directory: the folder with ``c4-train.*.json.gz`` and ``c4-validation.*.json.gz``, or one whose subfolder ``en``
            has them. Not every shard of C4 needs to be there.

    Documents come in the order of the sorted shard names and of the lines in a shard. ``content`` is the SHA-256 over
    the sorted names, sizes and raw (compressed) bytes of the shards of both splits: text that is compressed anew counts
    as other data.

    Raises:
        BadData: the folder or a split is missing; on reading, if a shard is damaged.
    """

    directory: Path
    name = "local"
    shuffled = False

    def __post_init__(self) -> None:
        """Refuse a folder that lacks a split."""
        self.shards("train")
        self.shards("validation")

    @cached_property
    def _folder(self) -> Path:
        if not self.directory.is_dir():
            raise BadData(f"data folder {str(self.directory)!r} does not exist or is not a folder", hint=_LAYOUT)
        for folder in (self.directory, self.directory / "en"):
            if any(folder.glob("c4-*.json.gz")):
                return folder
        raise BadData(
            f"data folder {str(self.directory)!r} has no shard c4-*.json.gz, nor has its subfolder 'en'", hint=_LAYOUT
        )

    def shards(self, split: Split) -> list[Path]:
        """Return the files of a split, sorted by name."""
        shards = sorted(self._folder.glob(f"c4-{split}.*.json.gz"), key=lambda path: path.name)
        if not shards:
            raise BadData(
                f"data folder {str(self._folder)!r} has no {split} shard c4-{split}.*.json.gz",
                hint="both splits are needed: add the missing shard under the name that C4 gives it",
            )
        for path in shards:
            if not path.is_file():
                raise _damaged(path, "is not a file")
        return shards

    @cached_property
    def content(self) -> str:
        """SHA-256 over names, sizes and raw bytes of all shards."""
        digest = sha256()
        for path in sorted(self.shards("train") + self.shards("validation"), key=lambda path: path.name):
            try:
                digest.update(f"{path.name} {path.stat().st_size}\n".encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise _damaged(path, f"cannot be read: {error.strerror or error}") from error
        return digest.hexdigest()

    @property
    def label(self) -> str:
        """Name of the folder, without its place on this machine."""
        return f"local shards {self.directory.resolve().name!r}"

    @property
    def small(self) -> bool:
        """Whether the training shards have at most 16 MiB (compressed)."""
        return sum(path.stat().st_size for path in self.shards("train")) <= _SMALL_BYTES

    def documents(self, split: Split, *, seed: int = 0, epoch: int = 0) -> Iterator[str]:
        """Yield the documents in the order of the shards, whatever the seed and epoch."""
        del seed, epoch
        for path in self.shards(split):
            yield from _read(path)


def _damaged(path: Path, what: str) -> BadData:
    return BadData(f"data shard {path.name!r} {what}", hint=f"get the shard again, or remove it: {path}")


def _read(path: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield _text(path, number, line)
    except EOFError as error:
        raise _damaged(path, f"is truncated: its gzip stream ends after line {number}") from error
    except (OSError, zlib.error) as error:
        raise _damaged(path, f"is not a readable gzip file after line {number}: {error}") from error


def _text(path: Path, number: int, line: bytes) -> str:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _damaged(path, f"line {number} is not UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise _damaged(path, f"line {number} is not JSON: {error}") from error
    except RecursionError as error:
        raise _damaged(path, f"line {number} is not a document: JSON nested too deeply") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = f"keys {sorted(row)}" if isinstance(row, dict) else f"a JSON {type(row).__name__}"
        raise _damaged(path, f"line {number} has no string under the key 'text' (found {found})")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, which no tokenizer takes
        raise _damaged(path, f"line {number} is not Unicode text: {error.reason}") from error
    return text
