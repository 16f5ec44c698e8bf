"""State bytes: the formula of each listed optimizer, against what estimates count and what a real step leaves behind.

A formula comes from the algorithm's source, with the settings that the plugin has by default (rank a quarter of the
short side and so on), and says how many elements of how many bytes are kept for all parameters of a model. Where it
differs from what the source's authors state, or their code keeps, the comment beside it says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from bench import HIDDEN_MATRICES, Registry, Role, Run
from bench.algorithm import slots
from bench.assembly import Parts, assemble
from bench.errors import SlotMismatch
from bench.memory import estimate
from bench.probes import optimizer_state_bytes
from bench.request import Request, open_workload, stacks
from bench.roles import assign_roles
from bench.workload import DataRequest, Limits, Workload

REGISTRY = Registry()
OURS = [name for name, entry in sorted(REGISTRY.algorithms.items()) if entry.target.startswith("bench.plugins.")]
OPTIMIZERS = [
    name
    for name in OURS
    if REGISTRY.algorithms[name].track == "optimizer" and "optimizer" in slots(REGISTRY.algorithm_class(name))
]

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
both_precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])

ATTENTION_AND_MLP = HIDDEN_MATRICES - {Role.CONV}
VOCABULARY = {Role.EMBEDDING, Role.LM_HEAD}


# -- the formulas ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parameter:
    """A parameter (m, n); m is the first dimension, n the product of the others, s the short side and l the long."""

    name: str
    role: Role
    shape: tuple[int, ...]

    @property
    def m(self) -> int:
        return self.shape[0]

    @property
    def n(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def mn(self) -> int:
        return math.prod(self.shape)

    @property
    def s(self) -> int:
        return min(self.m, self.n)

    @property
    def l(self) -> int:  # noqa: E743 - the symbol of the formulas
        return max(self.m, self.n)

    @property
    def r(self) -> int:
        """The default rank of the projected methods: a quarter of the short side."""
        return max(1, self.s // 4)


State = list[tuple[int, int]]
"""How many elements, and how many bytes each of them takes."""

Rule = Callable[[Parameter, int], State]
"""The state of one parameter whose own elements take so many bytes."""


@dataclass(frozen=True)
class Model:
    """What a formula needs to know of a run."""

    parameters: list[Parameter]
    width: int
    steps: int

    def has(self, name: str) -> bool:
        return any(parameter.name == name for parameter in self.parameters)


Formula = Callable[[Model], State]


def everywhere(rule: Rule) -> Formula:
    return lambda model: [part for parameter in model.parameters for part in rule(parameter, model.width)]


def buffers(number: int) -> Rule:
    return lambda p, width: [(number * p.mn, width)]


ADAM = buffers(2)


def split(roles: frozenset[Role], matrix: Rule, rest: Rule = ADAM) -> Formula:
    """Return the formula with ``matrix`` for matrices (and convolutions) of ``roles`` and ``rest`` for the others."""
    return everywhere(lambda p, width: (matrix if p.role in roles and len(p.shape) > 1 else rest)(p, width))


def adafactor(p: Parameter, width: int) -> State:
    """M, and in fp32 the averages: m + n of a matrix, one per leading index of a convolution; a vector keeps all."""
    averages = p.mn if len(p.shape) < 2 else p.mn // p.shape[-1] + p.mn // p.shape[-2]
    return [(p.mn, width), (averages, 4)]


def eight_bit(elements: int) -> State:
    """Two moments in block-wise 8-bit, a scale per 256; below 4096 elements in fp32."""
    return [(2 * elements, 4)] if elements < 4096 else [(2 * elements, 1), (2 * math.ceil(elements / 256), 4)]


def q_galore(p: Parameter, width: int) -> State:
    """4-bit codes, two to a byte, in groups of 256, the last one filled up; 8-bit moments; the first singular vector.

    The weights' codes, m n bytes, are no state here: they are values that the weights have (see its deviations). The
    authors' code keeps one 4-bit code per byte; the paper counts half a byte. The queue of similarities is empty until
    the second basis and never holds more than 5.
    """
    groups = math.ceil(p.s * p.r / 256)
    return [(128 * groups, 1), (groups, 4), (groups, 1), *eight_bit(p.r * p.l), (p.s, width)]


def shampoo(p: Parameter, width: int, largest: int = 1024) -> State:
    """M and V, and for each block of a merged tensor, per dimension d, a factor and its root, d by d; all in fp32.

    The card's line on vectors, "no matrix factors", holds for SOAP but not for Shampoo, whose vectors have the exponent
    -1/2 and so a factor; that of a norm or bias of d elements outweighs its moments d times.
    """
    assert width <= 4
    merged: list[int] = []
    for size in (size for size in p.shape if size > 1):
        fits = merged and merged[-1] * size <= largest
        merged = [*merged[:-1], merged[-1] * size] if fits else [*merged, size]
    cuts = [[largest] * (size // largest) + [size % largest] * (size % largest > 0) for size in merged or [1]]
    others = [math.prod(len(cut) for cut in cuts) // len(cut) for cut in cuts]
    squares = sum(number * sum(side**2 for side in cut) for cut, number in zip(cuts, others, strict=True))
    return [(2 * p.mn + 2 * squares, 4)]


def soap(p: Parameter, width: int) -> State:
    """M, V and, for each dimension up to 10,000 of what is no vector, a factor and a basis; all in fp32."""
    assert width <= 4
    return [(2 * p.mn, 4), *((2 * size**2, 4) for size in p.shape if len(p.shape) > 1 and size <= 10_000)]


def frugal(model: Model) -> State:
    """A quarter of the split matrices, the last ones at first, have Adam's state as whole tensors; the others none."""
    matrices = [p for p in model.parameters if p.role in ATTENTION_AND_MLP]
    active = matrices[len(matrices) - round(0.25 * len(matrices)) :]
    return [part for p in model.parameters if p not in matrices or p in active for part in ADAM(p, model.width)]


