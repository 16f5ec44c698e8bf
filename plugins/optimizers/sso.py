"""SSO: one gradient of the loss at the model's outputs defines a surrogate on which the model takes several steps."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from bench import Algorithm, Choice, Log, hyper
from bench.context import autocast

from ._outputs import at_outputs, loss_at, micro_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from bench import Batch, Loss, Run

EtaSchedule = Literal["constant", "stochastic", "exponential", "line-search"]

CONVERGED = 1e-6
"""Norm of the surrogate's gradient at which the inner steps end."""
GROWTH, SHRINK = 1.8, 0.9
"""Factors of the target line search: of its first trial, and of each further one."""
SMALLEST_ETA, LARGEST_ETA = 1e-4, 1e4


@dataclass(frozen=True, kw_only=True)
class SSO(Algorithm):
    r"""Surrogates in target space, fitted by whatever fills the optimizer slot.

    The targets are the model's outputs z = f(θ), N rows of them (examples or tokens); ℓ is the workload's loss as a
    function of z, a mean over rows. At each step, with z_t = f(θ_t) and G_t = ∂ℓ/∂z at z_t, both held fixed:

        g(θ) = <G_t, f(θ) - z_t> + 1/(2 η_t N) ‖f(θ) - z_t‖²
        θ_{t+1} = θ_t after m = ``inner_steps`` steps of the optimizer on g, on the same batch

    ∂g = ∂ℓ at θ_t, so that m = 1 is the optimizer itself. N makes η the step size of the loss summed over rows: the
    fitted targets are z_t - η N G_t, and η does not depend on the batch. Rows without a label, such as the last
    position of a text, count in N too: the surrogate asks them to stay. η₀ = ``stepsize`` / 2, where ``None`` is
    1/(1 - 1/C) for the C outputs of a row, the authors' value for softmax (they take 0.25 for squared, 2 for logistic
    loss). ``eta_schedule``, t = 1, 2, ... of T steps: η₀; "stochastic" η₀/√t; "exponential" η₀ T^(-t/T); "line-search"
    starts from η₀, later from 1.8 times the last η, and shrinks it by 0.9 until
    ℓ(z_t - η N G_t) <= ℓ(z_t) - c η N ‖G_t‖² with c = ``armijo``, within [1e-4, 1e4]; that takes values of ℓ only.

    One step costs one evaluation of ℓ with its gradient and m forward and backward passes. Held during it: z_t and G_t.
    State: that of the optimizer, and η where it is searched. Inner steps end early where ‖∂g‖ <= 1e-6. Dropout draws
    the same masks in all passes of a step; statistics of batch norms move at each pass. It pays where ℓ is dear, which
    a cross-entropy is not: there a step costs m times a step of the optimizer. The published settings hold at every
    size.

    Source: arXiv:2302.02607, WilderLavington/Target-Based-Surrogates-For-Stochastic-Optimization
    ``optimizers/sgd_fmdopt.py``, ``sls_fmdopt.py``. Deviations: see ``deviations``.
    """

    name = "sso"
    passes = 5
    deviations = (
        (
            "The inner steps are those of the optimizer slot, at its scheduled rate and with its state kept; the "
            "authors take gradient descent with an Armijo line search that starts anew from 10 at each outer step."
        ),
        (
            "The line search accepts the targets that are then fitted; in the scaling of the authors' code these lie "
            "half as far away as those that were accepted."
        ),
        "The first inner gradient comes from the pass that computed the targets; the code computes it once more.",
        "Dropout masks are held fixed within a step; the code does not treat them.",
        "Only the Euclidean geometry of the targets is here; the code has AdaGrad, Newton and mirror descent as well.",
    )

    inner_steps: Annotated[int, Ge(1)] = hyper(5, search=Choice((1, 2, 5, 10, 20)), help="steps on one surrogate, m")
    stepsize: Annotated[float, Gt(0)] | None = hyper(
        None, search=Log(1e-3, 1e3), help="twice the step size in target space, 2 η₀; none: 1/(1 - 1/C)"
    )
    eta_schedule: EtaSchedule = hyper(
        "constant",
        search=Choice(("constant", "stochastic", "exponential", "line-search")),
        help="how η changes from step to step",
    )
    armijo: Annotated[float, Gt(0), Lt(1)] = hyper(0.5, help="share of the decrease that the line search asks for, c")

    def learner(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, run: Run) -> TargetSurrogate:
        """Return what replaces back-propagation and the optimizer's step."""
        return TargetSurrogate(
            model,
            optimizer,
            loss,
            inner_steps=self.inner_steps,
            stepsize=self.stepsize,
            eta_schedule=self.eta_schedule,
            armijo=self.armijo,
            steps=run.steps,
            pieces=run.micro_batches,
            context=lambda: autocast(run),
        )


