"""CIFAR-10: the binary files, and the hub without a network."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bench.errors import BadData
from bench.workloads import _cifar_hub
from bench.workloads._cifar import FOLDER, PREPARATION, RECORD_BYTES, TRAIN_FILES, VALIDATION_FILE, CifarFiles
from bench.workloads._cifar_hub import COMMIT, CifarHub
from bench.workloads._images import Dataset

FILES = (*TRAIN_FILES, VALIDATION_FILE)


@pytest.fixture
def folder(tmp_path, cifar):
    return cifar(tmp_path / "mine")


# -- files -------------------------------------------------------------------------------------------------------------
def test_records_are_a_label_and_three_planes_of_rows(tmp_path, cifar):
    folder = cifar(tmp_path)
    record = bytes([7]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes(range(256)) * 4
    (folder / "data_batch_1.bin").write_bytes(record * 6)
    images = CifarFiles(folder).images("train")
    assert images.labels[0] == 7
    red, green, blue = images.pixels[0]
    assert (set(red.flat), set(green.flat)) == ({1}, {2})
    assert blue[0].tolist() == list(range(32)), "rows of 32 pixels"
    assert blue[1, 0] == 32


def test_training_images_are_those_of_all_five_files_in_order_and_test_validates(folder):
    source = CifarFiles(folder)
    train, validation = source.images("train"), source.images("validation")
    assert (train.pixels.shape, validation.pixels.shape) == ((30, 3, 32, 32), (4, 3, 32, 32))
    for number, name in enumerate(TRAIN_FILES):
        records = np.frombuffer((folder / name).read_bytes(), np.uint8).reshape(-1, RECORD_BYTES)
        part = slice(6 * number, 6 * number + 6)
        assert np.array_equal(train.pixels[part].reshape(6, -1), records[:, 1:])
        assert np.array_equal(train.labels[part], records[:, 0])


def test_the_folder_of_the_archive_is_found_below_the_one_that_is_named(tmp_path, cifar):
    cifar(tmp_path / "data" / FOLDER)
    assert len(CifarFiles(tmp_path / "data").images("train")) == 30


def test_identity_follows_every_byte_and_not_the_place(folder, tmp_path):
    first = CifarFiles(folder).content
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert CifarFiles(moved).content == first
    assert str(tmp_path) not in CifarFiles(moved).label
    assert "30 for training, 4 for validation" in CifarFiles(moved).label
    for name in FILES:
        data = bytearray((moved / name).read_bytes())
        data[-1] ^= 1
        (moved / name).write_bytes(data)
        assert CifarFiles(moved).content != first
        data[-1] ^= 1
        (moved / name).write_bytes(data)
    assert CifarFiles(moved).content == first


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BadData, match=f"has no file {name}") as caught:
        CifarFiles(folder)
    assert "cifar-10-binary.tar.gz" in caught.value.hint


@pytest.mark.parametrize("name", ["data_batch_3.bin", VALIDATION_FILE])
@pytest.mark.parametrize("size", [0, 1, RECORD_BYTES - 1, 3 * RECORD_BYTES + 1, 4 * RECORD_BYTES - 1])
def test_a_file_that_ends_inside_a_record_is_refused_with_its_size(folder, name, size):
    data = (folder / name).read_bytes() * 2
    (folder / name).write_bytes(data[:size])
    with pytest.raises(BadData, match=f"data file '{name}' has {size:,} bytes.*truncated"):
        CifarFiles(folder)


def test_a_training_file_that_was_cut_between_two_records_is_refused(folder):
    path = folder / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[: 5 * RECORD_BYTES])
    with pytest.raises(BadData, match=r"different numbers of images.*data_batch_3\.bin 6, data_batch_4\.bin 5"):
        CifarFiles(folder)


@pytest.mark.parametrize("label", [10, 128, 255])
def test_a_label_that_is_none_is_refused_with_its_place(folder, label):
    path = folder / "data_batch_2.bin"
    data = bytearray(path.read_bytes())
    data[2 * RECORD_BYTES] = label
    path.write_bytes(data)
    source = CifarFiles(folder)
    with pytest.raises(BadData, match=f"'data_batch_2.bin' is corrupt: image 2 has label {label}"):
        source.images("train")
    assert len(source.images("validation")) == 4


@pytest.mark.parametrize("place", ["", "cifar-10-batches-py"])
def test_the_python_version_is_refused_and_never_unpickled(tmp_path, place):
    """A pickle that would write a file when it is read."""
    folder = tmp_path / "data" / place
    folder.mkdir(parents=True)
    trap = tmp_path / "unpickled"
    for name in FILES:
        (folder / name.removesuffix(".bin")).write_bytes(f"cbuiltins\nopen\n(S'{trap}'\nS'w'\ntR.".encode())
    with pytest.raises(BadData, match=r"Python version of CIFAR-10, which is never read.*any code") as caught:
        CifarFiles(tmp_path / "data")
    assert "cifar-10-binary.tar.gz" in caught.value.hint
    assert not trap.exists()


def test_a_pickle_under_the_name_of_a_binary_file_is_refused(folder):
    """One of a size that fits, too: its first byte, 128 for a pickle, is no label."""
    pickled = b"\x80\x02}q\x01" + bytes(6 * RECORD_BYTES)
    (folder / "data_batch_1.bin").write_bytes(pickled)
    with pytest.raises(BadData, match="no positive multiple"):
        CifarFiles(folder)
    (folder / "data_batch_1.bin").write_bytes(pickled[: 6 * RECORD_BYTES])
    with pytest.raises(BadData, match="image 0 has label 128"):
        CifarFiles(folder).images("train")


def test_a_folder_that_is_none_or_has_nothing_is_refused(tmp_path):
    with pytest.raises(BadData, match="does not exist or is not a folder"):
        CifarFiles(tmp_path / "none")
    with pytest.raises(BadData, match="none of the files of CIFAR-10"):
        CifarFiles(tmp_path)
    for name in FILES:
        (tmp_path / name).mkdir()
    with pytest.raises(BadData, match=r"has no file data_batch_1\.bin"):
        CifarFiles(tmp_path)


# -- hub ---------------------------------------------------------------------------------------------------------------
class Hub:
    """The part of ``datasets`` that is used, with rows as it gives them: images of height, width, channel."""

    def __init__(self, commit=COMMIT, shape=(32, 32, 3), label=3):
        self.commit, self.shape, self.label, self.calls = commit, shape, label, []

    def load_dataset_builder(self, *names, revision):
        self.calls.append((*names, revision))
        return SimpleNamespace(hash=self.commit, download_and_prepare=lambda: None, as_dataset=self.rows)

    def rows(self, split):
        image = np.zeros(self.shape, np.uint8)
        image[1, 2] = [10, 20, 30][: self.shape[2]]
        return [{"img": image, "label": self.label}] * {"train": 6, "test": 2}[split]


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(_cifar_hub, "SIZES", {"train": 6, "validation": 2})

    def install(found):
        monkeypatch.setitem(sys.modules, "datasets", found)
        return found

    return install


def test_images_of_the_hub_have_planes_as_those_of_the_files_have(hub):
    found = hub(Hub())
    images = CifarHub().images("validation")
    assert images.pixels.shape == (2, 3, 32, 32)
    assert images.pixels[0, :, 1, 2].tolist() == [10, 20, 30]
    assert images.labels.tolist() == [3, 3]
    assert len(CifarHub().images("train")) == 6
    assert found.calls == [("uoft-cs/cifar10", "plain_text", COMMIT)] * 2


def test_identity_of_the_hub_needs_neither_network_nor_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    identity = Dataset(CifarHub()).identity
    assert identity.source == "cifar10"
    assert COMMIT in identity.label
    assert CifarHub.preparation == CifarFiles.preparation == PREPARATION


def test_a_missing_package_names_the_extra_and_the_other_way(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadData, match="needs the package 'datasets'") as caught:
        CifarHub().images("train")
    assert all(part in caught.value.hint for part in ("bench-training[hf]", "--data-dir DIR"))


def test_a_hub_out_of_reach_names_every_other_way(hub):
    def unreachable(*names, **options):
        raise ConnectionError("no route to host")

    hub(SimpleNamespace(load_dataset_builder=unreachable))
    with pytest.raises(BadData, match=r"cannot get 'uoft-cs/cifar10' .*ConnectionError: no route") as caught:
        CifarHub().images("train")
    assert all(part in caught.value.hint for part in ("--tier tiny", "--data-dir DIR", "HF_HUB_OFFLINE"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"commit": "0" * 40}, "at 0000"), ({"shape": (32, 32, 1)}, r"has pixels uint8 \(6, 32, 32, 1\)"),
     ({"shape": (28, 32, 3)}, "28"), ({"label": 11}, "label 11")],
)  # fmt: skip
def test_what_is_not_cifar10_is_refused(hub, changes, words):
    hub(Hub(**changes))
    with pytest.raises(BadData, match=words):
        CifarHub().images("train")


def test_a_split_that_is_too_small_is_refused(hub, monkeypatch):
    hub(Hub())
    monkeypatch.setattr(_cifar_hub, "SIZES", {"train": 7, "validation": 2})
    with pytest.raises(BadData, match="damaged"):
        CifarHub().images("train")


def test_the_real_library_reads_real_images(monkeypatch, tmp_path):
    """A small data set with the hub's features, written and decoded by ``datasets`` itself: PNG and class labels."""
    datasets = pytest.importorskip("datasets", reason="the package datasets (extra hf) is not installed")
    pixels = np.random.PCG64(0).random_raw(4 * 384).view(np.uint8).reshape(4, 32, 32, 3)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=[str(n) for n in range(10)])}
    )
    rows = datasets.Dataset.from_dict({"img": list(pixels), "label": [9, 0, 5, 1]}, features=features)
    rows.save_to_disk(str(tmp_path / "saved"))
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(_cifar_hub, "_rows", {"train": saved}.__getitem__)
    monkeypatch.setattr(_cifar_hub, "SIZES", {"train": 4, "validation": 4})
    images = CifarHub().images("train")
    assert np.array_equal(images.pixels, pixels.transpose(0, 3, 1, 2))
    assert images.labels.tolist() == [9, 0, 5, 1]
