"""A decoder whose linears are square, tall and wide, the points that can be asked, and the data that may be seen."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bench.after_training import Point
from bench.algorithm import COMPRESSION_SLOTS, Batch, Loss
from bench.conformance.check import Subject
from bench.conformance.language_model import ROLES, VOCABULARY, drawn_decoder
from bench.context import Run
from bench.roles import HIDDEN_MATRICES, Role, assign_roles

POINTS: dict[str, tuple[Point, ...]] = {
    "compress": (Point(kept_ratio=0.5), Point(kept_ratio=0.8), Point(pattern=(2, 4)), Point(pattern=(1, 4))),
    "compensate": (Point(pattern=(2, 4), rank=1), Point(pattern=(2, 4), rank=3)),
}
OFFERS = {"kept-ratio": "kept_ratio", "pattern": "pattern", "branch-rank": "rank"}
BLOCKS = ("layers.0", "layers.1")


def jobs(subject: Subject) -> list[tuple[str, Point]]:
    """Return the slots that the algorithm fills, each with every point that offers what it needs."""
    needs = [OFFERS[need] for need in subject.cls.needs if need in OFFERS]
    return [
        (slot, point)
        for slot in COMPRESSION_SLOTS
        if subject.fills(slot)
        for point in POINTS[slot]
        if all(getattr(point, need) is not None for need in needs)
    ]


def first_jobs(subject: Subject) -> list[tuple[str, Point]]:
    """Return one point for each slot that the algorithm fills."""
    found = jobs(subject)
    return [job for number, job in enumerate(found) if job[0] not in [slot for slot, _ in found[:number]]]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of the next tokens."""
    logits, tokens = model(batch["tokens"]), batch["tokens"]
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def halved(model: nn.Module) -> nn.Module:
    """Return ``model`` with the two smaller of each four consecutive weights of its hidden matrices at zero."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for layer in result.modules():
            if isinstance(layer, nn.Linear) and layer is not getattr(result, "head", None):
                fours = layer.weight.view(len(layer.weight), -1, 4)
                kept = fours.abs().argsort(dim=-1).argsort(dim=-1) >= 2
                layer.weight.copy_((fours * kept).flatten(1))
    return result


class Scene:
    """A model, calibration data and an algorithm, and what it makes of them at a point."""

    def __init__(
        self, subject: Subject, slot: str, point: Point, *, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> None:
        self.model = drawn_decoder(3, torch.device("cpu"), ffn=24).to(dtype).eval()
        self.tokens = torch.randint(0, VOCABULARY, (12, 11), generator=torch.Generator().manual_seed(4))
        self.algorithm, self.slot, self.point, self.seed = subject.algorithm(), slot, point, seed
        seen = self.algorithm.information != "weights"
        self.calibration = [{"tokens": part} for part in torch.split(self.tokens, 4)] if seen else []
        names = (name for name, _ in self.model.named_parameters())
        self.roles = assign_roles(names, {**ROLES, r"head\.weight": Role.LM_HEAD})
        self.models: list[nn.Module] = [self.model]
        if slot == "compensate":
            self.models.append(halved(self.model))
        self.run = self.fresh_run()

    def fresh_run(self, point: Point | None = None) -> Run:
        """Return the facts of the run, with generators that have not been used."""
        loss: Loss | None = loss_of if self.algorithm.information == "labels" else None
        return Run(
            seed=self.seed,
            steps=1,
            roles=self.roles,
            algorithm=self.algorithm.name,
            point=point or self.point,
            blocks=BLOCKS,
            loss=loss,
        )

    def result(self) -> nn.Module:
        """Return what the slot makes."""
        made: nn.Module = getattr(self.algorithm, self.slot)(*self.models, self.calibration, self.run)
        return made

    def hidden(self) -> list[Tensor]:
        """Return the matrices that are to become smaller."""
        return [p for key, p in self.model.named_parameters() if self.roles[key] in HIDDEN_MATRICES]

    def __str__(self) -> str:
        return f"{self.slot} at {self.point}"


def marks(model: nn.Module) -> list[tuple[Any, ...]]:
    """Return what an algorithm must leave alone besides the state."""
    modules: list[tuple[Any, ...]] = [
        (id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))  # noqa: SLF001 - torch lists them nowhere
        for m in model.modules()
    ]
    return modules + [(id(p), p.requires_grad, p.grad is None) for p in model.parameters()]


def stored(model: nn.Module, hidden: nn.Module) -> int:
    """Return how many values ``model`` stores: of linears inside ``hidden`` only those that are not zero."""
    sparse = {id(m.weight) for m in hidden.modules() if isinstance(m, nn.Linear)}
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values() if t.is_floating_point()}
    return sum(int((t != 0).sum()) if key in sparse else t.numel() for key, t in tensors.items())
