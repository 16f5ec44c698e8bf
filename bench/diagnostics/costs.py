"""What an algorithm costs beside torch's AdamW: both step in turn, and each pair of steps gives one ratio.

So a busy machine slows both, and the median of the ratios is the figure. Expensive work that comes more rarely than the
pairs that are measured is not in it.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from bench.algorithm import COMPRESSION_SLOTS, TRAINING_SLOTS
from bench.assembly import Parts, assemble
from bench.clock import Clock
from bench.conformance.check import Subject
from bench.conformance.compression_scene import Scene as CompressionScene
from bench.conformance.compression_scene import first_jobs
from bench.conformance.language_model import Filler, Sentences, Text, drawn_decoder
from bench.conformance.merging_scene import Scene as MergingScene
from bench.conformance.runs import elsewhere
from bench.context import Run
from bench.loop import take_step
from bench.probes import optimizer_state_bytes

PAIRS, LEAST_PAIRS, LIMIT_S = 30, 7, 2.0
"""How many pairs are measured at most; fewer, but not fewer than the second number, once the time is over."""

STEPS = 1000
"""The budget of the runs, long enough that what is renewed now and then is renewed as rarely as in a real one."""

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """A cost of the algorithm as a ratio: median of ``pairs`` with its 95% interval; ``seconds`` is its own median.

    ``beside`` says what it is divided by; ``seconds`` is ``None`` where bytes are compared.
    """

    name: str
    beside: str
    ratio: float
    low: float
    high: float
    pairs: int
    seconds: float | None


def race(name: str, beside: str, one: Callable[[], float], other: Callable[[], float]) -> Overhead:
    """Call both in turn, each first every second time; both return seconds."""
    one(), other()  # states are made, caches filled
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    for number in count():
        if number >= PAIRS or (number >= LEAST_PAIRS and time.perf_counter() - start > LIMIT_S):
            break
        if number % 2:
            second = other()
            pairs.append((one(), second))
        else:
            first = one()
            pairs.append((first, other()))
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    low, high = median_interval(ratios)
    return Overhead(
        name=name,
        beside=beside,
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        pairs=len(ratios),
        seconds=statistics.median(mine for mine, _ in pairs),
    )


def median_interval(ordered: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the median between two order statistics of ``ordered``, which supposes no distribution.

    The ranks k and n + 1 - k are the innermost with P(k <= B <= n - k) >= ``confidence`` for B ~ Binomial(n, 1/2); the
    whole range where n is too small for that.
    """
    n = len(ordered)
    outside, rank = 2 / 2**n, 0
    while outside <= 1 - confidence:
        rank += 1
        outside += 2 * math.comb(n, rank) / 2**n
    place = max(rank, 1) - 1
    return ordered[place], ordered[n - 1 - place]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# -- training --------------------------------------------------------------------------------------------------------
class LargerText(Text):
    """The language model with half a million parameters, so that a step is more than the calls it is made of."""

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the decoder."""
        return drawn_decoder(seed, device, std=0.05, hidden=128, ffn=256, layers=4)


class LargerSentences(Sentences):
    """The classifier of the same size, for algorithms that fine-tune."""

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the decoder with a classifier."""
        model = drawn_decoder(seed, device, std=0.05, hidden=128, ffn=256, layers=4, outputs=3, pooled=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.ndim == 2 and name != "embedding.weight")
        return model


def _parts(subject: Subject | None, workload: Text) -> Parts:
    algorithms = [Filler()] if subject is None else [subject.algorithm(), Filler()]
    return assemble(algorithms, workload, Run(seed=0, steps=STEPS, device=CPU), workload.model(0, CPU))


def _stepper(parts: Parts, workload: Text) -> Callable[[], float]:
    """Return what does one whole step of the loop and returns its seconds."""
    batches, numbers, clock = workload.batches(0, 0, CPU), count(), Clock(CPU)
    clock.resume("data")
    return lambda: timed(lambda: take_step(parts, workload, clock, batches, next(numbers)))


