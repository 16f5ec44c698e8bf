"""Mixtures: several sources of documents, each with a weight; embedded, or local shards in one folder per source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Final

from bench.errors import BadData

from . import _mixture_corpus
from ._documents import LocalShards

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._corpus import Split
    from ._documents import Source

WEIGHTS_FILE: Final = "mixture.json"

_SMALL_DOCUMENTS: Final = 20_000
_LAYOUT: Final = (
    f'--data-dir names a folder with {WEIGHTS_FILE}, such as {{"news": 3, "books": 1}}, and one folder per source '
    "in it, each with c4-train.*.json.gz and c4-validation.*.json.gz"
)


@dataclass(frozen=True)
class Share:
    """One source of a mixture: its name, how many of all samples it gives relative to the others, its documents."""

    name: str
    weight: int
    source: Source


@dataclass(frozen=True)
class EmbeddedSource:
    """One source of the embedded mixture.

    Args:
        part: its name there, such as ``dialogue``.
        train_documents: size of the training split; by default the pinned documents, those of tier ``tiny``. A larger
            split begins with them and goes on with documents that are generated as they are read.
        validation_documents: likewise for the validation split.

    Raises:
        BadData: on reading, if this installation generates other bytes than the pinned ones.
    """

    part: str
    train_documents: int
    validation_documents: int = _mixture_corpus.PINNED_VALIDATION_DOCUMENTS
    name = "embedded"
    shuffled = False

    @property
    def content(self) -> str:
        """SHA-256 of what decides the documents: the pinned hash, the source and the sizes."""
        sizes = (self.train_documents, self.validation_documents)
        return sha256(f"{_mixture_corpus.MIXTURE_SHA256} {self.part} {sizes}".encode()).hexdigest()

    @property
    def label(self) -> str:
        """Name and size."""
        return f"{self.part} of the embedded mixture, {self.train_documents:,} training documents"

    @property
    def small(self) -> bool:
        """Whether there are at most 20,000 training documents (20 MB)."""
        return self.train_documents <= _SMALL_DOCUMENTS

    def documents(self, split: Split, *, seed: int = 0, epoch: int = 0) -> Iterator[str]:
        """Yield the documents in the order of their index, whatever the seed and epoch."""
        del seed, epoch
        pinned = _mixture_corpus.pinned_documents()[self.part][split]
        size = self.train_documents if split == "train" else self.validation_documents
        yield from islice(pinned, size)
        for index in range(len(pinned), size):
            yield _mixture_corpus.document(self.part, index, split)


def embedded_mixture(samples: int | None = None) -> tuple[Share, ...]:
    """Return the embedded mixture.

    With ``samples`` it is large enough for a run of so many documents, and 10,000 documents per source validate;
    otherwise it consists of the pinned documents.
    """
    total = sum(_mixture_corpus.WEIGHTS.values())
    return tuple(
        Share(
            name,
            weight,
            EmbeddedSource(name, _mixture_corpus.PINNED_TRAIN_DOCUMENTS[name])
            if samples is None
            else EmbeddedSource(name, -(-samples * weight // total), 10_000),
        )
        for name, weight in _mixture_corpus.WEIGHTS.items()
    )


def local_mixture(directory: Path) -> tuple[Share, ...]:
    """Return the mixture that ``mixture.json`` in ``directory`` describes, its sources in the order of that file.

    The file is an object from the names of folders beside it to positive integer weights; each folder holds shards in
    C4's own format.

    Raises:
        BadData: the file is missing or says something else, it names fewer than two sources, or one has no shards.
    """
    file = directory / WEIGHTS_FILE
    try:
        weights = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadData(f"cannot read {WEIGHTS_FILE} in {str(directory)!r}: {error.strerror}", hint=_LAYOUT) from error
    except (ValueError, RecursionError) as error:
        raise BadData(f"{str(file)!r} is not JSON: {error}", hint=_LAYOUT) from error
    if not isinstance(weights, dict) or len(weights) < 2:
        raise BadData(f"{str(file)!r} holds {weights!r:.60}; a mixture has two sources or more", hint=_LAYOUT)
    for name, weight in weights.items():
        if type(weight) is not int or weight < 1:
            raise BadData(
                f"{str(file)!r}: the weight of {name!r} is {weight!r:.40} ({type(weight).__name__})",
                hint="weights are whole numbers of at least 1; only their ratios matter",
            )
        if name in {"", ".", ".."} or "/" in name or "\\" in name:
            raise BadData(f"{str(file)!r}: {name!r:.60} is not the name of a folder beside it", hint=_LAYOUT)
    return tuple(Share(name, weight, LocalShards(directory / name)) for name, weight in weights.items())
