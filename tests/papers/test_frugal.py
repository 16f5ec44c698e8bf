"""FRUGAL against its paper and against what its special cases are.

No package provides it, and the authors' repository does not import on recent torch, so parity is not in this file: the
rule is written out in fp64 instead, and the special cases are held against torch.optim.AdamW and galore-torch.
"""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers._state_full import active_blocks, drawn_indices, found_projection, put, taken
from bench.plugins.optimizers.frugal import Frugal, FrugalAdamW, gram_basis, svd_basis
from bench.plugins.optimizers.galore import GaLoreAdamW

pytestmark = pytest.mark.paper

SHAPES = [(12, 20), (20, 12), (12, 12)]
ENTRIES = ["columns", "rows", "randk"]
BASES = ["svd", "random"]


def frugal(**options):
    return lambda parameter: FrugalAdamW([{"params": [parameter], **{"density": 0.25} | options}])


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def generator():
    return torch.Generator().manual_seed(0)


# -- the rule ------------------------------------------------------------------------------------------------------
def rule_in_float64(weights, gradients, projections, *, gap, lr, c, c0, betas, eps, weight_decay, reset=True):
    """The card's steps 2 to 5 written out in fp64, for given pairs (P, P⁻¹) of each gap."""
    w, path = weights.double().clone(), []
    m = v = torch.zeros(())
    k = 0
    for t, gradient in enumerate(gradients):
        g = gradient.double()
        down, up = projections[t // gap]
        if t % gap == 0 and reset:
            m = v = torch.zeros(())
            k = 0
        w = (1 - lr * weight_decay) * w
        k += 1
        inside = down(g)
        m = betas[0] * m + (1 - betas[0]) * inside
        v = betas[1] * v + (1 - betas[1]) * inside**2
        full = -lr * c * (m / (1 - betas[0] ** k)) / ((v / (1 - betas[1] ** k)).sqrt() + eps)
        w = w + up(full) - lr * c * c0 * (g - up(inside)).sign()
        path.append(w.clone())
    return path


def masked(mask):
    """A coordinate projection as a pair of maps: zeros instead of a smaller shape, which no element-wise rule sees."""
    return lambda g: g * mask, lambda x: x * mask


OPTIONS = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("subset", ENTRIES)
@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_published_rule_for_drawn_entries(shape, subset, foreach, stream, start, drive):
    draws, pairs = generator(), []
    for _ in range(4):
        indices = drawn_indices(torch.Size(shape), 0.25, subset, draws)
        ones = torch.ones_like(taken(torch.zeros(shape), indices, subset))
        pairs.append(masked(put(torch.zeros(shape), indices, subset, ones).double()))
    gradients = stream(*shape, 17)
    expected = rule_in_float64(start(*shape), gradients, pairs, gap=5, c=0.5, c0=0.3, **OPTIONS)
    options = {"subset": subset, "update_gap": 5, "projected_scale": 0.5, "state_free_scale": 0.3, "foreach": foreach}
    assert distance(drive(frugal(**options, **OPTIONS), start(*shape), gradients), expected) < 2e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("subset", BASES)
@pytest.mark.parametrize("reset", [True, False])
def test_every_step_is_the_published_rule_in_a_basis(shape, subset, reset, stream, start, drive):
    gradients, draws, pairs = stream(*shape, 17), generator(), []
    for epoch in range(4):
        projection = found_projection(gradients[5 * epoch], 0.25, subset, gram_basis, draws)
        left, right = (None if vectors is None else vectors.double() for vectors in projection)
        if right is None:
            pairs.append((lambda g, p=left: p.T @ g, lambda x, p=left: p @ x))
        else:
            pairs.append((lambda g, p=right: g @ p, lambda x, p=right: x @ p.T))
    expected = rule_in_float64(start(*shape), gradients, pairs, gap=5, c=0.5, c0=0.3, reset=reset, **OPTIONS)
    options = {"subset": subset, "update_gap": 5, "projected_scale": 0.5, "state_free_scale": 0.3, "reset": reset}
    assert distance(drive(frugal(**options, **OPTIONS), start(*shape), gradients), expected) < 2e-6


@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_published_rule_for_blocks(foreach, stream, start):
    shapes = [(12, 20), (20, 12), (12, 12), (12, 20)]
    parameters = [torch.nn.Parameter(start(*shape)) for shape in shapes]
    optimizer = FrugalAdamW(
        [{"params": parameters, "density": 0.5}],
        update_gap=5,
        projected_scale=0.5,
        state_free_scale=0.3,
        foreach=foreach,
        **OPTIONS,
    )
    streams = [stream(*shape, 17, seed=i) for i, shape in enumerate(shapes)]
    for gradients in zip(*streams, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for i, (parameter, gradients) in enumerate(zip(parameters, streams, strict=True)):
        pairs = [masked(float(i in active)) for active in ({3, 2}, {1, 0}, {3, 2}, {1, 0})]
        weights = start(*parameter.shape)
        expected = rule_in_float64(weights, gradients, pairs, gap=5, c=0.5, c0=0.3, **OPTIONS)[-1]
        assert float((parameter.detach() - expected).abs().max()) < 4e-6


# -- special cases -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("subset", ["block", *ENTRIES])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_density_one_is_adamw(subset, weight_decay, stream, start, drive):
    gradients, options = stream(12, 20, 12), {"lr": 1e-2, "weight_decay": weight_decay}
    ours = drive(frugal(density=1.0, subset=subset, update_gap=100, **options), start(12, 20), gradients)
    theirs = drive(lambda parameter: torch.optim.AdamW([parameter], **options), start(12, 20), gradients)
    assert distance(ours, theirs) < 5e-7


@pytest.mark.parametrize("subset", ["block", *ENTRIES, *BASES])
def test_density_zero_moves_every_entry_by_exactly_the_rate(subset, stream, start, drive):
    gradient = stream(12, 20, 1)[0].index_fill(0, torch.tensor([3]), 0.0)
    options = {"density": 0.0, "subset": subset, "lr": 2**-7, "projected_scale": 0.5, "state_free_scale": 0.25}
    weights = drive(frugal(**options), torch.zeros(12, 20), [gradient])[0]
    assert torch.equal(weights, -(2**-10) * gradient.sign())
    assert not weights[3].any()  # sign(0) = 0


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_without_a_rule_for_the_rest_and_without_reset_is_galore(shape, stream, start, drive):
    # ε = 0 takes the difference in its placement away.
    gradients, options = stream(*shape, 17), {"lr": 0.01, "eps": 0.0, "update_gap": 5}
    split = {"subset": "svd", "density": 1 / 3, "state_free": "none", "projected_scale": 0.25, "reset": False}
    ours = drive(frugal(**split, **options), start(*shape), gradients)
    galore = lambda p: GaLoreAdamW([{"params": [p], "rank": 4}], scale=0.25, **options)  # noqa: E731
    assert distance(ours, drive(galore, start(*shape), gradients)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_without_a_rule_for_the_rest_and_without_reset_is_galore_torch(shape, stream, start, drive, package):
    module = package("galore_torch.adamw", "galore-torch")
    gradients = stream(*shape, 17)

    def theirs(parameter):
        group = {"params": [parameter], "rank": 4, "update_proj_gap": 5, "scale": 0.25, "proj_type": "std"}
        return module.AdamW([group], lr=0.01, eps=0.0, no_deprecation_warning=True)

    def ours(parameter):
        group = {"params": [parameter], "density": 1 / 3, "subset": "svd", "state_free": "none", "reset": False}
        return FrugalAdamW([group], lr=0.01, eps=0.0, update_gap=5, projected_scale=0.25, basis=svd_basis)

    # ε is corrected here and not there; none takes the difference away.
    assert distance(drive(ours, start(*shape), gradients), drive(theirs, start(*shape), gradients)) < 1e-6


@pytest.mark.parametrize("subset", ["block", "columns", "randk"])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_layout_of_a_gradient_in_memory_does_not_matter(subset, density, stream, start, drive):
    """torch's fused AdamW pairs the wrong elements there."""
    gradients = stream(20, 12, 4)
    build = frugal(subset=subset, density=density)
    plain = drive(build, start(12, 20), [gradient.T.contiguous() for gradient in gradients])
    parameter = torch.nn.Parameter(start(12, 20))
    optimizer = build(parameter)
    for gradient in gradients:
        parameter.grad = gradient.T
        optimizer.step()
    assert distance([parameter.detach()], plain[-1:]) < 1e-6


def test_sgd_as_the_rule_for_the_rest_takes_the_residual_itself(stream, start, drive):
    gradient = stream(12, 20, 1)[0]
    options = {"density": 0.0, "state_free": "sgd", "lr": 0.5, "state_free_scale": 0.5}
    for subset in ("block", "columns"):
        moved = drive(frugal(subset=subset, **options), start(12, 20), [gradient])[0] - start(12, 20)
        assert torch.allclose(moved, -0.25 * gradient, atol=1e-6)


# -- the split -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("subset", [*ENTRIES, *BASES])
def test_parts_are_orthogonal_and_make_the_gradient(shape, subset, stream):
    gradient = stream(*shape, 1)[0]
    if subset in ENTRIES:
        indices = drawn_indices(gradient.shape, 0.25, subset, generator())
        inside = taken(gradient, indices, subset)
        back = put(torch.zeros_like(gradient), indices, subset, inside)
        assert len(set(indices.tolist())) == len(indices)
    else:
        projection = found_projection(gradient, 0.25, subset, gram_basis, generator())
        inside = projection.down(gradient)
        back = projection.up(inside)
        vectors = projection.left if projection.right is None else projection.right
        assert torch.allclose(vectors.T @ vectors, torch.eye(3), atol=1e-6)
    rest = gradient - back
    assert abs(float((back * rest).sum())) < 1e-4
    assert torch.allclose(back + rest, gradient, atol=1e-6)
    assert inside.numel() == {"columns": 0.25 * shape[1] // 1 * shape[0], "rows": 0.25 * shape[0] // 1 * shape[1]}.get(
        subset, shape[0] * shape[1] // 4 if subset == "randk" else 3 * max(shape)
    )


@pytest.mark.parametrize("subset", ENTRIES)
def test_first_step_after_a_renewal_is_the_sign_of_the_state_full_part(subset, stream, start, drive):
    path = drive(frugal(subset=subset, density=1.0, update_gap=4, lr=0.01), start(12, 20), stream(12, 20, 9))
    for t, gradient in enumerate(stream(12, 20, 9)):
        before = path[t - 1] if t else start(12, 20)
        signed = torch.allclose(path[t] - before, -0.01 * gradient.sign(), atol=1e-6)
        assert signed == (t % 4 == 0), t


@pytest.mark.parametrize("subset", [*ENTRIES, "random"])
def test_subset_is_drawn_anew_at_each_gap_and_for_each_matrix(subset, stream):
    first, second = (torch.nn.Parameter(torch.zeros(20, 20)) for _ in range(2))
    optimizer = FrugalAdamW([{"params": [first, second], "density": 0.25}], subset=subset, update_gap=3)
    seen = []
    for gradient in stream(20, 20, 7):
        first.grad = second.grad = gradient
        optimizer.step()
        seen.append([optimizer.state[p]["right" if subset == "random" else "indices"] for p in (first, second)])
    assert not torch.equal(seen[0][0], seen[0][1])
    changed = [not torch.equal(before[0], after[0]) for before, after in pairwise(seen)]
    assert changed == [False, False, True, False, False, True]


# -- blocks --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("descending", [[7, 6], [5, 4], [3, 2], [1, 0], [7, 6]]),
        ("ascending", [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1]]),
        ("mirror", [[0, 7], [1, 6], [2, 5], [3, 4], [0, 7]]),
    ],
)
def test_blocks_have_their_turn_in_the_published_orders(order, expected):
    assert [active_blocks(8, 2, epoch, order, generator()) for epoch in range(5)] == expected


