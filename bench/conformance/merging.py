"""The slot ``merge``: what it may touch, and what comes out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bench.algorithm import INFORMATION
from bench.conformance.check import CheckSkipped, Kind, Subject, difference, expect, expect_equal
from bench.conformance.fresh_process import outputs_elsewhere
from bench.conformance.merging_scene import HEADS, Scene, farthest, network
from bench.conformance.optimizer_scene import DTYPES
from bench.conformance.optimizer_state import expect_only_hyperparameters
from bench.conformance.randomness import expect_seed_matters, no_global_draws, seeded

merging = Kind("merging", lambda subject: subject.fills("merge"))

NEEDS = frozenset({"pretrained", "axes"})
"""What merging workloads offer."""

APART = 1e-3
"""The least distance of a merged model from every expert; the experts are a hundred times farther apart."""

ROUNDING = 1e-2
"""How far a merge in bf16 may lie from the one in fp32: the rounding of the weights; experts are ten times farther."""


@merging
def needs_and_information_are_known(subject: Subject) -> None:
    """Its information is a known kind, and merging workloads can offer what it needs."""
    kind, lacking = subject.cls.information, sorted(set(subject.cls.needs) - NEEDS)
    expect(kind in INFORMATION, f"information is {kind!r}, not one of {', '.join(INFORMATION)}")
    expect(not lacking, f"it needs {', '.join(lacking)}; merging workloads offer {', '.join(sorted(NEEDS))}")


@merging
def arguments_left_alone(subject: Subject) -> None:
    """Experts, the common start and the calibration data stay as they are, modes and gradients included."""
    scene = Scene(subject)
    before = copy.deepcopy([scene.start, *scene.models])
    given = copy.deepcopy(scene.calibration)
    scene.merge()
    for number, (old, new) in enumerate(zip(before, [scene.start, *scene.models], strict=True)):
        where = f"expert {number}" if number else "the common start"
        expect_equal(new.state_dict(), old.state_dict(), where)
        modes = [[module.training for module in model.modules()] for model in (old, new)]
        expect(modes[0] == modes[1], f"{where} was left in another mode")
        touched = [key for key, value in new.named_parameters() if not value.requires_grad or value.grad is not None]
        expect(not touched, f"{where}: {touched[:3]} require no gradient any more, or hold one")
    for number, (batches, old_batches) in enumerate(zip(scene.calibration, given, strict=True)):
        for batch, old_batch in zip(batches, old_batches, strict=True):
            expect_equal(batch, old_batch, f"the calibration data of expert {number + 1}")


@merging
def result_is_its_own_model(subject: Subject) -> None:
    """The result has the class of the experts and shares no tensor with them."""
    scene = Scene(subject)
    merged = scene.merge()
    found, wanted = type(merged).__name__, type(scene.start).__name__
    expect(type(merged) is type(scene.start), f"experts of the class {wanted} became a {found}")
    before = [copy.deepcopy(model.state_dict()) for model in (scene.start, *scene.models)]
    with torch.no_grad():
        for value in merged.parameters():
            value.fill_(7.0)
    for number, (model, values) in enumerate(zip((scene.start, *scene.models), before, strict=True)):
        where = f"expert {number}" if number else "the common start"
        expect_equal(model.state_dict(), values, f"the result shares tensors with {where}, which changed with it")


@merging
def nothing_kept_on_the_algorithm(subject: Subject) -> None:
    """The algorithm holds its hyperparameters and nothing else, and a second call does the same as the first."""
    seeded()
    scene = Scene(subject)
    one = scene.merge().state_dict()
    expect_only_hyperparameters(scene.algorithm)
    seeded()
    scene.run = scene.fresh_run()
    expect_equal(scene.merge().state_dict(), one, "the result of a second call of the same algorithm")


@merging
def same_seed_same_bits(subject: Subject) -> None:
    """The same seed gives the same bits."""
    found = []
    for _ in range(2):
        seeded()
        found.append(Scene(subject).merge().state_dict())
    expect_equal(found[1], found[0], "the second result")


@merging
def randomness_from_the_run(subject: Subject) -> None:
    """It draws from run.rng alone: no global generator moves, and without draws the seed changes nothing."""
    one, other = Scene(subject, seed=0), Scene(subject, seed=1)
    with no_global_draws():
        found = [scene.merge().state_dict() for scene in (one, other)]
    expect_seed_matters(one.run, difference(found[1], found[0]), always=False)


def _head(model: nn.Module) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach() for name in HEADS}


@merging
def heads_are_not_merged(subject: Subject) -> None:
    """Parameters of role classifier are those of one expert, or of the common start."""
    scene = Scene(subject)
    merged = _head(scene.merge())
    gaps = [difference(merged, _head(model)) for model in (*scene.models, scene.start)]
    expect(not all(gaps), f"the head belongs to no expert: from the first one it {gaps[0]}")


@merging
def heads_do_not_matter(subject: Subject) -> None:
    """Other heads change nothing of the body, unless the algorithm looks at what the models predict."""
    if subject.cls.information in {"inputs", "labels", "test-inputs"}:
        raise CheckSkipped("what a model predicts depends on its head")
    scene, other = Scene(subject), Scene(subject)
    for number, model in enumerate(other.models):
        model.head = network(50 + number).head
    gap = farthest(scene.merge(), other.merge())
    expect(gap == 0.0, f"with other heads the body differs by up to {gap:.3g}")


@merging
def every_dtype(subject: Subject) -> None:
    """In fp32 and bf16 the result is finite, of the experts' dtype, and none of the experts."""
    for dtype in DTYPES:
        scene = Scene(subject, dtype=dtype)
        merged = scene.merge()
        kinds = {value.dtype for value in merged.parameters()}
        expect(kinds == {dtype}, f"experts in {dtype} became a model in {sorted(map(str, kinds))}")
        broken = [key for key, value in merged.named_parameters() if not bool(value.isfinite().all())]
        expect(not broken, f"{dtype}: {broken[:3]} are not finite")
        nearest = min(farthest(merged, model) for model in scene.models)
        expect(nearest > APART, f"{dtype}: the result is {nearest:.3g} from an expert, which is no merge")
        shape = tuple(merged(scene.inputs).shape)
        expect(shape == (6, 4), f"{dtype}: the outputs have the shape {shape}")


