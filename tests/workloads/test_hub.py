from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from bench.errors import BadData
from bench.workloads._batches import Batches, validation_batches
from bench.workloads._documents import LocalShards
from bench.workloads._hub import C4, COMMIT
from bench.workloads._sequences import Sequences, Truncate
from bench.workloads._tokenizers import ByteTokenizer

TRAIN = [f"training document {number} é" for number in range(120)]
VALIDATION = [f"validation document {number}" for number in range(30)]
CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
---
"""


@pytest.fixture(scope="session")
def library():
    return pytest.importorskip("datasets", reason="the package datasets (extra hf) is not installed")


@pytest.fixture(scope="session")
def repository(library, shards, tmp_path_factory):
    """A folder laid out like allenai/c4."""
    del library
    folder = tmp_path_factory.mktemp("hub") / "like-c4"
    shards(folder / "en", TRAIN, VALIDATION, train_shards=3)
    (folder / "README.md").write_text(CARD)
    return folder


def test_each_document_comes_once_in_an_order_set_by_seed_and_epoch(repository):
    source = C4(str(repository))
    keys = ({}, {}, {"seed": 1}, {"epoch": 1})
    orders = [list(source.documents("train", **key)) for key in keys]
    assert all(sorted(order) == sorted(TRAIN) for order in orders)
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in [*orders, TRAIN]}) == 4


def test_training_order_is_the_librarys_shuffle_with_seed_42(repository, library):
    stream = library.load_dataset(str(repository), "en", split="train", streaming=True)
    expected = [row["text"] for row in stream.shuffle(seed=42, buffer_size=10_000)]
    assert list(C4(str(repository)).documents("train")) == expected
    expected = [row["text"] for row in stream.shuffle(seed=45, buffer_size=10_000)]
    assert list(C4(str(repository)).documents("train", seed=3)) == expected


def test_validation_order_never_changes(repository, library):
    source = C4(str(repository))
    stream = library.load_dataset(str(repository), "en", split="validation", streaming=True)
    expected = [row["text"] for row in stream.shuffle(seed=42, buffer_size=10_000)]
    assert sorted(expected) == sorted(VALIDATION)
    assert list(source.documents("validation", seed=7, epoch=3)) == list(source.documents("validation")) == expected


def test_batches_resume_and_renew_their_order(repository):
    sequences = Sequences(C4(str(repository)), ByteTokenizer(), Truncate(32))
    whole = list(islice(Batches(sequences, batch_size=30, seed=2), 8))
    resumed = Batches(sequences, batch_size=30, seed=2, start=5)
    assert all(torch.equal(next(resumed)["labels"], batch["labels"]) for batch in whole[5:])
    epochs = [torch.cat([batch["input_ids"] for batch in whole[start : start + 4]]) for start in (0, 4)]
    assert not torch.equal(*epochs)
    assert sorted(epochs[0].tolist()) == sorted(epochs[1].tolist())
    assert validation_batches(sequences, batch_size=8, token_limit=10**6).sequences == 30


def test_a_folder_is_local_data_and_never_called_c4(repository):
    source = C4(str(repository))
    identity = Sequences(source, ByteTokenizer(), Truncate(32)).identity
    assert source.name == identity.source == "local"
    assert source.content == LocalShards(repository).content
    assert "like-c4" in source.label
    assert "allenai" not in source.label


def test_identity_of_c4_records_the_commit_and_needs_no_network():
    source = C4()
    assert (source.name, source.commit, source.shuffled, source.small) == ("c4", COMMIT, True, False)
    assert COMMIT in source.label
    others = [C4(config="realnewslike"), C4(revision="0" * 40), C4("other/c4")]
    assert len({source.content, *(other.content for other in others)}) == 4


def test_a_branch_is_resolved_to_its_commit(monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="the package huggingface_hub (extra hf) is not installed")
    calls = []

    def dataset_info(self, repository, *, revision):
        calls.append((repository, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(hub.HfApi, "dataset_info", dataset_info)
    branch = C4(revision="main")
    assert branch.content == branch.content == C4().content
    assert calls == [("allenai/c4", "main")]


@pytest.mark.parametrize("missing", ["datasets", "huggingface_hub"])
def test_missing_package_names_the_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    source = C4(revision="main") if missing == "huggingface_hub" else C4()
    with pytest.raises(BadData, match="C4 needs the package 'datasets'") as caught:
        next(source.documents("train"))
    assert caught.value.hint == 'pip install "bench-training[hf]"'


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_hub_out_of_reach_names_every_other_way(monkeypatch, library, revision):
    hub = pytest.importorskip("huggingface_hub", reason="the package huggingface_hub (extra hf) is not installed")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(library, "load_dataset_builder", unreachable)
    monkeypatch.setattr(hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(BadData, match=rf"cannot stream 'allenai/c4' .*{revision}.*ConnectionError: no route") as caught:
        Batches(Sequences(C4(revision=revision), ByteTokenizer(), Truncate(8)), batch_size=1)
    assert all(part in caught.value.hint for part in ("--data embedded", "--data-dir DIR", "HF_HUB_OFFLINE"))


def test_damage_in_a_streamed_shard_is_one_clear_error(shards, library, tmp_path):
    del library
    folder = shards(tmp_path / "en", TRAIN, VALIDATION).parent
    (folder / "README.md").write_text(CARD)
    shard = next((folder / "en").glob("c4-train*"))
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(BadData, match="cannot stream"):
        list(C4(str(folder)).documents("train"))


OFFLINE = """
import json, os, pathlib, shutil, sys, datasets
from bench.errors import BadData
from bench.workloads._hub import C4
prepared = datasets.load_dataset_builder(sys.argv[1], "en", cache_dir=sys.argv[2])
prepared.download_and_prepare()
def cached(commit):
    folder = pathlib.Path(os.environ["HF_HOME"], "datasets", "allenai___c4", "en", "0.0.0", commit)
    shutil.copytree(prepared.cache_dir, folder)
    for file in folder.glob("*.arrow"):
        file.rename(folder / f"c4-{file.name.rsplit('-', 1)[1]}")
    return folder
def attempt():
    try:
        print(len(list(C4().documents("train"))), C4().name)
    except BadData as error:
        print(error.message.splitlines()[0])
attempt()
wrong = cached("0" * 40)
attempt()
shutil.rmtree(wrong)
cached(C4().commit)
attempt()
"""


def test_offline_only_the_right_revision_in_the_cache_serves(repository, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-P", "-c", OFFLINE, str(repository), str(tmp_path / "prepared")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    nothing, wrong, right = done.stdout.splitlines()
    assert nothing.startswith("cannot stream 'allenai/c4'")
    assert wrong == f"the cache of 'datasets' has 'allenai/c4' at {'0' * 40}, not at {COMMIT}"
    assert right == "120 c4"
