"""One battery over every listed plugin, ours and strangers': a new one is covered without a new test.

Optimizers get parameters by name, shape and role and gradients by hand, as any training loop may hand them out.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import random
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import nn

from bench import Registry, Role, Run
from bench.algorithm import slots
from bench.errors import BrokenPlugin
from bench.hyperparameter import Choice, Log, domain

REGISTRY = Registry()
STEPS = 12
"""The budget of a run here; small, so that what is renewed now and then is renewed."""

SHAPES = {
    "embedding": (Role.EMBEDDING, (16, 8)),
    "square": (Role.ATTENTION_Q, (8, 8)),
    "tall": (Role.MLP, (24, 8)),
    "wide": (Role.MLP, (8, 24)),
    "large": (Role.ATTENTION_O, (32, 512)),  # large enough for states that are compressed by blocks
    "convolution": (Role.CONV, (4, 3, 3, 3)),
    "norm": (Role.NORM, (8,)),
    "scalar": (Role.BIAS, (1,)),
    "head": (Role.LM_HEAD, (16, 8)),
}


def filling(slot):
    """Return the names of the listed algorithms that fill ``slot``; one that does not import is tested, and fails."""
    found = []
    for name in sorted(REGISTRY.algorithms):
        try:
            cls = REGISTRY.algorithm_class(name)
        except BrokenPlugin:
            found.append(name)
        else:
            found += [name] if slot in slots(cls) else []
    return found


every_plugin = pytest.mark.parametrize("name", sorted(REGISTRY.algorithms))
every_optimizer = pytest.mark.parametrize("name", filling("optimizer"))
every_schedule = pytest.mark.parametrize("name", filling("schedule"))
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


class Scene:
    """Some parameters, a plugin's optimizer over them, and gradients that depend on name and step alone."""

    def __init__(self, name, shapes=SHAPES, dtype=torch.float32, seed=0, device="cpu"):
        self.algorithm = REGISTRY.algorithm(name)
        self.shapes = shapes
        self.parameters = {
            key: nn.Parameter((1e-3 * drawn(key, 0, shape)).to(device, dtype)) for key, (_, shape) in shapes.items()
        }
        roles = {key: role for key, (role, _) in shapes.items()}
        self.run = Run(seed=seed, steps=STEPS, device=torch.device(device), roles=roles, algorithm=name)
        self.optimizer = self.algorithm.optimizer(list(self.parameters.items()), self.run)
        switch = getattr(self.optimizer, "train", None)
        if callable(switch):
            switch()

    def gradients(self, number, scale=1.0, without=()):
        """Put the gradients of step ``number`` in place."""
        for key, parameter in self.parameters.items():
            gradient = (scale * drawn(key, number, self.shapes[key][1])).to(parameter.device, parameter.dtype)
            parameter.grad = None if key in without else gradient

    def step(self, number=1, **changes):
        """Do step ``number``, by a closure where the algorithm wants one."""
        if self.algorithm.closure:
            self.optimizer.step(lambda: self.gradients(number, **changes) or 1.0)
        else:
            self.gradients(number, **changes)
            self.optimizer.step()

    def steps(self, first, last):
        for number in range(first, last + 1):
            self.step(number)
        return self.values()

    def values(self):
        return {key: parameter.detach().clone() for key, parameter in self.parameters.items()}

    def take_over(self, other, state):
        """Go on where ``other`` stands, with ``state`` as the optimizer's."""
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(other.parameters[key])
        self.optimizer.load_state_dict(state)
        for purpose, generator in other.run.generators.items():
            self.run.rng(purpose).set_state(generator.get_state())


def drawn(key, number, shape):
    seed = int.from_bytes(key.encode()[:6], "big") + number
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def equal(left, right):
    return all(torch.equal(left[key], right[key]) for key in left)


def finite(scene):
    tensors = [value for state in scene.optimizer.state.values() for value in state.values()]
    tensors = [value for value in tensors if isinstance(value, torch.Tensor)]
    return all(bool(value.isfinite().all()) for value in [*tensors, *scene.parameters.values()])


