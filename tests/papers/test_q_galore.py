"""Q-GaLore against its paper, its authors' package and 8-bit GaLore.

The package is compared whole in its simulation (weights with the values of 8-bit codes, rounded to the nearest), with
what it needs of CUDA and of an older bitsandbytes replaced, and its projector alone: basis, codes, projection and gap.
The optimizer is also held against our 8-bit GaLore, which is proven against bitsandbytes, and against the rule written
out in fp64.
"""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from bench import Role, Run
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers._affine import (
    dequantize,
    grouped,
    noise_for,
    packed,
    quantize,
    rounded,
    ungrouped,
    unpacked,
)
from bench.plugins.optimizers._lazy_projector import is_due, renew, stored
from bench.plugins.optimizers.galore_8bit import GaLoreAdamW8bit
from bench.plugins.optimizers.q_galore import QGaLore, QGaLoreAdamW8bit, svd_basis

pytestmark = pytest.mark.paper

UNQUANTIZED = {"weight_bits": None, "projector_bits": None, "threshold": 2.0}


def q_galore(**options):
    return lambda parameter: QGaLoreAdamW8bit([{"params": [parameter], **options}])


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.fixture
def bitsandbytes(package, monkeypatch):
    """The package with its generic quantiser, which takes the nearest value; its fast CPU kernel misses some."""
    module, kernels = package("bitsandbytes", "bitsandbytes"), package("bitsandbytes.backends.cpu.ops", "bitsandbytes")

    def nearest(values, code, scales, codes, blocksize):
        fresh, largest = torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, blocksize)
        codes.copy_(fresh)
        scales.copy_(largest)

    monkeypatch.setattr(kernels, "_quant_blockwise_fp32_direct", nearest)
    return module


# -- the quantizer -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("offset", [0.0, 1.5, -1.5])
def test_round_trip_is_within_half_a_step_whatever_the_signs(bits, offset, stream):
    """The reference clips a group of one sign: values in [1, 2] come back with an error of 1."""
    values = stream(8, 256, 1)[0].clamp(-1, 1) * 0.5 + offset
    codes = quantize(values, bits)
    assert codes.codes.dtype == torch.uint8
    assert int(codes.codes.max()) <= 2**bits - 1
    assert ((dequantize(codes) - values).abs() <= 0.501 * codes.scales).all()
    extent = values.amax(1).clamp(min=0) - values.amin(1).clamp(max=0)
    assert torch.allclose(codes.scales[:, 0], extent / (2**bits - 1))


def test_constant_groups_come_back_and_zero_is_exact():
    values = torch.tensor([[0.0] * 256, [3.0] * 256, [-3.0] * 256, [1e-7] * 256])
    assert torch.allclose(dequantize(quantize(values, 8)), values, rtol=1e-6, atol=0.0)
    mixed = torch.cat((torch.zeros(4, 8), torch.randn(4, 248, generator=torch.Generator().manual_seed(0))), dim=1)
    assert not dequantize(quantize(mixed, 4))[:, :8].any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_values_on_their_grid_come_back_with_the_same_codes(bits, rounding, stream):
    noise = torch.rand(8, 256, generator=torch.Generator().manual_seed(1)) if rounding == "stochastic" else None
    first = quantize(stream(8, 256, 1)[0], bits)
    again = quantize(dequantize(first), bits, noise)
    # A value k s / s may be k (1 - 1e-7), which a draw above that rounds down; none of 2048 does so here.
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.zeros, again.zeros)
    assert torch.allclose(first.scales, again.scales, rtol=1e-6)


