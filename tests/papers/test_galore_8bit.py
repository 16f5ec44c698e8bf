"""GaLore with 8-bit moments: step 9 of the card, against bitsandbytes and torch.optim.Adam."""

from __future__ import annotations

import math

import pytest
import torch

from bench import Role, Run
from bench.plugins.optimizers._projection import side_of
from bench.plugins.optimizers.galore import GaLoreAdamW, gram_basis
from bench.plugins.optimizers.galore_8bit import GaLore8bit, GaLoreAdamW8bit

pytestmark = pytest.mark.paper


def distance(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.fixture
def bitsandbytes(package, monkeypatch):
    """The package with its generic quantiser, which takes the nearest value.

    Its fast CPU kernel reads codes from a coarse table and misses the nearest one for 3% of Gaussian second moments.
    """
    module, kernels = package("bitsandbytes", "bitsandbytes"), package("bitsandbytes.backends.cpu.ops", "bitsandbytes")

    def nearest(values, code, scales, codes, blocksize):
        # The generic quantiser is the one for dtypes that have no kernel; it computes in fp32.
        fresh, largest = torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, blocksize)
        codes.copy_(fresh)
        scales.copy_(largest)

    monkeypatch.setattr(kernels, "_quant_blockwise_fp32_direct", nearest)
    return module


def eight_bit(**options):
    return lambda parameter: GaLoreAdamW8bit([{"params": [parameter], **options}])


def test_parity_with_bitsandbytes_adam_on_a_zero_tensor_of_the_shape_of_r(stream, start, drive, bitsandbytes):
    rows, columns, rank, gap, lr, scale, weight_decay = 96, 80, 64, 4, 0.02, 0.25, 0.1
    gradients = stream(rows, columns, 11)
    expected, weights = [], start(rows, columns)
    inner = torch.nn.Parameter(torch.zeros(rows, rank))
    adam = bitsandbytes.optim.Adam8bit([inner], lr=lr)
    for t, gradient in enumerate(gradients):
        if t % gap == 0:
            projection = gram_basis(gradient, rank, "right", None)
        inner.data.zero_()
        inner.grad = projection.down(gradient)
        adam.step()
        weights = weights + scale * projection.up(inner.data)
        weights = weights - lr * weight_decay * weights
        expected.append(weights)
    options = {"rank": rank, "update_gap": gap, "lr": lr, "scale": scale, "weight_decay": weight_decay}
    assert adam.state[inner]["state1"].dtype == torch.uint8
    assert distance(drive(eight_bit(**options), start(rows, columns), gradients), expected) < 1e-6


def test_parity_with_bitsandbytes_adam_where_nothing_is_projected(stream, start, drive, bitsandbytes):
    gradients = stream(70, 90, 12)
    theirs = drive(lambda p: bitsandbytes.optim.Adam8bit([p], lr=0.02), start(70, 90), gradients)
    assert distance(drive(eight_bit(lr=0.02), start(70, 90), gradients), theirs) < 1e-6


def test_small_tensors_keep_fp32_moments_and_take_the_steps_of_torch_adam(stream, start, drive):
    gradients, options = stream(10, 12, 9), {"lr": 0.02, "eps": 1e-2}
    theirs = drive(lambda parameter: torch.optim.Adam([parameter], **options), start(10, 12), gradients)
    assert distance(drive(eight_bit(**options), start(10, 12), gradients), theirs) < 1e-6
    # A large ε tells its two placements apart.
    uncorrected = drive(lambda parameter: GaLoreAdamW([parameter], **options), start(10, 12), gradients)
    assert distance(uncorrected, theirs) > 1e-3


@pytest.mark.parametrize("shape", [(96, 80), (80, 96)])
def test_eight_bit_moments_stay_near_the_fp32_trajectory(shape, stream, start, drive):
    options = {"rank": 60, "update_gap": 10, "lr": 0.01, "eps": 1e-8}
    gradients = stream(*shape, 30)
    exact = drive(lambda p: GaLoreAdamW([{"params": [p], **options}]), start(*shape), gradients)
    rounded = drive(eight_bit(**options), start(*shape), gradients)
    moved = torch.linalg.norm(exact[-1] - start(*shape))
    assert 0 < torch.linalg.norm(rounded[-1] - exact[-1]) < 0.1 * moved


@pytest.mark.parametrize(("shape", "rank"), [((96, 80), 64), ((80, 96), 50), ((64, 64), 64), ((20, 12), 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_the_formula_of_the_card(shape, rank, dtype, stream):
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = GaLoreAdamW8bit([{"params": [parameter], "rank": rank}])
    parameter.grad = stream(*shape, 1, dtype=dtype)[0]
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    reduced = rank * max(shape)
    moments = 2 * reduced + 2 * 4 * math.ceil(reduced / 256) if reduced >= 4096 else 2 * 4 * reduced
    assert sum(t.numel() * t.element_size() for t in tensors) == min(shape) * rank * dtype.itemsize + moments


def test_first_step_moves_every_coordinate_by_the_rate_despite_rounding(stream, start, drive):
    gradient = stream(96, 80, 1)[0]
    weights = drive(eight_bit(rank=80, scale=1.0, lr=0.01), start(96, 80), [gradient])[0]
    projection = gram_basis(gradient, 80, side_of(gradient.shape, "std"), None)
    moved = projection.down(weights - start(96, 80))
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.01), atol=1e-5)


def test_plugin_has_the_class_defaults_and_no_weight_decay():
    named = [("q", torch.nn.Parameter(torch.zeros(8, 8)))]
    group = GaLore8bit().optimizer(named, Run(seed=0, steps=9, roles={"q": Role.ATTENTION_Q})).param_groups[0]
    assert (group["eps"], group["weight_decay"], group["rank"], group["update_gap"]) == (1e-8, 0.0, 2, 1)
