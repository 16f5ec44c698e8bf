"""Fira against its paper, its authors' package and a third implementation.

The reference is stepped with the published SVD, whose signs it takes; the fast basis is compared with its vectors
turned to those signs. pytorch_optimizer counts steps from 1, so it agrees until the first refresh.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers import fira as module
from bench.plugins.optimizers.fira import Fira, FiraAdamW, Terms, gram_basis, svd_basis, updates, updates_by_one_product
from bench.plugins.optimizers.galore import GaLoreAdamW

pytestmark = pytest.mark.paper

SHAPES = [(12, 20), (20, 12), (12, 12)]


def fira(basis=gram_basis, **options):
    return lambda parameter: FiraAdamW([{"params": [parameter], **options}], basis=basis)


def galore(**options):
    return lambda parameter: GaLoreAdamW([{"params": [parameter], **options}])


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def with_signs_of_svd(gradient, rank, side, previous):
    """The fast basis with each vector turned the way that the SVD returns it."""
    fast, published = gram_basis(gradient, rank, side, previous), svd_basis(gradient, rank, side, previous)
    vectors, towards = (p.left if p.right is None else p.right for p in (fast, published))
    return fast._replace(
        **{"right" if fast.left is None else "left": vectors * (vectors * towards).sum(-2, keepdim=True).sign()}
    )


# -- the rule ------------------------------------------------------------------------------------------------------
def rule_in_float64(weights, gradients, *, rank, gap, scale, lr, betas, eps, weight_decay, growth=1.01, paper=False):
    """The card's steps written out in fp64, with the SVD's signs fixed as the fast basis fixes them.

    ``paper`` subtracts P R instead of α P R.
    """
    w = weights.double().clone()
    m = v = torch.zeros(())
    p, previous, path = None, None, []
    tall = w.shape[0] >= w.shape[1]
    for t, gradient in enumerate(gradients):
        g = gradient.double()
        if t % gap == 0:
            u, _, vt = torch.linalg.svd(g, full_matrices=False)
            p = vt[:rank].T if tall else u[:, :rank]
            p = p * p.gather(0, p.abs().argmax(0, keepdim=True)).sign()
        back = (lambda x: x @ p.T) if tall else (lambda x: p @ x)  # noqa: B023 - used in this turn only
        r = g @ p if tall else p.T @ g
        m = betas[0] * m + (1 - betas[0]) * r
        v = betas[1] * v + (1 - betas[1]) * r * r
        n = m / (v.sqrt() + eps)
        along = 1 if tall else 0
        phi = n.norm(dim=along, keepdim=True) / (r.norm(dim=along, keepdim=True) + 1e-8)
        s = phi * (g - (1.0 if paper else scale) * back(r))
        norm = float(s.norm())
        if previous is not None:
            ratio = norm / (previous + 1e-8)
            if ratio > growth:
                s, norm = s * growth / ratio, norm * growth / ratio
        previous = norm
        size = lr * math.sqrt(1 - betas[1] ** (t + 1)) / (1 - betas[0] ** (t + 1))
        w = w - size * (scale * back(n) + s)
        w = w - lr * weight_decay * w
        path.append(w.clone())
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("residual", ["published", "orthogonal"])
@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_published_rule(shape, residual, foreach, stream, start, drive):
    options = {"rank": 4, "scale": 0.25, "lr": 0.03, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1}
    gradients = stream(*shape, 17)
    expected = rule_in_float64(start(*shape), gradients, gap=5, paper=residual == "orthogonal", **options)
    build = fira(update_gap=5, residual=residual, foreach=foreach, **options)
    assert distance(drive(build, start(*shape), gradients), expected) < 2e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_forms_of_the_residual_differ_and_agree_at_scale_one(shape, stream, start, drive):
    gradients = stream(*shape, 9)
    for scale, same in ((0.25, False), (1.0, True)):
        paths = [
            drive(fira(rank=4, update_gap=5, scale=scale, residual=residual), start(*shape), gradients)
            for residual in ("published", "orthogonal")
        ]
        assert (distance(*paths) == 0.0) == same
        assert same or distance(*paths) > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_has_no_residual_and_is_galore(shape, stream, start, drive):
    gradients = stream(*shape, 12)
    for scale, residual, same in ((1.0, "published", True), (0.25, "orthogonal", True), (0.25, "published", False)):
        options = {"rank": 12, "update_gap": 5, "scale": scale}
        ours = drive(fira(residual=residual, **options), start(*shape), gradients)
        gap = distance(ours, drive(galore(**options), start(*shape), gradients))
        # The projection of a full-rank gradient comes back with a rounding error, which φ carries into the weights.
        assert gap < 2e-6 if same else gap > 1e-2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("foreach", [True, False])
def test_without_the_residual_it_is_galore_step_for_step(shape, foreach, stream, start, drive, monkeypatch):
    monkeypatch.setattr(module, "FLOOR", math.inf)  # which makes every φ zero
    gradients = stream(*shape, 17)
    options = {"rank": 4, "update_gap": 5, "scale": 0.25, "lr": 0.03, "weight_decay": 0.1, "foreach": foreach}
    ours = drive(fira(**options), start(*shape), gradients)
    assert distance(ours, drive(galore(**options), start(*shape), gradients)) < 1e-6


@pytest.mark.parametrize("foreach", [True, False])
def test_what_is_not_projected_takes_the_steps_of_galore_there(foreach, stream, start, drive):
    options = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1}
    gradients = stream(12, 20, 17)
    ours = drive(lambda p: FiraAdamW([p], foreach=foreach, **options), start(12, 20), gradients)
    assert distance(ours, drive(lambda p: GaLoreAdamW([p], **options), start(12, 20), gradients)) < 1e-6


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_first_step_scales_each_long_side_slice_of_the_residual_to_adams_ratio(shape, stream, start, drive):
    gradient, rank, betas = stream(*shape, 1)[0], 4, (0.9, 0.999)
    build = fira(rank=rank, scale=1.0, residual="orthogonal", lr=1.0, betas=betas, eps=0.0)
    step = start(*shape) - drive(build, start(*shape), [gradient])[0]
    step /= math.sqrt(1 - betas[1]) / (1 - betas[0])
    side = "right" if shape[0] >= shape[1] else "left"
    projection = svd_basis(gradient, rank, side)
    inside = projection.up(projection.down(gradient))
    along = 1 if side == "right" else 0
    # With ε = 0 every entry of N is (1-β₁)/√(1-β₂) in magnitude, so ‖Nᵢ‖ is that times √r.
    ratio = (1 - betas[0]) / math.sqrt(1 - betas[1]) * math.sqrt(rank)
    factors = ratio / projection.down(gradient).norm(dim=along, keepdim=True)
    outside = step - projection.up(projection.down(step))
    assert torch.allclose(outside, factors * (gradient - inside), rtol=1e-4, atol=1e-4)


def test_columns_are_slices_of_the_long_side(stream):
    """For m >= n there is one factor per row of W: columns would be wrong for tall matrices."""
    for shape, expected in (((20, 12), (1, 20, 1)), ((12, 20), (1, 1, 20)), ((12, 12), (1, 12, 1))):
        terms = terms_of(shape, stream)
        residual = updates(terms._replace(scale=1e-30))[0]
        outside = terms.gradients - terms.part * terms.projection.up(terms.reduced)
        ratios = residual / outside
        long = 1 if expected[1] > 1 else 2
        spread = ratios - ratios.mean(dim=3 - long, keepdim=True)
        assert float(spread.abs().max()) < 1e-3 * float(ratios.abs().max())


def test_transposed_problem_has_the_transposed_trajectory(stream, start, drive):
    gradients = stream(12, 20, 17)
    wide = drive(fira(rank=4, update_gap=5), start(12, 20), gradients)
    tall = drive(fira(rank=4, update_gap=5), start(12, 20).T.contiguous(), [g.T.contiguous() for g in gradients])
    assert distance(wide, [weights.T for weights in tall]) < 2e-6


# -- the limiter ---------------------------------------------------------------------------------------------------
def norms_of(gradients, **options):
    parameter = torch.nn.Parameter(torch.zeros(gradients[0].shape))
    optimizer = FiraAdamW([{"params": [parameter], "rank": 3, "update_gap": 10**6, **options}])
    norms = []
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
        norms.append(float(optimizer.state[parameter]["residual_norm"]))
    return norms


def with_outside_times(factor, stream):
    """Gradients whose part outside the subspace changes by ``factor`` per step, and so, with β₁ = β₂ = 0, does ‖S‖."""
    inside, outside = stream(20, 12, 2)
    left, right = (svd_basis(inside, 3, side) for side in ("left", "right"))
    inside = right.up(right.down(inside))
    outside = outside - left.up(left.down(outside))  # orthogonal on both sides, so no basis mixes the two
    outside = 1e-2 * (outside - right.up(right.down(outside)))
    return [inside + factor**k * outside for k in range(8)]


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("growth", [1.01, 1.05])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_residual_grows_exactly_by_the_limit_and_shrinks_freely(factor, growth, foreach, stream):
    gradients = with_outside_times(factor, stream)
    norms = norms_of(gradients, betas=(0.0, 0.0), growth=growth, residual="orthogonal", foreach=foreach)
    ratios = [after / before for before, after in pairwise(norms)]
    assert ratios == pytest.approx([min(growth, factor)] * 7, rel=1e-3 if factor < 1 else 1e-5)


def test_norm_survives_a_refresh_of_the_basis(stream):
    gradients = [2.0**k * gradient for k, gradient in enumerate(stream(20, 12, 9))]
    norms = norms_of(gradients, update_gap=3, betas=(0.0, 0.0))
    assert all(b <= 1.01 * a * (1 + 1e-5) for a, b in pairwise(norms))


def test_layer_whose_first_gradient_is_zero_is_not_held_near_zero(stream):
    zero = torch.zeros(20, 12)
    norms = norms_of([zero, zero, *stream(20, 12, 1)])
    assert norms[:2] == [0.0, 0.0]
    assert norms[2] == pytest.approx(norms_of([zero, zero, *stream(20, 12, 1)], growth=1e9)[2])
    assert norms[2] > 0.1


# -- the fast path -------------------------------------------------------------------------------------------------
def terms_of(shape, stream, dtype=torch.float32, part=0.25):
    gradients = torch.stack(stream(*shape, 1, dtype=dtype))
    directions, side = stream(*shape, 1, seed=9, dtype=dtype)[0], "right" if shape[0] >= shape[1] else "left"
    projection = svd_basis(gradients, 4, side)
    previous = torch.zeros(1)
    return Terms(
        gradients, projection.down(gradients), projection.down(directions[None]), projection, previous, 0.25, part, 1.01
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("previous", [0.0, 1e-2])
def test_one_product_gives_what_two_give(shape, dtype, tolerance, previous, stream):
    terms = terms_of(shape, stream, dtype)._replace(previous=torch.tensor([previous]))
    (slow, slow_norm), (fast, fast_norm) = updates(terms), updates_by_one_product(terms)
    assert slow.dtype == fast.dtype == dtype
    assert slow_norm.dtype == fast_norm.dtype == torch.float32
    assert float((slow - fast).abs().max()) < tolerance * max(1.0, float(slow.abs().max()))
    assert torch.allclose(slow_norm, fast_norm, rtol=tolerance)


def test_batch_of_equal_shapes_gives_the_steps_of_each_alone(stream, start, drive):
    streams = [stream(12, 20, 9, seed=seed) for seed in range(3)]
    parameters = [torch.nn.Parameter(start(12, 20)) for _ in streams]
    optimizer = FiraAdamW([{"params": parameters, "rank": 4, "update_gap": 4}])
    for gradients in zip(*streams, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter, gradients in zip(parameters, streams, strict=True):
        alone = drive(fira(rank=4, update_gap=4, foreach=False), start(12, 20), gradients)[-1]
        assert float((parameter.detach() - alone).abs().max()) < 2e-6


# -- state ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12), (6, 40)])
@pytest.mark.parametrize("rank", [1, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_the_formula_of_the_card(shape, rank, dtype, stream):
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = FiraAdamW([{"params": [parameter], "rank": rank}])
    for gradient in stream(*shape, 2, dtype=dtype):
        parameter.grad = gradient
        optimizer.step()
    tensors = {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, torch.Tensor)}
    s, l = min(shape), max(shape)  # noqa: E741 - the card's symbols
    assert sum(tensor.numel() for tensor in tensors.values()) == s * rank + 2 * rank * l + 1
    assert tensors.pop("residual_norm").dtype == torch.float32
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


# -- other packages ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_parity_with_fira_over_several_refreshes(shape, weight_decay, stream, start, drive, package):
    package_module = package("fira.fira_adamw", "fira")
    gradients = stream(*shape, 23)

    def theirs(parameter):
        group = {"params": [parameter], "rank": 4, "update_proj_gap": 5, "alpha": 0.25, "proj_type": "std"}
        return package_module.AdamW([group], lr=0.01, weight_decay=weight_decay, no_deprecation_warning=True)

    reference = drive(theirs, start(*shape), gradients)
    options = {"rank": 4, "update_gap": 5, "scale": 0.25, "lr": 0.01, "weight_decay": weight_decay}
    for basis in (svd_basis, with_signs_of_svd):
        for foreach in (True, False):
            ours = drive(fira(basis, foreach=foreach, **options), start(*shape), gradients)
            assert distance(ours, reference) < 1e-6
    assert distance(drive(fira(residual="orthogonal", **options), start(*shape), gradients), reference) > 1e-3


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_parity_with_pytorch_optimizer_until_a_refresh_which_it_counts_from_one(shape, stream, start, drive, package):
    package_module = package("pytorch_optimizer", "pytorch-optimizer")
    gradients = stream(*shape, 12)

    def theirs(parameter):
        group = {"params": [parameter], "rank": 4, "update_proj_gap": 5, "scale": 0.25, "projection_type": "std"}
        return package_module.Fira([group], lr=0.01)

    ours = drive(fira(svd_basis, rank=4, update_gap=5, scale=0.25, lr=0.01), start(*shape), gradients)
    other = drive(theirs, start(*shape), gradients)
    assert distance(ours[:4], other[:4]) < 5e-7
    assert distance(ours, other) > 1e-4


# -- the plugin ----------------------------------------------------------------------------------------------------
ROLES = {"embed": Role.EMBEDDING, "q": Role.ATTENTION_Q, "up": Role.MLP, "norm": Role.NORM, "head": Role.LM_HEAD}


def groups_of(algorithm, steps=10_000):
    shapes = {"embed": (50, 16), "q": (16, 16), "up": (48, 32), "norm": (16,), "head": (50, 16)}
    named = [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    optimizer = algorithm.optimizer(named, Run(seed=0, steps=steps, roles=ROLES))
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def test_plugin_projects_attention_and_mlp_matrices_at_a_quarter_of_their_short_side():
    groups = groups_of(Fira())
    ranks = {"embed": None, "q": 4, "up": 8, "norm": None, "head": None}
    assert {name: group["rank"] for name, group in groups.items()} == ranks
    assert {(g["lr"], g["scale"], g["eps"], g["growth"]) for g in groups.values()} == {(1e-2, 0.25, 1e-6, 1.01)}
    assert groups["q"]["update_gap"] == 200
    assert groups_of(Fira(), 300)["q"]["update_gap"] == 50
    assert groups_of(Fira(rank=3, update_gap=7), 300)["q"]["rank"] == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("scale", 0.0),
        ("growth", 0.99),
        ("residual", "all"),
        ("update_gap", 0),
        ("rank", 0),
        ("eps", -1.0),
    ],
)
def test_bad_hyperparameters_are_refused_inside_and_outside_the_suite(name, value):
    with pytest.raises(BadValue, match=rf"{name}(.|\n)*{value}"):
        Fira(**{name: value})
    with pytest.raises(BadValue, match=rf"{name}(.|\n)*{value}"):
        FiraAdamW([torch.nn.Parameter(torch.zeros(4, 4))], **{name: value})


def test_bad_groups_are_refused():
    matrix, vector = torch.nn.Parameter(torch.zeros(4, 4)), torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(BadValue, match=r"beta2(.|\n)*1\.0"):
        FiraAdamW([matrix], betas=(0.9, 1.0))
    with pytest.raises(BadValue, match=r"fira: rank = 17 \(int\).*'q' of shape \(16, 16\)(.|\n)*1 <= rank <= 16"):
        groups_of(Fira(rank=17))
    optimizer = FiraAdamW([matrix])
    with pytest.raises(BadValue, match="is no matrix"):
        optimizer.add_param_group({"params": [vector], "rank": 1})
    assert len(optimizer.param_groups) == 1
    for option, hint in (
        ("update_proj_gap", "update_gap"),
        ("alpha", "scale"),
        ("proj_type", "short"),
        ("basis", "it"),
    ):
        with pytest.raises(BadValue, match=rf"{option} is no option of a group(.|\n)*{hint}"):
            FiraAdamW([{"params": [matrix], "rank": 2, option: 5}])


def test_model_without_a_matrix_to_project_is_refused():
    with pytest.raises(SlotMismatch, match="nothing to project"):
        Fira().optimizer([("b", torch.nn.Parameter(torch.zeros(3)))], Run(seed=0, steps=1, roles={"b": Role.MLP}))


def test_gradient_that_is_not_finite_ends_in_nan_weights_and_no_exception(drive, start):
    path = drive(fira(rank=2), start(6, 4), [torch.full((6, 4), torch.inf)])
    assert path[-1].isnan().all()
