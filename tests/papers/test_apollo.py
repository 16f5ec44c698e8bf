"""APOLLO against its rule in fp64 and its authors' package.

pytorch_optimizer 4.1.0 has an APOLLO too, but of another rule: it scales the projected gradient instead of the raw one
and projects that back, so there is no parity to be had with it.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.baselines import apollo as module
from bench.plugins.baselines.apollo import Apollo, ApolloAdamW, random_projection

pytestmark = pytest.mark.paper

SHAPES = [(12, 20), (20, 12), (12, 12)]
CPU = torch.device("cpu")


def apollo(**options):
    return lambda parameter: ApolloAdamW([{"params": [parameter], **options}])


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def published_rule(weights, gradients, *, rank, gap, scale, lr, betas, eps, weight_decay, scaling, seed=0):
    """The steps of the paper in the authors' order, in fp64, with our projections."""
    w, m, v, previous, path = weights.double(), 0.0, 0.0, None, []
    tall = w.shape[0] >= w.shape[1]
    for t, gradient in enumerate(gradients):
        g = gradient.double()
        p = random_projection((min(w.shape), rank), seed + t // gap, CPU).double()
        r = g @ p if tall else p.T @ g
        m = betas[0] * m + (1 - betas[0]) * r
        v = betas[1] * v + (1 - betas[1]) * r**2
        n = m / (v.sqrt() + eps)
        along = (0, 1) if scaling == "tensor" else 1 if tall else 0
        s = g * n.norm(dim=along, keepdim=True) / (r.norm(dim=along, keepdim=True) + 1e-8)
        norm = float(s.norm())
        limiter = 1.0 if previous is None else max(norm / (previous + 1e-8), 1.01) / 1.01
        previous = norm / limiter
        size = lr * math.sqrt(1 - betas[1] ** (t + 1)) / (1 - betas[0] ** (t + 1))
        w = w - size * scale * s / limiter
        w = w - lr * weight_decay * w
        path.append(w)
    return path


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("scaling", "rank"), [("channel", 4), ("tensor", 4), ("tensor", 1)])
@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_published_rule(shape, scaling, rank, foreach, stream, start, drive):
    options = {"rank": rank, "scale": 1.5, "lr": 0.03, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1}
    gradients = stream(*shape, 17)
    expected = published_rule(start(*shape), gradients, gap=5, scaling=scaling, **options)
    build = apollo(update_gap=5, scaling=scaling, foreach=foreach, **options)
    assert distance(drive(build, start(*shape), gradients), expected) < 3e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("scaling", "rank"), [("channel", 4), ("tensor", 1)])
@pytest.mark.parametrize("scale_front", [True, False])
def test_parity_with_the_authors_package(shape, scaling, rank, scale_front, monkeypatch, stream, start, drive, package):
    theirs, tall = package("apollo_torch.apollo", "apollo-torch"), shape[0] >= shape[1]
    draw = package("apollo_torch.random_projector", "apollo-torch")

    def same_projection(size, number, device):
        seed = 1  # of the first parameter, and anew from it at each renewal
        for _ in range(number):
            seed = draw.next_seed(seed)
        drawn = draw.stable_randn(size[::-1] if tall else size, seed=seed, device=device)
        return (drawn.T if tall else drawn) / math.sqrt(size[1])

    monkeypatch.setattr(module, "random_projection", same_projection)
    common = {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    group = {"rank": rank, "update_proj_gap": 5, "scale": 2.25, "proj": "random", "proj_type": "std"}
    expected = drive(
        lambda p: theirs.AdamW([{"params": [p], "scale_type": scaling, **group}], scale_front=scale_front, **common),
        start(*shape),
        stream(*shape, 17),
    )
    ours = apollo(rank=rank, update_gap=5, scale=1.5, scaling=scaling, **common)
    assert distance(drive(ours, start(*shape), stream(*shape, 17)), expected) < 2e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_step_normalises_each_channel_by_its_projection(shape, stream, start, drive):
    (gradient,) = stream(*shape, 1)
    moved = start(*shape) - drive(apollo(rank=4, eps=0.0, lr=0.01), start(*shape), [gradient])[0]
    projection, tall = random_projection((12, 4), 0, CPU), shape[0] >= shape[1]
    reduced = gradient @ projection if tall else projection.T @ gradient
    expected = 0.01 * gradient * math.sqrt(4) / reduced.norm(dim=1 if tall else 0, keepdim=True)
    assert torch.allclose(moved, expected, atol=1e-6)


def test_a_step_keeps_the_direction_of_every_channel_and_of_the_whole_matrix_in_mini(stream, start, drive):
    gradient = stream(12, 20, 3)
    for scaling, unit in (("channel", (0,)), ("tensor", (0, 1))):
        path = [start(12, 20), *drive(apollo(rank=3, scaling=scaling), start(12, 20), gradient)]
        for (old, new), g in zip(pairwise(path), gradient, strict=True):
            cosine = ((old - new) * g).sum(unit) / ((old - new).norm(dim=unit) * g.norm(dim=unit))
            assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-4)


