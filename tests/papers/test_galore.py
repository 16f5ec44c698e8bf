"""GaLore against its paper, its authors' code and a third implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench import BenchError, Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers._projection import side_of
from bench.plugins.optimizers.galore import GaLore, GaLoreAdamW, gram_basis, subspace_basis, svd_basis

pytestmark = pytest.mark.paper

SHAPES = [(12, 20), (20, 12), (12, 12)]

NOISE_PROOF_EPS = 1e-3
"""With both sides projected, R is diagonal at a refresh but for rounding, which Adam with a tiny ε would blow up."""


def galore(basis=gram_basis, **options):
    return lambda parameter: GaLoreAdamW([{"params": [parameter], **options}], basis=basis)


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def with_signs_of_svd(gradient, rank, side, previous):
    """The fast basis with each vector turned the way that the SVD returns it."""
    fast, published = gram_basis(gradient, rank, side, previous), svd_basis(gradient, rank, side, previous)
    turned = {
        name: None if getattr(fast, name) is None else turn(getattr(fast, name), getattr(published, name))
        for name in ("left", "right")
    }
    return fast._replace(**turned)


def turn(vectors, towards):
    return vectors * (vectors * towards).sum(dim=-2, keepdim=True).sign()


# -- the rule ------------------------------------------------------------------------------------------------------
def rule_in_float64(weights, gradients, *, rank, gap, scale, lr, betas, eps, weight_decay):
    """Steps 1 to 6 of the rule, written out in fp64 with the SVD's signs fixed as the fast basis fixes them."""
    w = weights.double().clone()
    exp_avg = exp_avg_sq = basis = None
    path = []
    tall = w.shape[0] >= w.shape[1]
    for t, gradient in enumerate(gradients):
        g = gradient.double()
        if t % gap == 0:
            u, _, vt = torch.linalg.svd(g, full_matrices=False)
            basis = vt[:rank].T if tall else u[:, :rank]
            basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
        r = g @ basis if tall else basis.T @ g
        exp_avg = (1 - betas[0]) * r if exp_avg is None else betas[0] * exp_avg + (1 - betas[0]) * r
        exp_avg_sq = (1 - betas[1]) * r * r if exp_avg_sq is None else betas[1] * exp_avg_sq + (1 - betas[1]) * r * r
        n = exp_avg / (exp_avg_sq.sqrt() + eps)
        k = t + 1
        size = lr * math.sqrt(1 - betas[1] ** k) / (1 - betas[0] ** k)
        w = w - size * scale * (n @ basis.T if tall else basis @ n)
        w = w - lr * weight_decay * w
        path.append(w.clone())
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_is_the_published_rule(shape, stream, start, drive):
    options = {"rank": 4, "scale": 0.25, "lr": 0.03, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1}
    gradients = stream(*shape, 17)
    expected = rule_in_float64(start(*shape), gradients, gap=5, **options)
    assert distance(drive(galore(update_gap=5, **options), start(*shape), gradients), expected) < 2e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("basis", [svd_basis, gram_basis])
def test_sgd_in_a_full_rank_projection_is_sgd(shape, basis, stream, start):
    ours, theirs = start(*shape), torch.nn.Parameter(start(*shape))
    sgd = torch.optim.SGD([theirs], lr=0.1)
    for gradient in stream(*shape, 10):
        projection = basis(gradient, 12, side_of(gradient.shape, "std"), None)
        ours -= 0.1 * projection.up(projection.down(gradient))
        theirs.grad = gradient
        sgd.step()
    assert distance([ours], [theirs.detach()]) < 2e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_adam_at_full_rank_is_adam_in_the_singular_basis_and_not_adam(shape, stream, start, drive):
    gradients = stream(*shape, 7)
    options = {"lr": 1e-2, "eps": 1e-12}
    path = drive(galore(rank=12, scale=1.0, basis=svd_basis, **options), start(*shape), gradients)
    first = svd_basis(gradients[0], 12, side_of(gradients[0].shape, "std"), None)
    adam = lambda parameter: torch.optim.Adam([parameter], **options)  # noqa: E731
    rotated = drive(adam, first.down(start(*shape)), [first.down(gradient) for gradient in gradients])
    assert distance(path, [first.up(weights) for weights in rotated]) < 2e-5
    assert distance(path, drive(adam, start(*shape), gradients)) > 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_move_within_one_subspace_of_the_rank_until_the_gap_is_over(shape, stream, start, drive):
    path = drive(galore(rank=3, update_gap=6), start(*shape), stream(*shape, 7))
    for k, weights in enumerate(path):
        values = torch.linalg.svdvals(weights - start(*shape))
        inside = 3 if k < 6 else 6
        assert values[inside - 1] > 1e-4
        assert values[inside] < 1e-6


