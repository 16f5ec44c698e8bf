"""Checks as a library: what calling one does, says and leaves behind."""

from __future__ import annotations

import ast
import os
import random
import unittest

import numpy as np
import pytest
import torch

from bench.checkpoint import random_state
from bench.conformance import Check, CheckFailed, CheckSkipped, checks
from bench.conformance.check import Subject, difference
from bench.conformance.fresh_process import outputs_elsewhere
from bench.conformance.sources import foreign_packages, named_workloads, private_imports
from bench.errors import UnknownName


def check_that(body, registry):
    return Check("kind/name", "A sentence.", Subject("good-average", registry), body)


def test_a_check_has_a_name_a_sentence_and_is_called(wrong):
    found = checks("good-average", wrong)
    assert {str(check) for check in found} == {check.name for check in found}
    assert {check.name.partition("/")[0] for check in found} == {"facts", "merging"}
    assert all(check.what for check in found)
    assert found[0]() is None


def test_an_unknown_name_suggests_the_nearest(wrong):
    with pytest.raises(UnknownName, match="did you mean 'good-average'"):
        checks("good-averages", wrong)


@pytest.mark.parametrize("error", [RuntimeError("no\n  good"), SystemExit("no good"), KeyError("no good")])
def test_whatever_an_algorithm_raises_is_a_failure_that_says_so_in_one_line(error, wrong):
    def body(_):
        raise error

    with pytest.raises(CheckFailed, match=rf"it raised {type(error).__name__}: '?no good'?$") as caught:
        check_that(body, wrong)()
    assert caught.value.__cause__ is error


def test_an_interrupt_is_no_failure(wrong):
    def body(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_that(body, wrong)()


def test_a_skip_is_one_for_pytest_and_unittest(wrong):
    def body(_):
        raise CheckSkipped("it means nothing here")

    with pytest.raises(CheckSkipped):
        check_that(body, wrong)()
    assert issubclass(CheckSkipped, unittest.SkipTest)


def test_a_check_leaves_the_process_as_it_was(wrong):
    def body(_):
        random.random()
        np.random.rand()  # noqa: NPY002 - the global generator is the point
        torch.rand(())
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        raise RuntimeError

    before = random_state()
    with pytest.raises(CheckFailed):
        check_that(body, wrong)()
    after = random_state()
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    assert before == after
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == (torch.float32, 1, True)


def test_a_difference_is_told_in_numbers():
    left, right = torch.zeros(4), torch.tensor([0.0, 0.5, torch.nan, torch.nan])
    nan = torch.tensor([0.0, 0.25, torch.nan, 1.0])
    assert difference({"w": left}, {"w": left.clone()}) == ""
    assert difference({"w": right}, {"w": right.clone()}) == ""
    assert difference({"w": nan}, {"w": right}).startswith("w differs in 2 of 4 values")
    assert difference({"w": left}, {"w": torch.tensor([0.0, 0.5, 0.0, 0.0])}).endswith("1 of 4 values, by up to 0.5")
    assert difference({"w": left.double()}, {"w": left}) == (
        "w is torch.float64 of shape (4,) instead of torch.float32 of (4,)"
    )
    assert difference({"w": left}, {"v": left}) == "['w'] came and ['v'] went"


# -- sources ---------------------------------------------------------------------------------------------------------
SOURCE = '''
"""Trains like llama-c4 in the paper."""
from __future__ import annotations
import numpy, scipy.stats
from torch import nn, _C
from . import _shared
from ._other import thing
from bench._private import x
deviations = ("On llama-c4 it differs.",)
lr = hyper(1.0, help="as for llama-c4")
if run.name == "llama-c4" or f"{run.name}-llama_c4" or "llama-c4-mixture" or "my-llama-c4":
    pass
'''


def test_names_of_workloads_count_where_code_can_branch_on_them():
    trees = {"json": ast.parse(SOURCE)}
    found = [(place.line, name) for place, name in named_workloads(trees, ["llama-c4", "other"])]
    assert found == [(11, "llama-c4")]


def test_private_modules_count_where_they_belong_to_others_and_foreign_packages_are_named():
    trees = {"json": ast.parse(SOURCE)}
    assert [name for _, name in private_imports(trees)] == ["torch._C", "bench._private", "bench._private.x"]
    assert foreign_packages(trees) == ["scipy"]


# -- another process -------------------------------------------------------------------------------------------------
class Ends:
    """What ends the process that loads it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_model_that_ends_the_other_process_is_a_failure_and_the_next_one_gets_a_new_process():
    linear, inputs = torch.nn.Linear(2, 2), torch.ones(1, 2)
    deadly = torch.nn.Linear(2, 2)
    deadly.note = Ends()
    for _ in range(2):
        assert torch.equal(outputs_elsewhere(linear, inputs), linear(inputs))
        with pytest.raises(CheckFailed, match="the process ended"):
            outputs_elsewhere(deadly, inputs)