@merging
def low_precision_is_rounding(subject: Subject) -> None:
    """Experts in bf16 are merged as the same experts in fp32 are, up to the rounding of the weights."""
    exact = [model.bfloat16().float() for model in Scene(subject).models]
    wide = Scene(subject, experts=exact)
    narrow = Scene(subject, experts=copy.deepcopy(exact), dtype=torch.bfloat16)
    wide.start.bfloat16().float()
    gap = farthest(wide.merge(), narrow.merge())
    expect(gap <= ROUNDING, f"the merge in bf16 lies {gap:.3g} from the one in fp32, more than {ROUNDING}")


@merging
def start_stays_the_start(subject: Subject) -> None:
    """Experts that never left the common start, however many, become that start."""
    for count in (1, 2, 5):
        scene = Scene(subject, experts=[network(0) for _ in range(count)])
        gap = farthest(scene.merge(), scene.start)
        expect(gap <= 1e-7, f"{count} copies of the start become a model {gap:.3g} from it")


@merging
def works_in_another_process(subject: Subject) -> None:
    """The result, saved by torch.save and loaded in a fresh process, computes the same bits."""
    scene = Scene(subject)
    merged = scene.merge()
    with torch.no_grad():
        here = merged(scene.inputs)
    there = outputs_elsewhere(merged, scene.inputs)
    expect_equal({"outputs": there}, {"outputs": here}, "the outputs in another process")
