"""Roles: what each parameter of a workload's model is for, so that no algorithm has to guess from names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from bench.errors import BadValue


class Role(StrEnum):
    """What a parameter is for."""

    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    NORM = "norm"
    BIAS = "bias"
    ATTENTION_Q = "attention_q"
    ATTENTION_K = "attention_k"
    ATTENTION_V = "attention_v"
    ATTENTION_O = "attention_o"
    MLP = "mlp"
    CONV = "conv"
    CLASSIFIER = "classifier"
    ADAPTER = "adapter"
    OTHER = "other"


HIDDEN_MATRICES = frozenset(
    {Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_O, Role.MLP, Role.CONV}
)
"""The roles whose matrices map hidden features to hidden features: what Muon, GaLore and their kin work on."""


def assign_roles(names: Iterable[str], patterns: Mapping[str, Role]) -> dict[str, Role]:
    """Claim each parameter name by exactly one pattern.

    ``patterns`` maps regular expressions, matched against the whole name, to roles. A pattern that matches nothing, a
    name that no pattern claims and a name that two patterns claim raise :class:`~bench.errors.BadValue`.
    """
    roles: dict[str, Role] = {}
    unused = set(patterns)
    for name in names:
        claims = [pattern for pattern in patterns if re.fullmatch(pattern, name)]
        if len(claims) != 1:
            said = f"claimed by {claims}" if claims else "claimed by no role pattern"
            raise BadValue(
                f"parameter {name!r} is {said}; each parameter must be claimed exactly once",
                hint=f"mend the role patterns {sorted(patterns)}",
            )
        unused.discard(claims[0])
        roles[name] = Role(patterns[claims[0]])
    if unused:
        raise BadValue(
            f"role patterns {sorted(unused)} match no parameter", hint=f"the parameters are {sorted(roles)[:8]} ..."
        )
    return roles
