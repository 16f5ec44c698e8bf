"""Shards of tokens: the binary format, folders, the hub, and the windows and batches that are cut from them."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.errors import BadData, BadValue
from bench.workloads import _packed
from bench.workloads._documents import Embedded
from bench.workloads._fineweb import COMMIT, TRAIN_SHARDS, FineWeb
from bench.workloads._packed import EmbeddedTokens, PackedBatches, as_batch, validation_windows, windows
from bench.workloads._token_shards import HEADER_BYTES, ShardFolder, read_shard

CPU = torch.device("cpu")


def write_shard(path: Path, tokens, *, magic=20240520, version=1, count=None) -> Path:
    """Write a shard as llm.c's scripts do."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two training shards of 100 and 57 tokens and a validation shard of 40, all tokens different."""
    write_shard(tmp_path / "fineweb_train_000002.bin", range(100, 157))
    write_shard(tmp_path / "fineweb_train_000001.bin", range(100))
    write_shard(tmp_path / "fineweb_val_000000.bin", range(200, 240))
    return tmp_path


# -- the format ------------------------------------------------------------------------------------------------------
def test_a_shard_gives_back_its_tokens(tmp_path):
    written = np.random.default_rng(0).integers(0, 50_257, 1_000)
    found = read_shard(write_shard(tmp_path / "shard.bin", written), 50_304)
    assert (found.dtype, found.tolist()) == (np.uint16, written.tolist())
    assert read_shard(write_shard(tmp_path / "empty.bin", []), 50_304).tolist() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": 20240521}, "is no shard of tokens: it begins with 20240521, not with the magic number 20240520"),
        ({"version": 7}, "has version 7 of the format, but only version 1, uint16 tokens, is read"),
        ({"count": 11}, "is truncated: its header says 11 tokens, and 10 are there"),
        ({"count": 9}, "is too long: its header says 9 tokens, and 20 bytes follow it"),
        ({"count": -1}, "has a damaged header: it says -1 tokens"),
    ],
)
def test_a_wrong_header_is_refused_with_what_it_says(tmp_path, change, message):
    path = write_shard(tmp_path / "fineweb_train_000001.bin", range(10), **change)
    with pytest.raises(BadData, match=r"data shard 'fineweb_train_000001\.bin'") as caught:
        read_shard(path, 50_304)
    assert message in caught.value.message
    assert str(path) in caught.value.hint


@pytest.mark.parametrize("bytes_left", [0, 3, HEADER_BYTES - 1, HEADER_BYTES + 7, HEADER_BYTES + 19])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, bytes_left):
    path = write_shard(tmp_path / "shard.bin", range(10))
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(BadData, match=r"'shard\.bin' is truncated"):
        read_shard(path, 50_304)


def test_a_byte_too_many_and_a_foreign_file_are_refused(tmp_path):
    path = write_shard(tmp_path / "shard.bin", range(10))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BadData, match="is too long: its header says 10 tokens, and 21 bytes follow it"):
        read_shard(path, 50_304)
    path.write_bytes(b"PK\x03\x04" * 1_000)
    with pytest.raises(BadData, match="is no shard of tokens: it begins with 67324752"):
        read_shard(path, 50_304)


def test_a_missing_file_and_a_token_outside_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(BadData, match="cannot be read: No such file"):
        read_shard(tmp_path / "none.bin", 256)
    path = write_shard(tmp_path / "shard.bin", [0, 255, 50_256])
    assert read_shard(path, 50_257).tolist() == [0, 255, 50_256]
    with pytest.raises(BadData, match="has the token id 50256, but the vocabulary ends at 255") as caught:
        read_shard(path, 256)
    assert "124m" in caught.value.hint


# -- folders ---------------------------------------------------------------------------------------------------------
def test_shards_of_a_folder_come_in_the_order_of_their_names(folder):
    source = ShardFolder(folder, 256)
    assert [tokens.tolist() for tokens in source.shards("train")] == [list(range(100)), list(range(100, 157))]
    assert [tokens.tolist() for tokens in source.shards("validation")] == [list(range(200, 240))]
    source.prepare("train", 10**12)
    assert folder.name in source.label
    assert str(folder) not in source.label


