from __future__ import annotations

import gzip
import json
import re
from itertools import islice
from pathlib import Path

import pytest
import torch

from bench.errors import BadData
from bench.workloads._batches import Batches, validation_batches
from bench.workloads._corpus import CORPUS_SHA256, document
from bench.workloads._documents import Embedded, LocalShards
from bench.workloads._sequences import Sequences, Truncate, Windows
from bench.workloads._tokenizers import ByteTokenizer


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in ("input_ids", "labels"))


def test_embedded_yields_the_pinned_documents_whatever_seed_and_epoch():
    texts = list(Embedded().documents("train", seed=3, epoch=2))
    assert len(texts) == 1400
    assert texts[1399] == document(1399, "train")
    assert len(list(Embedded().documents("validation"))) == 160
    assert Embedded().content == CORPUS_SHA256


def test_a_larger_embedded_split_begins_with_the_pinned_documents_and_has_its_own_identity():
    large = Embedded(train_documents=10_000_000)
    texts = list(islice(large.documents("train"), 1405))
    assert texts[:1400] == list(Embedded().documents("train"))
    assert texts[1404] == document(1404, "train")
    assert not large.small
    assert len({large.content, Embedded().content, Embedded(validation_documents=3).content}) == 3


def test_a_smaller_embedded_split_ends():
    assert len(list(Embedded(train_documents=5).documents("train"))) == 5


@pytest.mark.parametrize("subfolder", ["", "en"])
def test_local_shards_give_their_texts_in_order(tmp_path, shards, subfolder):
    texts = ["one\n1", "zwei ü", "три", "", "five \u2028 \x00 six"]
    shards(tmp_path / subfolder, texts, ["held out"], train_shards=3)
    source = LocalShards(tmp_path)
    assert list(source.documents("train", seed=1, epoch=1)) == texts
    assert list(source.documents("validation")) == ["held out"]
    assert [path.name[9:14] for path in source.shards("train")] == ["00000", "00001", "00002"]
    assert source.small
    assert source.label == f"local shards {tmp_path.name!r}"


def test_folder_itself_comes_before_its_subfolder(tmp_path, shards):
    shards(tmp_path / "en", ["inner"], ["inner"])
    shards(tmp_path, ["outer"], ["outer"])
    assert list(LocalShards(tmp_path).documents("train")) == ["outer"]


def test_content_hash_follows_names_and_bytes(tmp_path, shards):
    first = shards(tmp_path / "a", ["text"] * 3, ["held out"])
    again = tmp_path / "b"
    again.mkdir()
    for path in first.iterdir():
        (again / path.name).write_bytes(path.read_bytes())
    assert LocalShards(first).content == LocalShards(again).content
    validation = again / "c4-validation.00000-of-00001.json.gz"
    kept = validation.read_bytes()
    validation.write_bytes(gzip.compress(b'{"text": "other"}\n'))
    assert LocalShards(first).content != LocalShards(again).content
    validation.write_bytes(kept)
    validation.rename(again / "c4-validation.00000-of-00002.json.gz")
    assert LocalShards(first).content != LocalShards(again).content


def test_foreign_files_in_the_folder_change_nothing(tmp_path, shards):
    folder = shards(tmp_path, ["text"], ["held out"])
    before = LocalShards(folder).content
    (folder / "README.md").write_text("notes")
    (folder / "c4-train.00001-of-00002.json").write_text("not a shard")
    assert LocalShards(folder).content == before


@pytest.mark.parametrize("cut", [Windows(256, 32), Truncate(256)])
def test_embedded_corpus_as_c4_shards_gives_identical_batches(tmp_path, shards, cut):
    embedded = Embedded()
    shards(tmp_path, list(embedded.documents("train")), list(embedded.documents("validation")), train_shards=3)
    pair = [Sequences(source, ByteTokenizer(), cut) for source in (embedded, LocalShards(tmp_path))]
    for first, second in islice(zip(*(Batches(part, batch_size=64, seed=5) for part in pair), strict=True), 150):
        assert same(first, second)
    held_out = [validation_batches(part, batch_size=32, token_limit=20_000) for part in pair]
    assert len(held_out[0]) == len(held_out[1]) > 2
    assert all(same(first, second) for first, second in zip(*held_out, strict=True))
    assert pair[0].identity.source == "embedded"
    assert pair[1].identity.source == "local"
    assert pair[0].identity.sha256 != pair[1].identity.sha256


def test_real_text_in_c4s_format_is_read(wikitext):
    source = LocalShards(wikitext)
    texts = {split: list(source.documents(split)) for split in ("train", "validation")}
    assert len(texts["train"]) > 100
    assert len(texts["validation"]) == 12
    assert sum(map(len, texts["train"])) > 2_000_000
    sequences = Sequences(source, ByteTokenizer(), Windows(256))
    batches = Batches(sequences, batch_size=16)
    first = next(batches)
    assert first["input_ids"].shape == first["labels"].shape == (16, 256)
    assert " the " in bytes(first["input_ids"].flatten().tolist()).decode(errors="replace")
    assert validation_batches(sequences, batch_size=16, token_limit=50_000).tokens > 50_000
    assert sequences.identity.source == "local"
    assert "wikitext-c4" in sequences.identity.label


# Errors: one message each, with the name of what is wrong.


@pytest.fixture
def good(tmp_path, shards):
    return shards(tmp_path / "data", ["first", "second", "third"], ["held out"])


