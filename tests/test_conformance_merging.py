"""Equal experts: what only those mergers of ours make another model of them that are meant to."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench import Registry
from bench.algorithm import slots
from bench.conformance.check import Subject
from bench.conformance.merging_scene import Scene, farthest, network, tuned

REGISTRY = Registry()
MERGERS = [name for name in sorted(REGISTRY.algorithms) if "merge" in slots(REGISTRY.algorithm_class(name))]
SCALED = [name for name in MERGERS if "scale" in {f.name for f in dataclasses.fields(REGISTRY.algorithm_class(name))}]
"""Those that go a chosen part of the way from the start: of one expert they make another model."""

REPELLED = ("opcm",)
"""Those that leave out of a model what the ones before it had."""


@pytest.mark.parametrize("name", MERGERS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_experts_are_that_expert_unless_the_method_has_a_scale(name, count):
    scene = Scene(Subject(name, REGISTRY), experts=[tuned(network(0), 0) for _ in range(count)])
    merged, (expert, *_) = scene.merge(), scene.models
    if name in SCALED:
        assert farthest(merged, expert) > 1e-3
    elif count == 1:
        assert all(map(torch.equal, merged.state_dict().values(), expert.state_dict().values()))
    elif name not in REPELLED:
        assert farthest(merged, expert) <= 1e-7