def test_window_wraps_where_the_number_of_blocks_is_no_multiple():
    windows = [active_blocks(5, 2, epoch, "descending", generator()) for epoch in range(5)]
    assert windows == [[4, 3], [2, 1], [0, 4], [3, 2], [1, 0]]


def test_random_order_takes_no_block_twice_in_a_draw():
    draws = generator()
    windows = [active_blocks(8, 5, epoch, "random", draws) for epoch in range(20)]
    assert all(len(set(window)) == 5 for window in windows)
    assert len({tuple(window) for window in windows}) > 10


def test_every_tensor_is_active_once_in_a_round_and_the_state_is_that_of_the_active_ones(stream):
    shapes = [(4, 6), (6, 4), (8, 8), (2, 3)] * 2
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = FrugalAdamW([{"params": parameters, "density": 0.25}], update_gap=3)
    seen = []
    for step in range(12):
        for parameter in parameters:
            parameter.grad = stream(*parameter.shape, 1, seed=step)[0]
        optimizer.step()
        states = [optimizer.state[parameter] for parameter in parameters]
        active = [index for index, state in enumerate(states) if "exp_avg" in state]
        tensors = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        assert sum(t.numel() for t in tensors) == 2 * sum(parameters[index].numel() for index in active)
        seen += [active] if step % 3 == 0 else []
        assert seen[-1] == active
    assert sorted(index for active in seen for index in active) == list(range(8))