# -- what a plugin says of itself ------------------------------------------------------------------------------------
@every_plugin
def test_a_plugin_is_a_frozen_keyword_only_record_with_honest_class_facts(name):
    cls = REGISTRY.algorithm_class(name)
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert not [key for key, value in vars(cls).items() if isinstance(value, dataclasses.Field)], "lacks @dataclass"
    assert isinstance(cls.closure, bool)
    assert cls.passes >= 1
    for texts in (cls.deviations, cls.needs):
        assert isinstance(texts, tuple), "a tuple of texts: one text needs a comma behind it"
        assert all(isinstance(text, str) and text for text in texts)
    assert all(text.endswith(".") for text in cls.deviations)
    with pytest.raises(FrozenInstanceError):
        cls().anything = 1


@every_plugin
def test_a_plugin_has_a_docstring_that_names_its_source(name):
    cls = REGISTRY.algorithm_class(name)
    text = cls.__doc__ or ""
    assert not text.startswith(f"{cls.__name__}("), "this is the signature that dataclass puts in place of a docstring"
    assert "Source:" in text
    assert "Deviations:" in text or not cls.deviations


@every_plugin
def test_an_entry_says_in_one_line_what_it_is_and_where_it_comes_from(name):
    entry = REGISTRY.algorithms[name]
    for text in (entry.paper, entry.summary):
        assert text.strip() == text != ""
        assert "\n" not in text


@every_plugin
def test_every_hyperparameter_has_help_a_domain_and_a_default_inside_it(name):
    cls = REGISTRY.algorithm_class(name)
    cls()
    for field in dataclasses.fields(cls):
        words = domain(cls, field.name)
        assert field.metadata["help"], field.name
        assert words not in {"float", "int", "str"}, f"{field.name} has no bounds"
        if words.startswith("float"):
            assert isinstance(field.default, float) or field.default is None, f"{field.name}: {field.default!r} is no float"


@every_plugin
def test_search_ranges_lie_inside_the_domains_and_span_at_most_four_dimensions(name):
    cls = REGISTRY.algorithm_class(name)
    searched = {field.name: field.metadata["search"] for field in dataclasses.fields(cls)}
    searched = {key: search for key, search in searched.items() if search is not None}
    assert len(searched) <= 4, sorted(searched)
    for key, search in searched.items():
        values = search.values if isinstance(search, Choice) else (search.low, search.high)
        for value in values:
            cls.check(**{key: value})
        if isinstance(search, Choice):
            assert len(set(values)) == len(values) > 1
        else:
            assert search.low < search.high
            assert search.low > 0 or not isinstance(search, Log)


