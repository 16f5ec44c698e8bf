"""Compression and merging: what slots are given, when they are called, what counts."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from bench import (
    Algorithm,
    CompressionWorkload,
    DataIdentity,
    Experts,
    MergingWorkload,
    Point,
    PostTier,
    Role,
    Target,
)
from bench.after_training import PostWorkload
from bench.assembly import check_fit
from bench.clock import Clock
from bench.context import Run
from bench.errors import BadData, BadValue, SlotFault, SlotMismatch
from bench.guards.watch import Watch
from bench.memory import estimate
from bench.post import Post
from bench.request import default_tier
from bench.workload import DataRequest, Limits

FACTS = {"reference": {"keep": {}}, "tuning": "none", "source": "drawn", "device_class": "none"}
GRID = PostTier(points=(Point(kept_ratio=0.9), Point(kept_ratio=0.5)), default_on=("cpu",), **FACTS)
BRANCH = PostTier(points=(Point(pattern=(1, 4), rank=2),), default_on=("cpu",), **FACTS)
TOGETHER = PostTier(points=(Point(count=2), Point(count=3)), target=Target(value=0.5, how="a toy"), **FACTS)


class Net(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


class Common(PostWorkload):
    """What both toys share."""

    version = "1.0.0"
    metric = "score"
    direction = "max"
    sources = ("drawn", "local")
    labels = ("labels",)
    roles: ClassVar = {
        r"blocks\.\d+\.weight": Role.MLP,
        r"blocks\.\d+\.bias|head\.bias": Role.BIAS,
        r"head\.weight": Role.CLASSIFIER,
    }

    def data(self):
        return DataIdentity(source="drawn", sha256="d" * 64, label="drawn")

    def model(self, seed, device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Net().to(device)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])

    def batch(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return {"inputs": torch.randn(6, 4, generator=generator), "labels": torch.arange(6) % 2}

    def examine(self, model, point, history, device, seed):
        torch.rand(1)
        assert not torch.is_grad_enabled()
        assert not model.training
        return {"score": float(len(history)), "kept": sum(float(p.abs().sum()) for p in model.parameters())}


class Squeeze(Common, CompressionWorkload):
    name = "squeeze"
    tiers: ClassVar = {"grid": GRID, "branch": BRANCH}
    blocks = r"blocks\.\d+"

    def calibration(self, seed, device):
        return [self.batch(seed)]


class Join(Common, MergingWorkload):
    name = "join"
    tiers: ClassVar = {"together": TOGETHER}
    axes: ClassVar = {"blocks.0.weight": ("hidden", None)}
    has_pretrained = False

    def experts(self, seed, device, count):
        return Experts(count, lambda number: self.model(seed + number, device))

    def calibration(self, seed, device, count):
        return [[self.batch(seed + number)] for number in range(count)]


@dataclass(frozen=True, kw_only=True)
class Keep(Algorithm):
    """Returns what it was given, and keeps what it saw."""

    name = "keep"
    seen: ClassVar[list] = []

    def compress(self, model, calibration, run):
        self.seen.append(("compress", model, calibration, run, torch.rand(1), torch.rand(1, generator=run.rng("x"))))
        return model

    def merge(self, models, calibration, run):
        self.seen.append(("merge", models, calibration, run))
        return models[0]


class Inputs(Keep):
    information = "inputs"


class Labels(Keep):
    information = "labels"


@dataclass(frozen=True, kw_only=True)
class Mend(Algorithm):
    """A compensation that says what it got."""

    name = "mend"
    needs = ("branch-rank",)
    information = "inputs"
    seen: ClassVar[list] = []

    def compensate(self, model, compressed, calibration, run):
        self.seen.append((model, compressed, calibration, run))
        return compressed


@pytest.fixture(autouse=True)
def _forget():
    Keep.seen.clear()
    Mend.seen.clear()


def work(*algorithms, workload=None, stop_after=None, seed=0):
    workload = workload or Squeeze("grid")
    run = Run(seed=seed, steps=workload.tier.steps)
    post = Post(algorithms, workload, run, Clock(run.device))
    reports = []

    def observe(report):
        reports.append(report)
        return len(reports) == stop_after

    post.work(observe)
    return post, reports


def test_each_point_is_served_once_in_order_and_reported():
    post, reports = work(Keep())
    assert [call[3].point for call in Keep.seen] == list(GRID.points)
    assert [report.step for report in reports] == [1, 2]
    assert [report.metrics["score"] for report in reports] == [0.0, 1.0], "history has the points before"
    assert isinstance(post.model, Net)
    assert len({id(call[1]) for call in Keep.seen}) == 2, "every point has a model of its own"


def test_it_stops_when_told():
    assert len(work(Keep(), stop_after=1)[1]) == 1
    assert len(Keep.seen) == 1


def test_a_slot_knows_roles_blocks_and_point_but_not_the_workload():
    work(Keep())
    run = Keep.seen[0][3]
    assert run.roles["blocks.1.weight"] is Role.MLP
    assert run.blocks == ("blocks.0", "blocks.1")
    assert run.algorithm == "keep"
    assert "squeeze" not in repr(run)


@pytest.mark.parametrize(("kind", "keys"), [(Keep, None), (Inputs, {"inputs"}), (Labels, {"inputs", "labels"})])
def test_an_algorithm_sees_what_it_says_that_it_looks_at(kind, keys):
    work(kind())
    work(kind(), workload=Join("together"))
    (_, _, calibration, run, *_), merged = Keep.seen[0], Keep.seen[-1]
    assert [set(batch) for batch in calibration] == ([] if keys is None else [keys])
    assert [[set(batch) for batch in part] for part in merged[2]] == [[] if keys is None else [keys]] * 3
    assert (run.loss is not None) == (merged[3].loss is not None) == (kind is Labels)


def test_an_unknown_kind_of_information_is_a_fault():
    odd = type("Odd", (Keep,), {"information": "everything"})
    with pytest.raises(SlotFault, match="'everything'; it must be one of weights"):
        work(odd())


def test_what_is_drawn_depends_on_seed_and_point_and_not_on_the_examination():
    for seed in (0, 0, 1):
        work(Keep(), seed=seed)
    first, again, other = (Keep.seen[i : i + 2] for i in (0, 2, 4))
    assert [call[4] for call in first] == [call[4] for call in again] != [call[4] for call in other]
    assert [call[5] for call in first] == [call[5] for call in again] != [call[5] for call in other]
    assert first[0][4] != first[1][4]


def test_a_compensation_gets_the_dense_model_and_what_the_compressor_made():
    work(Mend(), Keep(), workload=Squeeze("branch"))
    (model, compressed, calibration, run), compress = Mend.seen[0], Keep.seen[0]
    assert compressed is compress[1]
    assert model is not compressed
    assert compress[2] == [], "each sees what itself may see"
    assert [set(batch) for batch in calibration] == [{"inputs"}]
    assert (run.point.rank, run.point.pattern) == (2, (1, 4))


def test_without_a_compressor_there_is_nothing_to_compensate():
    with pytest.raises(SlotMismatch, match="nothing fills the slot compress"):
        work(Mend(), workload=Squeeze("branch"))
    run = Run(seed=0, steps=1)
    with pytest.raises(SlotMismatch, match="nothing fills the slot compress"):
        Post([Mend()], Squeeze("branch"), run, Clock(run.device)).rehearse()


def test_a_merge_gets_lazy_models_and_the_axes():
    work(Keep(), workload=Join("together"))
    models, run = Keep.seen[-1][1], Keep.seen[-1][3]
    assert isinstance(models, Experts)
    assert (len(models), run.point.count, models.pretrained) == (3, 3, None)
    assert run.axes == Join.axes


def test_what_a_slot_raises_or_wrongly_returns_names_it():
    broken = type("Broken", (Keep,), {"compress": lambda *_: 1 / 0})
    with pytest.raises(SlotFault, match=r"keep\.compress raised ZeroDivisionError"):
        work(broken())
    wrong = type("Wrong", (Keep,), {"compress": lambda *_: None})
    with pytest.raises(SlotFault, match=r"keep\.compress returned None"):
        work(wrong())


@pytest.mark.parametrize(
    ("kind", "tier", "method"),
    [
        (Squeeze, "grid", "model"),
        (Squeeze, "grid", "calibration"),
        (Join, "together", "model"),
        (Join, "together", "experts"),
        (Join, "together", "calibration"),
    ],
)
def test_threads_that_the_workload_leaves_are_not_for_the_algorithm_to_answer(leaving_thread, kind, tier, method):
    workload = type("Leaving", (kind,), {method: leaving_thread(getattr(kind, method))})(tier)
    run = Run(seed=0, steps=workload.tier.steps)
    with Watch.over_process() as watch:
        watch.listed()
        watch.opened(type(workload))
        watch.begin("keep", ["a_plugin."], [])
        post = Post([Labels()], workload, run, Clock(run.device), watch=watch)
        post.rehearse()
        post.work(lambda _: False)
        watch.look()


def test_slots_are_charged_and_examinations_are_not():
    post, _ = work(Keep())
    assert post.clock.seconds["step"] > 0
    assert post.clock.seconds["data"] > 0
    assert post.clock.aside["evaluation"] > 0
    assert not post.clock.running


def test_a_rehearsal_charges_nothing_and_draws_nothing():
    run = Run(seed=0, steps=2)
    post = Post([Keep()], Squeeze("grid"), run, Clock(run.device))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    post.rehearse()
    assert torch.rand(1) == expected
    assert len(Keep.seen) == 1
    assert post.clock.total_s == 0


# -- fit -------------------------------------------------------------------------------------------------------------
def test_a_tier_offers_what_all_its_points_say():
    assert Squeeze("grid").offers == {"kept-ratio"}
    assert Squeeze("branch").offers == {"pattern", "branch-rank"}
    assert Join("together").offers == {"axes"}


def test_an_algorithm_that_needs_more_is_refused():
    check_fit([Mend(), Keep()], Squeeze("branch"))
    with pytest.raises(SlotMismatch, match="'mend' needs branch-rank, which tier 'grid' of 'squeeze'"):
        check_fit([Mend(), Keep()], Squeeze("grid"))


def test_an_algorithm_of_another_track_is_refused(micro):
    with pytest.raises(SlotMismatch, match="'plain' fills optimizer; 'squeeze' has compress, compensate"):
        check_fit([micro.Plain()], Squeeze("grid"))
    with pytest.raises(SlotMismatch, match="'keep' fills compress, merge; 'micro' has adapt"):
        check_fit([Keep()], micro.workload())


def test_the_default_tier_offers_what_the_plugins_need():
    class Known:
        def workload_class(self, name):
            return Squeeze

        def algorithm_class(self, name):
            return {"keep": Keep, "mend": Mend}[name]

    assert default_tier(Known(), "squeeze", "cpu", ["keep"]) == "grid"
    assert default_tier(Known(), "squeeze", "cpu", ["mend"]) == "branch"
    assert default_tier(Known(), "squeeze", "cuda", ["mend"]) == "grid", "no tier is meant for it: the smallest"


def test_memory_is_not_estimated_without_training():
    with pytest.raises(SlotMismatch, match="'squeeze' is not trained"):
        estimate([Keep()], Squeeze("grid"), "fp32")


# -- tiers and points ------------------------------------------------------------------------------------------------
def test_a_tier_counts_its_points_whatever_a_protocol_does_to_budgets():
    assert GRID.steps == 2
    assert Limits(budget_factor=3.0, stop_at_target=True).apply(GRID).steps == 2


def test_only_the_last_point_is_judged():
    assert Squeeze("grid").judged_from_step == 2
    assert Join("together").judged_from_step == 2


def test_a_tier_without_points_is_refused():
    with pytest.raises(BadValue, match="no points"):
        PostTier(points=(), **FACTS)


@pytest.mark.parametrize(
    "facts",
    [{"kept_ratio": 0.0}, {"kept_ratio": 1.5}, {"pattern": (5, 4)}, {"pattern": (0, 4)}, {"rank": 0}, {"count": 0}],
)
def test_a_point_that_nobody_can_serve_is_refused(facts):
    with pytest.raises(BadValue):
        Point(**facts)


def test_a_point_reads_well():
    assert str(Point(kept_ratio=0.5)) == "kept ratio 0.5"
    assert str(Point(pattern=(2, 4), rank=8)) == "pattern 2:4, rank 8"
    assert str(Point(count=3)) == "models 3"


def test_weights_of_one_s_own_are_refused_where_nothing_reads_them(tmp_path):
    with pytest.raises(BadData, match="given 1 times; squeeze takes none"):
        Squeeze("grid", DataRequest(models=(tmp_path,)))


def test_a_target_holds_for_the_tier_s_own_weights_only(tmp_path):
    own = type("Own", (Join,), {"takes_models": None})
    assert own("together").target is not None
    assert own("together", DataRequest(models=(tmp_path, tmp_path))).target is None
