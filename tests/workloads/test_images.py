"""Images: preparation, variation, epochs, resuming, the fixed validation list, and the digits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch

from bench.errors import BadData, BadValue
from bench.workloads import _digits
from bench.workloads._digits import VALIDATION_SHA256, Digits, is_validation
from bench.workloads._images import Batches, Dataset, Images, Preparation, checked

PLAIN = Preparation(scale=10, mean=(0.0,), std=(1.0,), pad=0, mirror=False)
SHIFTED = Preparation(scale=255, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), pad=2, mirror=True)


@dataclass(frozen=True)
class Counted:
    """``size`` images for training, each filled with its own number, and three for validation."""

    size: int = 10
    preparation: Preparation = PLAIN
    name = "counted"
    content = "0" * 64
    label = "a list"
    shape = (1, 4, 4)

    def images(self, split):
        numbers = np.arange(self.size if split == "train" else 3, dtype=np.uint8)
        return Images(np.broadcast_to(numbers[:, None, None, None], (len(numbers), *self.shape)), numbers)


def orders(dataset, batch_size, count, **options):
    return [batch["labels"].tolist() for batch in islice(Batches(dataset, batch_size=batch_size, **options), count)]


# -- order -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [3, 10, 25])
def test_every_epoch_has_every_image_once_in_an_order_of_its_own(batch_size):
    batches = orders(Dataset(Counted()), batch_size, 60 // batch_size + 1, seed=4)
    assert {len(batch) for batch in batches} == {batch_size}
    endless = [label for batch in batches for label in batch][:60]
    epochs = [endless[first : first + 10] for first in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6


def test_an_image_and_its_label_stay_together():
    for batch in islice(Batches(Dataset(Counted()), batch_size=4), 5):
        assert torch.equal(batch["images"][:, 0, 0, 0] * 10, batch["labels"].float())


def test_the_seed_sets_the_order_and_nothing_else_does():
    dataset = Dataset(Counted())
    torch.manual_seed(0)
    first = orders(dataset, 7, 4, seed=1)
    torch.manual_seed(1)
    assert orders(dataset, 7, 4, seed=1) == first
    assert orders(dataset, 7, 4, seed=2) != first


def test_the_order_is_the_same_on_every_machine():
    assert orders(Dataset(Counted()), 10, 2, seed=0) == [[2, 3, 0, 7, 4, 9, 1, 5, 6, 8], [5, 0, 6, 4, 3, 1, 2, 8, 7, 9]]


@pytest.mark.parametrize("start", [1, 4, 5, 13])
def test_batches_resume_bit_for_bit(start):
    dataset = Dataset(Counted(preparation=Preparation(scale=10, mean=(0.5,), std=(2.0,), pad=1, mirror=True)))
    whole = list(islice(Batches(dataset, batch_size=6, seed=3), start + 4))[start:]
    resumed = Batches(dataset, batch_size=6, seed=3, start=start)
    assert resumed.step == start
    for batch in whole:
        again = next(resumed)
        assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert resumed.step == start + 4


@pytest.mark.parametrize(("options", "words"), [({"batch_size": 0}, "batch_size 0"), ({"seed": -1}, "seed -1"),
                                                ({"start": -2}, "start -2")])  # fmt: skip
def test_a_bad_request_is_refused(options, words):
    with pytest.raises(BadValue, match=words):
        Batches(Dataset(Counted()), **{"batch_size": 2} | options)


# -- preparation -------------------------------------------------------------------------------------------------------
def test_inputs_are_scaled_and_standardised_per_channel():
    preparation = Preparation(scale=255, mean=(0.5, 0.25), std=(0.5, 0.125), pad=0, mirror=False)
    pixels = np.array([[[[0, 255]], [[51, 102]]]], dtype=np.uint8)
    found = preparation.inputs(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[[[-1.0, 1.0]], [[-0.4, 1.2]]]]))


def test_a_varied_image_is_a_cut_of_the_padded_one_and_mirrored_or_not():
    image = np.arange(1, 3 * 4 * 5 + 1, dtype=np.uint8).reshape(1, 3, 4, 5)
    padded = np.pad(image[0], ((0, 0), (2, 2), (2, 2)))
    unit = (1 << 32) // 5 + 1  # the smallest draw of each of the five places
    for row in range(5):
        for column in range(5):
            for mirror in (0, 1):
                draws = np.array([[row * unit], [column * unit], [mirror << 31]], dtype=np.uint64)
                cut = padded[:, row : row + 4, column : column + 5]
                expected = cut[..., ::-1] if mirror else cut
                assert np.array_equal(SHIFTED.varied(image, draws)[0], expected)
    centre = np.array([[2 * unit], [2 * unit], [0]], dtype=np.uint64)
    assert np.array_equal(SHIFTED.varied(image, centre), image)


def test_every_place_and_both_mirror_images_are_equally_frequent():
    image = np.zeros((1, 1, 5, 5), dtype=np.uint8)
    image[..., 2, 1] = 1
    images = np.repeat(image, 4_000, axis=0)
    draws = np.random.PCG64(1).random_raw(12_000).reshape(3, -1) >> np.uint64(32)
    varied = Preparation(scale=1, mean=(0.0,), std=(1.0,), pad=1, mirror=True).varied(images, draws)
    counts = varied.sum((0, 1))
    assert counts.sum() == 4_000
    # columns 0 to 2 come from the image, columns 2 to 4 from its mirror image
    expected = np.zeros((5, 5))
    expected[1:4] = np.array([1, 1, 2, 1, 1]) / 18
    assert np.abs(counts / 4_000 - expected).max() < 0.02


def test_digits_are_never_mirrored():
    preparation = Digits.preparation
    pixels = Digits().images("train").pixels[:20]
    draws = np.full((3, 20), (1 << 32) - 1, dtype=np.uint64)
    draws[:2] = 1 << 31  # the centre
    assert np.array_equal(preparation.varied(pixels, draws), pixels)


def test_the_source_is_not_changed_by_its_variations():
    dataset = Dataset(Digits())
    before = dataset.train.pixels.copy()
    list(islice(Batches(dataset, batch_size=500), 4))
    assert np.array_equal(dataset.train.pixels, before)


# -- validation and identity -------------------------------------------------------------------------------------------
def test_validation_is_not_varied_and_always_in_the_same_order():
    dataset = Dataset(Digits())
    first, second = list(dataset.evaluated()), list(dataset.evaluated())
    assert [len(batch["labels"]) for batch in first] == [500, 405]
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(first, second, strict=True))
    images = Digits().images("validation")
    assert torch.equal(torch.cat([batch["images"] for batch in first]), Digits.preparation.inputs(images.pixels))
    assert torch.cat([batch["labels"] for batch in first]).tolist() == images.labels.tolist()


def test_identity_follows_source_content_and_preparation():
    base = Counted()
    other_content = type("Other", (Counted,), {"content": "1" * 64})()
    other_name = type("Other", (Counted,), {"name": "listed"})()
    sources = [base, other_content, other_name, Counted(preparation=SHIFTED)]
    assert len({Dataset(source).identity.sha256 for source in sources}) == 4
    assert Dataset(base).identity == Dataset(Counted()).identity
    assert Dataset(base).identity.source == "counted"


@pytest.mark.parametrize(
    ("images", "words"),
    [(Images(np.zeros((2, 1, 1, 1), np.uint8), np.array([3, 12], np.uint8)), "image 1 has label 12"),
     (Images(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.uint8)), "holds no image")],
)  # fmt: skip
def test_labels_that_are_none_and_no_images_at_all_are_refused(images, words):
    with pytest.raises(BadData, match=words):
        checked(images, 10, "this")


# -- digits ------------------------------------------------------------------------------------------------------------
def test_the_split_of_the_digits_is_pinned_disjoint_and_balanced():
    from hashlib import sha256

    chosen = [index for index in range(1_797) if is_validation(index)]
    assert sha256(" ".join(map(str, chosen)).encode()).hexdigest() == VALIDATION_SHA256
    train, validation = Digits().images("train"), Digits().images("validation")
    assert (len(train), len(validation)) == (892, 905)
    assert np.bincount(train.labels, minlength=10).min() > 75
    assert np.bincount(validation.labels, minlength=10).min() > 75
    assert train.pixels.shape == (892, 1, 8, 8)
    assert train.pixels.max() == 16
    pixels = np.concatenate([train.pixels, validation.pixels]) / 16
    assert (pixels.mean(), pixels.std()) == pytest.approx(
        (Digits.preparation.mean[0], Digits.preparation.std[0]), abs=1e-4
    )


@pytest.fixture
def unread(monkeypatch):
    """The digits as if nobody had read them yet in this process."""
    monkeypatch.setattr(_digits, "_everything", _digits._everything.__wrapped__)


def test_other_digits_than_the_pinned_ones_are_refused(monkeypatch, unread):
    import sklearn.datasets

    found = sklearn.datasets.load_digits()
    found.target[5] = (found.target[5] + 1) % 10
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: found)
    with pytest.raises(BadData, match=r"not the pinned 87ff0c9e40dc") as caught:
        Digits().images("train")
    assert "constraints.txt" in caught.value.hint


def test_a_missing_scikit_learn_is_named_and_planning_does_not_need_it(monkeypatch, unread):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert len(Dataset(Digits()).identity.sha256) == 64
    with pytest.raises(BadData, match="need the package 'scikit-learn'") as caught:
        Digits().images("validation")
    assert "pip install scikit-learn" in caught.value.hint