class _Anchor(NamedTuple):
    """A piece of a batch where its surrogate touches the loss: z_t, G_t, and what the model was given."""

    batch: Batch
    share: float
    outputs: Tensor
    gradient: Tensor
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class TargetSurrogate:
    """The learner of :class:`SSO`: call it with a batch; it returns the loss before the step.

    ``loss(model, batch)`` returns the scalar mean loss of a batch, a mapping of tensors; ``steps`` is T; ``pieces`` is
    into how many micro-batches a batch is cut; ``context`` makes the context of a forward pass, such as autocast.

        >>> model = torch.nn.Linear(8, 3)
        >>> def loss(model, batch):
        ...     return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        >>> learner = TargetSurrogate(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, inner_steps=5)
        >>> batch = {"x": torch.eye(8), "y": torch.arange(8) % 3}
        >>> losses = [float(learner(batch)) for _ in range(20)]
        >>> losses[-1] < losses[0]
        True

    Source: arXiv:2302.02607. Deviations: those of :class:`SSO`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        inner_steps: int = 5,
        stepsize: float | None = None,
        eta_schedule: EtaSchedule = "constant",
        armijo: float = 0.5,
        steps: int = 1,
        pieces: int = 1,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        SSO.check(inner_steps=inner_steps, stepsize=stepsize, eta_schedule=eta_schedule, armijo=armijo)
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.inner_steps, self.stepsize, self.armijo = inner_steps, stepsize, armijo
        self.eta_schedule, self.steps, self.pieces, self.context = eta_schedule, steps, pieces, context
        self.step = 0
        self.eta: float | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Make one outer step on ``batch`` and return the loss at its beginning."""
        device = next(self.model.parameters()).device
        before = _random_state(device)
        self.optimizer.zero_grad(set_to_none=True)
        loss, anchors = self._touch(batch)
        self.step += 1
        self.optimizer.step()
        if self.inner_steps > 1:
            after = _random_state(device)
            self._fit(anchors, self._next_eta(loss, anchors), before)
            _set_random_state(after, device)
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps made and the last η of a line search."""
        return {"step": self.step, "eta": self.eta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.step, self.eta = state["step"], state["eta"]

    def _touch(self, batch: Batch) -> tuple[Tensor, list[_Anchor]]:
        """Leave ∂g = ∂ℓ at θ_t in the gradients; return ℓ and what the surrogate is made of."""
        total: Tensor | None = None
        anchors = []
        for piece, share in micro_batches(batch, self.pieces):
            found = at_outputs(self.loss, self.model, piece)
            found.outputs.backward(share * found.gradient)  # type: ignore[no-untyped-call]
            total = share * found.loss if total is None else total + share * found.loss
            anchors.append(
                _Anchor(piece, share, found.outputs.detach(), share * found.gradient, found.arguments, found.keywords)
            )
        assert total is not None, "a batch has at least one row"
        return total, anchors

    def _fit(self, anchors: Sequence[_Anchor], eta: float, random: Sequence[Tensor]) -> None:
        """Take the second to the last inner step."""
        scale = 1.0 / (eta * _rows(anchors))
        for _ in range(1, self.inner_steps):
            self.optimizer.zero_grad(set_to_none=True)
            _set_random_state(random, next(self.model.parameters()).device)
            for anchor in anchors:
                with torch.enable_grad(), self.context():
                    outputs = self.model(*anchor.arguments, **anchor.keywords)
                outputs.backward(surrogate_gradient(outputs.detach(), anchor.outputs, anchor.gradient, scale))
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            if float(nn.utils.get_total_norm(gradients)) <= CONVERGED:
                return
            self.optimizer.step()

    def _next_eta(self, loss: Tensor, anchors: Sequence[_Anchor]) -> float:
        """Return η_t of the step that :attr:`step` counts, from 1."""
        classes = anchors[0].outputs.shape[-1] if anchors[0].outputs.ndim > 1 else 1
        softmax = 1.0 / (1.0 - 1.0 / classes) if classes > 1 else 1.0
        first = 0.5 * (softmax if self.stepsize is None else self.stepsize)
        if self.eta_schedule == "stochastic":
            return first / math.sqrt(self.step)
        if self.eta_schedule == "exponential":
            return first * math.pow(self.steps, -self.step / self.steps)
        if self.eta_schedule == "line-search":
            self.eta = self._searched(first if self.eta is None else GROWTH * self.eta, float(loss), anchors)
            return self.eta
        return first

    def _searched(self, eta: float, loss: float, anchors: Sequence[_Anchor]) -> float:
        rows = _rows(anchors)
        slope = rows * float(torch.stack([anchor.gradient.float().square().sum() for anchor in anchors]).sum())
        eta = min(max(eta, SMALLEST_ETA), LARGEST_ETA)
        while eta > SMALLEST_ETA:
            moved = [
                anchor.share * loss_at(self.loss, anchor.outputs - eta * rows * anchor.gradient, anchor.batch)
                for anchor in anchors
            ]
            if float(torch.stack(moved).sum()) <= loss - self.armijo * eta * slope:
                return eta
            eta *= SHRINK
        return SMALLEST_ETA


def surrogate_gradient(outputs: Tensor, touched: Tensor, gradient: Tensor, scale: float) -> Tensor:
    """Return ∂g/∂f = G + (f - z) / (η N) at ``outputs`` f, with ``touched`` z and ``scale`` 1/(η N)."""
    return torch.add(gradient, outputs - touched, alpha=scale)


def _rows(anchors: Sequence[_Anchor]) -> int:
    """Return N, over all pieces of the batch."""
    sizes = (anchor.outputs.shape for anchor in anchors)
    return sum(math.prod(shape[:-1]) if len(shape) > 1 else shape.numel() for shape in sizes)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
