"""Mixtures of Markov chains: what is drawn, what is drawn from it, and the exact predictor."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bench.errors import BadData
from bench.workloads._markov import CHAINS, LENGTH, SYMBOLS, Markov, checked, drawn, partly


@pytest.fixture(scope="module")
def source():
    return drawn(0)


def test_rows_are_distributions_of_which_few_symbols_have_most(source):
    assert source.transitions.shape == (CHAINS, SYMBOLS, SYMBOLS)
    np.testing.assert_allclose(source.transitions.sum(-1), 1.0, rtol=1e-12)
    assert np.sort(source.transitions, axis=-1)[..., -4:].sum(-1).mean() > 0.8


def test_the_chains_are_those_of_the_frozen_stream():
    random = np.random.RandomState(1)
    first = random.dirichlet(np.full(SYMBOLS, 0.1))
    np.testing.assert_array_equal(drawn(1).transitions[0, 0], first)


def test_sequences_depend_on_source_seed_and_purpose_alone(source):
    tokens = source.sequences(50, "test")
    assert tokens.shape == (50, LENGTH)
    assert (tokens.min(), tokens.max()) == (0, SYMBOLS - 1)
    np.testing.assert_array_equal(tokens, source.sequences(50, "test"))
    for other in (source.sequences(50, "train"), source.sequences(50, "test", seed=1), drawn(1).sequences(50, "test")):
        assert (other != tokens).mean() > 0.5


def test_symbols_follow_the_transitions_of_their_chain(source):
    """One chain, 62,000 transitions: every frequency within five standard errors."""
    chain = Markov(source.transitions[:1])
    tokens = chain.sequences(2000, "frequencies")
    counts = np.zeros((SYMBOLS, SYMBOLS))
    np.add.at(counts, (tokens[:, :-1], tokens[:, 1:]), 1)
    seen, expected = counts.sum(-1, keepdims=True), chain.transitions[0]
    assert np.all(np.abs(counts - seen * expected) <= 5 * np.sqrt(seen * expected * (1 - expected)) + 1)
    assert np.bincount(tokens[:, 0], minlength=SYMBOLS).min() > 25, "the first symbol is uniform"


def test_a_sequence_stays_in_its_chain():
    """Two chains that only ever repeat, or only ever go on: no sequence does both."""
    repeat, advance = np.eye(SYMBOLS), np.roll(np.eye(SYMBOLS), 1, axis=1)
    tokens = Markov(np.stack((repeat, advance))).sequences(200, "chain")
    moves = np.diff(tokens) % SYMBOLS
    assert np.all(moves == moves[:, :1])
    assert 60 < moves[:, 0].sum() < 140


def test_the_exact_predictor_is_the_sum_over_chains():
    rows = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [1.0, 0.0]], [[0.3, 0.7], [0.6, 0.4]]])
    source = Markov(rows)
    for tokens in itertools.product((0, 1), repeat=4):
        joint = sum(math.prod(chain[a][b] for a, b in itertools.pairwise(tokens)) for chain in rows) / 3
        assert source.bayes_loss(np.array([tokens])) == pytest.approx(-math.log(joint) / 3, rel=1e-12)


def test_no_predictor_that_ignores_the_past_does_better_than_the_exact_one(source):
    tokens = source.sequences(500, "better")
    average = source.transitions.mean(0)
    ignorant = -np.log(average[tokens[:, :-1], tokens[:, 1:]]).mean()
    assert source.bayes_loss(tokens) < ignorant - 0.5


@pytest.mark.parametrize(("seed", "published"), [(0, 1.772), (1, 1.778)])
def test_the_exact_losses_are_those_of_the_workload_page(seed, published):
    """8,000 sequences have a standard error of 0.002, the page's 1,024 one of 0.006."""
    source = drawn(seed)
    assert source.bayes_loss(source.sequences(8000, "page")) == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_rows_that_is_asked_for_is_new_in_every_chain(source, share):
    new = drawn(1)
    mixed = partly(source, new, share).transitions
    is_new = (mixed == new.transitions).all(-1)
    assert np.all(is_new.sum(1) == share * SYMBOLS)
    assert np.all(is_new | (mixed == source.transitions).all(-1))


def test_other_sequences_than_the_pinned_ones_are_refused(source):
    with pytest.raises(BadData, match=r"the sequences of tests have SHA-256 .* not the pinned 000000000000"):
        checked((source.sequences(2, "test"),), "0" * 64, "tests")
