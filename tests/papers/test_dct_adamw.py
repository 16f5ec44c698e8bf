"""DCT-AdamW against its paper, scipy's transforms and its authors' package.

The package is compared with rotation off and its choice of columns sorted: unsorted it permutes the moments, and its
rotation overwrites its own input. Rotation and the rule itself are held against a version written out in fp64 with
scipy's transform and explicit products of bases.
"""

from __future__ import annotations

import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.fft
import torch

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers._cosine import (
    basis_rows,
    columns,
    coordinates,
    cosine_matrix,
    cosine_transform,
    fitting_columns,
    moved,
)
from bench.plugins.optimizers.dct_adamw import DctAdamW, DctAdamWOptimizer

pytestmark = pytest.mark.paper

SHAPES = [(12, 20), (20, 12), (12, 12)]
CPU = torch.device("cpu")


def dct(**options):
    return lambda parameter: DctAdamWOptimizer([{"params": [parameter], **options}])


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


# -- the transform -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 7, 12, 128])
def test_basis_is_orthogonal_and_of_the_published_entries(size):
    q = cosine_matrix(size, torch.float32, CPU)
    assert float((q.mT @ q - torch.eye(size)).abs().max()) < 1e-6
    for i, j in ((0, 0), (size - 1, size // 2)):
        entry = (
            math.sqrt(2 / size) * math.cos(math.pi * i * (2 * j + 1) / (2 * size)) * (math.sqrt(0.5) if i == 0 else 1)
        )
        assert float(q[i, j]) == pytest.approx(entry, abs=1e-7)


@pytest.mark.parametrize("size", [1, 2, 7, 12, 128])
def test_product_is_the_dct_iii_and_makhouls_algorithm_the_dct_ii(size, stream):
    a = stream(5, size, 1)[0]
    third, second = (torch.from_numpy(scipy.fft.dct(a.double().numpy(), type=t, norm="ortho")) for t in (3, 2))
    assert float((coordinates(a, "matmul") - third).abs().max()) < 5e-6
    assert float((coordinates(a, "fft") - second).abs().max()) < 5e-6
    assert float((cosine_transform(a) - a @ cosine_matrix(size, torch.float32, CPU).mT).abs().max()) < 5e-6


@pytest.mark.parametrize("transform", ["matmul", "fft"])
def test_coordinates_are_those_in_the_rows_of_the_basis(transform, stream):
    a = stream(5, 12, 1)[0]
    rows = basis_rows(a, transform)
    assert float((coordinates(a, transform) - a @ rows.mT).abs().max()) < 2e-6
    assert float((rows @ rows.mT - torch.eye(12)).abs().max()) < 1e-6


def test_the_two_bases_are_two_trajectories(stream, start, drive):
    gradients = stream(20, 12, 5)
    paths = [drive(dct(rank=4, transform=transform), start(20, 12), gradients) for transform in ("matmul", "fft")]
    assert distance(*paths) > 1e-3


# -- the choice ----------------------------------------------------------------------------------------------------
def test_l2_choice_has_the_smallest_error_of_all_subsets(stream):
    for seed in range(5):
        a = stream(9, 6, 1, seed=seed)[0].double()
        b = basis_rows(a, "matmul")
        error = {i: float((a - a @ b[list(i)].mT @ b[list(i)]).norm()) for i in combinations(range(6), 3)}
        chosen = fitting_columns(coordinates(a, "matmul")[None], 3, "l2")[0]
        assert tuple(chosen.tolist()) == min(error, key=error.get)


def test_l1_choice_takes_the_largest_sums_of_magnitudes_in_ascending_order(stream):
    s = torch.stack(stream(9, 6, 4))
    chosen = fitting_columns(s, 3, "l1")
    assert torch.equal(chosen, s.abs().sum(dim=1).argsort(dim=1, descending=True)[:, :3].sort(dim=1).values)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("transform", ["matmul", "fft"])
def test_gradient_along_one_column_is_reproduced_with_rank_one(shape, transform, stream, start, drive):
    s, l = min(shape), max(shape)  # noqa: E741 - the card's symbols
    row = basis_rows(torch.zeros(1, s), transform)[5]
    gradient = stream(l, 1, 1)[0] @ row[None]
    gradient = gradient if shape[0] >= shape[1] else gradient.T
    parameter = torch.nn.Parameter(start(*shape))
    optimizer = DctAdamWOptimizer([{"params": [parameter], "rank": 1, "transform": transform}])
    parameter.grad = gradient
    optimizer.step()
    state = optimizer.state[parameter]
    assert state["indices"].tolist() == [5]
    assert float(state["feedback"].abs().max()) < 1e-6
    assert float((state["exp_avg"] / 0.1).norm()) == pytest.approx(float(gradient.norm()), rel=1e-5)


# -- rotation ------------------------------------------------------------------------------------------------------
def test_rotation_by_index_is_the_product_with_the_exact_matrix_of_zeros_and_ones(stream):
    generator = torch.Generator().manual_seed(0)
    b = cosine_matrix(12, torch.float64, CPU)
    pairs = [[torch.randperm(12, generator=generator)[:5].sort().values for _ in range(2)] for _ in range(8)]
    old, new = (torch.stack(side) for side in zip(*pairs, strict=True))
    moments = torch.stack(stream(20, 5, 8)).double()
    for moment, i, j, got in zip(moments, old, new, moved(moments, old, new, 12), strict=True):
        rotation = (b[:, i].mT @ b[:, j]).round()
        assert set(rotation.unique().tolist()) <= {0.0, 1.0}
        assert float(rotation.sum(dim=0).max()) <= 1.0
        assert torch.equal(got, moment @ rotation)


def test_unchanged_columns_keep_their_moments(stream):
    moments, same = torch.stack(stream(20, 3, 1)), torch.tensor([[1, 4, 9]])
    assert torch.equal(moved(moments, same, same, 12), moments)


# -- the rule ------------------------------------------------------------------------------------------------------
def rule_in_float64(weights, gradients, *, rank, gap, lr, betas, eps, weight_decay, feedback, rotate, norm=1, kind=3):
    """The card's steps 1 to 7 written out in fp64, left and right side each in its own form."""
    w, path = weights.double().numpy().copy(), []
    tall = w.shape[0] >= w.shape[1]
    q = scipy.fft.dct(np.eye(min(w.shape)), type=kind, norm="ortho")
    xi, indices = np.zeros_like(w), None
    m = v = 0.0
    for k, gradient in enumerate(gradients, start=1):
        w = (1 - lr * weight_decay) * w
        a = gradient.double().numpy() + xi
        if k == 1 or k % gap == 0:
            scores = np.linalg.norm(a @ q if tall else q.T @ a, ord=norm, axis=0 if tall else 1)
            chosen = np.sort(np.argsort(scores)[-rank:])
            if rotate and k > 1:
                r = q[:, indices].T @ q[:, chosen] if tall else q[:, chosen].T @ q[:, indices]
                r = np.round(r)  # exact: it is a matrix of zeros and ones
                m, v = (m @ r, np.abs(v @ r)) if tall else (r @ m, np.abs(r @ v))
            indices = chosen
        basis = q[:, indices]
        low = a @ basis if tall else basis.T @ a
        back = (lambda x: x @ basis.T) if tall else (lambda x: basis @ x)  # noqa: B023 - used in this turn only
        xi = a - back(low) if feedback else xi
        m = betas[0] * m + (1 - betas[0]) * low
        v = betas[1] * v + (1 - betas[1]) * low * low
        root = math.sqrt(1 - betas[1] ** k)
        w = w - lr * root / (1 - betas[0] ** k) * back(m / (np.sqrt(v) + eps * root))
        path.append(torch.from_numpy(w.copy()))
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("feedback", ["exact", "none"])
@pytest.mark.parametrize("gap", [1, 4])
@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_published_rule(shape, rotate, feedback, gap, foreach, stream, start, drive):
    options = {"rank": 4, "lr": 0.03, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1, "rotate": rotate}
    gradients = stream(*shape, 13)
    expected = rule_in_float64(start(*shape), gradients, gap=gap, feedback=feedback == "exact", **options)
    ours = drive(dct(update_gap=gap, feedback=feedback, foreach=foreach, **options), start(*shape), gradients)
    assert distance(ours, expected) < 3e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_fft_and_l2_are_the_published_rule_in_the_other_basis(shape, stream, start, drive):
    options = {"rank": 4, "lr": 0.03, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.0, "rotate": True}
    gradients = stream(*shape, 13)
    expected = rule_in_float64(start(*shape), gradients, gap=1, feedback=True, norm=2, kind=2, **options)
    ours = drive(dct(norm="l2", transform="fft", **options), start(*shape), gradients)
    assert distance(ours, expected) < 3e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rotate", [True, False])
def test_full_rank_is_adam_in_cosine_coordinates_and_not_adam(shape, rotate, stream, start, drive):
    gradients, lr = stream(*shape, 9), 1e-2
    q = cosine_matrix(12, torch.float32, CPU)
    into = (lambda x: x @ q) if shape[0] >= shape[1] else (lambda x: q.mT @ x)
    back = (lambda x: x @ q.mT) if shape[0] >= shape[1] else (lambda x: q @ x)
    adam = lambda parameter: torch.optim.Adam([parameter], lr=lr)  # noqa: E731
    rotated = [back(w) for w in drive(adam, into(start(*shape)), [into(gradient) for gradient in gradients])]
    ours = drive(dct(rank=12, lr=lr, rotate=rotate), start(*shape), gradients)
    assert distance(ours, rotated) < 2e-6
    assert distance(ours, drive(adam, start(*shape), gradients)) > 1e-3


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_what_is_stepped_and_what_is_fed_back_make_the_gradient(shape, stream):
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = DctAdamWOptimizer([{"params": [parameter], "rank": 4}])
    before = total = stepped = torch.zeros(shape)
    for gradient in stream(*shape, 8):
        parameter.grad = gradient
        optimizer.step()
        state = optimizer.state[parameter]
        accumulated, feedback = gradient + before, state["feedback"]
        inside = accumulated - feedback
        long = (lambda x: x.T) if shape[0] < shape[1] else (lambda x: x)
        kept = torch.zeros(12, dtype=torch.bool).index_fill(0, state["indices"].long(), value=True)
        assert float(coordinates(long(feedback), "matmul")[:, kept].abs().max()) < 5e-6
        assert float(coordinates(long(inside), "matmul")[:, ~kept].abs().max()) < 5e-6
        total, stepped, before = total + gradient, stepped + inside, feedback.clone()
    assert torch.allclose(stepped + before, total, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 15)])
