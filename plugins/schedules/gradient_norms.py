"""A log of the gradients' norms: what the refined schedule needs to know of an earlier run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bench import Algorithm, hyper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench import Run

Norm = Literal["l1", "l2"]

POINTS = 1000
"""The most numbers that the file holds, so that a command line can: norms of a longer run are thinned evenly."""


@dataclass(frozen=True, kw_only=True)
class GradientNorms(Algorithm):
    """A log of the gradient's norm in each step, in a text file that ``refined`` takes. Training is not changed.

        bench run --plugin gradient-norms --workload llama-c4 --no-reference
        bench run --plugin refined --workload llama-c4 --set norms="$(cat gradient-norms-l1-0.txt)"

    The first line trains the workload's reference with the log beside it; ``--with gradient-norms`` puts it beside any
    other algorithm. Give ``--no-reference`` then too, or the reference, which gets the log as well, writes over the
    file. See :class:`NormLog` for what is written.

    Source: arXiv:2310.07831, which takes the log as given. Deviations: see ``deviations``.
    """

    name = "gradient-norms"
    deviations = (
        "The gradient of the last step is not seen: the log is written before each step, of the step before.",
        "With micro-batches and extra passes it is the norm of the gradient that the optimizer got last.",
    )

    norm: Norm = hyper("l1", help="which norm: l1 for Adam and its kin, l2 for SGD")
    folder: str | None = hyper(
        None, help="folder of the file gradient-norms-NORM-SEED.txt; none: the working directory"
    )

    def freezer(self, model: nn.Module, run: Run) -> NormLog:
        """Return the log, which freezes nothing; the slot is the one that is called before each step."""
        folder = Path(self.folder or ".")
        folder.mkdir(parents=True, exist_ok=True)
        return NormLog(model, folder / f"gradient-norms-{self.norm}-{run.seed}.txt", self.norm, run.steps)


class NormLog:
    """The norms of the gradients that ``model`` holds whenever the log is called with the number of the next step.

    The norm is over all parameters together: Σ |g| for "l1", √(Σ g²) for "l2", in fp32. The file has one number a line,
    at most :data:`POINTS`, and is written anew every hundredth part of the run and before its last step; NaN stands for
    a step whose gradient was not there any more, as in the step before a run was resumed.
    """

    def __init__(self, model: nn.Module, path: Path, norm: Norm, steps: int) -> None:
        self.model, self.path, self.norm, self.steps = model, path, norm, steps
        self.norms: list[Tensor] = []

    def __call__(self, step: int) -> None:
        """Note the norm of the gradients of the step before ``step``."""
        if step == 0:
            return
        self.norms.append(gradient_norm(self.model, self.norm))
        if step % max(1, self.steps // 100) == 0 or step == self.steps - 1:
            write(self.path, [float(norm) for norm in self.norms])

    def state_dict(self) -> dict[str, Any]:
        """Return the norms so far."""
        return {"norms": torch.stack(self.norms).cpu() if self.norms else torch.zeros(0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the norms in ``state``."""
        self.norms = list(state["norms"].unbind())


def gradient_norm(model: nn.Module, norm: Norm) -> Tensor:
    """Return the norm of all gradients of ``model`` together, a scalar in fp32; NaN where there is none."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients:
        return torch.tensor(math.nan)
    order = 1 if norm == "l1" else 2
    norms = torch._foreach_norm(gradients, order, dtype=torch.float32)  # noqa: SLF001 - as in torch's own clipping
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)), order)
    return total


def write(path: Path, norms: Sequence[float]) -> None:
    """Write ``norms`` to ``path``, evenly thinned to :data:`POINTS`; a reader finds the old file or the new one."""
    count = min(len(norms), POINTS)
    places = [round(i * (len(norms) - 1) / max(1, count - 1)) for i in range(count)]
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text("".join(f"{norms[place]:.6g}\n" for place in places), encoding="ascii")
    fresh.replace(path)
