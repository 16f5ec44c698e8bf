"""One battery over every listed plugin that compresses or compensates, ours and strangers'.

The model is a decoder whose linears are square, tall and wide; a plugin is asked for every point that its needs allow,
and handed the calibration data that its ``information`` allows.
"""

from __future__ import annotations

import copy
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from bench import HIDDEN_MATRICES, Point, Registry, Role, Run
from bench.algorithm import COMPRESSION_SLOTS, INFORMATION, slots
from bench.errors import BenchError
from bench.workloads._llama import Llama, LlamaConfig

REGISTRY = Registry()
SLOTS = {name: set(slots(REGISTRY.algorithm_class(name))) & set(COMPRESSION_SLOTS) for name in REGISTRY.algorithms}
POINTS = {
    "compress": (Point(kept_ratio=0.5), Point(kept_ratio=0.8), Point(pattern=(2, 4)), Point(pattern=(1, 4))),
    "compensate": (Point(pattern=(2, 4), rank=1), Point(pattern=(2, 4), rank=3)),
}
OFFERS = {"kept-ratio": "kept_ratio", "pattern": "pattern", "branch-rank": "rank"}


def served(name, slot):
    """Return the points of ``slot`` that offer what the plugin needs."""
    needs = [OFFERS[need] for need in REGISTRY.algorithm_class(name).needs if need in OFFERS]
    return [point for point in POINTS[slot] if all(getattr(point, need) is not None for need in needs)]


JOBS = [(name, slot, point) for name in sorted(SLOTS) for slot in sorted(SLOTS[name]) for point in served(name, slot)]
FIRST = [job for number, job in enumerate(JOBS) if job[:2] not in [other[:2] for other in JOBS[:number]]]

every_job = pytest.mark.parametrize(("name", "slot", "point"), JOBS, ids=lambda part: str(part).replace(" ", "-"))
every_plugin = pytest.mark.parametrize(("name", "slot", "point"), FIRST, ids=lambda part: str(part).replace(" ", "-"))


def decoder():
    config = LlamaConfig(vocabulary_size=20, hidden=16, ffn=24, layers=2, heads=2, initial_std=0.2)
    return Llama(config, torch.Generator().manual_seed(3))


def role_of(name):
    if "norm" in name:
        return Role.NORM
    if name.startswith("layers"):
        return Role.MLP if "mlp" in name else Role.ATTENTION_V
    return Role.EMBEDDING if "embedding" in name else Role.LM_HEAD


def loss_of(model, batch):
    logits = model(batch["tokens"])
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["tokens"][:, 1:].flatten())


class Scene:
    """A model, calibration data and a plugin, and what it makes of them at a point."""

    def __init__(self, name, slot, point, dtype=torch.float32, seed=0):
        self.model = decoder().to(dtype).eval()
        generator = torch.Generator().manual_seed(4)
        tokens = torch.randint(0, 20, (12, 11), generator=generator)
        self.algorithm, self.slot, self.point = REGISTRY.algorithm(name), slot, point
        self.information = self.algorithm.information
        self.calibration = [] if self.information == "weights" else [{"tokens": part} for part in tokens.split(4)]
        self.tokens = tokens
        self.roles = {key: role_of(key) for key, _ in self.model.named_parameters()}
        self.models = [self.model]
        if slot == "compensate":
            run = self.run_of("magnitude-pruning", seed, None)
            self.models.append(REGISTRY.algorithm("magnitude-pruning").compress(self.model, [], run))
        self.run = self.run_of(name, seed, loss_of if self.information == "labels" else None)

    def run_of(self, name, seed, loss):
        blocks = ("layers.0", "layers.1")
        return Run(seed=seed, steps=1, roles=self.roles, algorithm=name, point=self.point, blocks=blocks, loss=loss)

    def result(self):
        return getattr(self.algorithm, self.slot)(*self.models, self.calibration, self.run)


def state(model):
    return copy.deepcopy(model.state_dict())


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def marks(model):
    """Return what a plugin must leave alone besides the state."""
    return [
        (id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in model.modules()
    ] + [(id(p), p.requires_grad, p.grad is None) for p in model.parameters()]


def stored(model):
    """Return how many values ``model`` stores: of linears in its layers only those that are not zero."""
    sparse = {id(m.weight) for m in model.layers.modules() if isinstance(m, nn.Linear)}
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values() if t.is_floating_point()}
    return sum(int((t != 0).sum()) if key in sparse else t.numel() for key, t in tensors.items())