def test_stochastic_rounding_is_right_on_average(stream):
    values, generator, draws = stream(4, 256, 1)[0], torch.Generator().manual_seed(2), 4000
    mean = torch.zeros_like(values)
    for _ in range(draws):
        mean += dequantize(quantize(values, 4, torch.rand(4, 256, generator=generator))) / draws
    scales = quantize(values, 4).scales
    # What lies within half a step of the ends may be rounded out of the range, where it is clamped.
    inner = (values - values.amin(1, keepdim=True) > scales) & (values.amax(1, keepdim=True) - values > scales)
    assert int(inner.sum()) > 500
    assert ((mean - values).abs()[inner] < 5 * 0.5 / math.sqrt(draws) * scales.expand_as(values)[inner]).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_without_codes_gives_the_values_of_the_codes(bits, stream):
    values = torch.cat((stream(8, 256, 1)[0], torch.zeros(1, 256), torch.full((1, 256), -3.0)))
    noise = noise_for(values, torch.Generator().manual_seed(0))
    for draws in (None, noise):
        assert torch.equal(rounded(values, bits, draws), dequantize(quantize(values, bits, draws)))
    assert torch.equal(rounded(values.bfloat16(), bits), rounded(values.bfloat16().float(), bits))


def test_noise_is_uniform_independent_and_inside_the_unit_interval():
    noise = noise_for(torch.empty(1024, 255), torch.Generator().manual_seed(0))
    assert noise.shape == (1024, 255)
    assert 0.0 < float(noise.min()) < 1e-4
    assert 1.0 - 1e-4 < float(noise.max()) < 1.0
    counts = torch.histc(noise, bins=64, min=0.0, max=1.0)
    assert float(((counts - counts.mean()) / counts.mean().sqrt()).square().sum()) < 63 + 5 * math.sqrt(2 * 63)
    flat = noise.flatten() - 0.5
    for lag in (1, 2, 3, 4):  # four numbers come from one draw
        assert abs(float((flat[:-lag] * flat[lag:]).mean())) < 5 / 12 / math.sqrt(len(flat))


