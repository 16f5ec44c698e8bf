"""Experts: a sequence that builds each model anew."""

from __future__ import annotations

import weakref

import pytest
from torch import nn

from bench import Experts


def experts(count=4, **facts):
    return Experts(count, lambda number: nn.Linear(1, number + 1), **facts)


def widths(models):
    return [model.out_features for model in models]


def test_it_is_a_sequence_of_the_models_in_order():
    models = experts()
    assert len(models) == 4
    assert widths(models) == [models[i].out_features for i in range(4)] == [1, 2, 3, 4]
    assert models[-1].out_features == 4
    assert widths(reversed(models)) == [4, 3, 2, 1]


def test_each_access_builds_a_model_of_its_own_and_keeps_none():
    models = experts()
    one = models[0]
    assert models[0] is not one
    seen = weakref.ref(one)
    del one
    assert seen() is None


def test_a_slice_is_lazy_too_and_keeps_the_common_start():
    models = experts(pretrained=lambda: nn.Linear(1, 9))[1:3]
    assert isinstance(models, Experts)
    assert widths(models) == [2, 3]
    assert models.pretrained.out_features == 9


def test_without_a_common_start_there_is_none():
    assert experts().pretrained is None


def test_a_number_out_of_range_is_refused():
    with pytest.raises(IndexError):
        experts()[4]