@pytest.mark.parametrize("rank", [1, 8])
def test_random_projections_keep_squared_norms_on_average(rank):
    vector = torch.linspace(-1.0, 2.0, 32)
    squares = [float((random_projection((32, rank), seed, CPU).T @ vector).square().sum()) for seed in range(2000)]
    mean, length = sum(squares) / len(squares), float(vector.square().sum())
    deviation = length * math.sqrt(2.0 / rank / len(squares))  # ‖Pᵀ x‖²/‖x‖² is χ² of r degrees over r
    assert abs(mean - length) < 4 * deviation


def test_factors_grow_with_the_root_of_the_rank(stream):
    # What a larger α at a smaller rank makes up for: N has r entries of size 1 where Adam's direction has all of them.
    for rank in (2, 8, 32):
        (gradient,) = stream(32, 4000, 1)
        factors = module.channel_factors(
            (random_projection((32, rank), 5, CPU).T @ gradient)[None], torch.ones(1, rank, 4000), -2, "channel"
        )
        assert float((factors[0, 0] * gradient.norm(dim=0)).median()) == pytest.approx(math.sqrt(rank), rel=0.25)


def test_the_norm_of_the_update_grows_by_one_per_cent_at_most(stream, start):
    parameter = torch.nn.Parameter(start(12, 20))
    optimizer = ApolloAdamW([{"params": [parameter], "rank": 4}], betas=(0.0, 0.99), eps=1e3)  # so large: φ = 1/ε
    norms = []
    for t, gradient in enumerate(stream(12, 20, 1) * 12):
        parameter.grad = gradient * 1.5**t
        optimizer.step()
        norms.append(float(optimizer.state[parameter]["update_norm"]))
    assert [after / before for before, after in pairwise(norms)] == pytest.approx([1.01] * 11, rel=1e-5)


def test_a_gradient_of_zero_moves_nothing_and_does_not_stop_what_follows(stream, start, drive):
    first, last = stream(12, 20, 2)
    path = [start(12, 20), *drive(apollo(rank=4), start(12, 20), [first, torch.zeros(12, 20), last])]
    assert torch.equal(path[1], path[2])
    assert float((path[3] - path[2]).norm()) > 0.1 * float((path[1] - path[0]).norm())


def test_projections_are_renewed_after_the_gap_and_follow_from_the_seed(stream, start, drive):
    one, same = (drive(apollo(rank=4, seed=7), start(12, 20), stream(12, 20, 3)) for _ in range(2))
    assert distance(one, same) == 0.0
    other = drive(apollo(rank=4, seed=8), start(12, 20), stream(12, 20, 3))
    assert distance(one, other) > 1e-3
    renewed = drive(apollo(rank=4, seed=7, update_gap=2), start(12, 20), stream(12, 20, 3))
    assert distance(one[:2], renewed[:2]) == 0.0
    assert distance(one[2:], renewed[2:]) > 1e-4
    assert not torch.equal(random_projection((12, 4), 7, CPU), random_projection((12, 4), 8, CPU))