def test_complement_of_the_gradients_subspace_stays_unchanged(start, drive):
    generator = torch.Generator().manual_seed(3)
    columns = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q
    inside, outside = columns[:, :3], columns[:, 3:]
    gradients = [torch.randn(30, 3, generator=generator) @ inside.T for _ in range(9)]
    path = drive(galore(rank=3, update_gap=4), start(30, 20), gradients)
    assert float(((path[-1] - start(30, 20)) @ outside).abs().max()) < 1e-6
    assert float(((path[-1] - start(30, 20)) @ inside).abs().max()) > 1e-3


def test_transposed_problem_has_the_transposed_trajectory(stream, start, drive):
    gradients = stream(12, 20, 17)
    wide = drive(galore(rank=4, update_gap=5), start(12, 20), gradients)
    tall = drive(galore(rank=4, update_gap=5), start(12, 20).T.contiguous(), [g.T.contiguous() for g in gradients])
    assert distance(wide, [weights.T for weights in tall]) < 1e-6


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12), (6, 40)])
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_state_is_the_formula_of_the_card(shape, rank, stream):
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = GaLoreAdamW([{"params": [parameter], "rank": rank}])
    parameter.grad = stream(*shape, 1)[0]
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    s, l = min(shape), max(shape)  # noqa: E741 - the card's symbols
    assert sum(tensor.numel() for tensor in tensors) == s * rank + 2 * rank * l
    assert optimizer.state[parameter]["step"] == 1


def test_basis_is_renewed_at_steps_0_t_2t_of_each_parameter(stream):
    renewed = []

    def spy(gradient, rank, side, previous):
        renewed.append((step, tuple(gradient.shape[1:]), previous is None))
        return gram_basis(gradient, rank, side, previous)

    early, late = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 6), (6, 4)))
    optimizer = GaLoreAdamW([{"params": [early, late], "rank": 2, "update_gap": 3}], basis=spy)
    for step, gradient in enumerate(stream(4, 6, 8)):
        early.grad = gradient
        late.grad = gradient.T if step >= 2 else None
        optimizer.step()
    assert [(s, first) for s, shape, first in renewed if shape == (4, 6)] == [(0, True), (3, False), (6, False)]
    assert [(s, first) for s, shape, first in renewed if shape == (6, 4)] == [(2, True), (5, False)]


def test_bfloat16_second_moment_cannot_decay_and_float32_can(stream):
    def second_moment(dtype):
        parameter = torch.nn.Parameter(torch.zeros(12, 20, dtype=dtype))
        optimizer = GaLoreAdamW([{"params": [parameter], "rank": 4, "update_gap": 10**6}])
        for k, gradient in enumerate(stream(12, 20, 3000)):
            parameter.grad = (gradient if k < 1000 else gradient / 10).to(dtype)
            optimizer.step()
            if k == 999:
                before = optimizer.state[parameter]["exp_avg_sq"].float().mean()
        return float(optimizer.state[parameter]["exp_avg_sq"].float().mean() / before)

    assert second_moment(torch.float32) < 0.2
    assert second_moment(torch.bfloat16) > 0.9


