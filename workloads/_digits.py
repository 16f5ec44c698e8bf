"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels with 17 levels of grey."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Final

import numpy as np

from bench.errors import BadData

from ._images import Images, Preparation, Split, checked

DIGITS_SHA256: Final = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""SHA-256 of the pixels and the labels, one byte each, image after image in scikit-learn's order."""

VALIDATION_SHA256: Final = "0ebfd9307e2a3772722c52f17d9be3b9b26f42419e607a8babe6bdc558d68316"
"""SHA-256 of the sorted indices of the validation images, as decimal numbers with a space between them."""


@dataclass(frozen=True)
class Digits:
    """The test part of the UCI data set "Optical Recognition of Handwritten Digits", as scikit-learn ships it.

    An image is for validation when SHA-256 of ``"digits <index>"`` is even, so both splits have all writers, and no run
    and no version of a library can change which image is where. Training images move by up to a pixel; mirroring a
    digit would make it another sign.

    Raises:
        BadData: on reading, if scikit-learn is not installed or ships other images than the pinned ones.
    """

    name = "digits"
    shape = (1, 8, 8)
    preparation = Preparation(scale=16, mean=(0.3053,), std=(0.3760,), pad=1, mirror=False)

    @property
    def content(self) -> str:
        """The pinned SHA-256 of images and split together; nothing is read."""
        return sha256(f"{DIGITS_SHA256} {VALIDATION_SHA256}".encode()).hexdigest()

    @property
    def label(self) -> str:
        """What it is."""
        return "scikit-learn's digits, 8 x 8"

    def images(self, split: Split) -> Images:
        """Return a split, in scikit-learn's order."""
        everything = _everything()
        chosen = np.array([is_validation(index) == (split == "validation") for index in range(len(everything))])
        return Images(everything.pixels[chosen], everything.labels[chosen])


def is_validation(index: int) -> bool:
    """Return whether image ``index`` is for validation."""
    return sha256(f"digits {index}".encode()).digest()[-1] % 2 == 0


@cache
def _everything() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadData(
            f"the digits need the package 'scikit-learn', which cannot be imported: {error}",
            hint="pip install scikit-learn; it belongs to what this package requires",
        ) from error
    found = load_digits()
    images = Images(found.images[:, None].astype(np.uint8), found.target.astype(np.uint8))
    digest = sha256(images.pixels.tobytes() + images.labels.tobytes()).hexdigest()
    if digest != DIGITS_SHA256:
        raise BadData(
            f"scikit-learn's digits have SHA-256 {digest[:12]}, not the pinned {DIGITS_SHA256[:12]}",
            hint="results would not compare; install the version of scikit-learn that constraints.txt names",
        )
    return checked(images, 10, "scikit-learn's digits")