def test_a_resumed_optimizer_draws_the_same_projections(stream, start, drive):
    whole = drive(apollo(rank=4, update_gap=3, seed=11), start(12, 20), stream(12, 20, 8))
    parameter = torch.nn.Parameter(start(12, 20))
    optimizer = apollo(rank=4, update_gap=3, seed=11)(parameter)
    for number, gradient in enumerate(stream(12, 20, 8)):
        if number == 4:
            state, optimizer = optimizer.state_dict(), apollo(rank=4)(parameter)
            optimizer.load_state_dict(state)
        parameter.grad = gradient
        optimizer.step()
    assert torch.equal(parameter, whole[-1])


def test_groups_without_a_rank_take_the_steps_of_adamw(stream, start, drive):
    # ε is added to the uncorrected root here, so the two differ at ε > 0 while β₂ᵏ is not small.
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 0.0}
    theirs = drive(lambda p: torch.optim.Adam([p], **options), start(6, 5), stream(6, 5, 20))
    assert distance(drive(lambda p: ApolloAdamW([p], **options), start(6, 5), stream(6, 5, 20)), theirs) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "rank"), [((12, 20), 4), ((20, 12), 3), ((12, 12), 1)])
def test_state_is_two_moments_of_the_projection_and_one_norm(shape, rank, dtype):
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = apollo(rank=rank)(parameter)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = dict(optimizer.state[parameter])
    assert state.pop("step") == 1
    norm = state.pop("update_norm")
    assert (norm.shape, norm.dtype) == ((), torch.float32)
    assert [(buffer.numel(), buffer.dtype) for buffer in state.values()] == [(rank * max(shape), dtype)] * 2


def named_matrices():
    return [("w", torch.nn.Parameter(torch.zeros(8, 12))), ("n", torch.nn.Parameter(torch.zeros(8)))]


def test_plugin_passes_its_fields_on_and_leaves_other_roles_to_adam():
    run = Run(seed=0, steps=60, roles={"w": Role.MLP, "n": Role.NORM})
    algorithm = Apollo(lr=0.5, rank=3, scale=2.0, scaling="tensor", growth=1.5, beta1=0.1, beta2=0.2, eps=0.3)
    projected, rest = algorithm.optimizer(named_matrices(), run).param_groups
    assert (projected["rank"], rest["rank"]) == (3, None)
    names = ("lr", "betas", "eps", "weight_decay", "update_gap", "scale", "scaling", "growth")
    expected = (0.5, (0.1, 0.2), 0.3, 0.0, 10, 2.0, "tensor", 1.5)
    assert tuple(projected[name] for name in names) == expected
    defaults = Apollo().optimizer(named_matrices(), Run(seed=0, steps=9000, roles=run.roles)).param_groups[0]
    assert (defaults["rank"], defaults["update_gap"]) == (2, 200)


def test_a_model_without_matrices_to_project_is_refused():
    with pytest.raises(SlotMismatch, match="apollo found no matrix"):
        Apollo().optimizer(named_matrices(), Run(seed=0, steps=1, roles={"w": Role.EMBEDDING, "n": Role.NORM}))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("rank", 0), ("rank", 9), ("update_gap", 0), ("scale", 0.0), ("scaling", "row"), ("growth", 0.9)),
        *(("lr", -1.0), ("betas", (1.0, 0.9)), ("seed", -1), ("seed", 0.5)),
        *(("update_proj_gap", 200), ("scale_type", "tensor")),
    ],
)
def test_bad_options_are_refused_with_name_and_domain(option, value):
    with pytest.raises(BadValue, match="apollo") as raised:
        ApolloAdamW([{"params": [torch.nn.Parameter(torch.zeros(8, 12))], "rank": 2, option: value}])
    assert raised.value.hint


def test_projected_tensors_that_are_no_matrices_are_refused():
    with pytest.raises(BadValue, match="is no matrix"):
        ApolloAdamW([{"params": [torch.nn.Parameter(torch.zeros(4, 3, 2))], "rank": 2}])
