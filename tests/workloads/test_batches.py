from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BadData, BadValue
from bench.workloads import _batches
from bench.workloads._batches import IGNORED, Batches, FixedBatches, shuffled, validation_batches
from bench.workloads._documents import Embedded
from bench.workloads._sequences import Sequences, Truncate, Windows
from bench.workloads._tokenizers import PAD, ByteTokenizer


@pytest.fixture(scope="session")
def sequences(listed):
    """Sequences of the documents 0, 1, ... as decimal numbers."""

    def build(count, cut=None, **kwargs):
        source = listed(tuple(str(number) for number in range(count)), tuple("held out"), **kwargs)
        return Sequences(source, ByteTokenizer(), cut or Truncate(8))

    return build


def numbers(batch):
    """Return the documents that a batch was made of."""
    return [int(bytes(token for token in row if token > 1)) for row in batch["input_ids"].tolist()]


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in ("input_ids", "labels"))


def test_batch_has_ids_and_labels_that_ignore_pads(sequences):
    batch = next(Batches(sequences(50), batch_size=4))
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].shape == (4, 8)
    pads = batch["input_ids"] == PAD
    assert pads.any()
    assert torch.equal(batch["labels"], torch.where(pads, IGNORED, batch["input_ids"]))


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("source_shuffles", [True, False])
def test_every_epoch_has_each_sequence_once_in_a_new_order(sequences, small, source_shuffles):
    batches = Batches(sequences(60, small=small, shuffled=source_shuffles), batch_size=10, seed=1)
    epochs = [[number for batch in islice(batches, 6) for number in numbers(batch)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    if not (small and source_shuffles):
        assert epochs[0] != epochs[1] != epochs[2]
    assert batches.step == 18
    assert batches.epochs == 3


def test_batches_span_epochs_and_epochs_are_counted_as_begun(sequences):
    batches = Batches(sequences(5), batch_size=4)
    found = []
    counted = []
    for batch in islice(batches, 5):
        found += numbers(batch)
        counted.append(batches.epochs)
    assert all(sorted(found[start : start + 5]) == list(range(5)) for start in range(0, 20, 5))
    assert counted == [1, 2, 3, 4, 4]


def test_a_batch_larger_than_the_epoch_repeats_it(sequences):
    assert Counter(numbers(next(Batches(sequences(3), batch_size=9)))) == {0: 3, 1: 3, 2: 3}


def test_seed_sets_the_order_and_nothing_else_does(sequences):
    orders = [numbers(next(Batches(sequences(100), batch_size=100, seed=seed))) for seed in (0, 0, 1, 2**62)]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


def test_order_is_pinned_across_numpy_versions():
    assert list(shuffled(range(10), seed=0, epoch=0)) == [6, 2, 0, 7, 4, 5, 8, 3, 1, 9]


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 13),
    start=st.integers(0, 12),
    seed=st.integers(0, 2**63 - 1),
    small=st.booleans(),
    source_shuffles=st.booleans(),
    windows=st.booleans(),
)
def test_resuming_gives_what_an_uninterrupted_iterator_gives(
    sequences, count, batch_size, start, seed, small, source_shuffles, windows
):
    cut = Windows(2, 1) if windows else Truncate(4)
    part = sequences(count, cut, small=small, shuffled=source_shuffles)
    whole = Batches(part, batch_size=batch_size, seed=seed)
    for _ in range(start):
        next(whole)
    resumed = Batches(part, batch_size=batch_size, seed=seed, start=start)
    assert (resumed.step, resumed.epochs) == (whole.step, whole.epochs)
    for _ in range(4):
        assert same(next(resumed), next(whole))
        assert (resumed.step, resumed.epochs) == (whole.step, whole.epochs)


def test_resuming_the_embedded_corpus_continues_exactly():
    part = Sequences(Embedded(), ByteTokenizer(), Windows())
    whole = list(islice(Batches(part, batch_size=16, seed=3), 480))
    for start in (1, 299, 459, 470):  # an epoch has 459 batches
        resumed = Batches(part, batch_size=16, seed=3, start=start)
        assert all(same(next(resumed), batch) for batch in whole[start : start + 10])


@pytest.mark.parametrize("cut", [Windows(2, 1), Truncate(4)])
def test_memory_and_stream_give_the_same_batches(sequences, cut):
    pair = [Batches(sequences(30, cut, small=small), batch_size=7, seed=9) for small in (True, False)]
    assert all(same(first, second) for first, second in islice(zip(*pair, strict=True), 20))


def test_small_sources_are_read_once(sequences, monkeypatch):
    part = sequences(20, small=True)
    batches = Batches(part, batch_size=20)
    monkeypatch.setattr(type(part), "items", None)
    assert sorted(numbers(next(batches))) == sorted(numbers(next(batches))) == list(range(20))


def test_resuming_tokenises_no_skipped_document(sequences):
    class Counting(ByteTokenizer):
        calls = 0

        def encode(self, texts):
            self.calls += len(texts)
            return super().encode(texts)

    part = sequences(1000)
    counting = Sequences(part.source, Counting(), Truncate(8))
    next(Batches(counting, batch_size=4, start=100))
    assert counting.tokenizer.calls == 4


