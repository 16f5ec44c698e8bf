"""OwLore: a few blocks at a time are trained, drawn by how many outliers each has, their matrices by GaLore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from bench import HIDDEN_MATRICES, Choice, Log, hyper
from bench.errors import BadValue, SlotMismatch

from ._evaluating import evaluating
from ._outliers import outlier_scores
from .galore import GaLore, GaLoreAdamW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils.hooks import RemovableHandle

    from bench import NamedParameters, Run

    from ._base import Group

FLOOR = 0.01
"""Least score of a block as a share of the mean score; the least published one is a quarter of the mean."""


@dataclass(frozen=True, kw_only=True)
class OwLore(GaLore):
    r"""OwLore for the blocks of a model; embeddings, head and whatever else lies outside them are always trained.

    At every step t with t mod K = 0, for L blocks with outlier scores D (see :mod:`._outliers`, τ is ``threshold``):

        freeze all L blocks; draw γ distinct ones, one after the other, with p_l = D_l / Σ D; train these until t + K

    Draws are without replacement, p of the rest renormalised each time. γ is ``active``, K is ``interval``;
    ``sampling="uniform"`` sets p_l = 1/L, which at ``full_rank`` is LISA. Attention and MLP matrices of trained blocks
    take GaLore steps, all else that is trained plain Adam at the same rate η: the rule is GaLore's, see
    :class:`OwLoreAdamW`, with α = ``scale``, T = ``update_gap`` counted while the block is trained, r = ``rank``.
    State: s r + 2 r l per matrix (s short, l long side) of γ blocks, 2 per element of what else is trained.

    Published for fine-tuning LLaMA2-7B: γ = 5 of 32 blocks, r = 128 of 4096, K = 50. Smaller models keep the shares:
    ``active=None`` is 5/32 of the blocks, at least one, ``rank=None`` is 1/32 of the short side, at least 1;
    ``interval=None`` is 50 steps or a sixth of a shorter run. Scores are measured in the first training batch, before
    its forward pass. A freshly initialised model has no outliers: then all blocks are equally likely.

    Memory estimates take no step, so nothing is drawn for them: they count the first γ blocks.

    Source: arXiv:2405.18380, pixeli99/OwLore ``src/lmflow/pipeline/finetuner.py``; scores: luuyin/OWL.
    Deviations: see ``deviations``.
    """

    name = "owlore"
    deviations: ClassVar[tuple[str, ...]] = (
        (
            "Scores come from the first training (micro-)batch; the published ones come from 128 sequences of 2048 "
            "tokens of C4, on pretrained weights."
        ),
        "No block scores below a hundredth of the mean score, so that none is never trained; the code has no floor.",
        (
            "A block that is frozen loses its states and starts anew when it is drawn again, which the paper's memory "
            "supposes; the code keeps them, stale, so that memory grows towards all blocks: keep_states=True."
        ),
        "The default rank is the paper's 128 as a share of 4096; the code fixes 256.",
        "The default number of trained blocks is the published 5 of 32 as a share; at least one is trained.",
        "The default interval is at most a sixth of the run.",
        "Of the code's samplings only owl and uniform are here; it has reversed, increasing, decreasing ones as well.",
        "Projected matrices are chosen by role, and their bases found as in galore.",
    )

    lr: Annotated[float, Gt(0)] = hyper(3e-4, search=Log(1e-5, 1e-2), help="peak learning rate η")
    active: Annotated[int, Ge(1)] | None = hyper(None, help="blocks trained at a time, γ; none: 5/32 of them")
    interval: Annotated[int, Ge(1)] | None = hyper(
        None, search=Choice((5, 10, 20, 50, 100, 200)), help="steps between two draws, K; none: min(50, steps / 6)"
    )
    sampling: Literal["outliers", "uniform"] = hyper("outliers", help="probabilities of the blocks")
    threshold: Annotated[float, Gt(0)] = hyper(
        13.0, search=Choice((5.0, 7.0, 10.0, 13.0)), help="what counts as an outlier, in means of the block, τ"
    )
    full_rank: bool = hyper(False, help="plain Adam in the blocks instead of GaLore")
    keep_states: bool = hyper(False, help="keep the states of frozen blocks, as the authors' code does")
    rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank r; none: 1/32 of the short side")
    update_gap: Annotated[int, Ge(1)] | None = hyper(100, help="steps between two bases, T; none: min(200, steps / 6)")
    scale: Annotated[float, Gt(0)] = hyper(1.0, search=Log(0.25, 4.0), help="factor of the projected update, α")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.999, help="decay of the second moment, β₂")

    def freezer(self, model: nn.Module, run: Run) -> BlockSampler:
        """Return what freezes and unfreezes the blocks of ``model``."""
        blocks = blocks_of(model, run)
        active = self.active or max(1, round(len(blocks) * 5 / 32))
        if active > len(blocks):
            raise BadValue(
                f"{self.name}: active = {active!r} (int) is not allowed for a model of {len(blocks)} blocks",
                hint=f"active is an int, 1 <= active <= {len(blocks)}, or none",
            )
        return BlockSampler(
            model,
            blocks,
            active=active,
            interval=self.interval or min(50, max(1, run.steps // 6)),
            generator=run.rng("blocks"),
            threshold=self.threshold if self.sampling == "outliers" else None,
        )

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> GaLoreAdamW:
        """Return GaLore over all parameters, trained and frozen."""
        return self._build(GaLoreAdamW if self.keep_states else OwLoreAdamW, named_parameters, run)

    def _groups(self, named_parameters: NamedParameters, run: Run) -> list[Group]:
        if self.full_rank:
            return [{"params": list(named_parameters)}]
        groups = super()._groups(named_parameters, run)
        if self.rank is not None:
            return groups
        # GaLore's default is a quarter of the short side: an eighth of that is our thirty-second.
        return [group | {"rank": max(1, group["rank"] // 8)} if "rank" in group else group for group in groups]


class OwLoreAdamW(GaLoreAdamW):
    """GaLore that forgets the state of a parameter as soon as it steps while the parameter is frozen.

    The rule, the groups and the state are those of :class:`~bench.plugins.optimizers.galore.GaLoreAdamW`. A parameter
    that requires no gradient has no state after :meth:`step`, and begins as at its first step when it is trained again:
    new basis, moments of zero, bias correction from one.

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(4)))
        >>> optimizer = OwLoreAdamW([{"params": [layer.weight for layer in model], "rank": 4}], lr=1e-3)
        >>> optimizer.add_param_group({"params": [layer.bias for layer in model]})
        >>> generator = torch.Generator().manual_seed(0)
        >>> sampler = BlockSampler(model, list(model), active=2, interval=2, generator=generator, threshold=13.0)
        >>> for step in range(4):
        ...     sampler(step)
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 16)).square().mean().backward()
        ...     optimizer.step()

    Source: arXiv:2405.18380. Deviations: those of :class:`OwLore`.
    """

    algorithm = OwLore

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                self.state.pop(parameter, None)
        super()._update(group, parameters)


class BlockSampler:
    """Draws which ``active`` of ``blocks`` are trained; called with each step's number before its forward pass.

    With a ``threshold`` τ the first draw waits for the first forward pass of ``model``: its inputs go through the model
    once more, in evaluation mode, to measure the scores, and the draw is made before any graph is built. ``None`` makes
    all blocks equally likely. Parameters that require no gradient when the sampler is made stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        *,
        active: int,
        interval: int,
        generator: torch.Generator,
        threshold: float | None = None,
    ) -> None:
        self.model, self.blocks = model, blocks
        self.active, self.interval, self.threshold = active, interval, threshold
        self.generator = generator
        self.scores = torch.ones(len(blocks), dtype=torch.float64) if threshold is None else None
        self.drawn: list[int] = []
        self._waiting: RemovableHandle | None = None
        self._parameters = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
        if any(parameter.is_meta for parameter in model.parameters()):
            self._train(range(active))  # without storage there is nothing to measure, and any blocks count alike

    def __call__(self, step: int) -> None:
        """Draw new blocks if an interval is over at ``step``, counted from 0."""
        if step % self.interval == 0:
            if self.scores is not None:
                self._draw(self.scores)
            elif self._waiting is None:
                self._waiting = self.model.register_forward_pre_hook(self._measure, with_kwargs=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and the blocks that are trained."""
        return {"scores": self.scores, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, and freeze accordingly."""
        self.scores, self.drawn = state["scores"], list(state["drawn"])
        if self.drawn:
            self._train(self.drawn)

    def _measure(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._waiting is not None, "only this hook calls it"
        assert self.threshold is not None, "uniform sampling measures nothing"
        self._waiting.remove()
        self._waiting = None
        with evaluating(model):
            self.scores = outlier_scores(self.blocks, self.threshold, lambda: model(*args, **kwargs))
        self._draw(self.scores)

    def _draw(self, scores: Tensor) -> None:
        weights = probabilities(scores).to(self.generator.device)
        self.drawn = torch.multinomial(weights, self.active, generator=self.generator).tolist()
        self._train(self.drawn)

    def _train(self, drawn: Sequence[int]) -> None:
        for parameters in self._parameters:
            for parameter in parameters:
                parameter.requires_grad_(False)
        for index in drawn:
            for parameter in self._parameters[index]:
                parameter.requires_grad_()
        for parameter in (p for parameters in self._parameters for p in parameters if not p.requires_grad):
            parameter.grad = None  # one left from the step before would still be applied


def probabilities(scores: Tensor) -> Tensor:
    """Return p (L,) of the ``scores`` D (L,): in proportion to them, none below ``FLOOR`` of their mean."""
    mean = scores.mean()
    raised = scores.clamp_min(FLOOR * float(mean)) if mean > 0 else torch.ones_like(scores)
    return raised / raised.sum()


def blocks_of(model: nn.Module, run: Run) -> list[nn.Module]:
    """Return the blocks of ``model``: the items of its outermost list of modules that hold hidden matrices.

    A model without a ``ModuleList`` or ``Sequential`` of at least two such items raises
    :class:`~bench.errors.SlotMismatch`.
    """
    hidden = {id(p) for name, p in model.named_parameters() if run.role(name) in HIDDEN_MATRICES}
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            blocks = [block for block in module if any(id(parameter) in hidden for parameter in block.parameters())]
            if len(blocks) > 1:
                return blocks
    raise SlotMismatch(
        "owlore found no list of blocks with attention, MLP or convolution matrices, so nothing to draw from",
        hint="hold the model's blocks in a torch.nn.ModuleList or Sequential, or use galore",
    )