# -- optimizers: determinism and state -------------------------------------------------------------------------------
@every_optimizer
def test_every_parameter_is_in_exactly_one_group_with_a_learning_rate(name):
    scene = Scene(name)
    owned = [id(p) for group in scene.optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(map(id, scene.parameters.values()))
    assert all(group["lr"] > 0 for group in scene.optimizer.param_groups)


@every_optimizer
def test_the_same_seed_gives_the_same_bits(name):
    assert equal(Scene(name).steps(1, 5), Scene(name).steps(1, 5))


@every_optimizer
def test_randomness_comes_from_the_generators_of_the_run_and_from_nowhere_else(name):
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    one, other = Scene(name, seed=0), Scene(name, seed=1)
    same = equal(one.steps(1, 5), other.steps(1, 5))
    assert same == (not one.run.generators), "another seed must change exactly the algorithms that draw"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002


@every_optimizer
@both_dtypes
@pytest.mark.parametrize("way", ["copied", "saved"])
def test_a_restored_state_goes_on_bit_for_bit(name, dtype, way):
    whole, half, resumed = (Scene(name, dtype=dtype) for _ in range(3))
    whole.steps(1, 8)
    half.steps(1, 3)
    state = copy.deepcopy(half.optimizer.state_dict())
    if way == "saved":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    resumed.take_over(half, state)
    assert equal(resumed.steps(4, 8), whole.values())


@every_optimizer
def test_nothing_is_kept_on_the_algorithm(name):
    scene = Scene(name)
    before = copy.deepcopy(vars(scene.algorithm))
    scene.steps(1, 2)
    assert vars(scene.algorithm) == before == scene.algorithm.hyperparameters()


# -- optimizers: one step --------------------------------------------------------------------------------------------
@every_optimizer
@both_dtypes
@pytest.mark.parametrize("key", SHAPES)
def test_every_shape_and_dtype_gets_a_finite_update_of_its_own_dtype(name, dtype, key):
    shapes = {"companion": (Role.MLP, (6, 12)), key: SHAPES[key]}
    scene = Scene(name, shapes, dtype)
    before = scene.values()
    scene.steps(1, 3)
    assert finite(scene)
    for key, parameter in scene.parameters.items():
        assert parameter.dtype == dtype
        assert parameter.requires_grad
        assert parameter.grad_fn is None
        assert not torch.equal(parameter, before[key])


@every_optimizer
@pytest.mark.parametrize("shape", [(0,), (0, 4)])
def test_an_empty_parameter_does_no_harm(name, shape):
    scene = Scene(name, SHAPES | {"empty": (Role.OTHER, shape)})
    scene.steps(1, 3)
    assert scene.parameters["empty"].shape == shape
    assert finite(scene)
    full = Scene(name)
    full.steps(1, 3)
    values = scene.values()
    values.pop("empty")
    assert equal(values, full.values())


@every_optimizer
@both_dtypes
def test_zero_gradients_give_finite_weights_at_first_and_later(name, dtype):
    scene = Scene(name, dtype=dtype)
    for number, scale in enumerate([0.0, 0.0, 1.0, 0.0, 0.0], start=1):
        scene.step(number, scale=scale)
        assert finite(scene)


@every_optimizer
@pytest.mark.parametrize("key", ["square", "norm"])
def test_a_parameter_without_a_gradient_stays_bit_for_bit_and_joins_later(name, key):
    scene = Scene(name)
    before = scene.values()
    scene.step(1, without=[key])
    assert torch.equal(scene.parameters[key], before[key])
    assert not torch.equal(scene.parameters["tall"], before["tall"])
    scene.step(2)
    middle = scene.values()
    assert not torch.equal(middle[key], before[key])
    scene.step(3, without=[key])
    assert torch.equal(scene.parameters[key], middle[key])
    assert finite(scene)


@every_optimizer
def test_gradients_are_left_as_they_are_or_freed(name):
    scene = Scene(name)
    scene.step(1)
    for key, parameter in scene.parameters.items():
        assert parameter.grad is None or torch.equal(parameter.grad, drawn(key, 1, SHAPES[key][1]))


@every_optimizer
def test_a_closure_is_called_with_gradients_enabled_and_its_loss_is_returned(name):
    scene, enabled = Scene(name), []
    loss = torch.tensor(2.5)

    def closure():
        enabled.append(torch.is_grad_enabled())
        scene.gradients(1)
        return loss

    before = scene.values()
    assert scene.optimizer.step(closure) is loss
    assert set(enabled) == {True}
    assert not equal(scene.values(), before)


@every_optimizer
@pytest.mark.parametrize("key", ["tall", "norm"])
def test_every_group_steps_with_a_learning_rate_of_its_own(name, key):
    scene = Scene(name)
    twin = nn.Parameter(scene.parameters[key].detach().clone())
    group = next(g for g in scene.optimizer.param_groups if any(p is scene.parameters[key] for p in g["params"]))
    named = "param_names" in group
    options = {option: value for option, value in group.items() if option not in {"params", "param_names"}}
    options |= {"lr": 10 * group["lr"], "params": [("twin", twin)] if named else [twin]}
    scene.optimizer.add_param_group(options)
    before = scene.values()
    twin.grad = drawn(key, 1, SHAPES[key][1])
    scene.step(1)
    alone = Scene(name)
    assert equal(alone.steps(1, 1), scene.values())
    moved = scene.parameters[key].detach() - before[key]
    torch.testing.assert_close(twin.detach() - before[key], 10 * moved, rtol=1e-3, atol=1e-7)


@every_optimizer
def test_batched_and_single_steps_agree(name):
    batched, single = Scene(name), Scene(name)
    if not any("foreach" in group for group in batched.optimizer.param_groups):
        assert not hasattr(batched.optimizer, "foreach"), "there is one path only"
        return
    for scene, foreach in ((batched, True), (single, False)):
        for group in scene.optimizer.param_groups:
            group["foreach"] = foreach
            if "fused" in group:
                group["fused"] = None
    for left, right in zip(batched.steps(1, 5).values(), single.steps(1, 5).values(), strict=True):
        torch.testing.assert_close(left, right)


@every_optimizer
def test_a_step_runs_on_the_meta_device(name):
    scene = Scene(name, device="meta")
    scene.steps(1, 3)
    tensors = [value for state in scene.optimizer.state.values() for value in state.values()]
    assert all(value.device.type == "meta" for value in tensors if isinstance(value, torch.Tensor) and value.ndim)


# -- optimizers: in anybody's training loop --------------------------------------------------------------------------
class Decoder:
    """A toy of an attention layer and an MLP over tokens, with one parameter for each place in the role table."""

    shapes = {key: SHAPES[key] for key in ("embedding", "square", "tall", "wide", "norm", "head")}

    def loss(self, parameters):
        tokens = torch.arange(16)
        hidden = 300 * parameters["embedding"][tokens]
        hidden = hidden + torch.tanh(hidden @ (300 * parameters["square"]).T)
        hidden = nn.functional.layer_norm(hidden, (8,)) * (1 + parameters["norm"])
        hidden = hidden + torch.relu(hidden @ (300 * parameters["tall"]).T) @ (300 * parameters["wide"]).T
        return nn.functional.cross_entropy(hidden @ (300 * parameters["head"]).T, (tokens * 5 + 3) % 16)


@every_optimizer
def test_a_plain_loop_with_torch_s_scheduler_lowers_the_loss(name):
    scene, decoder, losses = Scene(name, Decoder.shapes), Decoder(), []
    rates = [group["lr"] for group in scene.optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.LambdaLR(scene.optimizer, lambda step: 1.0 - step / 40)

    def closure():
        scene.optimizer.zero_grad()
        loss = decoder.loss(scene.parameters)
        loss.backward()
        return loss.detach()

    for number in range(30):
        expected = [rate * (1.0 - number / 40) for rate in rates]
        assert [group["lr"] for group in scene.optimizer.param_groups] == pytest.approx(expected)
        if scene.algorithm.closure:
            losses.append(float(scene.optimizer.step(closure)))
        else:
            losses.append(float(closure()))
            scene.optimizer.step()
        scheduler.step()
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.99 * losses[0]


# -- schedules -------------------------------------------------------------------------------------------------------
@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 10, 300, 10_000])
def test_a_schedule_is_finite_in_zero_to_one_during_the_run_and_past_its_end(name, steps):
    factor = REGISTRY.algorithm(name).schedule(Run(seed=0, steps=steps))
    values = [factor(step) for step in [*range(steps + 1), steps + 1, 2 * steps, 10 * steps + 7]]
    assert all(math.isfinite(value) and 0.0 <= value <= 1.0 for value in values)
    assert max(values) > 0.0


@every_schedule
def test_a_schedule_rises_and_falls_in_few_pieces_and_reaches_its_peak(name):
    factor = REGISTRY.algorithm(name).schedule(Run(seed=0, steps=1000))
    values = [factor(step) for step in range(1001)]
    signs = [math.copysign(1, b - a) for a, b in zip(values, values[1:], strict=False) if b != a]
    assert sum(a != b for a, b in zip(signs, signs[1:], strict=False)) <= 10
    assert max(values) == pytest.approx(1.0)
    assert values[0] <= 1.0
    assert values[-1] <= max(values)


@every_schedule
def test_a_schedule_depends_on_the_step_alone(name):
    run = Run(seed=0, steps=50)
    factor = REGISTRY.algorithm(name).schedule(run)
    forwards = [factor(step) for step in range(50)]
    again = REGISTRY.algorithm(name).schedule(run)
    assert [again(step) for step in reversed(range(50))] == forwards[::-1] or hasattr(factor, "state_dict")
    assert run.generators == {} or hasattr(factor, "state_dict")
