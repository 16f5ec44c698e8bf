"""Mixtures of Markov chains: where the sequences of the tiny fine-tuning workloads come from, and the best predictor.

A source is K chains over V symbols with transition matrices P_k. A sequence draws its chain k uniformly, its first
symbol uniformly and then x_t ~ P_k[x_{t-1}], so to predict it well is to find out which chain it is.

Array names carry their shape as a suffix: K chains, N sequences, T symbols of a sequence, V symbols of the alphabet.
"""
# The capitals of the shape suffixes are the field's convention.
# ruff: noqa: N803, N806

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from bench.context import derive_seed
from bench.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence

Tokens = NDArray[np.int64]
Floats = NDArray[np.float64]

CHAINS: Final = 8
SYMBOLS: Final = 32
LENGTH: Final = 32
CONCENTRATION: Final = 0.1
"""Of the Dirichlet distribution of each transition row: most of its mass is on a few symbols."""


@dataclass(frozen=True, eq=False)
class Markov:
    """A mixture of Markov chains: ``transitions`` (K, V, V), whose rows sum to 1."""

    transitions: Floats

    def sequences(self, count: int, *purpose: str, seed: int = 0) -> Tokens:
        """Return ``count`` sequences (N, T) that depend on source, seed and ``purpose`` alone."""
        draws_TN = _uniform(derive_seed(seed, "markov", *purpose), (LENGTH + 1) * count).reshape(LENGTH + 1, count)
        chains, symbols = self.transitions.shape[:2]
        cumulative_KVV = self.transitions.cumsum(axis=-1)
        chain_N = (draws_TN[0] * chains).astype(np.int64)
        tokens_NT = np.empty((count, LENGTH), dtype=np.int64)
        tokens_NT[:, 0] = (draws_TN[1] * symbols).astype(np.int64)
        for t in range(1, LENGTH):
            passed_NV = cumulative_KVV[chain_N, tokens_NT[:, t - 1]] <= draws_TN[t + 1, :, None]
            # The last entry of a cumulative sum may miss 1 by rounding.
            tokens_NT[:, t] = np.minimum(passed_NV.sum(axis=1), symbols - 1)
        return tokens_NT

    def bayes_loss(self, tokens_NT: Tokens) -> float:
        """Return the loss of the exact predictor in nats per symbol after the first: no model does better on average.

        p(x_t | x_<t) = Σ_k w_k P_k[x_{t-1}, x_t],        w_k ∝ Π_{0<s<t} P_k[x_{s-1}, x_s]
        """
        steps_NTK = self.transitions[:, tokens_NT[:, :-1], tokens_NT[:, 1:]].transpose(1, 2, 0)
        with np.errstate(divide="ignore"):  # a chain that forbids a transition has posterior 0 from there on
            joint_NTK = np.log(steps_NTK).cumsum(axis=1)
        evidence_NT = _logsumexp(joint_NTK) - np.log(self.transitions.shape[0])
        return float(-evidence_NT[:, -1].mean() / (tokens_NT.shape[1] - 1))


def drawn(seed: int) -> Markov:
    """Return K = 8 chains over V = 32 symbols, every row of them ~ Dirichlet(0.1), of NumPy's ``RandomState(seed)``.

    The stream of ``RandomState`` is frozen: it is the same in every version of NumPy.
    """
    random = np.random.RandomState(seed)
    return Markov(random.dirichlet(np.full(SYMBOLS, CONCENTRATION), size=(CHAINS, SYMBOLS)))


def partly(old: Markov, new: Markov, share: float) -> Markov:
    """Return ``old`` with ``share`` of the rows of each chain, drawn once and for all, taken from ``new``."""
    chains, symbols = old.transitions.shape[:2]
    transitions = old.transitions.copy()
    for chain, draws in enumerate(
        _uniform(derive_seed(0, "markov", "rows"), chains * symbols).reshape(chains, symbols)
    ):
        rows = np.argsort(draws, kind="stable")[: round(share * symbols)]
        transitions[chain, rows] = new.transitions[chain, rows]
    return Markov(transitions)


def checked(tokens: Sequence[Tokens], pinned: str, what: str) -> str:
    """Return the SHA-256 of ``tokens``, one byte a symbol; raise where it is not ``pinned``."""
    digest = sha256(b"".join(part.astype(np.uint8).tobytes() for part in tokens)).hexdigest()
    if digest != pinned:
        raise BadData(
            f"the sequences of {what} have SHA-256 {digest[:12]}, not the pinned {pinned[:12]}",
            hint="results would not compare; install the version of NumPy that constraints.txt names",
        )
    return digest


def _uniform(seed: int, count: int) -> Floats:
    """Return draws uniform in [0, 1) from raw PCG64 output, which NumPy promises to keep the same."""
    raw: NDArray[np.uint64] = np.random.PCG64(seed).random_raw(count)
    draws: Floats = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws


def _logsumexp(x: Floats) -> Floats:
    largest = x.max(axis=-1)
    total: Floats = largest + np.log(np.exp(x - largest[..., None]).sum(axis=-1))
    return total
