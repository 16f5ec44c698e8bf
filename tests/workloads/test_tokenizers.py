from __future__ import annotations

import sys
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BadData
from bench.workloads._sequences import Sequences, Truncate, Windows
from bench.workloads._tokenizers import EOS, T5Tokenizer

UNKNOWN = 2


@pytest.fixture(scope="session")
def library():
    return pytest.importorskip("tokenizers", reason="the package tokenizers (extra hf) is not installed")


@pytest.fixture(scope="session")
def t5_like(library, tmp_path_factory):
    """A tokenizer.json built as T5's: unigram pieces, word marks, EOS template, extra ids from 32,000 on."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces += [("▁the", -3.0), ("ing", -3.5), ("▁train", -5.0)]
    pieces += [(f"▁filler{number}", -20.0) for number in range(32_000 - len(pieces))]
    tokenizer = library.Tokenizer(library.models.Unigram(pieces, unk_id=UNKNOWN))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in range(100))])
    tokenizer.post_processor = library.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    tokenizer.enable_truncation(3)  # what a file may have switched on must not matter
    tokenizer.enable_padding(length=9)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="session")
def loaded(t5_like, library):
    return T5Tokenizer(t5_like), library.Tokenizer.from_file(str(t5_like))


def test_ids_are_those_of_the_pieces_without_eos_padding_or_truncation(t5_like):
    tokenizer = T5Tokenizer(t5_like)
    long, unknown, empty = tokenizer.encode([" ".join(["the training"] * 50), "ü", ""])
    assert long[:4].tolist() == [30, 32, 31, 30]
    assert len(long) == 3 * 50
    assert UNKNOWN in unknown
    assert not len(empty)
    assert tokenizer.vocabulary == 32_000


def test_literal_special_tokens_and_extra_ids_become_unknown(t5_like, library):
    text = "the <pad> </s> <extra_id_0><extra_id_99> the"
    raw = library.Tokenizer.from_file(str(t5_like))
    raw.no_truncation()
    assert max(raw.encode(text).ids) >= 32_000
    ids = T5Tokenizer(t5_like).encode([text])[0].tolist()
    assert 1 < min(ids) <= max(ids) < 32_000
    assert ids.count(UNKNOWN) == 4


@given(texts=st.lists(st.text("abc the ing", max_size=40), max_size=5), length=st.integers(1, 12))
def test_truncate_is_what_the_library_does_with_truncation_and_padding_to_the_length(loaded, texts, length):
    tokenizer, reference = loaded
    reference.enable_truncation(length)
    reference.enable_padding(length=length, pad_id=0)
    rows = Sequences(None, tokenizer, Truncate(length)).matrix(texts).tolist()
    assert rows == [encoding.ids for encoding in reference.encode_batch(texts)]


def test_windows_of_t5_tokens_put_together_are_the_document(t5_like):
    tokenizer = T5Tokenizer(t5_like)
    text = "the training of the models " * 20
    windows = list(Windows(16, 1).items([text], tokenizer))
    assert [int(token) for window in windows for token in window] == [*tokenizer.encode([text])[0].tolist(), EOS]


def test_identity_is_the_hash_of_the_file(t5_like):
    assert T5Tokenizer(t5_like).identity == "t5:" + sha256(t5_like.read_bytes()).hexdigest()


def test_missing_file(tmp_path):
    with pytest.raises(BadData, match=r"cannot read the tokenizer .*none\.json': No such file") as caught:
        _ = T5Tokenizer(tmp_path / "none.json").identity
    assert "byte-level" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{}", b"no json", b'{"model": 3}', b"\xff\xfe"])
def test_damaged_file(library, tmp_path, content):
    del library
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadData, match=r"tokenizer\.json' is not a tokenizer file"):
        T5Tokenizer(tmp_path / "tokenizer.json").encode(["text"])


def test_foreign_vocabulary(library, tmp_path):
    tokenizer = library.Tokenizer(library.models.WordLevel({"word": 0, "</s>": 1}))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadData, match=r"is not T5's vocabulary: its .* have ids \(None, 1\), T5's \(0, 1\)"):
        T5Tokenizer(tmp_path / "tokenizer.json").encode(["text"])


def test_missing_package_names_the_extra(monkeypatch, t5_like):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadData, match="needs the package 'tokenizers'") as caught:
        T5Tokenizer(t5_like).encode(["text"])
    assert caught.value.hint == 'pip install "bench-training[hf]"'
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadData, match="needs the package 'tokenizers'"):
        T5Tokenizer()


def test_hub_out_of_reach_names_the_other_ways(monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="the package huggingface_hub (extra hf) is not installed")

    def unreachable(repository, name):
        raise ConnectionError(f"no route to {repository}/{name}")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with pytest.raises(BadData, match=r"cannot get tokenizer\.json of t5-base .*no route to t5-base") as caught:
        T5Tokenizer()
    assert all(part in caught.value.hint for part in ("HF_HUB_OFFLINE=1", "local tokenizer.json", "byte-level"))


def test_hub_file_is_read_like_a_local_one(monkeypatch, t5_like):
    hub = pytest.importorskip("huggingface_hub", reason="the package huggingface_hub (extra hf) is not installed")
    files = {("t5-base", "tokenizer.json"): str(t5_like)}
    monkeypatch.setattr(hub, "hf_hub_download", lambda *names: files[names])
    assert T5Tokenizer().identity == T5Tokenizer(t5_like).identity
    assert T5Tokenizer().encode(["the"])[0].tolist() == [30]