@given(st.lists(st.integers(), max_size=60), st.integers(0, 9), st.integers(0, 9))
def test_shuffling_is_a_permutation_set_by_seed_and_epoch(items, seed, epoch):
    order = list(shuffled(items, seed=seed, epoch=epoch))
    assert sorted(order) == sorted(items)
    assert order == list(shuffled(iter(items), seed=seed, epoch=epoch))


def test_a_full_buffer_is_shuffled_as_items_arrive(monkeypatch):
    monkeypatch.setattr(_batches, "SHUFFLE_BUFFER", 10)
    stream = iter(range(100))
    order = shuffled(stream, seed=0, epoch=0)
    first = next(order)
    assert first < 10
    assert next(stream) == 11  # ten in the buffer, one about to replace the first
    rest = list(order)
    assert sorted([first, *rest]) == [number for number in range(100) if number != 11]
    assert all(number < place + 12 for place, number in enumerate(rest))


def test_short_lists_are_permuted_uniformly():
    counts = Counter(tuple(shuffled("abc", seed=seed, epoch=0)) for seed in range(3000))
    assert len(counts) == 6
    assert max(abs(count - 500) for count in counts.values()) < 100


def test_sources_shuffled_already_are_left_in_their_order(sequences):
    batches = Batches(sequences(6, shuffled=True), batch_size=6, seed=2)
    assert [numbers(batch) for batch in islice(batches, 2)] == [[2, 3, 4, 5, 0, 1], [3, 4, 5, 0, 1, 2]]


@pytest.mark.parametrize("small", [True, False])
def test_no_training_sequence_is_an_error(sequences, small):
    with pytest.raises(BadData, match="training split of a list gives no sequence") as caught:
        Batches(sequences(5, Windows(8, 8), small=small), batch_size=1)
    assert "too short for Windows(length=8, minimum=8)" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size 0 \(int\) is not positive"),
        ({"batch_size": 1, "seed": -1}, "seed -1 or start 0 is negative"),
        ({"batch_size": 1, "start": -2}, "seed 0 or start -2 is negative"),
    ],
)
def test_values_out_of_range_are_refused(sequences, arguments, message):
    with pytest.raises(BadValue, match=message):
        Batches(sequences(5), **arguments)


# Validation.


@given(limit=st.integers(0, 120), batch_size=st.integers(1, 9))
def test_validation_ends_with_the_sequence_that_exceeds_the_limit(listed, limit, batch_size):
    texts = tuple("x" * (place % 7) for place in range(20))
    part = Sequences(listed(("a",), texts), ByteTokenizer(), Truncate(5))
    batches = validation_batches(part, batch_size=batch_size, token_limit=limit)
    sizes = [min(len(text) + 1, 5) for text in texts]
    wanted = next((count for count in range(1, 21) if sum(sizes[:count]) > limit), 20)
    assert batches.sequences == wanted
    assert batches.tokens == sum(sizes[:wanted]) == sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    assert len(batches) == -(-wanted // batch_size)
    rows = torch.cat([batch["input_ids"] for batch in batches])
    assert [int((row == ord("x")).sum()) for row in rows] == [min(len(text), 4) for text in texts[:wanted]]


def test_validation_read_in_chunks_is_the_same_list(listed, monkeypatch):
    part = Sequences(listed(("a",), tuple(map(str, range(50)))), ByteTokenizer(), Truncate(5))
    whole = [validation_batches(part, batch_size=100, token_limit=limit) for limit in range(150)]
    assert whole[90].sequences == 34  # 10 of 2 tokens, 24 of 3: 92 tokens
    monkeypatch.setattr(_batches, "_CHUNK", 7)
    for limit, batches in enumerate(whole):
        assert same(batches[0], validation_batches(part, batch_size=100, token_limit=limit)[0])


def test_validation_batches_are_a_sequence(sequences):
    batches = validation_batches(sequences(1), batch_size=3, token_limit=10**9)
    assert len(batches) == 3
    assert [len(batch["labels"]) for batch in batches] == [3, 3, 2]
    assert same(batches[-1], batches[2])
    assert [len(batch["labels"]) for batch in batches[1:]] == [3, 2]
    with pytest.raises(IndexError):
        batches[3]


def test_validation_does_not_change_when_training_does():
    part = Sequences(Embedded(), ByteTokenizer(), Windows())
    first = validation_batches(part, batch_size=16, token_limit=20_000)
    next(Batches(part, batch_size=16, seed=4))
    second = validation_batches(part, batch_size=16, token_limit=20_000)
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert 20_000 < first.tokens <= 20_256


def test_no_validation_sequence_is_an_error(sequences):
    with pytest.raises(BadData, match="validation split of a list gives no sequence"):
        validation_batches(sequences(3, Windows(8, 8)), batch_size=1, token_limit=5)


@pytest.mark.parametrize(
    "build", [validation_batches, lambda part, **_: FixedBatches(part.matrix(["a"]), batch_size=0)]
)
def test_validation_batch_size_is_checked(sequences, build):
    with pytest.raises(BadValue, match="batch_size 0"):
        build(sequences(3), batch_size=0, token_limit=5)