def train_shard(folder):
    return folder / "c4-train.00000-of-00001.json.gz"


def test_missing_folder(tmp_path):
    with pytest.raises(BadData, match=r"nowhere' does not exist") as caught:
        LocalShards(tmp_path / "nowhere")
    assert "--data-dir" in caught.value.hint


def test_file_in_place_of_a_folder(good):
    with pytest.raises(BadData, match="not a folder"):
        LocalShards(train_shard(good))


def test_folder_without_shards(tmp_path):
    with pytest.raises(BadData, match=r"has no shard c4-\*\.json\.gz, nor has its subfolder 'en'"):
        LocalShards(tmp_path)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_missing_split(good, split):
    next(good.glob(f"c4-{split}*")).unlink()
    with pytest.raises(BadData, match=f"has no {split} shard") as caught:
        LocalShards(good)
    assert "add the missing shard" in caught.value.hint


@pytest.mark.parametrize("place", [Path.mkdir, lambda path: path.symlink_to("nowhere")], ids=["folder", "dead link"])
def test_shard_that_is_no_file(good, place):
    train_shard(good).unlink()
    place(train_shard(good))
    with pytest.raises(BadData, match=r"'c4-train.00000-of-00001.json.gz' is not a file"):
        LocalShards(good)


def test_shard_that_may_not_be_read(good, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    source = LocalShards(good)
    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(gzip, "open", refused)
    with pytest.raises(BadData, match=r"c4-train.*cannot be read: Permission denied"):
        _ = source.content
    with pytest.raises(BadData, match=r"c4-train.*not a readable gzip file.*Permission denied"):
        list(source.documents("train"))


def test_shard_that_is_no_gzip(good):
    train_shard(good).write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(BadData, match=r"'c4-train.00000-of-00001.json.gz' is not a readable gzip file") as caught:
        list(LocalShards(good).documents("train"))
    assert str(train_shard(good)) in caught.value.hint


@pytest.mark.parametrize("place", range(0, 100, 9))
def test_every_flipped_byte_is_noticed_or_harmless(good, place):
    intact = list(LocalShards(good).documents("train"))
    data = bytearray(train_shard(good).read_bytes())
    at = place * len(data) // 100
    data[at] ^= 0xFF
    train_shard(good).write_bytes(bytes(data))
    try:
        found = list(LocalShards(good).documents("train"))
    except BadData as error:
        assert "c4-train" in error.message  # noqa: PT017 - a flip in the gzip header's time stamp or name is harmless
    else:
        assert found == intact


def test_corrupt_gzip_data(good):
    data = bytearray(train_shard(good).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4] = b"\0\0\0\0"
    train_shard(good).write_bytes(bytes(data))
    with pytest.raises(BadData, match=r"not a readable gzip file|is truncated|is not JSON"):
        list(LocalShards(good).documents("train"))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_gzip(good, share):
    data = train_shard(good).read_bytes()
    train_shard(good).write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadData, match="is truncated"):
        list(LocalShards(good).documents("train"))


BAD_LINES = {
    b"not json": "line 2 is not JSON",
    b"": "line 2 is not JSON",
    b'{"text": "cut': "line 2 is not JSON",
    b'{"body": "x", "url": "y"}': r"line 2 has no string under the key 'text' \(found keys \['body', 'url'\]\)",
    b'{"text": null}': "line 2 has no string",
    b'{"text": 3}': "line 2 has no string",
    b'["text"]': r"line 2 has no string under the key 'text' \(found a JSON list\)",
    b'{"text": "caf\xe9"}': "line 2 is not UTF-8",
    b'{"text": "half \\ud83d"}': "line 2 is not Unicode text",
    b"[" * 100_000: "line 2 is not (a document|JSON)",
}


@pytest.mark.parametrize(("line", "message"), list(BAD_LINES.items()), ids=range(len(BAD_LINES)))
def test_bad_line_is_named_by_shard_and_number(good, line, message):
    train_shard(good).write_bytes(gzip.compress(b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n'))
    with pytest.raises(BadData, match=f"c4-train.00000-of-00001.json.gz' {message}") as caught:
        list(LocalShards(good).documents("train"))
    assert len(str(caught.value)) < 600


def test_damage_shows_when_the_batches_are_built(good):
    train_shard(good).write_bytes(b"damaged")
    for cut in (Windows(8, 1), Truncate(8)):
        with pytest.raises(BadData, match="not a readable gzip file"):
            Batches(Sequences(LocalShards(good), ByteTokenizer(), cut), batch_size=1)


def test_empty_shards_are_an_error_and_no_endless_loop(good):
    train_shard(good).write_bytes(gzip.compress(b""))
    with pytest.raises(BadData, match="training split of local shards 'data' gives no sequence"):
        Batches(Sequences(LocalShards(good), ByteTokenizer(), Truncate(8)), batch_size=1)
    (good / "c4-validation.00000-of-00001.json.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(BadData, match="validation split of local shards 'data' gives no sequence"):
        validation_batches(Sequences(LocalShards(good), ByteTokenizer(), Truncate(8)), batch_size=1, token_limit=9)


def test_extra_keys_are_ignored(good):
    train_shard(good).write_bytes(gzip.compress(json.dumps({"url": "u", "text": "t", "more": [1, {}]}).encode()))
    assert list(LocalShards(good).documents("train")) == ["t"]
    assert re.fullmatch("[0-9a-f]{64}", LocalShards(good).content)