@pytest.mark.parametrize(("split", "name"), [("validation", "fineweb_val_*"), ("train", "fineweb_train_*")])
def test_a_missing_split_is_refused_and_named(folder, split, name):
    for path in folder.glob(name):
        path.unlink()
    with pytest.raises(BadData, match=rf"has no {split} shard {name[:-1]}\*\.bin") as caught:
        _ = ShardFolder(folder, 256).content
    assert "fineweb_train_*.bin and fineweb_val_*.bin" in caught.value.hint


def test_a_missing_folder_and_a_folder_in_a_shards_place_are_refused(folder):
    with pytest.raises(BadData, match="does not exist or is not a folder"):
        _ = ShardFolder(folder / "nowhere", 256).content
    (folder / "fineweb_train_000003.bin").mkdir()
    with pytest.raises(BadData, match=r"'fineweb_train_000003\.bin' is not a file"):
        _ = ShardFolder(folder, 256).content


def test_content_follows_every_byte_and_name_and_not_the_place(folder, tmp_path):
    before = ShardFolder(folder, 256).content
    moved = folder.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    assert ShardFolder(moved, 256).content == before
    (moved / "fineweb_train_000002.bin").rename(moved / "fineweb_train_000003.bin")
    renamed = ShardFolder(moved, 256).content
    write_shard(moved / "fineweb_val_000000.bin", [*range(200, 239), 0])
    assert len({before, renamed, ShardFolder(moved, 256).content}) == 3


# -- windows and batches ---------------------------------------------------------------------------------------------
def test_windows_follow_one_another_and_never_cross_a_shard(folder):
    found = [window.tolist() for window in windows(ShardFolder(folder, 256), "train", 10)]
    first, second = range(0, 90, 10), range(100, 150, 10)  # 90 to 99 and 150 to 156 have no eleventh token
    assert found == [list(range(start, start + 11)) for start in (*first, *second)]


def test_every_token_but_a_shards_first_and_its_rest_is_a_target_once(folder):
    rows = list(windows(ShardFolder(folder, 256), "train", 10))
    batch = as_batch(rows, CPU)
    assert batch["targets"].flatten().tolist() == [*range(1, 91), *range(101, 151)]
    assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1])
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_an_epoch_has_every_window_once_in_an_order_set_by_the_seed(folder):
    source = ShardFolder(folder, 256)
    orders = {}
    for seed in (0, 1):
        stream = PackedBatches(source, length=10, batch_size=7, seed=seed)
        orders[seed] = [[int(row[0]) for row in next(stream)] for _ in range(4)]
    starts = [*range(0, 90, 10), *range(100, 150, 10)]
    for order in orders.values():
        first, second = order[0] + order[1], order[2] + order[3]
        assert sorted(first) == sorted(second) == starts
        assert first != second
    assert orders[0] != orders[1]


def test_batches_resume_where_they_were(folder):
    source = ShardFolder(folder, 256)
    whole = list(islice(PackedBatches(source, length=10, batch_size=4, seed=2), 9))
    for start in (0, 1, 5):
        resumed = PackedBatches(source, length=10, batch_size=4, seed=2, start=start)
        assert np.array_equal(list(islice(resumed, 9 - start)), whole[start:])


