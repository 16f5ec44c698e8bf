"""How long a step takes: every optimizer at two sizes of LLaMA, beside fused AdamW and the package of its card.

The contestants step in turn on gradients of the same kind, one thread, and the ratio of a round is the figure; so a
busy machine slows all of them. Where something is renewed every T steps, it is renewed every second step here, both
kinds of step are timed, and a mean step is (renewing + (T - 1) plain) / T with the T that the algorithm would use.

Results go to the folder that ``BENCH_STEP_RESULTS`` names: ``step_time.parquet`` (one row per algorithm and size;
a row that is measured again replaces the old one) and ``step_time.svg``.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bench import HIDDEN_MATRICES, Registry, Run
from bench.algorithm import Algorithm, Batch, slots
from bench.assembly import assemble
from bench.errors import BenchError
from bench.figures import new_figure, save
from bench.figures.forest import Estimate, draw_forest
from bench.figures.style import frame, style
from bench.memory import estimate
from bench.provenance import cpu_model
from bench.request import Request, stacks
from bench.roles import assign_roles
from bench.workload import Workload

REGISTRY = Registry()
SIZES = ("60m", "130m")
RANKS = {"60m": 128, "130m": 256}
"""The ranks at which GaLore's paper trained these sizes; everything that has a rank gets this one."""
ROUNDS, LEAST_ROUNDS, LIMIT_S = 5, 2, 60.0
RENEWED = ("update_gap", "precondition_frequency")
"""Hyperparameters that say after how many steps something expensive is renewed."""
MOST_STATE_BYTES = 12 * 2**30
STEPS = 10_000
"""A budget long enough that gaps which follow from it have their published lengths."""

OPTIMIZERS = [
    name
    for name, entry in sorted(REGISTRY.algorithms.items())
    if entry.track == "optimizer" and "optimizer" in slots(REGISTRY.algorithm_class(name))
]


# -- the packages ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Package:
    """An implementation that somebody else keeps: ``build(module, hidden, other, rank)`` returns its optimizer."""

    wheel: str
    module: str
    build: Callable[..., torch.optim.Optimizer]
    alone: bool = False
    """Import the module without the packages above it, which ask for what is not there."""


def _galore(module: Any, hidden: list[Tensor], other: list[Tensor], rank: int) -> torch.optim.Optimizer:
    low_rank = {"params": hidden, "rank": rank, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}
    return module.AdamW([{"params": other}, low_rank], lr=1e-3, no_deprecation_warning=True)


