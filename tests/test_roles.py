"""Roles: each parameter is claimed exactly once, and an adapted model keeps what it had."""

from __future__ import annotations

import pytest
from torch import nn

from bench.context import adapted_roles
from bench.errors import BadValue
from bench.roles import HIDDEN_MATRICES, Role, assign_roles

NAMES = ["embedding.weight", "layers.0.q.weight", "layers.1.q.weight", "norm.weight"]
PATTERNS = {
    r"embedding\.weight": Role.EMBEDDING,
    r"layers\.\d+\.q\.weight": Role.ATTENTION_Q,
    r"norm\.weight": Role.NORM,
}


def test_every_name_gets_the_role_of_its_pattern():
    assert assign_roles(NAMES, PATTERNS) == {
        "embedding.weight": Role.EMBEDDING,
        "layers.0.q.weight": Role.ATTENTION_Q,
        "layers.1.q.weight": Role.ATTENTION_Q,
        "norm.weight": Role.NORM,
    }


def test_a_pattern_must_match_the_whole_name():
    with pytest.raises(BadValue, match=r"'layers\.0\.norm\.weight' is claimed by no role pattern"):
        assign_roles(["layers.0.norm.weight"], {r"norm\.weight": Role.NORM})


def test_a_name_claimed_twice_is_refused_with_both_patterns():
    with pytest.raises(BadValue, match="claimed by") as caught:
        assign_roles(["norm.weight"], {r"norm\.weight": Role.NORM, r".*weight": Role.OTHER})
    assert r"norm\\.weight" in caught.value.message
    assert ".*weight" in caught.value.message


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(BadValue, match=r"\['head'\] match no parameter"):
        assign_roles(NAMES, PATTERNS | {"head": Role.LM_HEAD})


def test_text_of_a_role_becomes_the_role():
    assert assign_roles(["a"], {"a": "mlp"})["a"] is Role.MLP


def test_a_text_that_is_no_role_is_refused():
    with pytest.raises(ValueError, match="attention"):
        assign_roles(["a"], {"a": "attention"})


def test_hidden_matrices_are_attention_mlp_and_convolutions():
    assert {str(role) for role in HIDDEN_MATRICES} == {
        "attention_q",
        "attention_k",
        "attention_v",
        "attention_o",
        "mlp",
        "conv",
    }


class Adapted(nn.Module):
    """A frozen linear map that got a new name, and a low-rank pair beside it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(4, 2, bias=False)
        self.up = nn.Linear(2, 4, bias=False)


def test_an_adapted_model_keeps_known_roles_under_new_names_and_claims_the_new_parameters():
    inner = nn.Linear(4, 4)
    before = list(inner.named_parameters())
    roles = {"weight": Role.MLP, "bias": Role.BIAS}
    found = adapted_roles(before, roles, Adapted(inner), {r"(down|up)\.weight": Role.ADAPTER})
    assert found == {
        "inner.weight": Role.MLP,
        "inner.bias": Role.BIAS,
        "down.weight": Role.ADAPTER,
        "up.weight": Role.ADAPTER,
    }


def test_a_new_parameter_that_nobody_claims_is_refused():
    inner = nn.Linear(4, 4)
    with pytest.raises(BadValue, match=r"'down\.weight' is claimed by no role pattern"):
        adapted_roles(list(inner.named_parameters()), {"weight": Role.MLP, "bias": Role.BIAS}, Adapted(inner), {})


def test_adapter_patterns_of_a_model_without_new_parameters_are_no_error():
    inner = nn.Linear(4, 4)
    roles = {"weight": Role.MLP, "bias": Role.BIAS}
    assert adapted_roles(list(inner.named_parameters()), roles, inner, {"down": Role.ADAPTER}) == roles
