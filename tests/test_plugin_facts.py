"""What every listed schedule is like besides what :mod:`bench.conformance` asks of it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from bench import Registry, Run
from bench.algorithm import slots

REGISTRY = Registry()
SCHEDULES = [n for n in sorted(REGISTRY.algorithms) if "schedule" in slots(REGISTRY.algorithm_class(n))]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_rises_and_falls_in_few_pieces(name):
    factor = REGISTRY.algorithm(name).schedule(Run(seed=0, steps=1000))
    values = [factor(step) for step in range(1001)]
    signs = [math.copysign(1, after - before) for before, after in pairwise(values) if after != before]
    assert sum(one != other for one, other in pairwise(signs)) <= 10
    assert values[0] <= 1.0
    assert values[-1] <= max(values)
