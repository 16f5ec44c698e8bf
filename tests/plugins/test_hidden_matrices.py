"""A rule of its own for hidden matrices, torch's AdamW for everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pytest
import torch
from annotated_types import Ge, Gt, Lt

from bench import Algorithm, Role, Run, hyper
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers._base import gradients_of
from bench.plugins.optimizers._hidden_matrices import (
    HiddenMatrixOptimizer,
    Scratch,
    aspect_factor,
    matrices_and_rest,
    nesterov_mix,
    stacked_matrices,
    subtract,
)


@dataclass(frozen=True, kw_only=True)
class Plain(Algorithm):
    name = "plain"

    lr: Annotated[float, Gt(0)] = hyper(0.1, help="rate")
    adamw_lr: Annotated[float, Gt(0)] = hyper(1e-2, help="AdamW's rate")
    adamw_beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.8, help="first decay")
    adamw_beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.95, help="second decay")
    adamw_eps: Annotated[float, Ge(0)] = hyper(1e-3, help="ε")
    adamw_weight_decay: Annotated[float, Ge(0)] = hyper(0.1, help="decay")


class PlainOptimizer(HiddenMatrixOptimizer):
    """Gradient descent for matrices; it keeps the sizes of the batches that it got."""

    algorithm = Plain

    def __init__(self, params, lr=0.1, *, foreach=True):
        self.batches = []
        super().__init__(params, {"lr": lr, "algorithm": "plain", "foreach": foreach})

    def _fresh(self, matrix, group):
        return {"rate": torch.full_like(matrix, group["lr"])}

    def _update_matrices(self, group, matrices, scratch):  # noqa: ARG002 - of use to others
        self.batches.append((tuple(matrices[0].shape), len(matrices)))
        subtract(matrices, stacked_matrices(gradients_of(matrices)), group["lr"], 0.0)


ROLES = {"embed": Role.EMBEDDING, "stem": Role.OTHER, "q": Role.ATTENTION_Q, "conv": Role.CONV, "bias": Role.MLP}
SHAPES = {"embed": (9, 4), "stem": (4, 3, 3, 3), "q": (4, 4), "conv": (4, 2, 3, 3), "bias": (4,)}


def parameters(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [(name, torch.nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in shapes.items()]


def give_gradients(named, step):
    generator = torch.Generator().manual_seed(100 + step)
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def test_hidden_roles_with_two_dimensions_are_matrices_and_the_rest_is_adamws():
    matrices, rest = matrices_and_rest(Plain(adamw_lr=0.5), parameters(), Run(seed=0, steps=1, roles=ROLES))
    assert [name for name, _ in matrices["params"]] == ["q", "conv"]
    assert [name for name, _ in rest.pop("params")] == ["embed", "stem", "bias"]
    assert rest == {"algorithm": "adamw", "lr": 0.5, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


def test_model_of_matrices_alone_has_one_group_and_one_without_any_is_refused():
    named = parameters()
    run = Run(seed=0, steps=1, roles=ROLES)
    assert len(matrices_and_rest(Plain(), named[2:4], run)) == 1
    with pytest.raises(SlotMismatch, match="plain found no parameter with a hidden role"):
        matrices_and_rest(Plain(), [named[0], named[4]], run)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_group_takes_the_steps_of_torch_adamw(foreach, dtype):
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    ours, theirs = ([(name, torch.nn.Parameter(p.to(dtype))) for name, p in parameters()] for _ in range(2))
    group = {"params": [p for _, p in ours], "algorithm": "adamw", **options}
    mine = PlainOptimizer([group], foreach=foreach)
    reference = torch.optim.AdamW([p for _, p in theirs], fused=foreach, foreach=False, **options)
    for step in range(10):
        for named in (ours, theirs):
            give_gradients(named, step)
            if step % 3 == 1:
                named[1][1].grad = None  # this one falls behind, and has a count of its own
        mine.step()
        reference.step()
    assert all(torch.equal(left, right) for (_, left), (_, right) in zip(ours, theirs, strict=True))
    assert [mine.state[p]["step"] for _, p in ours] == [10, 7, 10, 10, 10]


@pytest.mark.parametrize("foreach", [True, False])
def test_adamw_group_runs_on_the_meta_device(foreach):
    parameter = torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = PlainOptimizer([{"params": [parameter], "algorithm": "adamw"}], foreach=foreach)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].device.type == "meta"


def test_adamw_group_has_the_defaults_of_the_fields():
    (group,) = PlainOptimizer([{"params": [torch.nn.Parameter(torch.zeros(3))], "algorithm": "adamw"}]).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-2, (0.8, 0.95), 1e-3, 0.1)


@pytest.mark.parametrize(("foreach", "batches"), [(True, [((4, 4), 2), ((2, 6), 1)]), (False, [((4, 4), 1)] * 3)])
def test_matrices_come_in_batches_of_one_shape_or_one_at_a_time(foreach, batches):
    named = parameters({"a": (4, 4), "b": (2, 6) if foreach else (4, 4), "c": (4, 4)})
    optimizer = PlainOptimizer([p for _, p in named], foreach=foreach)
    give_gradients(named, 0)
    before = [p.detach().clone() for _, p in named]
    optimizer.step()
    assert optimizer.batches == batches
    for old, (_, parameter) in zip(before, named, strict=True):
        assert torch.allclose(parameter, old - 0.1 * parameter.grad, atol=1e-6)


def test_bad_groups_are_refused_and_leave_nothing_behind():
    matrix, vector = torch.nn.Parameter(torch.zeros(3, 3)), torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(BadValue, match=r"plain: parameter 0 of shape \(3,\) has fewer than two dimensions"):
        PlainOptimizer([vector])
    with pytest.raises(BadValue, match=r"plain: algorithm = 'sgd' \(str\)(.|\n)*'plain', 'adamw'"):
        PlainOptimizer([{"params": [matrix], "algorithm": "sgd"}])
    with pytest.raises(BadValue, match=r"plain: lr = 0\.0 \(float\)"):
        PlainOptimizer([matrix], lr=0.0)
    for option, value in {"lr": -1.0, "betas": (0.9, 1.0), "eps": -1.0, "weight_decay": -0.1}.items():
        with pytest.raises(BadValue, match="plain: adamw_"):
            PlainOptimizer([{"params": [vector], "algorithm": "adamw", option: value}])
    optimizer, group = PlainOptimizer([matrix]), {"params": [vector]}
    with pytest.raises(BadValue, match="fewer than two"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


def test_aspect_factor_is_that_of_the_matrix_view():
    shapes = {(64, 16): 2.0, (16, 64): 1.0, (36, 2, 3, 3): math.sqrt(2.0)}
    assert {shape: aspect_factor(torch.Size(shape)) for shape in shapes} == pytest.approx(shapes)


@pytest.mark.parametrize("nesterov", [True, False])
def test_mix_is_an_average_and_nesterov_mixes_the_gradient_in_again(nesterov):
    gradient, momentum = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 4.0])
    average = 0.75 * momentum + 0.25 * gradient
    (mixed,) = nesterov_mix([gradient], [momentum], 0.75, nesterov=nesterov)
    assert torch.allclose(momentum, average)
    assert torch.allclose(mixed, 0.25 * gradient + 0.75 * average if nesterov else average)
    assert torch.equal(gradient, torch.tensor([2.0, -1.0]))


def test_mix_in_scratch_memory_is_the_same_mix_and_every_piece_uses_the_same_memory():
    scratch = Scratch()
    generator = torch.Generator().manual_seed(0)
    places = []
    for shape in ((6, 5), (2, 4), (3, 2, 5)):
        gradients = [torch.randn(shape, generator=generator) for _ in range(3)]
        momenta = [torch.randn(shape, generator=generator) for _ in range(3)]
        expected = nesterov_mix(gradients, [m.clone() for m in momenta], 0.75, nesterov=True)
        found = nesterov_mix(gradients, momenta, 0.75, nesterov=True, scratch=scratch)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        places.append(found[0].data_ptr())
    assert len(set(places)) == 1


def test_scratch_memory_has_the_dtype_and_shapes_asked_for():
    scratch = Scratch()
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [torch.ones(2, 3, dtype=dtype), torch.ones(4, dtype=dtype)]
        for tensor, other in zip(scratch.like(tensors), tensors, strict=True):
            assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (other.shape, dtype, True)


def test_subtraction_decays_first_and_takes_any_shape_and_dtype():
    weight = torch.full((2, 3, 1), 2.0, dtype=torch.bfloat16)
    subtract([weight], stacked_matrices([torch.ones(2, 3, 1)]), 0.5, 0.5)
    assert torch.equal(weight, torch.full((2, 3, 1), 1.0, dtype=torch.bfloat16))