def test_block_without_a_gradient_keeps_its_place_and_joins_later(stream):
    late, early = (torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(2))
    optimizer = FrugalAdamW([{"params": [early, late], "density": 0.5}], update_gap=4, lr=0.01)
    for step, gradient in enumerate(stream(4, 6, 4)):
        early.grad = gradient
        late.grad = gradient if step >= 2 else None
        optimizer.step()
    assert optimizer.state[late]["step"] == 2
    assert not optimizer.state[early]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("subset", "elements"), [("columns", 12 * 5), ("rows", 3 * 20), ("randk", 60)])
def test_state_of_a_split_matrix_is_the_formula_of_the_card(dtype, subset, elements, stream):
    parameter = torch.nn.Parameter(torch.zeros(12, 20, dtype=dtype))
    optimizer = FrugalAdamW([{"params": [parameter], "density": 0.25}], subset=subset)
    parameter.grad = stream(12, 20, 1, dtype=dtype)[0]
    optimizer.step()
    state = dict(optimizer.state[parameter])
    assert state.pop("step") == 1
    assert state.pop("indices").numel() == {"columns": 5, "rows": 3, "randk": 60}[subset]
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    assert sum(tensor.numel() for tensor in state.values()) == 2 * elements


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("subset", BASES)
def test_state_in_a_basis_is_the_formula_of_the_card(shape, subset, stream):
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = FrugalAdamW([{"params": [parameter], "density": 1 / 3}], subset=subset)
    parameter.grad = stream(*shape, 1)[0]
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in tensors) == 12 * 4 + 2 * 4 * 20


