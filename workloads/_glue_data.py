"""The tasks of GLUE: what their files look like, and their rows.

Source: arXiv:1804.07461; names and sizes are those of gluebenchmark.com and of huggingface.co/datasets/nyu-mll/glue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import BadData

HUB: Final = "nyu-mll/glue"
HIGHEST_SCORE: Final = 5.0
"""STS-B rates the similarity of two sentences from 0 to 5."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one task of GLUE looks like.

    ``name`` is its configuration on the hub, ``folder`` its place in GLUE's own layout; ``texts`` are the columns of
    one sentence or of a pair on the hub, ``columns`` the same in the tab-separated files with the label's behind them.
    ``classes`` are the labels as those files spell them, in the order of their numbers; none means a score from 0 to 5.
    ``sizes`` are the published numbers of rows of ``train`` and of each split that is validated on. ``metrics`` names
    what is measured, first what decides. ``header`` holds the columns of a file that does not begin with their names.
    """

    name: str
    folder: str
    texts: tuple[str, ...]
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: Mapping[str, int]
    metrics: tuple[str, ...]
    header: tuple[str, ...] | None = None
    skips_broken_rows: bool = False

    @property
    def outputs(self) -> int:
        """How many numbers a model says about an example: a logit per class, or the score."""
        return len(self.classes) or 1

    @property
    def validation(self) -> tuple[str, ...]:
        """The splits that are validated on, first the one that decides."""
        return tuple(split for split in self.sizes if split != "train")

    @property
    def files(self) -> str:
        """The files that are looked for, for people."""
        tsv = ", ".join(f"{self.folder}/{tsv_name(split)}" for split in self.sizes)
        parquet = ", ".join(f"{self.name}/{split}-*.parquet" for split in self.sizes)
        return (
            f"--data-dir DIR, where DIR has GLUE's own files {tsv}, or those of the hub: {parquet} "
            f'(hf download {HUB} --repo-type dataset --include "{self.name}/*" --local-dir DIR)'
        )


_PAIR: Final = ("sentence1", "sentence2")
_BINARY: Final = ("0", "1")
_ENTAILMENT: Final = ("entailment", "not_entailment")

TASKS: Final[Mapping[str, Task]] = {
    task.name: task
    for task in (
        Task(
            name="mrpc",
            folder="MRPC",
            texts=_PAIR,
            columns=("#1 String", "#2 String", "Quality"),
            classes=_BINARY,
            sizes={"train": 3_668, "validation": 408},
            metrics=("accuracy", "f1"),
        ),
        Task(
            name="cola",
            folder="CoLA",
            texts=("sentence",),
            columns=("sentence", "label"),
            classes=_BINARY,
            sizes={"train": 8_551, "validation": 1_043},
            metrics=("matthews", "accuracy"),
            header=("source", "label", "mark", "sentence"),
        ),
        Task(
            name="rte",
            folder="RTE",
            texts=_PAIR,
            columns=(*_PAIR, "label"),
            classes=_ENTAILMENT,
            sizes={"train": 2_490, "validation": 277},
            metrics=("accuracy",),
        ),
        Task(
            name="stsb",
            folder="STS-B",
            texts=_PAIR,
            columns=(*_PAIR, "score"),
            classes=(),
            sizes={"train": 5_749, "validation": 1_500},
            metrics=("pearson", "spearman"),
        ),
        Task(
            name="sst2",
            folder="SST-2",
            texts=("sentence",),
            columns=("sentence", "label"),
            classes=_BINARY,
            sizes={"train": 67_349, "validation": 872},
            metrics=("accuracy",),
        ),
        Task(
            name="qnli",
            folder="QNLI",
            texts=("question", "sentence"),
            columns=("question", "sentence", "label"),
            classes=_ENTAILMENT,
            sizes={"train": 104_743, "validation": 5_463},
            metrics=("accuracy",),
        ),
        Task(
            name="qqp",
            folder="QQP",
            texts=("question1", "question2"),
            columns=("question1", "question2", "is_duplicate"),
            classes=_BINARY,
            sizes={"train": 363_846, "validation": 40_430},
            metrics=("accuracy", "f1"),
            skips_broken_rows=True,  # some questions contain a line break, and the hub leaves out those rows, too
        ),
        Task(
            name="mnli",
            folder="MNLI",
            texts=("premise", "hypothesis"),
            columns=(*_PAIR, "gold_label"),
            classes=("entailment", "neutral", "contradiction"),
            sizes={"train": 392_702, "validation_matched": 9_815, "validation_mismatched": 9_832},
            metrics=("accuracy",),
        ),
    )
}


@dataclass(frozen=True)
class Rows:
    """A split: one or two lists of texts, and ``labels`` (N,): int64 numbers of classes, or fp32 scores."""

    texts: tuple[Sequence[str], ...]
    labels: NDArray[Any]

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    @property
    def content(self) -> str:
        """SHA-256 of texts and labels; the same rows from another kind of file have the same."""
        digest = sha256(f"{len(self.texts)} texts, {len(self)} rows\n".encode())
        for column in self.texts:
            for text in column:
                data = text.encode()
                digest.update(b"%d:" % len(data) + data)
        digest.update(self.labels.astype(self.labels.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


class Source(Protocol):
    """Where rows come from. A source never falls back to another one: what is missing or damaged is ``BadData``."""

    @property
    def name(self) -> str:
        """What a record calls the source."""

    @property
    def label(self) -> str:
        """One line for people."""

    def rows(self, task: Task, split: str) -> Rows:
        """Read a split."""


@dataclass(frozen=True)
class Glue:
    """One task from one source, read once, when it is first needed."""

    task: Task
    source: Source

    @cached_property
    def splits(self) -> Mapping[str, Rows]:
        """The rows of ``train`` and of each split that is validated on."""
        return {split: self.source.rows(self.task, split) for split in self.task.sizes}

    @cached_property
    def content(self) -> str:
        """SHA-256 of all rows."""
        parts = [f"{split} {rows.content}\n" for split, rows in self.splits.items()]
        return sha256("".join(parts).encode()).hexdigest()

    @property
    def label(self) -> str:
        """Source, task and sizes, for people."""
        sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in self.splits.items())
        return f"GLUE {self.task.name} from {self.source.label} ({sizes}), content {self.content[:12]}"


def tsv_name(split: str) -> str:
    """Return the name of a split's file in GLUE's own layout."""
    return f"{split.replace('validation', 'dev')}.tsv"


def checked(task: Task, columns: Mapping[str, Sequence[Any]], what: str) -> Rows:
    """Return the rows of ``columns``, named as on the hub; anything missing in them is ``BadData`` about ``what``."""
    lacking = [name for name in (*task.texts, "label") if name not in columns]
    if lacking:
        raise BadData(f"{what} has no column {', '.join(lacking)}; it has {', '.join(columns)}", hint=task.files)
    if not len(columns["label"]):
        raise BadData(f"{what} holds no row", hint=task.files)
    for name in task.texts:
        bad = next((row for row, text in enumerate(columns[name]) if not isinstance(text, str)), None)
        if bad is not None:
            raise BadData(f"{what} is corrupt: row {bad} has {columns[name][bad]!r} as its {name}")
    allowed = f"0 to {len(task.classes) - 1}" if task.classes else f"scores from 0 to {HIGHEST_SCORE:g}"
    for row, label in enumerate(columns["label"]):
        number = isinstance(label, (int, float)) and not isinstance(label, bool)
        if not number or not _is_label(task, label):
            hint = "the labels of a test split are hidden: it cannot be used" if label == -1 else task.files
            raise BadData(f"{what} is corrupt: row {row} has label {label!r}, and labels are {allowed}", hint=hint)
    labels = np.array(columns["label"], dtype=np.int64 if task.classes else np.float32)
    return Rows(tuple(columns[name] for name in task.texts), labels)


def _is_label(task: Task, label: float) -> bool:
    return label in range(len(task.classes)) if task.classes else 0 <= label <= HIGHEST_SCORE