@pytest.mark.parametrize(("feedback", "bits"), [("8-bit", 8), ("4-bit", 4)])
def test_quantized_feedback_is_within_half_a_level_of_the_exact_one(shape, feedback, bits, stream):
    exact, rounded = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
    optimizers = [
        DctAdamWOptimizer([{"params": [parameter], "rank": 3, "feedback": kind}])
        for parameter, kind in ((exact, "exact"), (rounded, feedback))
    ]
    gradient = stream(*shape, 1)[0]
    if shape[0] >= shape[1]:
        gradient[2] = 0.0  # on the right a zero row stays one, and a constant row must not divide by zero
    for parameter, optimizer in zip((exact, rounded), optimizers, strict=True):
        parameter.grad = gradient
        optimizer.step()
    truth, state = optimizers[0].state[exact]["feedback"], optimizers[1].state[rounded]
    codes = state["feedback_codes"]
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)[:, : shape[1]]
    values = (codes.float() - state["feedback_zeros"].float()) * state["feedback_scales"]
    assert ((values - truth).abs() <= 0.5001 * state["feedback_scales"] + 1e-7).all()
    assert int(codes.max()) == 2**bits - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bit_feedback_stays_near_the_exact_trajectory_and_four_bits_less_near(shape, stream, start, drive):
    # The columns are chosen once, so that rounding changes no choice.
    gradients, options = stream(*shape, 20), {"rank": 4, "lr": 0.01, "update_gap": 10**6}
    exact, eight, four = (
        drive(dct(feedback=feedback, **options), start(*shape), gradients)[-1]
        for feedback in ("exact", "8-bit", "4-bit")
    )
    moved_by = float((exact - start(*shape)).norm())
    assert float((eight - exact).norm()) < 0.02 * moved_by
    assert float((eight - exact).norm()) < float((four - exact).norm()) < 0.5 * moved_by


