r"""CoLM: coresets of mini-batches, by what each example would do to Adam's step on one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt

from bench import Algorithm, Choice, Linear, Log, Role, hyper
from bench.errors import BadValue, SlotMismatch

from ._facility_location import Metric, greedy, similarities
from ._probe import slopes
from ._source_selector import SourceSelector, by_source, source_budgets

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench import Batch, Run

Image = Literal["adam", "sgd"]
Strategy = Literal["proportional", "none"]

_ROWS = 16
"""Examples whose features are held over all D coordinates at once; more would cost memory and gain nothing."""


@dataclass(frozen=True, kw_only=True)
class CoLM(Algorithm):
    r"""Train on b of every B examples: all of rare sources, and of the others a coreset in the image of Adam's step.

    A selector and nothing else: optimizer and schedule stay the reference's. See :class:`CoLMSelector` for the rule.
    The workload's batch is B, and b = floor(``ratio`` B). The probed matrix θ is the last block's value projection.
    Sources are read from ``batch["source"]``; without it the batch is one source, and a coreset of the whole is taken.
    Next-token labels are expected, as in the batches of language models.

    The defaults are the published ones, also on small tiers, where ``mask_size`` is a larger part of the D coordinates
    of θ (2,560 of 16,384 in place of 327,680) and all of them where there are fewer. With one direction, as published,
    all features are a multiple of one vector before Adam's image, so that examples differ by a single number;
    ``num_directions`` of 64 tells more, and each direction costs two passes through the last block. What the coreset
    adds to the rule of small sources shows beside ``colm-random``.

    Source: arXiv:2407.19580; BigML-CS-UCLA/CoLM for masks, budgets, history, and what is done in corner cases.
    Deviations: see ``deviations``.
    """

    name = "colm"
    deviations = (
        "Which sources are small follows from the examples seen so far; the authors name them for each data set.",
        (
            "The probed matrix is the weight of the last value projection; the authors fine-tune with LoRA and probe "
            "its factor B there."
        ),
        (
            "A shift of the matrix is added to the output of its layer and never to the weights, which the authors' "
            "in-place additions do not restore exactly."
        ),
        "An example's loss is the mean over its own tokens; the authors' fast path divides by the padded length.",
        (
            "The last block and the loss are computed in fp32 whatever the precision of training, since in half "
            "precision their difference may drown in rounding."
        ),
        (
            "The directions come from a generator of their own; the authors seed the global one anew at every step, "
            "which ties dropout and samplers to them."
        ),
        "Adam's decay rates are settings, 0.9 and 0.999 as the authors train; a selector cannot see its optimizer's.",
        "Gains that differ by rounding alone are ties and go to the first example, so that devices agree.",
    )

    ratio: Annotated[float, Gt(0), Le(1)] = hyper(0.5, search=Linear(0.25, 0.75), help="part of each batch that trains")
    small_share: Annotated[float, Ge(0), Le(1)] | None = hyper(
        None, help="sources with less than this share of the examples are kept whole; none: 1 / number of sources"
    )
    mask_size: Annotated[int, Ge(1)] = hyper(
        2560, search=Choice((256, 1024, 2560, 8192)), help="coordinates per source that features keep, h; at most all"
    )
    epsilon: Annotated[float, Gt(0)] = hyper(1e-3, search=Log(1e-4, 1e-2), help="size of the shift, ε")
    num_directions: Annotated[int, Ge(1)] = hyper(1, help="directions that are probed, m")
    metric: Metric = hyper("l1", search=Choice(("l1", "euclidean", "cosine")), help="distance of features")
    strategy: Strategy = hyper("proportional", help="large sources one by one, in proportion; none: all as one source")
    image: Image = hyper("adam", help="features: Adam's step, or the estimated gradient (sgd)")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="decay of the features' first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.999, help="decay of the features' second moment, β₂")
    adam_epsilon: Annotated[float, Gt(0)] = hyper(1e-8, help="added to the root of the second moment")

    def selector(self, run: Run) -> CoLMSelector:
        """Return the selector; raise ``SlotMismatch`` where no parameter is a value projection."""
        values = [name for name, role in run.roles.items() if role is Role.ATTENTION_V]
        if not values:
            raise SlotMismatch(
                f"{self.name!r} probes the last value projection, but no parameter has the role 'attention_v'",
                hint="it selects data for decoders whose workload declares that role",
            )
        generator = run.rng("directions")
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return CoLMSelector(
            values[-1],
            seed=seed,
            parts=run.micro_batches,
            mixed=run.precision != "fp32",
            **self.hyperparameters(),
        )


class CoLMSelector(SourceSelector):
    r"""Calls ``(batch, model) -> batch`` that keep part of each batch; works in any training loop.

    After the rule of :class:`SourceSelector`, for each example i of a large source, at step t = 1, 2, ..., with θ the
    parameter ``probed`` of D elements, L_i the example's mean token loss, Z = z_1 ... z_m drawn once from N(0, 1) by
    ``seed``, and b' examples to choose:

        a_ik = (L_i(θ + ε z_k) - L_i(θ - ε z_k)) / (2 ε)               g_i = 1/m Σ_k a_ik z_k             (D,)
        m_i = β₁ m + (1 - β₁) g_i                                      v_i = β₂ v + (1 - β₂) g_i²
        f_i = (m_i / (1 - β₁ᵗ)) / (sqrt(v_i / (1 - β₂ᵗ)) + δ)          δ = ``adam_epsilon``; f_i = g_i for image "sgd"

    Per source s: the h = ``mask_size`` coordinates with the largest \|mean of f_i over s\| remain; k_s examples, those
    budgets as in ``source_budgets``, are chosen greedily to maximise Σ_i max_{j chosen} S_ij with S_ij = max(d) - d_ij
    of the l1 distance d. A source of one example, or of just k_s, is taken as it is. Then m and v become the means of
    m_i and v_i over the chosen. The chosen train with equal weights.

    State: m and v, D elements each in fp32 (D of θ), the seed, and counters. Only the B m numbers a_ik are kept of all
    gradients; features are formed for 16 examples at a time, and over h coordinates for one source at a time.

    ``parts`` cuts the probing as micro-batches cut training; ``mixed`` lets the blocks before the last one run in bf16.

    Raises:
        BadValue: a setting is outside its domain, or ``probed`` names no parameter of the model.
    """

    def __init__(self, probed: str, *, seed: int, parts: int = 1, mixed: bool = False, **settings: Any) -> None:
        self.rule = CoLM(**settings)
        super().__init__(ratio=self.rule.ratio, small_share=self.rule.small_share)
        self.probed, self.seed, self.parts, self.mixed = probed, seed, parts, mixed
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self._directions: Tensor | None = None

    # -- the choice ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def choose(self, batch: Batch, model: nn.Module, sources: Sequence[int], budget: int) -> list[int]:
        """Return ``budget`` places of ``batch`` that represent it best."""
        groups = by_source(sources if self.rule.strategy == "proportional" else [0] * len(sources))
        budgets = source_budgets([len(group) for group in groups], budget)
        slope = self.probe(batch, model)
        chosen: list[int] = []
        for group, share in zip(groups, budgets, strict=True):
            if share in {0, len(group)}:
                chosen += group[:share]
                continue
            features = self.features(slope[group])
            chosen += [group[place] for place in greedy(similarities(features, self.rule.metric), share)]
        if self.rule.image == "adam":
            self._remember(slope[chosen])
        return chosen

    def probe(self, batch: Batch, model: nn.Module) -> Tensor:
        """Return the slopes a_ik, (B, m) in fp32."""
        directions = self.directions(model)
        size = max(1, len(batch["input_ids"]) // (2 * self.parts * len(directions)))  # logits as large as in training
        found = [
            slopes(
                model,
                self.probed,
                {key: batch[key][start : start + size] for key in ("input_ids", "labels")},
                directions,
                self.rule.epsilon,
                mixed=self.mixed,
            )
            for start in range(0, len(batch["input_ids"]), size)
        ]
        return torch.cat(found).to(directions.dtype)

    def directions(self, model: nn.Module) -> Tensor:
        """Return Z, (m, *shape of θ) in fp32: the same on every device, at every step, after every restart."""
        if self._directions is None:
            try:
                theta = model.get_parameter(self.probed)
            except AttributeError:
                raise BadValue(
                    f"the model has no parameter {self.probed!r}", hint="name one as named_parameters() does"
                ) from None
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randn(self.rule.num_directions, *theta.shape, generator=generator)
            self._directions = drawn.to(theta.device)
        return self._directions

    # -- features ------------------------------------------------------------------------------------------------------
    def features(self, slope: Tensor) -> Tensor:
        """Return the masked features (n, h) of the examples of one source, given their slopes (n, m)."""
        total = torch.stack([self.image(part).sum(dim=0) for part in torch.split(slope, _ROWS)]).sum(dim=0)
        columns = (total / len(slope)).abs().topk(min(self.rule.mask_size, len(total))).indices
        return self.image(slope, columns)

    def image(self, slope: Tensor, columns: Tensor | None = None) -> Tensor:
        """Return f_i at all coordinates, (n, D), or at some ``columns``."""
        rule, gradient = self.rule, self.gradient(slope, columns)
        if rule.image == "sgd":
            return gradient
        first, second = self._moments(columns)
        first = rule.beta1 * first + (1 - rule.beta1) * gradient
        second = rule.beta2 * second + (1 - rule.beta2) * gradient.square()
        root = (second / (1 - rule.beta2**self.step)).sqrt()
        return first / (1 - rule.beta1**self.step) / (root + rule.adam_epsilon)

    def gradient(self, slope: Tensor, columns: Tensor | None = None) -> Tensor:
        """Return g_i at all coordinates, (n, D), or at some ``columns``."""
        assert self._directions is not None, "slopes come from directions"
        directions = self._directions.flatten(1)
        directions = directions if columns is None else directions[:, columns]
        return slope @ directions / len(directions)

    def _moments(self, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert self._directions is not None, "slopes come from directions"
        if self.first is None or self.second is None:
            self.first = torch.zeros_like(self._directions[0]).flatten()
            self.second = torch.zeros_like(self.first)
        device = self._directions.device  # a restored state lies on the CPU
        self.first, self.second = self.first.to(device), self.second.to(device)
        return (self.first, self.second) if columns is None else (self.first[columns], self.second[columns])

    def _remember(self, slope: Tensor) -> None:
        """Let m and v be the means of m_i and v_i over the chosen examples."""
        first, second = self._moments()
        mean, square = torch.zeros_like(first), torch.zeros_like(second)
        for part in torch.split(slope, _ROWS):
            gradient = self.gradient(part)
            mean += gradient.sum(dim=0) / len(slope)
            square += gradient.square().sum(dim=0) / len(slope)
        self.first = self.rule.beta1 * first + (1 - self.rule.beta1) * mean
        self.second = self.rule.beta2 * second + (1 - self.rule.beta2) * square

    # -- state ---------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Return counters, seed, and the two moments."""
        return super().state_dict() | {"seed": self.seed, "first": self.first, "second": self.second}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; the directions are drawn anew from its seed."""
        super().load_state_dict(state)
        self.seed, self.first, self.second = int(state["seed"]), state["first"], state["second"]
        self._directions = None