# -- the plugin ----------------------------------------------------------------------------------------------------
ROLES = {"embed": Role.EMBEDDING, "q": Role.ATTENTION_Q, "up": Role.MLP, "norm": Role.NORM, "head": Role.LM_HEAD}


def groups_of(algorithm, run):
    shapes = {"embed": (50, 16), "q": (16, 16), "up": (48, 32), "norm": (16,), "head": (50, 16)}
    named = [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    optimizer = algorithm.optimizer(named, run)
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def a_run(steps=10_000):
    return Run(seed=0, steps=steps, roles=ROLES)


def test_plugin_splits_attention_and_mlp_matrices_as_published():
    groups = groups_of(Frugal(), a_run())
    assert {name: group["density"] for name, group in groups.items()} == {
        "embed": None,
        "q": 0.25,
        "up": 0.25,
        "norm": None,
        "head": None,
    }
    q = groups["q"]
    assert (q["lr"], q["eps"], q["weight_decay"], q["subset"], q["order"]) == (1e-3, 1e-8, 0.0, "block", "descending")
    assert (q["projected_scale"], q["state_free_scale"], q["state_free"], q["reset"]) == (1.0, 1.0, "sign", True)
    assert (q["update_gap"], groups_of(Frugal(), a_run(300))["q"]["update_gap"]) == (200, 50)


@pytest.mark.parametrize(
    ("options", "drawn"),
    [({}, False), ({"order": "random"}, True), ({"subset": "columns"}, True), ({"subset": "svd"}, False)],
)
def test_random_subsets_and_no_others_draw_from_the_run(options, drawn):
    run = a_run()
    groups_of(Frugal(**options), run)
    assert bool(run.generators) == drawn


def test_optimizer_can_be_pickled_with_its_generator(stream):
    parameter = torch.nn.Parameter(torch.zeros(12, 20))
    optimizer = FrugalAdamW([{"params": [parameter], "density": 0.25}], subset="columns", update_gap=1)
    copied = pickle.loads(pickle.dumps(optimizer))  # noqa: S301 - our own bytes
    (twin,) = copied.param_groups[0]["params"]
    for gradient in stream(12, 20, 3):
        parameter.grad, twin.grad = gradient, gradient.clone()
        optimizer.step()
        copied.step()
    assert torch.equal(parameter, twin)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("density", 1.5),
        ("density", -0.1),
        ("update_gap", 0),
        ("subset", "layers"),
        ("order", "upwards"),
        ("state_free", "adam"),
        ("projected_scale", 0.0),
        ("state_free_scale", -1.0),
    ],
)
def test_bad_hyperparameters_are_refused_inside_and_outside_the_suite(name, value):
    with pytest.raises(BadValue, match=rf"{name}(.|\n)*{value}"):
        Frugal(**{name: value})
    with pytest.raises(BadValue, match=rf"{name}(.|\n)*{value}"):
        FrugalAdamW([torch.nn.Parameter(torch.zeros(4, 4))], **{name: value})


def test_bad_groups_are_refused():
    matrices = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(4)]
    vector = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(BadValue, match=r"beta1(.|\n)*1\.0"):
        FrugalAdamW(matrices, betas=(1.0, 0.999))
    with pytest.raises(BadValue, match=r"mirror(.|\n)*1 active blocks of 4(.|\n)*even"):
        FrugalAdamW([{"params": matrices, "density": 0.25}], order="mirror")
    optimizer = FrugalAdamW(matrices)
    with pytest.raises(BadValue, match="is no matrix"):
        optimizer.add_param_group({"params": [vector], "density": 0.5})
    assert len(optimizer.param_groups) == 1


def test_model_without_a_matrix_to_split_is_refused():
    with pytest.raises(SlotMismatch, match="frugal found no matrix"):
        Frugal().optimizer([("b", torch.nn.Parameter(torch.zeros(3)))], Run(seed=0, steps=1, roles={"b": Role.MLP}))