@pytest.mark.parametrize("size", [1, 2, 7, 256])
def test_packing_two_codes_to_a_byte_loses_nothing(size):
    codes = torch.randint(0, 16, (5, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert packed(codes).shape == (5, -(-size // 2))
    assert torch.equal(unpacked(packed(codes), size), codes)


@pytest.mark.parametrize("shape", [(16, 16), (3, 100), (5, 7)])
def test_groups_are_consecutive_elements_and_the_last_one_is_filled_up(shape, stream):
    values = stream(*shape, 1)[0]
    groups = grouped(values, 256)
    assert torch.equal(groups.reshape(-1)[: values.numel()], values.reshape(-1))
    assert torch.equal(ungrouped(groups, values.shape), values)
    assert ((dequantize(quantize(groups, 8)) - groups).abs() <= 0.501 * quantize(groups, 8).scales).all()


def test_four_bit_projector_is_as_far_from_orthonormal_as_the_card_says():
    basis = torch.linalg.qr(torch.randn(512, 128, generator=torch.Generator().manual_seed(0))).Q
    group = {"update_gap": 1, "projector_bits": 4, "queue_size": 5, "threshold": 2.0, "similarity": "signed"}
    state = {}
    is_due(state, group)
    renew(state, basis, group, right=False)
    rounded = stored(state, (512, 128), group, right=False)
    assert float((rounded - basis).norm() / basis.norm()) == pytest.approx(0.11, abs=0.02)
    assert float(torch.linalg.matrix_norm(rounded.T @ rounded - torch.eye(128), 2)) == pytest.approx(0.16, abs=0.04)


# -- the rule ------------------------------------------------------------------------------------------------------
def affine_in_float64(values, bits):
    """The card's quantizer with a range that holds 0, rounding to the nearest."""
    flat = values.reshape(-1)
    out = torch.empty_like(flat)
    for i in range(0, len(flat), 256):
        w = flat[i : i + 256]
        low, high = min(0.0, float(w.min())), max(0.0, float(w.max()))
        s = (high - low) / (2**bits - 1) or 1.0
        z = round(-low / s)
        out[i : i + 256] = (((w / s).round() + z).clamp(0, 2**bits - 1) - z) * s
    return out.view(values.shape)


def rule_in_float64(weights, gradients, *, rank, gap, lr, scale, betas, eps, weight_decay, bits):
    """Steps 3 to 7 of the card with fp32-like moments; weights are left unrounded."""
    w, path = weights.double().clone(), []
    m = v = torch.zeros(())
    tall = w.shape[0] >= w.shape[1]
    for t, gradient in enumerate(gradients):
        g = gradient.double()
        if t % gap == 0:
            u, _, vt = torch.linalg.svd(g, full_matrices=False)
            vectors = vt[:rank] if tall else u[:, :rank].T  # (r, s), one vector in a row
            vectors = vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
            p = affine_in_float64(vectors, bits) if tall else affine_in_float64(vectors.T.contiguous(), bits).T
        r = g @ p.T if tall else p @ g
        m = betas[0] * m + (1 - betas[0]) * r
        v = betas[1] * v + (1 - betas[1]) * r * r
        k = t + 1
        n = (m / (1 - betas[0] ** k)) / ((v / (1 - betas[1] ** k)).sqrt() + eps)
        w = w - lr * scale * (n @ p if tall else p.T @ n)
        w = w - lr * weight_decay * w
        path.append(w.clone())
    return path


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (48, 48)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("foreach", [True, False])
def test_every_step_is_the_published_rule(shape, bits, foreach, stream, start, drive):
    options = {"rank": 10, "scale": 0.25, "lr": 0.03, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1}
    gradients = stream(*shape, 12)
    expected = rule_in_float64(start(*shape), gradients, gap=5, bits=bits, **options)
    build = q_galore(update_gap=5, threshold=2.0, projector_bits=bits, foreach=foreach, **options)
    assert distance(drive(build, start(*shape), gradients), expected) < 5e-6


@pytest.mark.parametrize("shape", [(96, 80), (80, 96), (64, 64)])
@pytest.mark.parametrize("foreach", [True, False])
def test_without_its_three_changes_it_is_8_bit_galore_step_for_step(shape, foreach, stream, start, drive):
    options = {"rank": 60, "update_gap": 5, "lr": 0.01, "weight_decay": 0.1, "foreach": foreach}
    gradients = stream(*shape, 12)
    galore = lambda p: GaLoreAdamW8bit([{"params": [p], **options}])  # noqa: E731
    ours = drive(q_galore(**UNQUANTIZED, **options), start(*shape), gradients)
    assert distance(ours, drive(galore, start(*shape), gradients)) < 1e-7
    assert distance(drive(q_galore(**options), start(*shape), gradients), ours) > 1e-4


def test_what_is_not_projected_takes_8_bit_adam_steps_and_keeps_its_weights(stream, start, drive):
    gradients = stream(70, 90, 9)
    ours = drive(lambda p: QGaLoreAdamW8bit([p], lr=0.02), start(70, 90), gradients)
    galore = drive(lambda p: GaLoreAdamW8bit([p], lr=0.02), start(70, 90), gradients)
    assert distance(ours, galore) == 0.0


# -- weights -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_weights_have_at_most_256_values_in_each_group(rounding, stream, start, drive):
    weights = drive(q_galore(rank=16, rounding=rounding), start(64, 64), stream(64, 64, 3))[-1]
    assert all(len(group.unique()) <= 256 for group in grouped(weights, 256))
    free = drive(q_galore(rank=16, weight_bits=None), start(64, 64), stream(64, 64, 3))[-1]
    steps = quantize(grouped(free, 256), 8).scales
    assert float(((weights - free).view(-1, 256).abs() / steps).max()) < 4  # three roundings, of less than a step each


def test_small_matrices_keep_their_weights(stream, start, drive):
    gradients = stream(60, 60, 3)
    paths = [drive(q_galore(rank=4, weight_bits=bits), start(60, 60), gradients) for bits in (8, None)]
    assert distance(*paths) == 0.0


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_without_an_update_rounded_weights_stay(rounding, start, drive):
    path = drive(q_galore(rank=16, rounding=rounding), start(64, 64), [torch.zeros(64, 64)] * 6)
    if rounding == "nearest":
        assert distance(path[1:], path[:1] * 5) < 1e-6
    else:  # an end of a range may be rounded inwards, which gives the group another scale in the next step
        scales = quantize(grouped(path[0], 256), 8).scales
        assert float(((path[-1] - path[0]).view(-1, 256).abs() / scales).max()) < 6


def test_updates_below_half_a_step_are_lost_by_nearest_rounding_and_kept_on_average_by_stochastic(start, drive):
    # One direction, over and over: each step moves a weight by a small part of the distance of two codes.
    left, right = start(64, 1, seed=3), start(1, 64, seed=4)
    gradients = [left.sign() @ right.sign()] * 30
    free, nearest, stochastic = (
        drive(q_galore(rank=16, lr=2e-3, projector_bits=None, **options), start(64, 64), gradients)[-1]
        for options in ({"weight_bits": None}, {"rounding": "nearest"}, {})
    )
    wanted = free - start(64, 64)

    def progress(weights):
        moved = weights - start(64, 64)
        return float((moved * wanted).sum() / wanted.square().sum())

    steps = quantize(grouped(free, 256), 8).scales
    assert float((wanted / 30).abs().max()) < 0.5 * float(steps.min())
    assert abs(progress(nearest)) < 0.3
    assert progress(stochastic) == pytest.approx(1.0, abs=0.3)


# -- the gap -------------------------------------------------------------------------------------------------------
def renewals(gradients, **options):
    """Return at which steps the basis of one matrix was renewed."""
    parameter = torch.nn.Parameter(torch.zeros(gradients[0].shape))
    optimizer = QGaLoreAdamW8bit([{"params": [parameter], "rank": 3, **options}])
    seen, count = [], 0
    for t, gradient in enumerate(gradients):
        parameter.grad = gradient
        optimizer.step()
        if optimizer.state[parameter]["renewals"] > count:
            count = optimizer.state[parameter]["renewals"]
            seen.append(t)
    return seen


def test_lowest_threshold_doubles_the_gap_from_renewal_k_plus_1_on_and_at_each_after_it(stream):
    # k = 3 similarities are there at the fourth renewal; the queue is not emptied, so each later one doubles again.
    seen = renewals(stream(12, 8, 140), update_gap=2, queue_size=3, threshold=-1.0)
    assert seen == [0, 2, 4, 6, 8, 16, 32, 64, 128]


def test_threshold_above_one_never_lets_the_gap_grow(stream):
    assert renewals(stream(12, 8, 1) * 30, update_gap=3, queue_size=2, threshold=2.0) == list(range(0, 30, 3))


def test_constant_gradient_is_renewed_a_logarithmic_number_of_times(stream):
    assert len(renewals(stream(12, 8, 1) * 300, update_gap=2, queue_size=3)) == 3 + math.ceil(math.log2(300 / 4))


def test_gap_grows_by_the_factor_rounded_down(stream):
    assert renewals(stream(12, 8, 1) * 40, update_gap=3, queue_size=1, gap_factor=1.5) == [0, 3, 4, 6, 9, 13, 19, 28]


def test_absolute_similarity_does_not_mind_a_flipped_vector():
    for similarity, gap in (("signed", 4), ("absolute", 8)):
        group = {"update_gap": 4, "projector_bits": None, "queue_size": 1, "threshold": 0.4, "gap_factor": 2.0}
        group["similarity"], state = similarity, {}
        vectors = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(0))).Q
        for basis in (vectors, -vectors):
            is_due(state, group)
            renew(state, basis, group, right=True)
        assert state["gap"] == gap


def test_batch_in_which_gaps_differ_gives_the_steps_of_each_alone(stream, start, drive):
    # A constant gradient lets its gap grow, others do not, so that later only some of a batch are renewed.
    streams = [stream(12, 20, 1) * 16, stream(12, 20, 16, seed=5), stream(12, 20, 1, seed=2) * 16]
    options = {"rank": 4, "update_gap": 2, "queue_size": 1, "similarity": "absolute", "threshold": 0.9}
    parameters = [torch.nn.Parameter(start(12, 20)) for _ in streams]
    optimizer = QGaLoreAdamW8bit([{"params": parameters, **options}])
    for gradients in zip(*streams, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert [optimizer.state[parameter]["renewals"] for parameter in parameters] == [4, 8, 4]
    for parameter, gradients in zip(parameters, streams, strict=True):
        alone = drive(q_galore(foreach=False, **options), start(12, 20), gradients)[-1]
        assert float((parameter.detach() - alone).abs().max()) < 2e-6


# -- state ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(96, 80), (80, 96), (64, 64), (20, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8, None])
def test_state_is_the_formula_of_the_card(shape, dtype, bits, stream):
    s, l, rank = min(shape), max(shape), min(shape) * 3 // 4  # noqa: E741 - the card's symbols
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = QGaLoreAdamW8bit([{"params": [parameter], "rank": rank, "update_gap": 1, "projector_bits": bits}])
    for gradient in stream(*shape, 9, dtype=dtype):
        parameter.grad = gradient
        optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    groups, reduced = -(-s * rank // 256), rank * l
    projector = s * rank * dtype.itemsize if bits is None else groups * (256 * bits // 8 + 4 + 1)
    moments = 2 * reduced + 2 * 4 * math.ceil(reduced / 256) if reduced >= 4096 else 2 * 4 * reduced
    gap = s * dtype.itemsize + 5 * 4
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == projector + moments + gap
    assert optimizer.state[parameter]["renewals"] <= 9


# -- other packages ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (32, 32)])
@pytest.mark.parametrize("drift", [0.02, 1.0])
def test_parity_with_the_projector_of_q_galore_torch(shape, drift, package):
    module = package("q_galore_torch.q_galore_projector", "q-galore-torch")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    gradients = [base + drift * torch.randn(shape, generator=generator) for _ in range(60)]
    options = {"cos_threshold": 0.4, "gamma_proj": 2, "queue_size": 3}
    theirs = module.GaLoreProjector(16, update_proj_gap=2, quant=True, group_size=256, n_bit=4, **options)
    group = {"update_gap": 2, "projector_bits": 4, "queue_size": 3, "threshold": 0.4, "gap_factor": 2.0}
    group["similarity"], state, right = "signed", {}, shape[0] >= shape[1]
    gaps = []
    for t, gradient in enumerate(gradients):
        expected = theirs.project(gradient, t)
        state["step"] = t
        if is_due(state, group):
            found = svd_basis(gradient, 16, "right" if right else "left")
            renew(state, found.right if right else found.left, group, right=right)
        basis = stored(state, (32, 16), group, right=right)
        assert distance([gradient @ basis if right else basis.T @ gradient], [expected]) < 1e-5
        assert state["gap"] == theirs.update_proj_gap
        gaps.append(state["gap"])
    assert state["renewals"] == theirs.svd_count
    assert (gaps[-1] > 2) == (drift < 0.1)


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (96, 96)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_parity_with_the_simulation_of_q_galore_torch(
    shape, weight_decay, stream, start, drive, bitsandbytes, package, monkeypatch
):
    """All of its optimizer with weights rounded to the nearest, which draws nothing.

    It waits for CUDA in every step, and calls bitsandbytes by position as it was: the inner update is taken from
    bitsandbytes itself, and its 100 for percentile_clipping, now read as a largest norm, from the arguments.
    """
    module = package("q_galore_torch.q_galore_adamw8bit_simulate", "q-galore-torch")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(module.AdamW8bit, "update_step", bitsandbytes.optim.optimizer.Optimizer2State.update_step)
    common = {"rank": 64 if shape == (96, 96) else 48, "scale": 0.25, "cos_threshold": 0.4, "queue_size": 2}

    def theirs(parameter):
        parameter.group_size, parameter.stochastic_round = 256, False
        group = {"params": [parameter], "update_proj_gap": 3, "proj_type": "std", "gamma_proj": 2} | common
        group |= {"quant": True, "quant_group_size": 256, "quant_n_bit": 4}
        optimizer = module.AdamW8bit([group], lr=0.02, weight_decay=weight_decay)
        optimizer.args.max_unorm = 0.0
        return optimizer

    options = {"rank": common["rank"], "update_gap": 3, "queue_size": 2, "lr": 0.02, "weight_decay": weight_decay}
    ours = lambda p: QGaLoreAdamW8bit([{"params": [p], **options}], rounding="nearest", basis=svd_basis)  # noqa: E731
    gradients = [gradient + 3.0 * stream(*shape, 1, seed=7)[0] for gradient in stream(*shape, 14)]
    reference = drive(theirs, start(*shape), gradients)
    assert distance(reference[1:], reference[:-1]) > 1e-3
    # A few units in the last place of weights up to 4; one code more or less would be 0.02.
    assert distance(drive(ours, start(*shape), gradients), reference) < 3e-6


# -- the plugin ----------------------------------------------------------------------------------------------------
ROLES = {"embed": Role.EMBEDDING, "q": Role.ATTENTION_Q, "up": Role.MLP, "norm": Role.NORM, "head": Role.LM_HEAD}


def a_run(steps=10_000):
    return Run(seed=0, steps=steps, roles=ROLES)


def groups_of(algorithm, run):
    shapes = {"embed": (50, 16), "q": (16, 16), "up": (48, 32), "norm": (16,), "head": (50, 16)}
    named = [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    optimizer = algorithm.optimizer(named, run)
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def test_plugin_has_the_published_setting():
    groups = groups_of(QGaLore(), a_run())
    ranks = {"embed": None, "q": 4, "up": 8, "norm": None, "head": None}
    assert {name: group["rank"] for name, group in groups.items()} == ranks
    q = groups["q"]
    assert (q["lr"], q["scale"], q["eps"], q["weight_decay"], q["update_gap"]) == (0.015, 0.25, 1e-8, 0.0, 200)
    assert (q["threshold"], q["gap_factor"], q["queue_size"], q["similarity"]) == (0.4, 2.0, 5, "signed")
    assert (q["projector_bits"], q["weight_bits"], q["rounding"]) == (4, 8, "stochastic")
    assert groups_of(QGaLore(), a_run(300))["q"]["update_gap"] == 50


@pytest.mark.parametrize(
    ("options", "drawn"), [({}, True), ({"rounding": "nearest"}, False), ({"weight_bits": None}, False)]
)
def test_stochastic_rounding_and_nothing_else_draws_from_the_run(options, drawn):
    run = a_run()
    groups_of(QGaLore(**options), run)
    assert bool(run.generators) == drawn


def test_optimizer_can_be_pickled_with_its_generator(stream):
    parameter = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = QGaLoreAdamW8bit([{"params": [parameter], "rank": 8}])
    copied = pickle.loads(pickle.dumps(optimizer))  # noqa: S301 - our own bytes
    (twin,) = copied.param_groups[0]["params"]
    for gradient in stream(64, 64, 2):
        parameter.grad, twin.grad = gradient, gradient.clone()
        optimizer.step()
        copied.step()
    assert torch.equal(parameter, twin)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("rank", 0),
        ("update_gap", 0),
        ("threshold", -1.5),
        ("gap_factor", 0.5),
        ("queue_size", 0),
        ("similarity", "l2"),
        ("projector_bits", 1),
        ("weight_bits", 16),
        ("rounding", "up"),
    ],
)
def test_bad_hyperparameters_are_refused_inside_and_outside_the_suite(name, value):
    with pytest.raises(BadValue, match=rf"{name}(.|\n)*{value}"):
        QGaLore(**{name: value})
    with pytest.raises(BadValue, match=rf"{name}(.|\n)*{value}"):
        QGaLoreAdamW8bit([torch.nn.Parameter(torch.zeros(4, 4))], **{name: value})


def test_bad_groups_are_refused():
    with pytest.raises(BadValue, match=r"q-galore: rank = 17 \(int\).*'q' of shape \(16, 16\)(.|\n)*1 <= rank <= 16"):
        groups_of(QGaLore(rank=17), a_run())
    optimizer = QGaLoreAdamW8bit([torch.nn.Parameter(torch.zeros(4, 4))])
    with pytest.raises(BadValue, match="is no matrix"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(4))], "rank": 1})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(BadValue, match=r"galore_scale is no option of a group(.|\n)*scale"):
        QGaLoreAdamW8bit([{"params": [torch.nn.Parameter(torch.zeros(4, 4))], "rank": 2, "galore_scale": 0.25}])
    with pytest.raises(SlotMismatch, match="q-galore found no matrix"):
        QGaLore().optimizer([("b", torch.nn.Parameter(torch.zeros(3)))], Run(seed=0, steps=1, roles={"b": Role.MLP}))


def test_gradient_that_is_not_finite_ends_in_nan_weights_and_no_exception(drive, start):
    path = drive(q_galore(rank=2), start(64, 64), [torch.full((64, 64), torch.inf)])
    assert path[-1].isnan().all()
