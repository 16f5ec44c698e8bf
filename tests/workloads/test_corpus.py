from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from bench.errors import BadData
from bench.workloads import _corpus
from bench.workloads._language import TOPICS, Draws, lexicon, topic


@pytest.fixture(scope="module")
def train():
    return [_corpus.document(index, "train") for index in range(_corpus.PINNED_TRAIN_DOCUMENTS)]


@pytest.fixture(scope="module")
def validation():
    return [_corpus.document(index, "validation") for index in range(_corpus.PINNED_VALIDATION_DOCUMENTS)]


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def test_recomputed_hash_is_the_pinned_one(train, validation):
    assert _corpus.corpus_digest(train, validation) == _corpus.CORPUS_SHA256


def test_pinned_documents_are_the_first_ones(train, validation):
    assert _corpus.pinned_documents() == {"train": tuple(train), "validation": tuple(validation)}


def test_another_hash_is_refused_with_both_hashes(monkeypatch):
    monkeypatch.setattr(_corpus, "CORPUS_SHA256", "f" * 64)
    _corpus.pinned_documents.cache_clear()
    with pytest.raises(BadData, match=r"version 1\) has SHA-256 \w+, expected ffff") as caught:
        _corpus.pinned_documents()
    assert "c42574a4" in caught.value.message
    assert "install bench anew" in caught.value.hint


def test_hash_notices_a_moved_boundary():
    assert _corpus.corpus_digest(["ab", "c"], []) != _corpus.corpus_digest(["a", "bc"], [])
    assert _corpus.corpus_digest(["ab"], ["c"]) != _corpus.corpus_digest(["ab", "c"], [])


def test_documents_do_not_depend_on_what_was_generated_before(train, validation):
    assert [_corpus.document(index, "train") for index in (700, 3, 700, 0)] == [train[k] for k in (700, 3, 700, 0)]
    assert _corpus.document(41, "validation") == validation[41]
    assert _corpus.document(10**12, "train") == _corpus.document(10**12, "train") != train[0]


@pytest.mark.parametrize(("hash_seed", "locale"), [("0", "C"), ("1", "C.UTF-8"), ("4294967295", "tr_TR.UTF-8")])
def test_hash_seed_locale_and_process_do_not_matter(hash_seed, locale):
    program = "from bench.workloads._corpus import *; pinned_documents(); print(document(5000, 'train')[:80], end='')"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "LC_ALL": locale}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == _corpus.document(5000, "train")[:80]


def test_generating_needs_neither_torch_nor_numpy():
    program = (
        "import sys, bench.workloads._corpus as c; c.document(0, 'train'); print({'torch', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_negative_index_is_refused():
    with pytest.raises(BadData, match="index -1"):
        _corpus.document(-1, "train")


def test_splits_share_words_and_no_document(train, validation):
    assert not set(train) & set(validation)
    assert len(set(train)) == len(train)
    known = set(words(" ".join(train)))
    found = re.findall(r"\b[a-z]+\b", " ".join(validation))  # no names: they have capitals
    assert sum(word not in known for word in found) < 0.01 * len(found)


def test_text_is_printable_ascii_in_capitalised_sentences(train):
    for text in train:
        assert re.fullmatch(r"[A-Za-z ,.!?\n]+", text)
        assert text.strip() == text
        for sentence in re.split(r"(?<=[.!?])[ \n]", text):
            assert re.fullmatch(r"[A-Z][A-Za-z ,]+[.!?]", sentence), sentence


def test_lengths_are_realistic_and_exercise_padding(train):
    lengths = [len(text) for text in train]
    assert 1_600_000 < sum(lengths) < 2_000_000
    assert 0.08 < sum(length < 256 for length in lengths) / len(lengths) < 0.14
    assert sum(300 <= length <= 3000 for length in lengths) / len(lengths) > 0.8
    assert max(lengths) < 6200


def test_lexicon_has_1500_words_with_unambiguous_stems():
    language = lexicon()
    assert len(language) == 1500
    assert len({noun[1] for noun in language.nouns}) == len(language.nouns)
    assert len({verb[0] for verb in language.verbs}) == len(language.verbs)


def test_word_frequencies_follow_zipfs_law(train):
    counts = sorted(Counter(words(" ".join(train))).values(), reverse=True)
    ranks = [round(10 * 1.5**k) for k in range(12)]  # 10 to 865
    logs = [(math.log(rank), math.log(counts[rank - 1])) for rank in ranks]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    assert -1.4 < slope < -0.7


def test_topics_prefer_different_words():
    def favourites(number):
        cumulative, nouns = topic(number).nouns
        weights = [b - a for a, b in zip([0, *cumulative], cumulative, strict=False)]
        return {noun[1] for _, noun in sorted(zip(weights, nouns, strict=True), reverse=True)[:20]}

    assert all(len(favourites(0) & favourites(other)) < 15 for other in range(1, TOPICS))


def test_permutations_and_bounded_draws_are_in_range_and_spread():
    draws = Draws("test")
    assert sorted(draws.permutation(50)) == list(range(50))
    counts = Counter(draws.below(5) for _ in range(5000))
    assert sorted(counts) == list(range(5))
    assert min(counts.values()) > 900


def test_names_return_within_a_document_and_stand_in_no_lexicon(train):
    known = {word for text in train[::2] for word in re.findall(r"\b[a-z]+\b", text)}
    for text in [text for text in train if len(text) > 2000][:50]:
        names = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
        assert 1 <= len(names) <= 4
        assert max(names.values()) >= 3
        assert sum(name.lower() in known for name in names) <= 1


def _readings(forms):
    """Map each surface form to the set of its places, such as (gender, number)."""
    table = {}
    for form, place in forms:
        table.setdefault(form, set()).add(place)
    return table


def test_determiner_adjective_and_noun_agree(train):
    language = lexicon()
    places = [(gender, number) for gender in range(2) for number in range(2)]
    determiners = _readings((row[g][n], (g, n)) for row in language.determiners for g, n in places)
    nouns = _readings((noun[1 + n], (int(noun[0]), n)) for noun in language.nouns for n in range(2))
    adjectives = _readings((word[2 * g + n], (g, n)) for word in language.adjectives for g, n in places)
    phrases = 0
    for text in train[:100]:
        tokens = words(text)
        for first, second, third in zip(tokens, tokens[1:], tokens[2:], strict=False):
            for place in determiners.get(first, ()):
                phrases += 1
                plain = place in nouns.get(second, ())
                assert plain or (place in adjectives.get(second, ()) and place in nouns.get(third, ())), (first, second)
    assert phrases > 2000


def test_verb_agrees_with_its_subject_across_a_relative_clause_in_the_documents_tense(train):
    language = lexicon()
    verbs = _readings((verb[form], form) for verb in language.verbs for form in range(4))
    clauses = 0
    for text in train[:300]:
        tenses = {0, 1}
        for sentence in re.split(r"[.!?]", text):
            tokens = words(sentence)
            for number, pronoun in enumerate(language.relative):
                if pronoun in tokens[1:4] and tokens[-1].endswith("im"):
                    inner, outer = verbs[tokens[tokens.index(pronoun) + 1]], verbs[tokens[-2]]
                    assert number in {form % 2 for form in inner} & {form % 2 for form in outer}, sentence
                    tenses &= {form // 2 for form in inner} & {form // 2 for form in outer}
                    clauses += 1
        assert tenses, text
    assert clauses > 500
