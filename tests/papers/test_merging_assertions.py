"""What the merging workloads' tiny tiers can tell apart: the order of the methods, and networks that are matched.

Margins are about half of the smallest difference that was measured over three seeds (methods), or the workload's own
targets (matching). All comparisons are on the same experts. Accuracies are in percent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from statistics import fmean, pstdev

import pytest
import torch

from bench import MergingWorkload, Point, Registry, Run
from bench.plugins.merging._permutations import reordered
from bench.plugins.merging._vectors import norm, weights_of, with_values
from bench.plugins.merging.average import average
from bench.plugins.merging.opcm import SequentialMerger
from bench.plugins.merging.weight_matching import WeightMatching, aligned_orders
from bench.roles import assign_roles
from bench.workloads.merge_permuted_digits import MergePermutedDigits

pytestmark = [pytest.mark.paper, pytest.mark.slow, pytest.mark.usefixtures("artifact_cache")]

CPU = torch.device("cpu")
every_seed = pytest.mark.parametrize("seed", [0, 1, 2])


@dataclass
class Lab:
    """The experts of a seed, and how well what plugins make of them does."""

    seed: int
    count: int
    workload: MergingWorkload
    registry: Registry = field(default_factory=Registry)
    known: dict = field(default_factory=dict)

    def __post_init__(self):
        self.experts = self.workload.experts(self.seed, CPU, self.count)
        names = (name for name, _ in self.workload.model(self.seed, CPU).named_parameters())
        self.roles = assign_roles(names, self.workload.roles)

    def examine(self, model):
        with torch.no_grad():
            return self.workload.examine(model.eval(), Point(count=self.count), [], CPU, self.seed)

    def accuracy(self, plugin, **options):
        """Return the accuracy of what ``plugin`` makes of all experts with the information that it declares."""
        key = (plugin, *sorted(options.items()))
        if key not in self.known:
            algorithm = self.registry.algorithm(plugin, None, **options)
            parts = self.workload.calibration(self.seed, CPU, self.count)
            keys = {"weights": (), "inputs": ("inputs",)}[algorithm.information]
            seen = [[{key: batch[key] for key in keys} for batch in part] if keys else [] for part in parts]
            run = Run(
                seed=self.seed,
                steps=1,
                roles=self.roles,
                axes=self.workload.axes,
                point=Point(count=self.count),
                algorithm=plugin,
            )
            self.known[key] = 100 * self.examine(algorithm.merge(self.experts, seen, run))["accuracy"]
        return self.known[key]

    @cached_property
    def bounds(self):
        """Return what the common start, the experts and the jointly trained model reach."""
        metrics = self.examine(self.workload.model(self.seed, CPU))
        return {name: 100 * metrics[f"{name}_accuracy"] for name in ("pretrained", "finetuned", "joint")}


# -- eight tasks in subspaces ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lab(merge_subspace):
    """Return ``seed -> Lab``."""
    return cache(lambda seed: Lab(seed, 8, merge_subspace))


@every_seed
def test_methods_come_in_the_order_of_the_page(lab, seed):
    of = lab(seed).accuracy
    plain, fisher = of("average"), of("fisher-merging")
    arithmetic, projected = of("task-arithmetic", scale=0.2), of("opcm")
    assert lab(seed).bounds["pretrained"] + 5.0 < plain
    assert plain < fisher
    assert fisher + 0.8 < arithmetic
    assert arithmetic + 2.5 < projected
    assert projected + 10.0 < lab(seed).bounds["joint"] < lab(seed).bounds["finetuned"]


@every_seed
def test_opcm_is_more_than_five_points_above_the_average(lab, seed):
    assert lab(seed).accuracy("opcm") > lab(seed).accuracy("average") + 5.0


@every_seed
def test_ties_as_published_is_above_the_average(lab, seed):
    assert lab(seed).accuracy("ties") > lab(seed).accuracy("average") + 1.0


@every_seed
def test_the_best_scale_of_task_arithmetic_is_below_the_published_one(lab, seed):
    of = lab(seed).accuracy
    assert of("task-arithmetic", scale=0.2) > max(of("task-arithmetic", scale=scale) for scale in (0.1, 0.5, 1.0)) + 2.0


def test_opcm_hardly_depends_on_the_order_of_the_models(lab):
    here, found, scales = lab(0), [], []
    heads = {name for name, role in here.roles.items() if role == "classifier"}
    for number in range(5):
        merger = SequentialMerger(here.workload.model(0, CPU), heads=heads)
        for index in torch.randperm(8, generator=torch.Generator().manual_seed(number)).tolist():
            merger.add(here.experts[index])
        found.append(100 * here.examine(with_values(here.experts[0], merger.weights()))["accuracy"])
        scales.append(merger.scale)
    assert pstdev(found) < 0.5
    assert fmean(scales) == pytest.approx(2.73, abs=0.15)  # the root of eight, 2.83, were nothing shared


# -- networks without a common start ---------------------------------------------------------------------------------
@dataclass
class Pair:
    """Two networks of neighbouring seeds, the second one also reordered to match the first."""

    seed: int
    workload: MergePermutedDigits

    def __post_init__(self):
        self.ends = self.workload.experts(self.seed, CPU, 2)
        rng = Run(seed=self.seed, steps=1, algorithm="weight-matching").rng("orders")
        first, second = weights_of(self.ends[0]), weights_of(self.ends[1])
        order = aligned_orders(self.ends, self.workload.axes, starts=WeightMatching().starts, generator=rng)[1]
        self.first, self.second, self.matched = first, second, reordered(second, self.workload.axes, order)

    def at(self, other, part):
        """Return loss and accuracy on the test digits at ``part`` of the way from the first network to ``other``."""
        values = {name: torch.lerp(value, other[name], part) for name, value in self.first.items()}
        model = with_values(self.ends[0], values)
        with torch.no_grad():
            metrics = self.workload.examine(model, Point(count=2), [], CPU, self.seed)
        return metrics["barrier"], 100 * metrics["accuracy"]

    def barrier(self, other):
        """Return the most by which the loss on 25 points of the way lies above the line between the ends."""
        parts = torch.linspace(0, 1, 25).tolist()
        heights = [self.at(other, part)[0] for part in parts]
        return max(h - (1 - part) * heights[0] - part * heights[-1] for h, part in zip(heights, parts, strict=True))

    def alignment(self, other, pairs=5):
        """Return for each matrix how well its first singular pairs (u, v) are met by those of ``other``: 0 to 1."""
        found = []
        for name, value in self.first.items():
            if value.ndim == 2:
                (u, _, v), (x, _, y) = (
                    torch.linalg.svd(matrix, full_matrices=False) for matrix in (value, other[name])
                )
                meets = (u[:, :pairs].T @ x) * (v[:pairs] @ y.T)
                found.append(float(meets.abs().amax(dim=1).mean()))
        return found


@pytest.fixture(scope="module")
def digits(artifact_cache):
    return MergePermutedDigits("tiny-6")


@pytest.fixture(scope="module")
def pairs(digits):
    return [Pair(seed, digits) for seed in range(5)]


@pytest.mark.parametrize("seed", range(5))
def test_two_matched_networks_have_hardly_a_barrier_and_a_good_midpoint(pairs, seed):
    pair = pairs[seed]
    ends = fmean((pair.at(pair.second, 0.0)[1], pair.at(pair.second, 1.0)[1]))
    assert pair.barrier(pair.matched) <= 0.06
    assert pair.at(pair.matched, 0.5)[1] >= max(95.5, ends - 2.5)


@pytest.mark.parametrize("seed", range(5))
def test_unmatched_the_midpoint_is_far_worse(pairs, seed):
    pair = pairs[seed]
    assert pair.barrier(pair.second) > 0.4
    assert pair.at(pair.second, 0.5)[1] < pair.at(pair.matched, 0.5)[1] - 10.0


def test_matching_shortens_the_distance_by_a_quarter(pairs):
    for pair in pairs:
        before, after = (
            norm({name: value - other[name] for name, value in pair.first.items()})
            for other in (pair.second, pair.matched)
        )
        assert 0.65 < after / before < 0.85


def test_matching_aligns_the_leading_singular_vectors_of_every_layer(pairs):
    before = torch.tensor([pair.alignment(pair.second) for pair in pairs]).mean(dim=0)
    after = torch.tensor([pair.alignment(pair.matched) for pair in pairs]).mean(dim=0)
    assert bool((after > 2.5 * before).all()), (before, after)


def test_the_average_of_six_matched_networks_is_right_on_95_percent(digits):
    lab = Lab(0, 6, digits)
    assert lab.accuracy("weight-matching") >= 95.0
    assert 100 * lab.examine(average(lab.experts))["accuracy"] < 50.0
