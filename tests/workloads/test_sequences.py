from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BadValue
from bench.workloads._sequences import Sequences, Truncate, Windows
from bench.workloads._tokenizers import EOS, PAD, ByteTokenizer

BYTES = ByteTokenizer()
TEXTS = st.lists(st.text(max_size=60), max_size=6)


def clean(text):
    return text.encode().replace(b"\0", b"").replace(b"\1", b"")


def cut_up(cut, texts):
    """Return the padded rows of some documents as lists."""
    sequences = Sequences(None, BYTES, cut)
    return sequences.matrix(list(cut.items(texts, BYTES))).tolist()


@given(st.text())
def test_byte_ids_are_the_bytes_of_utf8_without_0_and_1(text):
    (ids,) = BYTES.encode([text])
    assert bytes(ids.tolist()) == clean(text)
    assert not ids.size or 1 < ids.min() <= ids.max() < BYTES.vocabulary
    assert ids.dtype == np.uint16


def test_bytes_0_and_1_leave_the_text():
    assert BYTES.encode(["a\0b\1c", "", "é"])[0].tolist() == [97, 98, 99]
    assert BYTES.encode(["é"])[0].tolist() == [0xC3, 0xA9]


@given(TEXTS, st.integers(1, 20))
def test_concatenated_windows_reproduce_the_text(texts, length):
    rows = cut_up(Windows(length, 1), texts)
    tokens = [token for row in rows for token in row if token != PAD]
    assert bytes(tokens) == b"".join(clean(text) + b"\1" for text in texts)


@given(st.text(max_size=200), st.integers(1, 20), st.data())
def test_only_a_short_last_window_is_dropped(text, length, data):
    minimum = data.draw(st.integers(1, length))
    rows = cut_up(Windows(length, minimum), [text])
    whole = [*clean(text), EOS]
    kept = [token for row in rows for token in row if token != PAD]
    assert kept == whole[: len(kept)]
    assert len(whole) - len(kept) < minimum
    assert all(sum(token != PAD for token in row) >= minimum for row in rows)
    assert all(len(row) == length and PAD not in row for row in rows[:-1])


@given(TEXTS, st.integers(1, 20))
def test_truncation_gives_one_sequence_per_document_that_ends_with_eos_and_pads(texts, length):
    rows = cut_up(Truncate(length), texts)
    assert len(rows) == len(texts)
    for row, text in zip(rows, texts, strict=True):
        tokens = [*clean(text)[: length - 1], EOS]
        assert row == tokens + [PAD] * (length - len(tokens))


def test_window_boundaries_by_hand():
    assert cut_up(Windows(4, 2), ["abcdef"]) == [[97, 98, 99, 100], [101, 102, EOS, PAD]]
    assert cut_up(Windows(4, 2), ["abcd", "x", "", "abc"]) == [
        [97, 98, 99, 100],
        [120, EOS, PAD, PAD],
        [97, 98, 99, EOS],
    ]
    assert cut_up(Windows(4, 1), ["abcd"]) == [[97, 98, 99, 100], [EOS, PAD, PAD, PAD]]
    assert cut_up(Windows(4, 4), ["abc", "ab"]) == [[97, 98, 99, EOS]]


@pytest.mark.parametrize(("length", "minimum"), [(4, 0), (4, 5), (0, 1), (4, -1)])
def test_minimum_outside_the_window_is_refused(length, minimum):
    with pytest.raises(BadValue, match=rf"minimum {minimum} is not in \[1, length = {length}\]"):
        Windows(length, minimum)


def test_length_without_room_is_refused():
    with pytest.raises(BadValue, match="length 0 is not positive"):
        Truncate(0)


def test_identity_depends_on_content_tokenizer_and_cut(listed):
    class Other(ByteTokenizer):
        identity = "other"

    class Changed(listed):
        content = "1" * 64

    source = listed(("a",))
    parts = [
        Sequences(source, BYTES, Truncate(8)),
        Sequences(source, BYTES, Truncate(9)),
        Sequences(source, BYTES, Windows(8, 1)),
        Sequences(source, BYTES, Windows(8, 2)),
        Sequences(source, Other(), Truncate(8)),
        Sequences(Changed(("a",)), BYTES, Truncate(8)),
    ]
    assert len({part.identity.sha256 for part in parts}) == len(parts)
    assert parts[0].identity == Sequences(source, BYTES, Truncate(8)).identity
    assert "tokenizer bytes" in parts[0].identity.label
