"""The workload resnet-cifar10: tiers, roles, data, weights, metrics, and runs through the public interface."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from bench import DataRequest
from bench.errors import BadData, BadValue, UnknownName
from bench.memory import estimate
from bench.registry import Registry
from bench.request import Request, stacks
from bench.roles import HIDDEN_MATRICES, Role, assign_roles
from bench.workload import Limits
from bench.workloads.resnet_cifar10 import RESNET18, TINY, ResNetCifar10

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def tiny():
    return ResNetCifar10("tiny")


@pytest.fixture
def short(monkeypatch):
    """The workload with a budget of twelve steps and an evaluation at every sixth."""
    tiers = {
        name: replace(tier, steps=12, evaluate_every=6, batch_size=8, micro_batch_size=8, precision="fp32")
        for name, tier in ResNetCifar10.tiers.items()
    }
    monkeypatch.setattr(ResNetCifar10, "tiers", tiers)
    return ResNetCifar10


# -- facts -------------------------------------------------------------------------------------------------------------
def test_the_published_recipe_is_kept():
    assert (RESNET18.batch_size, RESNET18.micro_batch_size) == (128, 128)
    assert RESNET18.steps * RESNET18.batch_size == 200 * 50_000
    assert RESNET18.reference["sgd"] == {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    assert RESNET18.target is None
    config = RESNET18.network
    assert (config.widths, config.blocks, config.norm) == ((64, 128, 256, 512), 2, "batch")


@pytest.mark.parametrize("tier", ResNetCifar10.tiers.values(), ids=ResNetCifar10.tiers)
def test_every_tier_is_evaluated_densely_enough_to_know_the_crossing_within_two_percent(tier):
    assert tier.evaluate_every <= 0.02 * 0.75 * tier.steps


def test_a_target_belongs_to_the_data_on_which_it_was_set(tiny, tmp_path, cifar):
    assert tiny.target == TINY.target is not None
    assert ResNetCifar10("tiny", DataRequest(directory=cifar(tmp_path))).target is None
    assert ResNetCifar10("tiny", DataRequest(source="cifar10")).target is None


def test_the_reference_is_built_from_listed_plugins(registry):
    for name, tier in ResNetCifar10.tiers.items():
        assert [registry.algorithm(plugin, **values).name for plugin, values in tier.reference.items()]
        assert registry.workload_class("resnet-cifar10")(name).tier == tier


@pytest.mark.parametrize(("name", "convolutions"), [("tiny", 8), ("11m", 19)])
def test_each_parameter_has_one_role_and_the_stem_is_no_hidden_matrix(name, convolutions):
    workload = ResNetCifar10(name)
    parameters = dict(workload.model(0, META).named_parameters())
    roles = assign_roles(parameters, workload.roles)
    assert roles["stem.weight"] is Role.OTHER
    assert [key for key, role in roles.items() if role is Role.CLASSIFIER] == ["classifier.weight"]
    hidden = [key for key, role in roles.items() if role in HIDDEN_MATRICES]
    assert len(hidden) == convolutions
    assert all(parameters[key].ndim == 4 for key in hidden)
    for key, role in roles.items():
        if role in {Role.NORM, Role.BIAS}:
            assert parameters[key].ndim == 1
            assert key.endswith(".weight" if role is Role.NORM else ".bias")
    assert sum(role is Role.NORM for role in roles.values()) == convolutions + 1


def test_sizes(tiny):
    assert sum(p.numel() for p in tiny.model(0, META).parameters()) == 77_754
    assert sum(p.numel() for p in ResNetCifar10("11m").model(0, META).parameters()) == 11_173_962


# -- determinism -------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_weights_and_batches(tiny):
    first, second, other = tiny.model(3, CPU), tiny.model(3, CPU), tiny.model(4, CPU)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.stem.weight, other.stem.weight)
    batch, again = next(tiny.batches(3, 7, CPU)), next(tiny.batches(3, 7, CPU))
    assert batch["images"].shape == (TINY.batch_size, 1, 8, 8)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not torch.equal(batch["images"], next(tiny.batches(4, 7, CPU))["images"])
    assert not torch.equal(batch["images"], next(tiny.batches(3, 8, CPU))["images"])


def test_no_validation_image_is_ever_trained_on(tiny):
    train, validation = ({image.tobytes() for image in split.pixels} for split in (
        tiny.dataset.train, tiny.dataset.validation))  # fmt: skip
    assert not train & validation


# -- loss and metrics --------------------------------------------------------------------------------------------------
def test_validation_is_a_mean_over_images_and_says_how_many_are_right(tiny):
    model, validation = tiny.model(0, CPU).eval(), tiny.dataset.validation
    with torch.no_grad():
        metrics = tiny.evaluate(model, CPU)
        scores = model(tiny.dataset.source.preparation.inputs(validation.pixels)).log_softmax(-1).double().numpy()
    picked = -scores[np.arange(len(validation)), validation.labels]
    assert metrics["loss"] == pytest.approx(picked.mean(), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx((scores.argmax(1) == validation.labels).mean())
    assert metrics["loss"] == pytest.approx(math.log(10), abs=1.0)
    assert set(metrics) == {"loss", "accuracy"}


def test_weights_choose_the_images_that_train(tiny):
    model, batch = tiny.model(0, CPU), next(tiny.batches(0, 0, CPU))
    chosen = torch.zeros(len(batch["labels"]))
    chosen[:5] = 1.0
    few = {key: value[:5] for key, value in batch.items()}
    weighted, plain = tiny.loss(model, {**batch, "weights": chosen}), tiny.loss(model, few)
    assert float(weighted.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (weighted, plain)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ResNetCifar10.tiers)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_counted_without_storage(registry, name, precision):
    workload = ResNetCifar10(name)
    (stack,) = stacks(
        registry, Request(plugins=["adamw"], workload="resnet-cifar10", reference=False), workload
    ).values()
    found = estimate(stack, workload, precision)
    parameters = {"tiny": 77_754, "11m": 11_173_962}[name]
    assert found.weights_bytes == found.gradients_bytes == parameters * (4 if precision == "fp32" else 2)
    assert found.states_bytes == pytest.approx(2 * found.weights_bytes, rel=0.01)


# -- requests ----------------------------------------------------------------------------------------------------------
def test_nothing_falls_back_silently(tmp_path):
    with pytest.raises(UnknownName, match="data source of resnet-cifar10"):
        ResNetCifar10("tiny", DataRequest(source="cifar-10"))
    with pytest.raises(UnknownName, match="tier of resnet-cifar10"):
        ResNetCifar10("small")
    with pytest.raises(BadValue, match="tokenizer is 'bytes'"):
        ResNetCifar10("tiny", DataRequest(tokenizer="bytes"))
    with pytest.raises(BadData, match="does not exist"):
        ResNetCifar10("tiny", DataRequest(directory=Path("no-such-folder"))).data()
    with pytest.raises(BadData, match="none of the files"):
        ResNetCifar10("11m", DataRequest(directory=tmp_path)).data()


def test_the_real_tier_reads_the_hub_only_when_it_trains(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    workload = ResNetCifar10("11m")
    assert workload.data().source == "cifar10"
    with pytest.raises(BadData, match="needs the package 'datasets'"):
        workload.batches(0, 0, CPU)


def test_the_network_takes_the_channels_of_the_data(tmp_path, cifar):
    local = DataRequest(directory=cifar(tmp_path))
    assert ResNetCifar10("tiny", local).model(0, META).stem.weight.shape == (16, 3, 3, 3)
    assert ResNetCifar10("11m", DataRequest(source="digits")).model(0, META).stem.weight.shape == (64, 1, 3, 3)


# -- runs --------------------------------------------------------------------------------------------------------------
def trained(kit, workload, steps=None, seed=0):
    """Train in this process with the tier's reference; return what is evaluated and the weights."""
    from bench.assembly import assemble
    from bench.context import Run

    request = Request(plugins=[next(iter(workload.tier.reference))], workload=workload.name, reference=False)
    (stack,) = stacks(Registry(), request, workload).values()
    parts = assemble(stack, workload, Run(seed=seed, steps=workload.tier.steps), workload.model(seed, CPU))
    return kit.train(parts, workload), kit.weights(parts)