def test_validation_is_the_first_targets_of_the_split_or_all_of_it(folder):
    source = ShardFolder(folder, 256)
    assert [row.tolist() for row in validation_windows(source, length=10, tokens=25)] == [
        list(range(200, 211)),
        list(range(210, 221)),
    ]
    assert validation_windows(source, length=10, tokens=10**9).shape == (3, 11)


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"batch_size": 0}, {"steps": -1}, {"seed": -1}, {"start": -1}], ids=str
)
def test_wrong_numbers_are_refused(folder, wrong):
    with pytest.raises(BadValue, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
        PackedBatches(ShardFolder(folder, 256), **{"length": 10, "batch_size": 2} | wrong)


def test_shards_too_short_for_one_sequence_are_refused_at_once(folder):
    source = ShardFolder(folder, 256)
    with pytest.raises(BadData, match=r"the train split of local token shards .* has no sequence") as caught:
        PackedBatches(source, length=100, batch_size=2)
    assert "at least 101 tokens" in caught.value.hint
    with pytest.raises(BadData, match="the validation split"):
        validation_windows(source, length=10, tokens=9)


def test_the_embedded_corpus_is_bytes_with_a_separator_before_each_document(monkeypatch):
    source, corpus = EmbeddedTokens(Embedded()), Embedded()
    (stream,) = source.shards("validation")
    texts = bytes(stream.astype(np.uint8)).split(b"\x01")
    assert texts == [b"", *(text.encode() for text in corpus.documents("validation"))]
    grown = EmbeddedTokens(Embedded(validation_documents=170))
    assert len({source.content, grown.content, corpus.content}) == 3
    monkeypatch.setattr(_packed, "_SHARD_DOCUMENTS", 100)
    assert [int((tokens == 1).sum()) for tokens in grown.shards("validation")] == [100, 70]


# -- the hub ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has the validation shard and three training shards, and the list of what was asked of it."""
    library = pytest.importorskip("huggingface_hub", reason="the package huggingface_hub (extra hf) is not installed")
    asked = []
    for number in range(4):
        split = "train" if number else "val"
        write_shard(tmp_path / f"fineweb_{split}_{number:06d}.bin", np.arange(100) + 100 * number)

    def download(repository, name, **options):
        asked.append((repository, name, options))
        if not (tmp_path / name).exists():
            raise ConnectionError("no route to host")
        return str(tmp_path / name)

    monkeypatch.setattr(library, "hf_hub_download", download)
    return asked


def test_shards_are_fetched_one_by_one_at_the_pinned_commit_and_only_once(hub):
    source = FineWeb(50_304)
    assert (source.name, hub) == ("fineweb", [])
    assert COMMIT in source.label
    validation_windows(source, length=10, tokens=50)
    found = list(islice(windows(source, "train", 10), 12))
    assert [name for _, name, _ in hub] == [
        "fineweb_val_000000.bin",
        "fineweb_train_000001.bin",
        "fineweb_train_000002.bin",
    ]
    assert {(repository, *options.items()) for repository, _, options in hub} == {
        ("kjj0/fineweb10B-gpt2", ("repo_type", "dataset"), ("revision", COMMIT))
    }
    assert [int(row[0]) for row in found] == [*range(100, 190, 10), 200, 210, 220]
    list(islice(windows(source, "train", 10), 12))
    assert len(hub) == 3


def test_what_a_run_needs_is_fetched_before_its_first_step(hub):
    source = FineWeb(50_304)
    source.prepare("train", 150)
    assert [name for _, name, _ in hub] == ["fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    source.prepare("train", 200)
    assert len(hub) == 2
    assert len(source.names("train")) == TRAIN_SHARDS


def test_a_hub_out_of_reach_names_every_other_way(hub):
    with pytest.raises(
        BadData, match=r"cannot get fineweb_train_000004\.bin of 'kjj0/.*ConnectionError: no r"
    ) as caught:
        FineWeb(50_304).prepare("train", 10**9)
    ways = ("--data embedded", "--data-dir DIR", "hf download kjj0/fineweb10B-gpt2 fineweb_train_000004.bin", COMMIT)
    assert all(way in caught.value.hint for way in ways)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadData, match="FineWeb needs the package 'huggingface_hub'") as caught:
        next(FineWeb(50_304).shards("validation"))
    assert caught.value.hint == 'pip install "bench-training[hf]"'


OFFLINE = """
from bench.errors import BadData
from bench.workloads._fineweb import FineWeb
print([tokens.tolist() for tokens in FineWeb(256).shards("validation")])
try:
    next(FineWeb(256).shards("train"))
except BadData as error:
    print(error.message.partition(":")[0])
"""


def test_offline_the_cache_of_the_hub_serves(tmp_path):
    pytest.importorskip("huggingface_hub", reason="the package huggingface_hub (extra hf) is not installed")
    cache = tmp_path / "hub" / "datasets--kjj0--fineweb10B-gpt2" / "snapshots" / COMMIT
    write_shard(cache / "fineweb_val_000000.bin", [7, 8, 9])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-P", "-c", OFFLINE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[[7, 8, 9]]",
        f"cannot get fineweb_train_000001.bin of 'kjj0/fineweb10B-gpt2' (revision '{COMMIT}')",
    ]