def m_fac(model: Model) -> State:
    """A window of gradients in fp32 and their Gram matrix in fp64.

    The card's 3 m² is the authors' code, which keeps two more m by m matrices from step to step; with the window solved
    anew at each step, the card's simplest correct form, one is left.
    """
    elements = sum(p.mn for p in model.parameters)
    window = max(1, min(1024, max(32, model.steps // 10), 2**31 // elements))
    return [(window * elements, 4), (window**2, 8)]


def mkor(model: Model) -> State:
    """LAMB's two moments, and for each layer the inverse factors in fp16; a bias is one more input.

    The card's averaged vectors, d_in + d_out per layer, live from the backward pass to the step only.
    """
    layers = [p for p in model.parameters if len(p.shape) > 1 and p.role not in VOCABULARY]
    inputs = [p.n + model.has(p.name.removesuffix("weight") + "bias") for p in layers]
    return [
        *everywhere(ADAM)(model),
        *((p.m**2 + d_in**2, 2) for p, d_in in zip(layers, inputs, strict=True)),
    ]


def owlore(model: Model) -> State:
    """GaLore at an eighth of its rank in 5 of 32 blocks, Adam for the vectors of these and for all outside of blocks.

    As the card has it for a benchmark, and the paper's memory supposes: the authors' code never frees a block's state.
    """
    blocks = {p.name: match[1] for p in model.parameters if (match := re.match(r"layers\.(\d+)\.", p.name))}
    active = {str(number) for number in range(max(1, round(len(set(blocks.values())) * 5 / 32)))}

    def rule(p: Parameter, width: int) -> State:
        rank = max(1, p.r // 8)
        low_rank = p.role in ATTENTION_AND_MLP and len(p.shape) == 2
        return [(p.s * rank + 2 * rank * p.l, width)] if low_rank else ADAM(p, width)

    trained = [p for p in model.parameters if blocks.get(p.name, "0") in active]
    return [part for p in trained for part in rule(p, model.width)]


FORMULAS: Mapping[str, Formula] = {
    "adafactor": everywhere(adafactor),
    "adamw": everywhere(lambda p, width: [(2 * p.mn, width), (1, 4)]),  # torch counts steps in a tensor
    "apollo": split(ATTENTION_AND_MLP, lambda p, width: [(2 * p.r * p.l, width), (1, 4)]),  # P follows from a seed
    "auon": split(HIDDEN_MATRICES, buffers(1)),
    "auon-hybrid": split(HIDDEN_MATRICES, buffers(1)),
    "conda": split(HIDDEN_MATRICES, lambda p, width: [(2 * p.mn + p.s**2, width)]),
    # The card's second list of r indices is the authors' code, which keeps the old choice beside the new one to rotate
    # by; here it is needed within a step only. The cosine matrix of s² elements, one for all matrices of a short side,
    # is a constant of the module and no optimizer's state.
    "dct-adamw": split(ATTENTION_AND_MLP, lambda p, width: [(2 * p.r * p.l, width), (p.r, 4), (p.mn, width)]),
    "diffgrad": everywhere(buffers(3)),
    "fira": split(ATTENTION_AND_MLP, lambda p, width: [(p.s * p.r + 2 * p.r * p.l, width), (1, 4)]),
    "frugal": frugal,
    "galore": split(ATTENTION_AND_MLP, lambda p, width: [(p.s * p.r + 2 * p.r * p.l, width)]),
    "galore-8bit": split(
        ATTENTION_AND_MLP,
        lambda p, width: [(p.s * p.r, width), *eight_bit(p.r * p.l)],
        lambda p, _: eight_bit(p.mn),
    ),
    "galore-per-layer": split(ATTENTION_AND_MLP, lambda p, width: [(p.s * p.r + 2 * p.r * p.l, width)]),
    # The form of the paper without adapters: GaLore's state of each direction, and Adam's of the m magnitudes that the
    # parameterisation adds. The card's other total, m n + 3 m more, is the release's optimizer.
    "gradnorm-lorp": split(ATTENTION_AND_MLP, lambda p, width: [(p.s * p.r + 2 * p.r * p.l + 2 * p.m, width)]),
    "lamb": everywhere(ADAM),
    "lion": everywhere(buffers(1)),
    "m-fac": m_fac,
    "mkor": mkor,
    "mkor-hybrid": mkor,  # until it switches
    "muon": split(HIDDEN_MATRICES, buffers(1)),
    "nadamw": everywhere(ADAM),
    "normuon": split(HIDDEN_MATRICES, lambda p, width: [(p.mn, width), (p.m, 4)]),
    "owlore": owlore,
    "q-galore": split(ATTENTION_AND_MLP, q_galore, lambda p, _: eight_bit(p.mn)),
    "sam": everywhere(ADAM),  # the card's third buffer, the saved weights, lives within a step only
    "schedule-free": everywhere(ADAM),
    "sgd": everywhere(buffers(1)),
    "shampoo": everywhere(shampoo),
    "soap": everywhere(soap),
    "tpsgd": lambda _: [],  # projections are drawn again from their seed
}


def test_every_listed_optimizer_has_a_formula_and_every_formula_an_optimizer():
    without = set(OPTIMIZERS) - set(FORMULAS)
    assert not without, f"write the state of {sorted(without)} into FORMULAS, from the source of each"
    assert set(FORMULAS) == set(OPTIMIZERS)


PROJECTING = {name for name in OPTIMIZERS if "galore" in name} | {
    *("apollo", "dct-adamw", "fira", "frugal", "gradnorm-lorp", "owlore")
}
"""What refuses a model without a matrix of attention or MLP."""


def state_of(name: str, workload: Workload, precision: str) -> State:
    model = workload.model(0, torch.device("meta"))
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    roles = assign_roles(shapes, workload.roles)
    parameters = [Parameter(key, roles[key], shape) for key, shape in shapes.items()]
    assert name in FORMULAS, f"write the state of {name} into FORMULAS, from its source"
    return FORMULAS[name](Model(parameters, {"bf16": 2, "fp32": 4}[precision], workload.tier.steps))


def size_of(state: State) -> int:
    return sum(elements * width for elements, width in state)


# -- what estimates count --------------------------------------------------------------------------------------------
def stack(name: str, workload: Workload, listed_as: str) -> list[Any]:
    (algorithms,) = stacks(REGISTRY, Request(plugins=[name], workload=listed_as, reference=False), workload).values()
    return algorithms


def two_layers(tier: str) -> Workload:
    """Return ``tier`` of llama-c4 with two of its layers: every shape and width of it in a fraction of the time."""
    kind = REGISTRY.workload_class("llama-c4")
    whole: Any = kind.tiers[tier]
    short = replace(whole, config=replace(whole.config, layers=2))
    return type("TwoLayers", (kind,), {"tiers": {tier: short}})(tier, DataRequest(), Limits())


@every_optimizer
@both_precisions
def test_an_estimate_of_the_smallest_tier_is_the_formula(name, precision):
    workload = open_workload(REGISTRY, "llama-c4", "tiny")
    found = estimate(stack(name, workload, "llama-c4"), workload, precision)
    assert found.states_bytes == size_of(state_of(name, workload, precision))


@every_optimizer
@pytest.mark.parametrize(("tier", "precision"), [("60m", "fp32"), ("60m", "bf16"), ("130m", "bf16"), ("7b", "bf16")])
def test_an_estimate_of_the_layers_of_a_published_tier_is_the_formula(name, tier, precision):
    workload = two_layers(tier)
    found = estimate(stack(name, workload, "llama-c4"), workload, precision)
    assert found.states_bytes == size_of(state_of(name, workload, precision))


@every_optimizer
def test_an_estimate_of_convolutions_is_the_formula_or_says_that_there_is_nothing_to_project(name):
    workload = open_workload(REGISTRY, "resnet-cifar10", "tiny")
    algorithms = stack(name, workload, "resnet-cifar10")
    if name in PROJECTING:
        with pytest.raises(SlotMismatch, match="attention or MLP role"):
            estimate(algorithms, workload, "bf16")
    else:
        assert estimate(algorithms, workload, "bf16").states_bytes == size_of(state_of(name, workload, "bf16"))


WHOLE = [("llama-c4", tier) for tier in ("9m", "20m", "60m", "130m", "350m", "1b", "7b")]
WHOLE += [("gpt2-fineweb", tier) for tier in ("tiny", "124m")]


@pytest.mark.slow
@every_optimizer
@pytest.mark.parametrize(("listed_as", "tier"), WHOLE)
def test_an_estimate_of_a_whole_language_model_is_the_formula(name, listed_as, tier):
    workload = open_workload(REGISTRY, listed_as, tier)
    found = estimate(stack(name, workload, listed_as), workload, "bf16")
    assert found.states_bytes == size_of(state_of(name, workload, "bf16"))


# -- what an optimizer holds -----------------------------------------------------------------------------------------
class Block(nn.Module):
    """A square, a tall and a wide matrix, the tall one with a bias, and a norm; none has a multiple of 256 elements
    where that is what a block-wise state would like."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Linear(64, 64, bias=False)
        self.tall = nn.Linear(64, 262)
        self.wide = nn.Linear(262, 64, bias=False)
        self.norm = nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(self.tall(self.norm(self.square(x))))
        return x + self.wide(inner)


class Shapes(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 64)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(64, 40, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


ROLES = {
    r"embedding\.weight": Role.EMBEDDING,
    r"layers\.\d\.square\.weight": Role.ATTENTION_Q,
    r"layers\.\d\.(tall|wide)\.weight": Role.MLP,
    r"layers\.\d\.(tall|norm)\.bias": Role.BIAS,
    r"layers\.\d\.norm\.weight": Role.NORM,
    r"head\.weight": Role.LM_HEAD,
}


def make(_: Workload, seed: int, device: torch.device) -> nn.Module:
    torch.manual_seed(seed)
    with device:
        return Shapes()


def tokens(_: Workload, device: torch.device) -> dict[str, torch.Tensor]:
    return {"x": torch.arange(40, device=device), "y": torch.arange(40, device=device).roll(-1)}


@pytest.fixture
def shapes(micro) -> Workload:
    """A workload of :class:`Shapes`, whose example is a batch."""
    return type("OfShapes", (micro.Micro,), {"roles": ROLES, "model": make, "example": tokens})("small")


def two_steps(name: str, workload: Workload, precision: str) -> Parts:
    """Return what two steps on the CPU leave behind, taken as the training loop takes them."""
    cpu = torch.device("cpu")
    model = workload.model(0, cpu).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    run = Run(seed=0, steps=workload.tier.steps, device=cpu, precision=precision)
    parts = assemble([REGISTRY.algorithm(name)], workload, run, model)
    getattr(parts.optimizer, "train", lambda: None)()
    batch = workload.example(cpu)

    def backward() -> float:
        parts.optimizer.zero_grad()
        loss = workload.loss(parts.model, batch)
        loss.backward()
        return float(loss.detach())

    for number in range(2):
        if parts.freeze is not None:
            parts.freeze(number)
        if parts.learn is not None:
            parts.learn(batch)
        elif parts.closure:
            parts.optimizer.step(backward)
        else:
            backward()
            parts.optimizer.step()
    return parts


@every_optimizer
@both_precisions
def test_two_real_steps_leave_the_state_of_the_formula_and_that_is_what_an_estimate_counts(name, precision, shapes):
    optimizer = two_steps(name, shapes, precision).optimizer
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    state = state_of(name, shapes, precision)
    assert sum(tensor.numel() for tensor in held) == sum(elements for elements, _ in state)
    assert optimizer_state_bytes(optimizer) == size_of(state)
    assert estimate([REGISTRY.algorithm(name)], shapes, precision).states_bytes == size_of(state)