def test_the_digits_are_learned(micro):
    workload = ResNetCifar10("tiny", limits=Limits(budget_factor=0.25))
    seen, _ = trained(micro, workload)
    assert seen[-1].step == TINY.steps // 4
    assert seen[0].metrics["loss"] == pytest.approx(math.log(10), abs=1.0)
    assert seen[-1].metrics["loss"] < 0.5 * seen[0].metrics["loss"]
    assert seen[-1].metrics["accuracy"] > 0.6


@pytest.mark.parametrize("name", ["tiny", "11m"])
def test_files_of_one_s_own_are_learned_twice_the_same(short, micro, tmp_path, cifar, name):
    """Images whose class is their brightness, in CIFAR's format, on a CPU in fp32, through both networks."""
    workload = short(name, DataRequest(directory=cifar(tmp_path, train=8, validation=20)))
    if name == "11m":
        narrow = replace(workload.tiers[name], network=replace(RESNET18.network, widths=(8, 16, 16, 16)))
        workload.tiers[name] = narrow
    seen, weights = trained(micro, workload)
    again, same = trained(micro, short(name, workload.request))
    assert [e.step for e in seen] == [0, 6, 12]
    assert seen[-1].train_loss < seen[1].train_loss
    assert all(math.isfinite(e.metrics["loss"]) for e in seen)
    assert [e.metrics for e in again] == [e.metrics for e in seen]
    assert micro.equal(weights, same)


