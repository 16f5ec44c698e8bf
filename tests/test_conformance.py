"""One battery over every listed optimizer and adaptation, ours and strangers': a new one is covered without a new test.

Optimizers get parameters by name, shape and role and gradients by hand, as any training loop may hand them out.
"""

from __future__ import annotations

import copy
import io
import math
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bench import Registry, Role, Run
from bench.algorithm import slots
from bench.context import adapted_roles

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


OPTIMIZERS = [name for name in sorted(REGISTRY.algorithms) if "optimizer" in slots(REGISTRY.algorithm_class(name))]

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


class Scene:
    """Some parameters, a plugin's optimizer over them, and gradients that depend on name and step alone."""

    def __init__(self, name, shapes=SHAPES, dtype=torch.float32, seed=0, device="cpu", scale=1e-3):
        self.algorithm = REGISTRY.algorithm(name)
        self.shapes = shapes
        self.parameters = {
            key: nn.Parameter((scale * drawn(key, 0, shape)).to(device, dtype)) for key, (_, shape) in shapes.items()
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
    for other, parameter in scene.parameters.items():
        assert parameter.dtype == dtype
        assert parameter.requires_grad
        assert parameter.grad_fn is None
        assert not torch.equal(parameter, before[other])


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
    group = next(g for g in scene.optimizer.param_groups if any(p is scene.parameters[key] for p in g["params"]))
    named = "param_names" in group
    twins = [nn.Parameter(scene.parameters[key].detach().clone()) for _ in range(2)]
    for number, (twin, factor) in enumerate(zip(twins, (1, 10), strict=True)):
        options = {option: value for option, value in group.items() if option not in {"params", "param_names"}}
        options |= {"lr": factor * group["lr"], "params": [(f"twin {number}", twin)] if named else [twin]}
        scene.optimizer.add_param_group(options)
        twin.grad = drawn(key, 1, SHAPES[key][1])
    before = scene.values()
    scene.step(1)
    alone = Scene(name)
    assert equal(alone.steps(1, 1), scene.values())
    moved, far = (twin.detach() - before[key] for twin in twins)
    assert moved.any()
    torch.testing.assert_close(far, 10 * moved, rtol=1e-3, atol=1e-7)


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
    before, left, right = batched.values(), batched.steps(1, 5), single.steps(1, 5)
    for key in SHAPES:  # a tenth of the way: iterations in bf16 may round apart, a wrong path ends somewhere else
        assert (left[key] - right[key]).norm() <= 0.1 * (left[key] - before[key]).norm(), key


@every_optimizer
def test_a_step_runs_on_the_meta_device(name):
    scene = Scene(name, device="meta")
    scene.steps(1, 3)
    tensors = [value for state in scene.optimizer.state.values() for value in state.values()]
    assert all(value.device.type == "meta" for value in tensors if isinstance(value, torch.Tensor) and value.ndim)


# -- optimizers: in anybody's training loop --------------------------------------------------------------------------
DECODER = {key: SHAPES[key] for key in ("embedding", "square", "tall", "wide", "norm", "head")}
"""A toy of an attention layer and an MLP over tokens, with one parameter for each place in the role table."""


def decoder_loss(parameters):
    tokens = torch.arange(16)
    hidden = parameters["embedding"][tokens]
    hidden = hidden + torch.tanh(hidden @ parameters["square"].T)
    hidden = nn.functional.layer_norm(hidden, (8,)) * (1 + parameters["norm"])
    hidden = hidden + torch.relu(hidden @ parameters["tall"].T) @ parameters["wide"].T
    return nn.functional.cross_entropy(hidden @ parameters["head"].T, (tokens * 5 + 3) % 16)


@every_optimizer
def test_a_plain_loop_with_torch_s_scheduler_lowers_the_loss(name):
    scene, losses = Scene(name, DECODER, scale=0.3), []
    rates = [group["lr"] for group in scene.optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.LambdaLR(scene.optimizer, lambda step: 1.0 - step / 40)

    def closure():
        scene.optimizer.zero_grad()
        loss = decoder_loss(scene.parameters)
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
    assert losses[-1] < losses[0] - 0.005


# -- adapted models --------------------------------------------------------------------------------------------------
every_adaptation = pytest.mark.parametrize(
    "name", [name for name in sorted(REGISTRY.algorithms) if "adapt" in slots(REGISTRY.algorithm_class(name))]
)


class Block(nn.Module):
    """A network with one parameter of each role that adaptations look for; its inputs are (B, 32)."""

    roles: ClassVar = {
        "q.weight": Role.ATTENTION_Q,
        "v.weight": Role.ATTENTION_V,
        "up.weight": Role.MLP,
        "down.weight": Role.MLP,
        "norm.weight": Role.NORM,
        "norm.bias": Role.BIAS,
        "up.bias": Role.BIAS,
        "head.weight": Role.CLASSIFIER,
        "head.bias": Role.BIAS,
    }

    def __init__(self):
        super().__init__()
        self.q, self.v = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x):
        x = x + self.v(torch.tanh(self.q(x)))
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


def adapted(name, seed=0, dtype=torch.float32, device="cpu"):
    """Return the adapted network, which starts from the same weights whatever the seed, and the run."""
    state = torch.get_rng_state()
    torch.manual_seed(1)
    with torch.device(device):
        model = Block().to(dtype)
    torch.set_rng_state(state)
    run = Run(seed=seed, steps=STEPS, device=torch.device(device), roles=Block.roles, algorithm=name)
    return REGISTRY.algorithm(name).adapt(model, run), run


def features(dtype=torch.float32):
    return drawn("features", 0, (6, 32)).to(dtype)


@every_adaptation
def test_adapting_is_reproducible_and_draws_from_the_generators_of_the_run_alone(name):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    (one, run), (again, _), (other, _) = (adapted(name, seed) for seed in (0, 0, 1))
    assert equal(one.state_dict(), again.state_dict())
    assert equal(one.state_dict(), other.state_dict()) == (not run.generators)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002


@every_adaptation
def test_new_parameters_are_claimed_once_and_others_keep_their_roles(name):
    model = Block()
    before = list(model.named_parameters())
    run = Run(seed=0, steps=STEPS, roles=Block.roles, algorithm=name)
    algorithm = REGISTRY.algorithm(name)
    result = algorithm.adapt(model, run)
    roles = adapted_roles(before, Block.roles, result, algorithm.adapter_roles)
    assert roles.keys() == dict(result.named_parameters()).keys()
    assert vars(algorithm) == algorithm.hyperparameters(), "nothing is kept on the algorithm"


@every_adaptation
@both_dtypes
def test_an_adapted_model_keeps_the_dtype_and_gives_what_is_trainable_a_finite_gradient(name, dtype):
    model, _ = adapted(name, dtype=dtype)
    output = model(features(dtype))
    assert output.dtype == dtype
    output.square().mean().backward()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable
    for parameter in trainable:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


@every_adaptation
def test_a_saved_state_makes_an_adapted_model_of_another_seed_the_same_model(name):
    (model, _), (other, _) = adapted(name, 0), adapted(name, 1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.add_(0.1 * drawn(key, 1, parameter.shape))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(model(features()), other(features()))


@every_adaptation
def test_a_model_without_storage_can_be_adapted(name):
    model, _ = adapted(name, device="meta")
    assert all(tensor.device.type == "meta" for tensor in model.state_dict().values())
    model(features().to("meta")).sum().backward()