# -- state ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12), (7, 41)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("feedback", ["exact", "8-bit", "4-bit", "none"])
def test_state_is_the_formula_of_the_card(shape, dtype, feedback, stream):
    parameter, rank = torch.nn.Parameter(torch.zeros(shape, dtype=dtype)), 3
    optimizer = DctAdamWOptimizer([{"params": [parameter], "rank": rank, "feedback": feedback}])
    for gradient in stream(*shape, 2, dtype=dtype):
        parameter.grad = gradient
        optimizer.step()
    state = dict(optimizer.state[parameter])
    assert state.pop("step") == 2
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (max(shape), rank)
    m, n = shape
    held = {"exact": m * n * dtype.itemsize, "8-bit": m * n + 5 * m, "4-bit": m * -(-n // 2) + 5 * m, "none": 0}
    expected = 2 * rank * max(shape) * dtype.itemsize + 4 * rank + held[feedback]
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) == expected


def test_matrices_of_several_sizes_have_a_basis_each(stream):
    shapes = [(12, 20), (8, 30), (30, 6), (12, 20)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = DctAdamWOptimizer([{"params": parameters, "rank": 3}])
    for step in range(3):
        for parameter in parameters:
            parameter.grad = stream(*parameter.shape, 1, seed=step)[0]
        optimizer.step()
    assert torch.equal(parameters[0], parameters[3])
    assert all(parameter.abs().sum() > 0 for parameter in parameters)


# -- other packages ------------------------------------------------------------------------------------------------
@pytest.fixture
def released(module_alone, monkeypatch):
    """The package's module, without the package's own imports, which need CUDA kernels; its columns are sorted."""
    topk = torch.topk
    in_order = lambda **options: SimpleNamespace(indices=topk(**options).indices.sort().values)  # noqa: E731
    monkeypatch.setattr(torch, "topk", in_order)
    return module_alone("ista_daslab_optimizers.fft_low_rank.dct_adamw", "ista-daslab-optimizers")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("gap", [1, 4])
@pytest.mark.parametrize(
    ("transform", "theirs", "norm"), [("matmul", "matmul", 1), ("matmul", "matmul", 2), ("fft", "makhoul", 1)]
)
def test_parity_with_ista_daslab_optimizers(
    shape, feedback, gap, transform, theirs, norm, stream, start, drive, released
):
    """With the FFT the release takes the l1 norm whatever it is told."""
    gradients, options = stream(*shape, 12), {"lr": 0.01, "weight_decay": 0.1, "rank": 4}
    chosen = {"use_ef": feedback, "update_proj_gap": gap, "sim_type": theirs, "ell_norm": norm}
    reference = drive(lambda p: released.DCTAdamW([p], proj="dct", **chosen, **options), start(*shape), gradients)
    chosen = {"feedback": "exact" if feedback else "none", "update_gap": gap, "transform": transform}
    ours = dct(rotate=False, norm=f"l{norm}", **chosen, **options)
    assert distance(drive(ours, start(*shape), gradients), reference) < 1e-6


# -- the plugin ----------------------------------------------------------------------------------------------------
ROLES = {"embed": Role.EMBEDDING, "q": Role.ATTENTION_Q, "up": Role.MLP, "norm": Role.NORM, "head": Role.LM_HEAD}


def groups_of(algorithm):
    shapes = {"embed": (50, 16), "q": (16, 16), "up": (48, 32), "norm": (16,), "head": (50, 16)}
    named = [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    optimizer = algorithm.optimizer(named, Run(seed=0, steps=300, roles=ROLES))
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def test_plugin_follows_the_paper_where_its_code_differs():
    groups = groups_of(DctAdamW())
    ranks = {"embed": None, "q": 4, "up": 8, "norm": None, "head": None}
    assert {name: group["rank"] for name, group in groups.items()} == ranks
    q = groups["q"]
    assert (q["update_gap"], q["feedback"], q["rotate"], q["norm"], q["transform"]) == (
        1,
        "exact",
        True,
        "l1",
        "matmul",
    )
    assert (q["lr"], q["eps"], q["weight_decay"]) == (1e-3, 1e-8, 0.0)


def test_what_is_not_projected_takes_the_steps_of_torch_adamw(stream, start, drive):
    options = {"lr": 0.01, "weight_decay": 0.1}
    ours = drive(lambda p: DctAdamWOptimizer([p], **options), start(5, 7), stream(5, 7, 9))
    theirs = drive(lambda p: torch.optim.AdamW([p], **options), start(5, 7), stream(5, 7, 9))
    assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("rank", 0), ("update_gap", 0), ("feedback", "2-bit"), ("norm", "l3"), ("transform", "hadamard")],
)
def test_bad_hyperparameters_are_refused_inside_and_outside_the_suite(name, value):
    with pytest.raises(BadValue, match=rf"{name}(.|\n)*{value}"):
        DctAdamW(**{name: value})
    with pytest.raises(BadValue, match=rf"{name}(.|\n)*{value}"):
        DctAdamWOptimizer([torch.nn.Parameter(torch.zeros(4, 4))], **{name: value})


def test_bad_groups_are_refused():
    with pytest.raises(BadValue, match=r"dct-adamw: rank = 17 \(int\).*'q' of shape \(16, 16\)(.|\n)*1 <= rank <= 16"):
        groups_of(DctAdamW(rank=17))
    optimizer = DctAdamWOptimizer([torch.nn.Parameter(torch.zeros(4, 4))])
    with pytest.raises(BadValue, match="is no matrix"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(4))], "rank": 1})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(SlotMismatch, match="dct-adamw found no matrix"):
        DctAdamW().optimizer([("b", torch.nn.Parameter(torch.zeros(3)))], Run(seed=0, steps=1, roles={"b": Role.MLP}))


def test_chosen_columns_are_gathered_for_each_matrix_of_a_batch(stream):
    batch = torch.stack(stream(5, 6, 3))
    indices = torch.tensor([[0, 2], [1, 5], [3, 4]])
    expected = torch.stack([matrix[:, chosen] for matrix, chosen in zip(batch, indices, strict=True)])
    assert torch.equal(columns(batch, indices), expected)