LIGHT = """
from bench import WorkloadEntry, hookimpl

@hookimpl
def bench_workloads():
    return [WorkloadEntry(name="resnet-short", target="bench_short.code:Short", tiers=("tiny",), summary="short")]
"""
CODE = """
from dataclasses import replace
from bench.workloads.resnet_cifar10 import TINY, ResNetCifar10

class Short(ResNetCifar10):
    name = "resnet-short"
    tiers = {"tiny": replace(TINY, steps=12, evaluate_every=6, batch_size=8, micro_batch_size=8)}
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An installed package that offers the workload with a budget of twelve steps."""
    folder = tmp_path / "site"
    (folder / "bench_short").mkdir(parents=True)
    (folder / "bench_short" / "__init__.py").write_text(LIGHT)
    (folder / "bench_short" / "code.py").write_text(CODE)
    facts = folder / "bench_short-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-short\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[bench]\nshort = bench_short\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))  # of the trial's process
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_files_of_one_s_own_end_in_a_record_that_names_no_place(site, tmp_path, cifar):
    """The public interface, a trial in a process of its own, six files in CIFAR's format."""
    folder = cifar(tmp_path / "mine", train=8, validation=20)
    results = bench.run("adamw", "resnet-short", data_dir=folder, reference=False, results=tmp_path / "out")
    (row,) = results.trials.to_dict("records")
    assert (row["outcome"], row["steps"]) == ("completed", 12)
    assert (row["data_source"], row["metric"]) == ("local", "loss")
    assert math.isnan(row["target"]), "a target belongs to the data on which it was set"
    assert "local images 'mine', 40 for training, 20 for validation" in row["data_label"]
    assert str(tmp_path) not in row["data_label"]
    assert row["trainable_parameters"] == 77_754 + 2 * 16 * 9
    curve = results.curves.sort_values("step")
    assert curve["step"].tolist() == [0, 6, 12]
    assert curve["quality"].iloc[-1] < curve["quality"].iloc[0]


def test_a_corrupt_file_is_found_before_the_first_step(short, micro, tmp_path, cifar):
    """Planning reads bytes and no labels, so a bad label shows where training begins, and ends it."""
    folder = cifar(tmp_path / "mine")
    path = folder / "data_batch_5.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    workload = short("tiny", DataRequest(directory=folder))
    assert workload.data().source == "local"
    with pytest.raises(BadData, match=r"data file 'data_batch_5\.bin' is corrupt: image 0 has label 10"):
        trained(micro, workload)


def test_a_truncated_file_is_refused_before_anything_runs(tmp_path, cifar):
    folder = cifar(tmp_path / "mine")
    path = folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadData, match=r"data file 'test_batch.bin' has 12,291 bytes"):
        bench.run("adamw", "resnet-cifar10", data_dir=folder, results=tmp_path / "out")
    assert not (tmp_path / "out").exists()
