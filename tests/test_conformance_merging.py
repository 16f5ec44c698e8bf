"""One battery over every listed plugin that merges models, ours and strangers'.

The experts are perceptrons with a head of their own each, all started from one network; a plugin is handed the
calibration data that its ``information`` allows.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench import Experts, Point, Registry, Role, Run
from bench.algorithm import INFORMATION, slots
from bench.workloads._merge_experts import Expert, Training
from bench.workloads._subspace_tasks import Generator

REGISTRY = Registry()
MERGERS = [name for name in sorted(REGISTRY.algorithms) if "merge" in slots(REGISTRY.algorithm_class(name))]
SCALED = [name for name in MERGERS if "scale" in {f.name for f in dataclasses.fields(REGISTRY.algorithm_class(name))}]
"""Those that go a chosen part of the way from the start: of one expert they make another model."""

REPELLED = ("opcm",)
"""Those that leave out of a model what the ones before it had."""

COUNT = 3
HEADS = ("head.weight", "head.bias")
AXES = {
    "backbone.0.weight": ("one", None),
    "backbone.0.bias": ("one",),
    "backbone.2.weight": ("two", "one"),
    "backbone.2.bias": ("two",),
    "backbone.4.weight": (None, "two"),
}

every_merger = pytest.mark.parametrize("name", MERGERS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def network(seed):
    torch.manual_seed(seed)
    return Expert(Generator(inputs=12, classes=4), Training(width=16, features=8)).eval()


def tuned(start, seed, scale=0.05):
    """Return ``start`` after a small change of its own, with a head of its own."""
    model, generator = copy.deepcopy(start), torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_((1.0 if name in HEADS else scale) * torch.randn(value.shape, generator=generator))
    return model


def loss_of(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["inputs"]).float(), batch["labels"])


class Scene:
    """Some experts, calibration data and a plugin, and what it makes of them."""

    def __init__(self, name, count=COUNT, dtype=torch.float32, seed=0, experts=None):
        self.start = network(0)
        self.models = [model.to(dtype) for model in experts or [tuned(self.start, seed) for seed in range(count)]]
        self.start.to(dtype)
        self.experts = Experts(len(self.models), self.models.__getitem__, lambda: self.start)
        self.algorithm = REGISTRY.algorithm(name)
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(6, 12, generator=generator).to(dtype)
        keys = {"weights": (), "optimizer-state": (), "inputs": ("inputs",)}.get(
            self.algorithm.information, ("inputs", "labels")
        )
        batch = {"inputs": self.inputs, "labels": torch.arange(6) % 4}
        seen = [{key: batch[key] for key in keys}] * 2 if keys else []
        self.calibration = [copy.deepcopy(seen) for _ in self.models]
        roles = {
            key: Role.CLASSIFIER if key in HEADS else Role.MLP if value.ndim == 2 else Role.BIAS
            for key, value in self.start.named_parameters()
        }
        self.run = Run(
            seed=seed,
            steps=1,
            roles=roles,
            axes=AXES,
            algorithm=name,
            point=Point(count=len(self.models)),
            loss=loss_of if self.algorithm.information == "labels" else None,
        )

    def merge(self):
        return self.algorithm.merge(self.experts, self.calibration, self.run)


def equal(left, right):
    pairs = [(left.state_dict()[key], value) for key, value in right.state_dict().items()]
    return left.state_dict().keys() == right.state_dict().keys() and all(torch.equal(*pair) for pair in pairs)


def farthest(left, right):
    """Return the largest difference of any weight that is merged."""
    names = [name for name, _ in left.named_parameters() if name not in HEADS]
    gaps = [(left.get_parameter(name).float() - right.get_parameter(name).float()).detach() for name in names]
    return max(float(gap.abs().max()) for gap in gaps)


# -- what a merge may touch ------------------------------------------------------------------------------------------
@every_merger
def test_a_plugin_says_what_it_looks_at(name):
    assert REGISTRY.algorithm_class(name).information in INFORMATION
    assert set(REGISTRY.algorithm_class(name).needs) <= {"pretrained", "axes"}


@every_merger
def test_arguments_stay_as_they_are(name):
    scene = Scene(name)
    before = copy.deepcopy([scene.start, *scene.models])
    calibration = copy.deepcopy(scene.calibration)
    scene.merge()
    for old, new in zip(before, [scene.start, *scene.models], strict=True):
        assert equal(old, new)
        assert [module.training for module in old.modules()] == [module.training for module in new.modules()]
        assert all(value.requires_grad and value.grad is None for value in new.parameters())
    for old, new in zip(calibration, scene.calibration, strict=True):
        for left, right in zip(old, new, strict=True):
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left)


@every_merger
def test_the_result_is_a_model_of_its_own(name):
    scene = Scene(name)
    before, merged = copy.deepcopy(scene.models), scene.merge()
    with torch.no_grad():
        for value in merged.parameters():
            value.fill_(7.0)
    assert all(map(equal, before, scene.models))
    assert type(merged) is Expert


@every_merger
def test_nothing_is_kept_on_the_algorithm(name):
    scene = Scene(name)
    before = copy.deepcopy(vars(scene.algorithm))
    first = scene.merge()
    assert vars(scene.algorithm) == before == scene.algorithm.hyperparameters()
    scene.run = Scene(name).run  # with fresh generators
    assert equal(scene.merge(), first)


@every_merger
def test_the_same_seed_gives_the_same_bits(name):
    assert equal(Scene(name).merge(), Scene(name).merge())


@every_merger
def test_randomness_comes_from_the_generators_of_the_run_and_from_nowhere_else(name):
    one, other = Scene(name, seed=0), Scene(name, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    same = equal(one.merge(), other.merge())
    assert same or one.run.generators, "another seed changes only what is drawn"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002


# -- what comes out --------------------------------------------------------------------------------------------------
@every_merger
def test_heads_are_not_merged(name):
    scene = Scene(name)
    merged = scene.merge()
    assert any(equal(merged.head, model.head) for model in [*scene.models, scene.start])


@every_merger
def test_other_heads_change_nothing_of_the_body(name):
    if REGISTRY.algorithm_class(name).information in {"inputs", "labels", "test-inputs"}:
        return  # what a model predicts depends on its head
    scene, other = Scene(name), Scene(name)
    for number, model in enumerate(other.models):
        model.head = network(50 + number).head
    assert farthest(scene.merge(), other.merge()) == 0.0


@every_merger
@both_dtypes
def test_every_dtype_gives_finite_weights_of_its_own_that_differ_from_every_expert(name, dtype):
    scene = Scene(name, dtype=dtype)
    merged = scene.merge()
    assert {value.dtype for value in merged.parameters()} == {dtype}
    assert all(bool(value.isfinite().all()) for value in merged.parameters())
    assert all(farthest(merged, model) > 1e-3 for model in scene.models)
    assert merged(scene.inputs).shape == (6, 4)


@every_merger
def test_bf16_is_fp32_up_to_the_rounding_of_the_weights(name):
    exact = [model.bfloat16().float() for model in Scene(name).models]
    wide = Scene(name, experts=exact)
    narrow = Scene(name, experts=copy.deepcopy(exact), dtype=torch.bfloat16)
    wide.start.bfloat16().float()
    assert farthest(wide.merge(), narrow.merge()) <= 1e-2  # experts lie ten times farther apart


@every_merger
@pytest.mark.parametrize("count", [1, 2, 5])
def test_experts_that_never_left_the_start_stay_there(name, count):
    scene = Scene(name, experts=[network(0) for _ in range(count)])
    assert farthest(scene.merge(), scene.start) <= 1e-7


@every_merger
@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_experts_are_that_expert_unless_the_method_has_a_scale(name, count):
    scene = Scene(name, experts=[tuned(network(0), 0) for _ in range(count)])
    merged = scene.merge()
    if name in SCALED:
        assert farthest(merged, scene.models[0]) > 1e-3
    elif count == 1:
        assert equal(merged, scene.models[0])
    elif name not in REPELLED:
        assert farthest(merged, scene.models[0]) <= 1e-7


# -- in anybody's hands ----------------------------------------------------------------------------------------------
LOAD = """
import sys, torch
models = torch.load(sys.argv[1], weights_only=False)
inputs = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save({name: model(inputs) for name, model in models.items()}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Save what every plugin makes, load all of it in one fresh process, and return both outputs by name."""
    folder = tmp_path_factory.mktemp("merged")
    inputs = Scene(MERGERS[0]).inputs
    models = torch.nn.ModuleDict({name: Scene(name).merge() for name in MERGERS})
    with torch.no_grad():
        outputs = {name: model(inputs) for name, model in models.items()}
    torch.save(models, folder / "models.pt")
    torch.save(inputs, folder / "inputs.pt")
    names = [folder / name for name in ("models.pt", "inputs.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-P", "-c", LOAD, *map(str, names)], check=True, timeout=120)
    return outputs, torch.load(folder / "outputs.pt", weights_only=True)


@every_merger
def test_a_merged_model_saved_and_loaded_in_a_fresh_process_gives_the_same_numbers(name, loaded):
    here, there = loaded
    assert torch.equal(here[name], there[name])