# -- other packages ------------------------------------------------------------------------------------------------
def reference(module, parameter, **options):
    group = {"params": [parameter], "proj_type": "std", **options}
    return module.AdamW([group], lr=0.01, no_deprecation_warning=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_parity_with_galore_torch_over_several_refreshes(shape, weight_decay, stream, start, drive, package):
    module = package("galore_torch.adamw", "galore-torch")
    options = {"rank": 4, "scale": 0.25, "weight_decay": weight_decay}
    gradients = stream(*shape, 23)
    theirs = drive(lambda p: reference(module, p, update_proj_gap=5, **options), start(*shape), gradients)
    ours = drive(galore(lr=0.01, update_gap=5, basis=svd_basis, **options), start(*shape), gradients)
    assert distance(ours, theirs) < 1e-6
    fast = drive(galore(lr=0.01, update_gap=5, basis=with_signs_of_svd, **options), start(*shape), gradients)
    assert distance(fast, theirs) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["reverse_std", "left", "right", "full"])
def test_parity_with_galore_torch_for_the_other_projection_types(shape, kind, stream, start, drive, package):
    module = package("galore_torch.adamw", "galore-torch")
    options = {"rank": 4, "scale": 0.25, "eps": NOISE_PROOF_EPS if kind == "full" else 1e-6}
    gradients = stream(*shape, 12)
    build = lambda p: reference(module, p, update_proj_gap=5, **options | {"proj_type": kind})  # noqa: E731
    theirs = drive(build, start(*shape), gradients)
    for basis in (svd_basis, with_signs_of_svd):
        path = drive(
            galore(lr=0.01, update_gap=5, projection_type=kind, basis=basis, **options), start(*shape), gradients
        )
        assert distance(path, theirs) < 1e-6


def test_parity_with_galore_torch_where_nothing_is_projected(stream, start, drive, package):
    module = package("galore_torch.adamw", "galore-torch")
    gradients = stream(5, 7, 9)
    build = lambda p: module.AdamW([p], lr=0.01, weight_decay=0.1, no_deprecation_warning=True)  # noqa: E731
    ours = drive(lambda p: GaLoreAdamW([p], lr=0.01, weight_decay=0.1), start(5, 7), gradients)
    assert distance(ours, drive(build, start(5, 7), gradients)) < 1e-6


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_parity_with_pytorch_optimizer_until_a_refresh_which_it_counts_from_one(shape, stream, start, drive, package):
    module = package("pytorch_optimizer", "pytorch-optimizer")
    gradients = stream(*shape, 12)

    def theirs(parameter):
        group = {"params": [parameter], "rank": 4, "update_proj_gap": 5, "scale": 0.25, "projection_type": "std"}
        return module.GaLore([group], lr=0.01)

    ours = drive(galore(rank=4, update_gap=5, scale=0.25, lr=0.01, basis=svd_basis), start(*shape), gradients)
    other = drive(theirs, start(*shape), gradients)
    assert distance(ours[:4], other[:4]) < 2.5e-7  # one unit in the last place of the largest weights
    assert distance(ours, other) > 1e-4


# -- the fast basis ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["std", "reverse_std", "left", "right", "full"])
def test_fast_basis_with_aligned_signs_reproduces_the_svd_path(shape, kind, stream, start, drive):
    options = {"rank": 4, "update_gap": 5, "projection_type": kind, "eps": NOISE_PROOF_EPS if kind == "full" else 1e-6}
    gradients = stream(*shape, 23)
    published = drive(galore(basis=svd_basis, **options), start(*shape), gradients)
    assert distance(drive(galore(basis=with_signs_of_svd, **options), start(*shape), gradients), published) < 1e-6


def test_one_flipped_vector_changes_the_trajectory_after_a_refresh(stream, start, drive):
    def flipped(gradient, rank, side, previous):
        projection = svd_basis(gradient, rank, side, previous)
        signs = torch.ones(rank).index_fill(0, torch.tensor([0]), -1.0 if previous is not None else 1.0)
        return projection._replace(right=projection.right * signs)

    gradients = stream(20, 12, 12)
    plain = drive(galore(rank=4, update_gap=5, scale=1.0, lr=0.01, basis=svd_basis), start(20, 12), gradients)
    turned = drive(galore(rank=4, update_gap=5, scale=1.0, lr=0.01, basis=flipped), start(20, 12), gradients)
    assert distance(plain[:5], turned[:5]) == 0.0
    assert distance(plain, turned) > 1e-3


