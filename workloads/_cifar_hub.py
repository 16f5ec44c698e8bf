"""CIFAR-10 from the Hugging Face hub, through ``datasets``."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.errors import BadData

from ._cifar import CLASSES, PREPARATION, SHAPE
from ._images import Images, Split, checked

if TYPE_CHECKING:
    from collections.abc import Mapping

REPOSITORY: Final = "uoft-cs/cifar10"
CONFIG: Final = "plain_text"
COMMIT: Final = "0b2714987fa478483af9968de7c934580d0bb9a2"
SIZES: Final[Mapping[Split, int]] = {"train": 50_000, "validation": 10_000}


@dataclass(frozen=True)
class CifarHub:
    """``uoft-cs/cifar10`` at a fixed commit: 50,000 training images, and the 10,000 of ``test`` for validation.

    Nothing is looked up before the images are needed: ``content`` is the SHA-256 of repository, config and commit. The
    first reading downloads 144 MB into the cache of ``datasets``; later ones need no network.

    Raises:
        BadData: on reading, if ``datasets`` is not installed, the hub is out of reach while the cache lacks this
            commit, or what came is not CIFAR-10.
    """

    name = "cifar10"
    shape = SHAPE
    preparation = PREPARATION

    @property
    def content(self) -> str:
        """SHA-256 of repository, config and commit."""
        return sha256(f"{REPOSITORY} {CONFIG} {COMMIT}".encode()).hexdigest()

    @property
    def label(self) -> str:
        """Repository, config and commit."""
        return f"{REPOSITORY} ({CONFIG}) at {COMMIT}"

    def images(self, split: Split) -> Images:
        """Return a split in the order of the hub."""
        try:
            rows = _rows("train" if split == "train" else "test")
            pixels = np.stack([np.asarray(row["img"]) for row in rows])
            labels = np.array([row["label"] for row in rows])
        except BadData:
            raise
        except Exception as error:  # errors of connection, HTTP, Arrow and PNG, from five libraries
            raise _unreachable(error) from error
        height_width_channels = (*SHAPE[1:], SHAPE[0])
        if pixels.dtype != np.uint8 or pixels.shape != (SIZES[split], *height_width_channels):
            raise BadData(
                f"the {split} split of {REPOSITORY!r} has pixels {pixels.dtype} {pixels.shape}, "
                f"not uint8 {(SIZES[split], *height_width_channels)}",
                hint="its copy in the cache of 'datasets' is damaged: remove it there",
            )
        images = Images(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels.astype(np.uint8))
        return checked(images, CLASSES, f"the {split} split of {REPOSITORY!r}")


def _rows(split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise BadData(
            f"CIFAR-10 from the hub needs the package 'datasets', which cannot be imported: {error}",
            hint='pip install "bench-training[hf]"; or --data-dir DIR with the files of cifar-10-binary.tar.gz',
        ) from error
    builder = datasets.load_dataset_builder(REPOSITORY, CONFIG, revision=COMMIT)
    if builder.hash != COMMIT:
        # Without network, datasets takes whatever revision its cache has, and only warns.
        raise BadData(
            f"the cache of 'datasets' has {REPOSITORY!r} at {builder.hash}, not at {COMMIT}",
            hint="go online, or remove that data set from the cache",
        )
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _unreachable(error: Exception) -> BadData:
    return BadData(
        f"cannot get {REPOSITORY!r} (config {CONFIG!r}, revision {COMMIT!r}): {type(error).__name__}: {error}",
        hint="without network use --tier tiny, whose images need none; or --data-dir DIR with the six files of "
        "cifar-10-binary.tar.gz that were fetched elsewhere; or HF_HUB_OFFLINE=1, where the cache of 'datasets' has it",
    )