class _Bare:
    """An optimizer over the model's parameters with gradients by hand, so that its step alone is timed."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, closure: bool) -> None:
        self.optimizer, self.closure = optimizer, closure
        self.generator = torch.Generator().manual_seed(0)
        switch = getattr(optimizer, "train", None)
        if callable(switch):
            switch()

    def gradients(self) -> float:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=self.generator)
        return 1.0

    def seconds(self) -> float:
        self.gradients()
        if self.closure:
            return timed(lambda: self.optimizer.step(lambda: 1.0))
        return timed(self.optimizer.step)


def _optimizer(subject: Subject, workload: Text) -> list[Overhead]:
    parts = _parts(subject, workload)
    reference = workload.model(0, CPU)
    trainable = [parameter for parameter in reference.parameters() if parameter.requires_grad]
    adamw = _Bare(torch.optim.AdamW(trainable, lr=1e-3, fused=True), closure=False)
    own = _Bare(parts.optimizer, closure=parts.closure)
    step = race("optimizer step", "fused AdamW's step", own.seconds, adamw.seconds)
    ratio = optimizer_state_bytes(own.optimizer) / optimizer_state_bytes(adamw.optimizer)
    state = Overhead(
        name="optimizer state", beside="AdamW's bytes", ratio=ratio, low=ratio, high=ratio, pairs=1, seconds=None
    )
    return [step, state]


def _training(subject: Subject) -> list[Overhead]:
    workload = (LargerSentences if subject.entry.track == "peft" else LargerText)("micro")
    found = []
    if subject.fills("optimizer") and not subject.fills("learner"):
        found += _optimizer(subject, workload)
    whole = _stepper(_parts(None, workload), workload)
    found.append(race("training step", "the same with AdamW", _stepper(_parts(subject, workload), workload), whole))
    return found


def _slots(subject: Subject) -> list[Overhead]:
    """Return what the slots cost that are called once, or that return a mere function."""
    workload = (LargerSentences if subject.entry.track == "peft" else LargerText)("micro")
    whole = _stepper(_parts(None, workload), workload)
    found = []
    if subject.fills("adapt"):
        own = lambda: timed(lambda: _parts(subject, workload))  # noqa: E731 - as the stepper
        plain = lambda: timed(lambda: _parts(None, workload))  # noqa: E731 - as above
        found.append(race("setup", "setup with AdamW", own, plain))
    if subject.fills("schedule"):
        factor, numbers = subject.algorithm().schedule(Run(seed=0, steps=STEPS, device=CPU)), count()
        call = lambda: timed(lambda: factor(next(numbers) % STEPS))  # noqa: E731 - as above
        found.append(race("schedule call", "a training step", call, whole))
    return found


# -- after training --------------------------------------------------------------------------------------------------
def _after_training(subject: Subject) -> list[Overhead]:
    """Return what a call of each slot costs, beside a forward and backward pass of the model that it is called with."""
    found = []
    if subject.fills(*COMPRESSION_SLOTS):
        for slot, point in first_jobs(subject):
            scene = CompressionScene(subject, slot, point)
            pass_s = _passes(scene.model, scene.tokens)
            found.append(race(f"{slot} at {point}", "a pass of the model", lambda s=scene: timed(s.result), pass_s))  # type: ignore[misc]
    if subject.fills("merge"):
        merge = MergingScene(subject)
        found.append(
            race("merge of 3", "a pass of one model", lambda: timed(merge.merge), _passes(merge.start, merge.inputs))
        )
    return found


def _passes(model: nn.Module, inputs: Tensor) -> Callable[[], float]:
    own = copy.deepcopy(model)
    return lambda: timed(lambda: own(inputs).square().mean().backward())


def overhead(subject: Subject) -> list[Overhead]:
    """Return what the algorithm costs in every slot that it fills."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with elsewhere():
            training = [*_training(subject), *_slots(subject)] if subject.fills(*TRAINING_SLOTS) else []
            return [*training, *_after_training(subject)]
    finally:
        torch.set_num_threads(before)
