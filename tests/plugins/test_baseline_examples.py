"""The examples in the documentation of our own baselines run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["adafactor", "apollo", "lamb", "nadamw", "sam", "schedule_free", "shampoo", "soap"])
def test_examples_in_the_documentation_run(name):
    results = doctest.testmod(importlib.import_module(f"bench.plugins.baselines.{name}"))
    assert results.attempted >= 3
    assert results.failed == 0