@every_job
def test_what_is_kept_is_what_was_asked_for(name, slot, point):
    scene = Scene(name, slot, point)
    hidden = [p for key, p in scene.model.named_parameters() if scene.roles[key] in HIDDEN_MATRICES]
    dense = sum(p.numel() for p in hidden)
    rest = sum(p.numel() for p in scene.model.parameters()) - dense
    share = point.kept_ratio or point.pattern[0] / point.pattern[1]
    branch = (point.rank or 0) * sum(sum(p.shape) for p in hidden) if slot == "compensate" else 0
    kept = stored(scene.result()) - rest
    assert kept <= share * dense + branch
    assert kept >= 0.75 * (share * dense + branch), "much less than was asked for is no comparison"


@every_job
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_result_is_a_finite_model_of_the_same_dtype_and_another_function(name, slot, point, dtype):
    scene = Scene(name, slot, point, dtype)
    try:
        result = scene.result()
    except BenchError:
        if dtype == torch.bfloat16:
            return  # a clear refusal is right as well
        raise
    logits = result(scene.tokens)
    assert logits.dtype == dtype
    assert logits.shape == (12, 11, 20)
    assert logits.isfinite().all()
    assert not torch.equal(logits, scene.models[-1](scene.tokens))
    for key, value in result.state_dict().items():
        assert value.isfinite().all(), key
        assert not value.is_floating_point() or value.dtype == dtype, key


@every_job
def test_neither_the_models_nor_the_calibration_data_are_changed(name, slot, point):
    scene = Scene(name, slot, point)
    before = [(state(model), marks(model)) for model in scene.models], copy.deepcopy(scene.calibration)
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    result = scene.result()
    for model, (values, facts) in zip(scene.models, before[0], strict=True):
        assert equal(model.state_dict(), values)
        assert marks(model) == facts
    assert all(equal(*pair) for pair in zip(scene.calibration, before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == generators[1:]  # noqa: NPY002
    owned = {p.data_ptr() for model in scene.models for p in model.parameters()}
    assert not [key for key, p in result.named_parameters() if p.numel() and p.data_ptr() in owned], "a shared tensor"


@every_job
def test_what_is_not_a_hidden_matrix_stays(name, slot, point):
    scene = Scene(name, slot, point)
    result = scene.result()
    for part in ("embedding", "lm_head", "norm"):
        assert equal(getattr(result, part).state_dict(), getattr(scene.model, part).state_dict())
    assert not result.training


@every_plugin
def test_the_same_seed_gives_the_same_bits_and_another_one_changes_only_what_draws(name, slot, point):
    one, same, other = Scene(name, slot, point), Scene(name, slot, point), Scene(name, slot, point, seed=1)
    values = one.result().state_dict()
    assert equal(values, same.result().state_dict())
    assert equal(values, other.result().state_dict()) == (not one.run.generators)


@every_plugin
def test_nothing_is_kept_on_the_algorithm_and_a_second_call_does_the_same(name, slot, point):
    scene = Scene(name, slot, point)
    before = copy.deepcopy(vars(scene.algorithm))
    first = scene.result().state_dict()
    assert vars(scene.algorithm) == before == scene.algorithm.hyperparameters()
    scene.run = scene.run_of(name, 0, scene.run.loss)
    assert equal(scene.result().state_dict(), first)


@every_plugin
def test_it_works_with_gradients_on_and_off_and_the_result_can_be_trained(name, slot, point):
    scene = Scene(name, slot, point)
    with torch.no_grad():
        quiet = scene.result()
    result = Scene(name, slot, point).result()
    assert equal(quiet.state_dict(), result.state_dict())
    assert all(p.is_leaf and p.requires_grad and p.grad is None for p in result.parameters())
    loss_of(result, {"tokens": scene.tokens}).backward()
    assert all(p.grad is not None for p in result.parameters())


@every_plugin
def test_its_information_is_a_known_kind(name, slot, point):
    assert REGISTRY.algorithm_class(name).information in INFORMATION


@every_plugin
def test_a_point_without_what_it_needs_is_refused_clearly(name, slot, point):
    scene = Scene(name, slot, point)
    scene.run = Run(seed=0, steps=1, roles=scene.roles, blocks=scene.run.blocks, loss=scene.run.loss)
    with pytest.raises(BenchError, match="point"):
        scene.result()


def test_every_result_is_saved_and_computes_the_same_in_a_fresh_process(tmp_path):
    logits = {}
    for number, job in enumerate(FIRST):
        scene = Scene(*job)
        result = scene.result()
        torch.save(result, tmp_path / f"{number}.pt")
        with torch.no_grad():
            logits[number] = result(scene.tokens)
    torch.save({"tokens": scene.tokens, "logits": logits}, tmp_path / "expected.pt")
    code = (
        "import pathlib, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "expected = torch.load(folder / 'expected.pt')\n"
        "for number, logits in expected['logits'].items():\n"
        "    model = torch.load(folder / f'{number}.pt', weights_only=False)\n"
        "    with torch.no_grad():\n"
        "        assert torch.equal(model(expected['tokens']), logits), number\n"
        "print(len(expected['logits']))\n"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(FIRST)
