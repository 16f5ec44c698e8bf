"""GLUE's rows from files, in either of the two layouts that are in use.

One layout is GLUE's own, tab-separated: ``MRPC/train.tsv``, ``MRPC/dev.tsv``. The other is that of ``nyu-mll/glue`` on
the Hugging Face hub, Parquet: ``mrpc/train-00000-of-00001.parquet``, ``mrpc/validation-00000-of-00001.parquet``. Both
hold the same rows in the same order, so what is read from them has the same identity.

In the tab-separated files quotation marks are characters like others. Columns are found by the names in the first line;
only CoLA's files have none.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BadData

from ._glue_data import Rows, Task, checked, tsv_name


@dataclass(frozen=True)
class GlueFiles:
    """A folder with a folder per task, in either layout; where a task has both, the Parquet files are read.

    Raises:
        BadData: on reading, if a folder or file is missing or damaged, or a label is none of the task's.
    """

    directory: Path
    name = "local"

    @property
    def label(self) -> str:
        """Name of the folder, without its place on this machine."""
        return f"local files {self.directory.resolve().name!r}"

    def rows(self, task: Task, split: str) -> Rows:
        """Return a split in the order of the files."""
        found = self._found(task)
        if not found:
            state = "has no files of" if self.directory.is_dir() else "does not exist or is not a folder; it lacks"
            raise BadData(f"data folder {str(self.directory)!r} {state} GLUE's task {task.name!r}", hint=task.files)
        if split not in found:
            raise BadData(f"data folder {str(self.directory)!r} has no {split} split of {task.name!r}", hint=task.files)
        paths = found[split]
        return _parquet_rows(task, paths) if paths[0].suffix == ".parquet" else _tsv_rows(task, paths[0])

    def _found(self, task: Task) -> dict[str, list[Path]]:
        """Return the files of each split in the first layout of which there is any."""
        for folder in (self.directory / task.name, self.directory / task.folder):
            parquet = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in task.sizes}
            tsv = {split: [path for path in [folder / tsv_name(split)] if path.is_file()] for split in task.sizes}
            for files in (parquet, tsv):
                if found := {split: paths for split, paths in files.items() if paths}:
                    return found
        return {}


def _parquet_rows(task: Task, paths: Sequence[Path]) -> Rows:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    what = f"data file {paths[0].name!r}" if len(paths) == 1 else f"data files {paths[0].name!r} to {paths[-1].name!r}"
    shards = {int(match[1]) for path in paths if (match := re.search(r"-of-(\d+)\.parquet$", path.name))}
    if shards and shards != {len(paths)}:
        raise BadData(f"{what}: {len(paths)} files, where their names speak of {max(shards)}", hint=task.files)
    try:
        tables = [ParquetFile(path).read() for path in paths]
        columns = pa.concat_tables(tables).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise BadData(f"{what} cannot be read: {error}", hint=str(paths[0].parent)) from error
    return checked(task, columns, what)


def _tsv_rows(task: Task, path: Path) -> Rows:
    what = f"data file {path.name!r} of {task.name}"
    names = [*task.texts, "label"]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for line, fields in _fields(task, path, what):
        if len(fields) < len(names) or "" in fields[-1:]:
            if task.skips_broken_rows:
                continue
            raise BadData(f"{what} is corrupt: line {line} lacks a column", hint=str(path))
        for name, value in zip(names, [*fields[:-1], _label(task, fields[-1], f"{what}: line {line}")], strict=True):
            columns[name].append(value)
    return checked(task, columns, what)


def _fields(task: Task, path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and wanted fields of each line, fewer where the line has fewer; quotation marks mean nothing."""
    try:
        with path.open(encoding="utf-8-sig") as file:  # MRPC as Microsoft ships it begins with a byte-order mark
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = task.header or next(reader, [])
            lacking = [name for name in task.columns if name not in header]
            if lacking:
                raise BadData(
                    f"{what} has no column {', '.join(map(repr, lacking))}: its first line is {header}", hint=task.files
                )
            places = [list(header).index(name) for name in task.columns]
            for row in reader:
                if row:
                    yield reader.line_num, [row[place] for place in places if place < len(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{what} cannot be read: {error}", hint=str(path)) from error


def _label(task: Task, text: str, where: str) -> float:
    """Return the number of a class, or a score."""
    if task.classes:
        if text not in task.classes:
            raise BadData(f"{where} has label {text!r}, and labels are {', '.join(task.classes)}", hint=task.files)
        return task.classes.index(text)
    try:
        return float(text)
    except ValueError as error:
        raise BadData(f"{where} has score {text!r}, which is no number", hint=task.files) from error
