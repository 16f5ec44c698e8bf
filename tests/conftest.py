"""What many tests share: one torch thread, the real registry, and a workload so small that a run takes milliseconds."""

# Slots take their contract's arguments, used or not.
# ruff: noqa: ARG002
from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, count
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
import torch
from annotated_types import Gt
from hypothesis import settings
from torch import nn

from bench import Algorithm, DataIdentity, Registry, Role, Run, Tier, TrainingWorkload, hyper
from bench.assembly import Parts, assemble
from bench.clock import Clock
from bench.context import derive_seed
from bench.loop import Evaluation, train

settings.register_profile("suite", deadline=None, derandomize=True)  # machines are shared: no test asserts a time
settings.load_profile("suite")

TIER = Tier(
    steps=12,
    evaluate_every=3,
    batch_size=6,
    micro_batch_size=6,
    precision="fp32",
    reference={"plain": {"lr": 0.1}},
    tuning="a toy",
    source="drawn",
    device_class="none",
)


class Net(nn.Module):
    """Two layers with a norm and dropout between them, so that training needs the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.dropout(torch.tanh(self.norm(self.hidden(x)))))
        return output


class Micro(TrainingWorkload):
    """Three classes of five drawn features; its evaluation draws from every global generator, as a careless one may."""

    name = "micro"
    version = "1.2.3"
    metric = "loss"
    direction = "min"
    tiers: ClassVar[Mapping[str, Tier]] = {"small": TIER}
    sources = ("drawn",)
    roles: ClassVar[Mapping[str, Role]] = {
        r"hidden\.weight": Role.MLP,
        r"(hidden|norm|head)\.bias": Role.BIAS,
        r"norm\.weight": Role.NORM,
        r"head\.weight": Role.CLASSIFIER,
    }

    def data(self) -> DataIdentity:
        return DataIdentity(source="drawn", sha256="d" * 64, label="drawn features")

    def model(self, seed: int, device: torch.device) -> nn.Module:
        with torch.device(device):
            if device.type != "meta":
                torch.manual_seed(derive_seed(seed, "model"))
            return Net()

    def batches(self, seed: int, start: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
        for number in count(start):
            generator = torch.Generator().manual_seed(derive_seed(seed, "data", str(number)))
            x = torch.randn(self.tier.batch_size, 5, generator=generator)
            yield {"x": x, "y": x[:, :3].argmax(dim=1)}

    def example(self, device: torch.device) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(1, 5, device=device), "y": torch.zeros(1, dtype=torch.long, device=device)}

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        losses = nn.functional.cross_entropy(model(batch["x"]).float(), batch["y"], reduction="none")
        weights = batch.get("weights")
        return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002 - the global generator is the point
        random.random()
        batch = next(self.batches(10_000, 0, device))
        return {"loss": float(self.loss(model, batch)), "rows": float(len(batch["x"]))}


@dataclass(frozen=True, kw_only=True)
class Plain(Algorithm):
    """SGD with momentum.

    Source: none, a toy.
    """

    name = "plain"

    lr: Annotated[float, Gt(0)] = hyper(0.1, help="learning rate")

    def optimizer(self, named_parameters: Any, run: Run) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(named_parameters), lr=self.lr, momentum=0.9)


@dataclass(frozen=True)
class Kit:
    """The toy workload and how to run it inside this process."""

    Plain: ClassVar[type[Plain]] = Plain
    Micro: ClassVar[type[Micro]] = Micro
    Net: ClassVar[type[Net]] = Net
    cpu: ClassVar[torch.device] = torch.device("cpu")

    def workload(self, direction: str = "min", **changes: Any) -> Micro:
        """Return the workload with ``changes`` of its tier."""
        facts = {"tiers": {"small": replace(TIER, **changes)}, "direction": direction}
        return type("Micro", (Micro,), facts)("small")

    def run(self, **changes: Any) -> Run:
        """Return the facts of a run."""
        return Run(**{"seed": 0, "steps": TIER.steps} | changes)

    def parts(
        self, *algorithms: Algorithm, workload: TrainingWorkload | None = None, seed: int = 0, **changes: Any
    ) -> Parts:
        """Build the model and call the slots; ``plain`` fills what the others leave empty."""
        workload = workload or self.workload()
        run = self.run(seed=seed, steps=workload.tier.steps, precision=workload.tier.precision, **changes)
        model = workload.model(seed, self.cpu)
        torch.manual_seed(derive_seed(seed, "global"))
        return assemble([*algorithms, Plain()], workload, run, model)

    def train(
        self, parts: Parts, workload: TrainingWorkload, start: int = 0, stop_at: int | None = None
    ) -> list[Evaluation]:
        """Train to the end, or to the evaluation at step ``stop_at``; return the evaluations."""
        seen: list[Evaluation] = []

        def observe(evaluation: Evaluation) -> bool:
            seen.append(evaluation)
            return stop_at is not None and evaluation.step >= stop_at

        train(parts, workload, Clock(self.cpu), observe, start=start)
        return seen

    def weights(self, parts: Parts) -> dict[str, torch.Tensor]:
        """Return a copy of the model's state."""
        return {name: value.clone() for name, value in parts.model.state_dict().items()}

    def equal(self, left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
        """Whether two states are equal bit for bit."""
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """On a busy machine two threads make toy steps a hundred times slower; some tests set other numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The installed plugins."""
    return Registry()


@pytest.fixture(scope="session")
def micro() -> Kit:
    """The toy workload and how to run it."""
    return Kit()


@pytest.fixture(scope="session")
def artifact_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained models are made once per session: in the folder that BENCH_CACHE names, else in one of this session."""
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(os.environ.get("BENCH_CACHE") or tmp_path_factory.mktemp("artifacts"))
        patch.setenv("BENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def merge_subspace(artifact_cache: Path) -> Any:
    """The workload merge-subspace with its full recipe; a seed's experts take about 15 s, once per session."""
    return importlib.import_module("bench.workloads.merge_subspace").MergeSubspace("tiny")


@pytest.fixture
def leaving_thread() -> Iterator[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Return ``function -> function`` that also leaves a thread running until the test ends, as pools of loaders do."""
    stop, started = threading.Event(), []

    def leaving(function: Callable[..., Any]) -> Callable[..., Any]:
        def leaves(*arguments: Any) -> Any:
            started.append(threading.Thread(target=stop.wait))
            started[-1].start()
            return function(*arguments)

        return leaves

    yield leaving
    stop.set()
    for thread in started:
        thread.join()
    assert started, "it was called"


# -- packages to compare with ----------------------------------------------------------------------------------------
@pytest.fixture
def package():
    """Return ``name -> module``, skipping with the reason where the package is missing."""

    def load(name, wheel):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return importlib.import_module(name)
            except ImportError as error:
                pytest.skip(f"parity needs the package {wheel}: {error}")

    return load


@pytest.fixture
def module_alone(monkeypatch):
    """Return ``(name, wheel) -> module``, without running the initialisers of the packages above it.

    They import what the module does not need and what is not there: torchvision, which fits one build of torch, or
    compiled CUDA kernels. Skips with the reason where the package is missing.
    """

    def load(name, wheel):
        for parent in accumulate(name.split(".")[:-1], "{}.{}".format):
            spec = importlib.util.find_spec(parent)
            if spec is None:
                pytest.skip(f"parity needs the package {wheel}")
            monkeypatch.setitem(sys.modules, parent, importlib.util.module_from_spec(spec))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)

    return load
