"""The residual network and its loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.errors import BadValue
from bench.workloads._resnet import ResNet, ResNetConfig, class_losses

SMALL = ResNetConfig(channels=3, widths=(8, 16), blocks=2, norm="batch")
GROUPED = ResNetConfig(channels=1, widths=(8, 16), blocks=1, norm="group")


def drawn(config, seed=0):
    return ResNet(config, torch.Generator().manual_seed(seed))


def conv(state, name, x, stride=1):
    weight = state[f"{name}.weight"]
    return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def norm(state, name, x):
    """Batch norm with the statistics of this very batch, from its definition."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    scaled = (x - mean) / (variance + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"].view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)


def by_hand(state, config, x):
    """The network of the paper with basic blocks and option B, written out."""
    x = norm(state, "stem_norm", conv(state, "stem", x)).relu()
    for stage in range(len(config.widths)):
        for block in range(config.blocks):
            name = f"stages.{stage}.{block}"
            stride = 2 if stage and not block else 1
            h = norm(state, f"{name}.norm1", conv(state, f"{name}.conv1", x, stride)).relu()
            h = norm(state, f"{name}.norm2", conv(state, f"{name}.conv2", h))
            if stride == 2:
                x = norm(state, f"{name}.shortcut_norm", conv(state, f"{name}.shortcut", x, stride))
            x = (x + h).relu()
    return x.mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]


def test_the_forward_pass_is_that_of_the_paper():
    model = drawn(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():  # so that norms and biases matter
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(images), by_hand(model.state_dict(), SMALL, images), rtol=1e-4, atol=1e-5)


def test_resnet18_for_cifar10_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = ResNet(ResNetConfig(channels=3, widths=(64, 128, 256, 512), blocks=2, norm="batch"))
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4 and "shortcut" not in name]
    assert shapes[0] == (64, 3, 3, 3)
    assert len(shapes) == 17, "17 convolutions and the classifier: 18 layers"
    assert sum("shortcut." in name for name, _ in model.named_parameters()) == 3
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_initial_weights_have_the_variance_that_the_paper_asks_for():
    model = drawn(ResNetConfig(channels=3, widths=(64, 128), blocks=1, norm="group"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert float(module.weight.detach().std() * (fan_out / 2) ** 0.5) == pytest.approx(1.0, abs=0.06), name
        elif isinstance(module, nn.GroupNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
    assert 0.9 / 128**0.5 < float(model.classifier.weight.detach().abs().max()) <= 1 / 128**0.5
    assert not model.classifier.bias.any()


@pytest.mark.parametrize("config", [SMALL, GROUPED])
def test_a_seed_fixes_the_weights_and_the_global_generator_is_left_alone(config):
    before = torch.get_rng_state()
    first, second, other = drawn(config).state_dict(), drawn(config).state_dict(), drawn(config, 1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])
    assert all(value.isfinite().all() for value in first.values()), "no storage is left as it was found"


def test_with_group_norm_an_image_does_not_depend_on_its_neighbours_nor_on_the_mode():
    model = drawn(GROUPED)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images)[:2], model(images[:2]))
        assert torch.equal(model(images), model.eval()(images))
    assert not list(model.buffers())


def test_images_are_rounded_to_the_dtype_of_the_weights():
    model = drawn(GROUPED).to(torch.bfloat16)
    assert model(torch.randn(2, 1, 8, 8)).dtype == torch.bfloat16


def test_the_loss_is_cross_entropy_in_fp32():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    found = class_losses(logits, torch.tensor([2, 1]))
    assert found.tolist() == pytest.approx([0.40760596, 3.09492], abs=1e-5)
    assert class_losses(logits.bfloat16(), torch.tensor([2, 1])).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [({"channels": 0}, "channels is 0"), ({"blocks": 0}, "blocks is 0"), ({"widths": ()}, "widths are"),
     ({"widths": (8, 6)}, "multiple of 4"), ({"widths": (-4,)}, "positive multiple")],
)  # fmt: skip
def test_a_shape_that_is_none_is_refused(change, words):
    facts = {"channels": 1, "widths": (8,), "blocks": 1, "norm": "group"} | change
    with pytest.raises(BadValue, match=words):
        ResNetConfig(**facts)