def _plain(name: str, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda module, hidden, other, _: getattr(module, name)([*hidden, *other], lr=1e-3, **options)


def _hidden(name: str, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    def build(module: Any, hidden: list[Tensor], other: list[Tensor], _: int) -> torch.optim.Optimizer:
        groups = [{"params": hidden, "use_muon": True}, {"params": other, "use_muon": False}]
        return getattr(module, name)(groups, lr=1e-3, **options)

    return build


class _WithFusedAdamW(torch.optim.SGD):
    """torch's Muon takes matrices only, so everything else goes to fused AdamW, as its documentation says."""

    def __init__(self, hidden: list[Tensor], other: list[Tensor]) -> None:
        super().__init__([*hidden, *other], lr=0.0)
        self.parts = (torch.optim.Muon(hidden, lr=1e-3), torch.optim.AdamW(other, lr=1e-3, fused=True))

    def step(self) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


GALORE = Package("galore-torch", "galore_torch.adamw", _galore)
KEPT = "pytorch_optimizer"
PACKAGES = {
    "adafactor": Package("transformers", "transformers.optimization", _plain("Adafactor", relative_step=False)),
    "conda": Package("pytorch-optimizer", KEPT, _plain("Conda", update_proj_gap=2)),
    "diffgrad": Package("pytorch-optimizer", KEPT, _plain("DiffGrad")),
    "fira": GALORE,
    "galore": GALORE,
    "lamb": Package("timm", "timm.optim.lamb", _plain("Lamb"), alone=True),
    "lion": Package("lion-pytorch", "lion_pytorch", _plain("Lion")),
    "muon": Package("torch", "torch", lambda _, hidden, other, __: _WithFusedAdamW(hidden, other)),
    "nadamw": Package("timm", "timm.optim.nadamw", _plain("NAdamW"), alone=True),
    "normuon": Package("pytorch-optimizer", KEPT, _hidden("NorMuon")),
    "q-galore": GALORE,
    "schedule-free": Package("schedulefree", "schedulefree", _plain("AdamWScheduleFree")),
    "soap": Package("pytorch-optimizer", KEPT, _plain("SOAP", precondition_frequency=2)),
}
WANTED_OF_THE_PACKAGE = {"galore": 0.5, "fira": 0.5, "q-galore": 0.5}
"""The most of the package's mean step; where nothing is said, 1: never slower."""
WANTED_OF_ADAMW = {"auon": 1.3, "lion": 1.3}
NOISE = 1.1
"""What a comparison of equals may show on a busy machine."""
_CODED = "8-bit moments and weights are coded and decoded by several operations, without a kernel of their own"
_PASSES = "several operations of PyTorch pass over the weights where the fused kernel passes once"
_PRODUCTS = "its products by the projection, which the package makes too, are most of a step"
MISSED = {
    **{("fira", size): _PRODUCTS for size in SIZES},
    **{("lion", size): _PASSES for size in SIZES},
    **{("q-galore", size): _CODED for size in SIZES},
    ("auon", "130m"): _PASSES,
    ("galore", "130m"): _PRODUCTS,
}
"""Why some do not get as far as was wanted; they are measured all the same, and the table says by how much."""


# -- contestants -----------------------------------------------------------------------------------------------------
class Contestant:
    """Somebody's optimizer on a model of its own, with new gradients for every step."""

    def __init__(
        self, workload: Workload, model: nn.Module, optimizer: torch.optim.Optimizer, *, closure: bool
    ) -> None:
        self.workload, self.model, self.optimizer, self.closure = workload, model, optimizer, closure
        self.generator = torch.Generator().manual_seed(0)
        switch = getattr(optimizer, "train", None)
        if callable(switch):
            switch()

    def seconds(self) -> float:
        """Make one step and return how long the optimizer took, passes that it asks for itself included."""
        batch = self._batch()
        if self.closure:
            start = time.perf_counter()
            self.optimizer.step(lambda: self._loss(batch))
            return time.perf_counter() - start
        self._loss(batch)
        if all(parameter.grad is None for parameter in self.model.parameters()):
            pytest.skip("it steps inside the backward pass; a step is not separable from it")
        start = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - start

    def _loss(self, batch: Batch) -> float:
        self.optimizer.zero_grad()
        loss = self.workload.loss(self.model, batch)
        loss.backward()
        return float(loss.detach())

    def _batch(self) -> Batch:
        tokens = torch.randint(0, 32_000, (2, 32), generator=self.generator)
        return {"input_ids": tokens, "labels": tokens}


def renewed_every(stack: list[Algorithm], workload: Workload) -> tuple[Algorithm, int]:
    """Return the first of ``stack`` renewing every second step, and after how many it would (1: it renews nothing)."""
    field = next((name for name in RENEWED if name in stack[0].hyperparameters()), None)
    if field is None:
        return stack[0], 1
    meta = torch.device("meta")  # published gaps may follow from the length of the run, so the optimizer is asked
    parts = assemble(stack, workload, Run(seed=0, steps=STEPS, device=meta), workload.model(0, meta))
    return replace(stack[0], **{field: 2}), next(g[field] for g in parts.optimizer.param_groups if field in g)


def ours(name: str, workload: Workload, model: nn.Module, size: str) -> tuple[Contestant, int]:
    """Return the plugin ``name`` with its published setting at the size's rank, and its period in steps."""
    request = Request(plugins=[name], workload="llama-c4", tier=size, reference=False)
    (stack,) = stacks(REGISTRY, request, workload).values()
    first, period = renewed_every(stack, workload)
    if "rank" in first.hyperparameters():
        first = replace(first, rank=RANKS[size])
    parts = assemble([first, *stack[1:]], workload, Run(seed=0, steps=STEPS), model)
    if parts.learn is not None:
        pytest.skip(f"{name} learns without a backward pass; a step is not separable from it")
    return Contestant(workload, parts.model, parts.optimizer, closure=parts.closure), period


def adamw(workload: Workload, model: nn.Module) -> Contestant:
    return Contestant(workload, model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), closure=False)


Loaders = dict[bool, Callable[[str, str], Any]]
"""How to import a module of a package: in the usual way, or alone."""


def packaged(
    name: str, workload: Workload, model: nn.Module, size: str, loaders: Loaders
) -> tuple[Contestant | None, dict[str, Any]]:
    """Return the package's optimizer and what it is, or ``None`` and why there is none."""
    package = PACKAGES.get(name)
    if package is None:
        return None, {"package_reason": "its card names none that is kept"}
    try:
        module = loaders[package.alone](package.module, package.wheel)
    except pytest.skip.Exception as reason:
        return None, {"package": package.wheel, "package_reason": str(reason)}
    roles = Run(seed=0, steps=1, roles=_roles(workload, model)).roles
    hidden = [p for key, p in model.named_parameters() if roles[key] in HIDDEN_MATRICES]
    other = [p for key, p in model.named_parameters() if roles[key] not in HIDDEN_MATRICES]
    optimizer = package.build(module, hidden, other, RANKS[size])
    facts = {"package": package.wheel, "package_version": importlib.metadata.version(package.wheel)}
    return Contestant(workload, model, optimizer, closure=False), facts


def _roles(workload: Workload, model: nn.Module) -> dict[str, Any]:
    return dict(assign_roles((name for name, _ in model.named_parameters()), workload.roles))


# -- measuring -------------------------------------------------------------------------------------------------------
Rounds = dict[str, list[tuple[float, float]]]
"""Seconds of two consecutive steps, per contestant and round."""


def race(contestants: dict[str, Contestant]) -> Rounds:
    """Let all step in turn, two steps each; every round begins with another one."""
    names = list(contestants)
    for name in names:  # states are made, caches filled
        contestants[name].seconds(), contestants[name].seconds()
    found: Rounds = {name: [] for name in names}
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - start > LIMIT_S:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append((contestants[name].seconds(), contestants[name].seconds()))
    return found


def mean_steps_s(rounds: list[tuple[float, float]], period: int) -> list[float]:
    """Return the mean step of every round; which of its two steps renews is the one that takes longer by median."""
    if period == 1:
        return [(one + other) / 2 for one, other in rounds]
    first, second = (statistics.median(times) for times in zip(*rounds, strict=True))
    ordered = rounds if first >= second else [(other, one) for one, other in rounds]
    return [(renewing + (period - 1) * plain) / period for renewing, plain in ordered]


def figures(found: Rounds, period: int) -> dict[str, Any]:
    """Return medians over the rounds: seconds of each, and the ratios of the plugin's mean step to the others'."""
    means = {name: mean_steps_s(rounds, 1 if name == "adamw" else period) for name, rounds in found.items()}
    medians = [statistics.median(times) for times in zip(*found["plugin"], strict=True)]
    shown: dict[str, Any] = {
        "plain_step_s": min(medians) if period > 1 else statistics.median(means["plugin"]),
        "renewing_step_s": max(medians) if period > 1 else None,
        "period_steps": period,
        "rounds": len(found["plugin"]),
        "mean_step_s": statistics.median(means["plugin"]),
    }
    for name in ("adamw", "package"):
        if name in means:
            ratios = [one / other for one, other in zip(means["plugin"], means[name], strict=True)]
            shown |= {f"{name}_mean_step_s": statistics.median(means[name]), f"{name}_ratio": statistics.median(ratios)}
            shown |= {f"{name}_ratio_low": min(ratios), f"{name}_ratio_high": max(ratios)}
    return shown


@pytest.fixture(scope="module")
def table() -> Iterator[list[dict[str, Any]]]:
    """The rows of this run; written when all are through, also after a failure."""
    rows: list[dict[str, Any]] = []
    yield rows
    folder = os.environ.get("BENCH_STEP_RESULTS")
    if not (rows and folder):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder, "step_time.parquet")
    old = [pd.read_parquet(path)] if path.exists() else []
    whole = pd.concat([*old, pd.DataFrame(rows)], ignore_index=True)
    whole = whole.drop_duplicates(["algorithm", "size"], keep="last").sort_values(["size", "algorithm"])
    whole.to_parquet(path, index=False)
    draw(whole, Path(folder, "step_time.svg"))


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw the ratios to fused AdamW of the larger size, fastest first."""
    size = rows["size"].iloc[rows["parameters"].argmax()]
    shown = rows[rows["size"] == size].sort_values("adamw_ratio")
    estimates = [
        Estimate(
            name=each.algorithm,
            told=f"{each.adamw_ratio:.2f}x",
            style=style(0),
            value=each.adamw_ratio,
            low=each.adamw_ratio_low,
            high=each.adamw_ratio_high,
        )
        for each in shown.itertuples()
    ]
    figure, axes = new_figure(rows=len(estimates))
    axes.set_xscale("log")
    draw_forest(axes, estimates, (0.8 * shown["adamw_ratio_low"].min(), 1.25 * shown["adamw_ratio_high"].max()))
    frame(axes, xlabel=f"mean step / step of fused AdamW, LLaMA {size}, fp32, one thread", ylabel="", grid="x")
    save(figure, path)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_as_fast_as_it_should_be(
    name: str, size: str, benchmark: Any, table: list[dict[str, Any]], package: Any, module_alone: Any
) -> None:
    """Beside fused AdamW and the package, in one run; what is wanted of a few is asked of them."""
    torch.set_num_threads(1)
    workload = REGISTRY.workload_class("llama-c4")(size)
    try:
        needed = estimate([REGISTRY.algorithm(name)], workload, "fp32")
    except BenchError as error:
        pytest.skip(str(error))
    if needed.states_bytes > MOST_STATE_BYTES:
        pytest.skip(f"{name} keeps {needed.states_bytes / 2**30:.1f} GiB of state at {size}")
    model = lambda: workload.model(0, torch.device("cpu"))  # noqa: E731 - one per contestant
    plugin, period = ours(name, workload, model(), size)
    contestants = {"plugin": plugin, "adamw": adamw(workload, model())}
    other, facts = packaged(name, workload, model(), size, {False: package, True: module_alone})
    contestants |= {"package": other} if other else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages
        found = benchmark.pedantic(lambda: race(contestants), rounds=1, iterations=1)
    shown = figures(found, period)
    benchmark.extra_info.update({key: value for key, value in shown.items() if value is not None})
    about = {"parameters": needed.parameters, "passes_included": plugin.closure, "threads": 1, "precision": "fp32"}
    about |= {"cpu_model": cpu_model(), "torch_version": torch.__version__}
    table.append({"algorithm": name, "size": size, **about, **shown, **facts})
    wanted = {"adamw": WANTED_OF_ADAMW.get(name, float("inf")), "package": WANTED_OF_THE_PACKAGE.get(name, 1.0)}
    slow = {of: shown[f"{of}_ratio"] for of in wanted if shown.get(f"{of}_ratio", 0.0) > NOISE * wanted[of]}
    if slow and (name, size) in MISSED:
        pytest.xfail(f"{slow} of {wanted}: {MISSED[name, size]}")
    assert not slow, wanted