def test_subspace_iteration_tracks_a_slowly_turning_gradient(start, drive):
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(30, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    gradients = [signal + 0.02 * torch.randn(30, 20, generator=generator) for _ in range(12)]
    exact = drive(galore(rank=3, update_gap=3), start(30, 20), gradients)
    assert distance(drive(galore(rank=3, update_gap=3, basis=subspace_basis), start(30, 20), gradients), exact) < 1e-4


# -- the plugin ----------------------------------------------------------------------------------------------------
ROLES = {"embed": Role.EMBEDDING, "q": Role.ATTENTION_Q, "up": Role.MLP, "norm": Role.NORM, "head": Role.LM_HEAD}


def parameters():
    shapes = {"embed": (50, 16), "q": (16, 16), "up": (48, 32), "norm": (16,), "head": (50, 16)}
    return [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]


def groups_of(algorithm, steps=10_000):
    optimizer = algorithm.optimizer(parameters(), Run(seed=0, steps=steps, roles=ROLES))
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def test_plugin_projects_attention_and_mlp_matrices_at_a_quarter_of_their_short_side():
    groups = groups_of(GaLore())
    assert {name: group["rank"] for name, group in groups.items()} == {
        "embed": None,
        "q": 4,
        "up": 8,
        "norm": None,
        "head": None,
    }
    assert {group["lr"] for group in groups.values()} == {1e-2}
    assert groups["q"]["scale"] == 0.25
    assert groups["q"]["eps"] == 1e-6


@pytest.mark.parametrize(("steps", "gap"), [(10_000, 200), (1200, 200), (300, 50), (5, 1)])
def test_default_gap_is_the_published_one_or_a_sixth_of_a_short_run(steps, gap):
    assert groups_of(GaLore(), steps)["q"]["update_gap"] == gap
    assert groups_of(replace(GaLore(), update_gap=7), steps)["q"]["update_gap"] == 7


def test_what_is_not_projected_moves_at_the_full_rate_without_the_scale():
    named = parameters()
    optimizer = GaLore(rank=2).optimizer(named, Run(seed=0, steps=600, roles=ROLES))
    before = {name: parameter.detach().clone() for name, parameter in named}
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in named:
        if name in {"embed", "norm", "head"}:
            # At the first step N is the sign of G up to ε, so each weight moves by the learning rate.
            assert torch.allclose(before[name] - parameter, torch.full_like(parameter, 1e-2), rtol=1e-3)


def test_rank_above_the_short_side_is_refused_with_name_value_and_domain():
    with pytest.raises(BadValue, match=r"galore: rank = 17 \(int\).*'q' of shape \(16, 16\)") as caught:
        groups_of(GaLore(rank=17))
    assert "1 <= rank <= 16" in str(caught.value)


def test_bad_options_and_shapes_are_refused(stream):
    matrix, vector = torch.nn.Parameter(torch.zeros(4, 4)), torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(BadValue, match="scale"):
        GaLoreAdamW([matrix], scale=0.0)
    with pytest.raises(BadValue, match="projection_type"):
        GaLoreAdamW([{"params": [matrix], "rank": 2, "projection_type": "diagonal"}])
    with pytest.raises(BadValue, match="is no matrix"):
        GaLoreAdamW([{"params": [matrix, vector], "rank": 2}])
    for option, hint in (("update_proj_gap", "update_gap"), ("proj_type", "projection_type"), ("basis", "itself")):
        with pytest.raises(BadValue, match=rf"{option} is no option of a group(.|\n)*{hint}"):
            GaLoreAdamW([{"params": [matrix], "rank": 2, option: 5}])
    optimizer = GaLoreAdamW([matrix])
    with pytest.raises(BenchError, match="no matrix"):
        optimizer.add_param_group({"params": [vector], "rank": 1})
    assert len(optimizer.param_groups) == 1


def test_model_without_a_matrix_to_project_is_refused():
    with pytest.raises(SlotMismatch, match="nothing to project"):
        GaLore().optimizer([("b", torch.nn.Parameter(torch.zeros(3)))], Run(seed=0, steps=1, roles={"b": Role.MLP}))


def test_gradient_that_is_not_finite_ends_in_nan_weights_and_no_exception(drive, start):
    path = drive(galore(rank=2), start(6, 4), [torch.full((6, 4), torch.inf)])
    assert path[-1].isnan().all()
