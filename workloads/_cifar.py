"""CIFAR-10 in its binary version: six files of records, one byte of label and 3,072 bytes of pixels each.

The pixels of a record are the red plane, the green and the blue one, 32 rows of 32 bytes each. The labels are
airplane 0, automobile 1, bird 2, cat 3, deer 4, dog 5, frog 6, horse 7, ship 8, truck 9.

Source: https://www.cs.toronto.edu/~kriz/cifar.html, section "Binary version".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.errors import BadData

from ._images import Images, Preparation, Split, checked

if TYPE_CHECKING:
    from pathlib import Path

CLASSES: Final = 10
SHAPE: Final = (3, 32, 32)
RECORD_BYTES: Final = 1 + 3 * 32 * 32

TRAIN_FILES: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
VALIDATION_FILE: Final = "test_batch.bin"
FOLDER: Final = "cifar-10-batches-bin"
"""The folder in the archive ``cifar-10-binary.tar.gz``."""

PREPARATION: Final = Preparation(
    scale=255, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), pad=4, mirror=True
)
"""Mean and standard deviation over all training pixels; the usual crop and mirror image.

Deviations: many scripts divide by (0.2023, 0.1994, 0.2010), the mean over images of each image's own deviation.
"""

_LAYOUT: Final = (
    f"--data-dir names a folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, or one whose subfolder "
    f"{FOLDER!r} has them: unpack cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
)


@dataclass(frozen=True)
class CifarFiles:
    """A folder with the six files of the binary version; validation is ``test_batch.bin``, as everywhere.

    Args:
        directory: the folder with the files, or one whose subfolder ``cifar-10-batches-bin`` has them.

    The five training files must hold equally many images, 10,000 in the original, so that a file which was cut between
    two records is found. ``content`` is the SHA-256 over the names, sizes and bytes of the six files. The Python
    version of the data set is refused: it consists of pickles, and reading a pickle can run any code.

    Raises:
        BadData: at construction, if the folder or a file is missing or has a wrong size; on reading, if a label is bad.
    """

    directory: Path
    name = "local"
    shape = SHAPE
    preparation = PREPARATION

    def __post_init__(self) -> None:
        """Refuse a folder that lacks a file, or has one of a wrong size."""
        counts = {name: self._count(name) for name in (*TRAIN_FILES, VALIDATION_FILE)}
        train = {name: counts[name] for name in TRAIN_FILES}
        if len(set(train.values())) > 1:
            raise BadData(
                "the training files hold different numbers of images, and one of them is cut or foreign: "
                + ", ".join(f"{name} {count:,}" for name, count in train.items()),
                hint=_LAYOUT,
            )

    @cached_property
    def _folder(self) -> Path:
        if not self.directory.is_dir():
            raise BadData(f"data folder {str(self.directory)!r} does not exist or is not a folder", hint=_LAYOUT)
        folders = (self.directory, self.directory / FOLDER)
        for folder in folders:
            if any((folder / name).exists() for name in (*TRAIN_FILES, VALIDATION_FILE)):
                return folder
        for folder in (*folders, self.directory / "cifar-10-batches-py"):
            if any((folder / name.removesuffix(".bin")).exists() for name in (*TRAIN_FILES, VALIDATION_FILE)):
                raise BadData(
                    f"data folder {str(folder)!r} has the Python version of CIFAR-10, which is never read: "
                    "it consists of pickles, and reading a pickle can run any code",
                    hint=_LAYOUT,
                )
        raise BadData(f"data folder {str(self.directory)!r} has none of the files of CIFAR-10", hint=_LAYOUT)

    def _count(self, name: str) -> int:
        """Return how many images the file ``name`` holds by its size."""
        path = self._folder / name
        if not path.is_file():
            raise BadData(f"data folder {str(self._folder)!r} has no file {name}", hint=_LAYOUT)
        size = path.stat().st_size
        if size == 0 or size % RECORD_BYTES:
            raise BadData(
                f"data file {name!r} has {size:,} bytes, which is no positive multiple of {RECORD_BYTES:,}: "
                "it is truncated, or not the binary version",
                hint=f"the original has 30,730,000 bytes; get it again: {path}",
            )
        return size // RECORD_BYTES

    @cached_property
    def content(self) -> str:
        """SHA-256 over names, sizes and bytes of all files."""
        digest = sha256()
        for name in (*TRAIN_FILES, VALIDATION_FILE):
            data = self._read(name)
            digest.update(f"{name} {len(data)}\n".encode() + data)
        return digest.hexdigest()

    @property
    def label(self) -> str:
        """Name of the folder, without its place on this machine, and its size."""
        train, validation = len(TRAIN_FILES) * self._count(TRAIN_FILES[0]), self._count(VALIDATION_FILE)
        return f"local images {self.directory.resolve().name!r}, {train:,} for training, {validation:,} for validation"

    def images(self, split: Split) -> Images:
        """Return a split in the order of the files."""
        parts = [self._records(name) for name in (TRAIN_FILES if split == "train" else (VALIDATION_FILE,))]
        return Images(np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts]))

    def _records(self, name: str) -> Images:
        records = np.frombuffer(self._read(name), dtype=np.uint8).reshape(-1, RECORD_BYTES)
        return checked(Images(records[:, 1:].reshape(-1, *SHAPE), records[:, 0]), CLASSES, f"data file {name!r}")

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadData(f"data file {name!r} cannot be read: {error.strerror or error}", hint=str(path)) from error
