"""Shards of token ids in llm.c's binary format, and a folder of them.

A shard is a header of 256 little-endian 32-bit integers, the magic number 20240520, version 1 and the number of tokens
first among them, and then that many little-endian unsigned 16-bit token ids. Documents follow one another, each after a
separator of its own (GPT-2's 50256), across the ends of shards.

Source: ``dev/data`` in github.com/karpathy/llm.c; ``data/fineweb.py`` in github.com/KellerJordan/modded-nanogpt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._corpus import Split
    from ._tokenizers import Tokens

MAGIC: Final = 20240520
VERSION: Final = 1
HEADER_INTEGERS: Final = 256
HEADER_BYTES: Final = 4 * HEADER_INTEGERS
FILE_SPLIT: Final[dict[Split, str]] = {"train": "train", "validation": "val"}
"""What the names of shards call the splits."""

_LAYOUT: Final = "--data-dir names a folder with fineweb_train_*.bin and fineweb_val_*.bin"
_BLOCK_TOKENS: Final = 1 << 22


def read_shard(path: Path, vocabulary: int) -> Tokens:
    """Return the tokens of a shard, mapped from the file and not read into memory.

    Raises:
        BadData: the file cannot be read, is no shard, is of another version, has more or fewer tokens than its header
            says, or a token id that is not below ``vocabulary``.
    """
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_INTEGERS)
        if len(header) < HEADER_INTEGERS:
            raise damaged(path, f"is truncated: {size} bytes, but the header alone has {HEADER_BYTES}")
        _check_header(path, header, size)
        if header[2] == 0:
            return np.empty(0, dtype=np.uint16)
        # a plain array on the same memory: slices of a memmap are slow
        tokens = np.asarray(np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES))
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror or error}") from error
    for start in range(0, len(tokens), _BLOCK_TOKENS):
        largest = int(tokens[start : start + _BLOCK_TOKENS].max())
        if largest >= vocabulary:
            raise BadData(
                f"data shard {path.name!r} has the token id {largest}, but the vocabulary ends at {vocabulary - 1}",
                hint="FineWeb's shards have GPT-2's 50,257 tokens, which the tier 124m takes; the tier tiny takes "
                "bytes, ids below 256",
            )
    return tokens


def _check_header(path: Path, header: np.ndarray[tuple[int, ...], np.dtype[np.int32]], size: int) -> None:
    magic, version, count = (int(value) for value in header[:3])
    if magic != MAGIC:
        raise damaged(path, f"is no shard of tokens: it begins with {magic}, not with the magic number {MAGIC}")
    if version != VERSION:
        raise damaged(path, f"has version {version} of the format, but only version {VERSION}, uint16 tokens, is read")
    if count < 0:
        raise damaged(path, f"has a damaged header: it says {count} tokens")
    found, rest = divmod(size - HEADER_BYTES, 2)
    if found < count:
        raise damaged(path, f"is truncated: its header says {count} tokens, and {found} are there")
    if found > count or rest:
        raise damaged(path, f"is too long: its header says {count} tokens, and {size - HEADER_BYTES} bytes follow it")


def damaged(path: Path, what: str) -> BadData:
    """Return the error that names the shard and what is wrong with it."""
    return BadData(f"data shard {path.name!r} {what}", hint=f"get the shard again, or remove it: {path}")


@dataclass(frozen=True)
class ShardFolder:
    """A folder with shards named as FineWeb's: ``fineweb_train_*.bin`` and ``fineweb_val_*.bin``.

    Args:
        directory: the folder. Not every shard of FineWeb needs to be there.
        vocabulary: token ids must be below it.

    Shards come in the order of their names. ``content`` is the SHA-256 over the sorted names, sizes and bytes of the
    shards of both splits; every shard is checked on the way.

    Raises:
        BadData: the folder or a split is missing; on reading, if a shard is damaged.
    """

    directory: Path
    vocabulary: int
    _opened: dict[str, Tokens] = field(default_factory=dict, init=False, repr=False, compare=False)
    name = "local"

    def paths(self, split: Split) -> list[Path]:
        """Return the files of a split, sorted by name."""
        if not self.directory.is_dir():
            raise BadData(f"data folder {str(self.directory)!r} does not exist or is not a folder", hint=_LAYOUT)
        pattern = f"fineweb_{FILE_SPLIT[split]}_*.bin"
        found = sorted(self.directory.glob(pattern), key=lambda path: path.name)
        if not found:
            raise BadData(
                f"data folder {str(self.directory)!r} has no {split} shard {pattern}",
                hint=f"both splits are needed: {_LAYOUT}",
            )
        for path in found:
            if not path.is_file():
                raise damaged(path, "is not a file")
        return found

    @cached_property
    def content(self) -> str:
        """SHA-256 over names, sizes and bytes of all shards."""
        digest = sha256()
        for path in self.paths("train") + self.paths("validation"):
            tokens = self._open(path)
            digest.update(f"{path.name} {tokens.nbytes}\n".encode())
            digest.update(tokens.data)
        return digest.hexdigest()

    @property
    def label(self) -> str:
        """Name of the folder, without its place on this machine."""
        return f"local token shards {self.directory.resolve().name!r}"

    def prepare(self, split: Split, tokens: int) -> None:
        """Check that the split is there; it needs no fetching, however many tokens are wanted."""
        del tokens
        self.paths(split)

    def shards(self, split: Split) -> Iterator[Tokens]:
        """Yield the tokens of one shard after the other."""
        for path in self.paths(split):
            yield self._open(path)

    def _open(self, path: Path) -> Tokens:
        if path.name not in self._opened:
            self._opened[path.name] = read_shard(path, self.vocabulary)
        return self._opened[path.name]
