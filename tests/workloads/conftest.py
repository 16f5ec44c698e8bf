"""Sources and shards for the tests of the data side."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

settings.register_profile("bench", deadline=None)  # a busy machine is no failure
settings.load_profile("bench")


@dataclass(frozen=True)
class Listed:
    """A source that yields what it is given; a shuffled one begins at another place in every epoch."""

    train: tuple[str, ...]
    validation: tuple[str, ...] = ("validation",)
    small: bool = False
    shuffled: bool = False
    name = "listed"
    content = "0" * 64
    label = "a list"

    def documents(self, split: str, *, seed: int = 0, epoch: int = 0) -> Iterator[str]:
        texts = self.train if split == "train" else self.validation
        first = (seed + epoch) % len(texts) if self.shuffled and texts else 0
        return iter(texts[first:] + texts[:first])


@pytest.fixture(scope="session")
def listed() -> type[Listed]:
    return Listed


def write_shards(folder: Path, train: Sequence[str], validation: Sequence[str], train_shards: int = 1) -> Path:
    """Write documents as C4 does, cutting the training split into consecutive shards."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(train) // train_shards)
    parts = [train[start : start + size] for start in range(0, len(train), size)]
    files = {f"c4-train.{k:05d}-of-{len(parts):05d}.json.gz": texts for k, texts in enumerate(parts)}
    files["c4-validation.00000-of-00001.json.gz"] = validation
    for name, texts in files.items():
        with gzip.open(folder / name, "wb") as file:
            for text in texts:
                row = {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/"}
                file.write(json.dumps(row).encode() + b"\n")
    return folder


@pytest.fixture(scope="session")
def shards() -> Callable[..., Path]:
    return write_shards


@pytest.fixture
def wikitext() -> Path:
    """The real text that is served beside the repository."""
    default = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("BENCH_SHARED_DATA", default)) / "wikitext-c4"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in {folder.parent} (BENCH_SHARED_DATA names another folder)")
    return folder


def write_cifar(folder: Path, train: int = 6, validation: int = 4) -> Path:
    """Write six files in CIFAR-10's binary format, ``train`` images in each of five; a class is a brightness."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {f"data_batch_{number}.bin": train for number in range(1, 6)} | {"test_batch.bin": validation}
    for seed, (name, size) in enumerate(sizes.items()):
        draws = np.random.PCG64(seed).random_raw(size * 385).view(np.uint8).reshape(size, -1)
        records = np.empty((size, 3073), dtype=np.uint8)
        records[:, 0] = draws[:, 0] % 10
        records[:, 1:] = 24 * records[:, :1] + draws[:, 1:3073] % 20
        (folder / name).write_bytes(records.tobytes())
    return folder


@pytest.fixture(scope="session")
def cifar() -> Callable[..., Path]:
    return write_cifar
