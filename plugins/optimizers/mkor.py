"""MKOR: each layer's gradient is preconditioned by two inverse factors that rank-one updates keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, overload

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, Role, hyper
from bench.errors import SlotMismatch

from ._base import BaseOptimizer, Group, all_parameters, bucketed, pieces, with_gradient
from ._first_order import FirstOrder, first_order_foreach, first_order_single, start_first_order
from ._inverse_factors import RankOneForm, layer_directions, refresh_factors
from ._taps import Tap, tap, tap_layers, tap_of, tappable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn
    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

Kind = TypeVar("Kind", bound="MKOROptimizer")

__all__ = ["MKOR", "MKOROptimizer", "tap_layers"]

UNTAPPED_ROLES = frozenset({Role.EMBEDDING, Role.LM_HEAD})
"""Vocabulary-sized layers keep their raw gradient, as in the published BERT runs."""

UNDECAYED_ROLES = frozenset({Role.BIAS, Role.NORM})
"""What the published BERT runs do not decay."""

PUBLISHED_STEPS = 7038
"""The steps of BERT's first phase, to which LAMB's published rate belongs."""


@dataclass(frozen=True, kw_only=True)
class MKOR(Algorithm):
    """MKOR around LAMB, SGD or AdamW, for every linear layer and convolution but those over the vocabulary.

    See :class:`MKOROptimizer` for the rule. :meth:`adapt` puts taps on the layers, :meth:`optimizer` finds them there.
    Where another algorithm fills the ``adapt`` slot no layer has a tap, and what remains is the first-order rule.

    ``lr=None`` means the published rate of the base: 6e-3 for LAMB (BERT-Large, 7038 steps), 0.1 for SGD (ResNet-50,
    0.0125 on each of 8 GPUs), 1e-3 for AdamW. LAMB moves a tensor by the share η of its norm at each step, so in a
    shorter run of s steps its rate is 6e-3 √(7038/s), at most 3e-2: 2.9e-2 for the 300 steps of a tiny tier. Norms and
    biases are not decayed.

    Source: arXiv:2306.01685 (NeurIPS 2023), Mohammad-Mozaffari/mkor.
    Deviations: see ``deviations``. The published results come from code whose rank-one update differs from the paper's;
    ``form`` is "code", "paper" or "exact" (the inverse that both mean).
    """

    name = "mkor"
    deviations: ClassVar[tuple[str, ...]] = (
        (
            "The rank-one update is the subtracting one of the authors' code, which the published results come from; "
            "the paper prints one that adds."
        ),
        "The decay γ is a field in every form; the authors' code hard-codes 0.95 and ignores its own argument.",
        (
            "The means of the rows and the rank-one updates are computed in fp32, and factors rounded to the fp16 that "
            "stores them; the authors' code computes both in fp16."
        ),
        (
            "A layer whose factor has an entry above 2 starts again from the identity, as the authors' code does; the "
            "paper blends the factor with the identity where its norm exceeds a threshold."
        ),
        (
            "LAMB scales every tensor by its trust ratio and does not clip; the published runs used apex's FusedLAMB, "
            "which leaves undecayed tensors unscaled and clips the global norm at 1."
        ),
        "The base 'adamw' decays decoupled from the moments; the authors' 'adam' adds the decay to the gradient.",
        (
            "The outputs' gradients of all backward passes of a step add up, since each carries its share of the loss; "
            "the authors' code divides them by the number of passes, the loss being divided already."
        ),
        "LAMB's published rate is raised in runs shorter than the published one.",
        "The preconditioned gradient goes straight to the base rule; the authors' code writes it over the gradient.",
    )

    lr: Annotated[float, Gt(0)] | None = hyper(
        None, search=Log(1e-3, 1e-1), help="peak learning rate η; none: the base's published one"
    )
    base: FirstOrder = hyper("lamb", help="rule that steps by the preconditioned gradient")
    update_gap: Annotated[int, Ge(1)] = hyper(10, search=Choice((1, 10, 50, 100)), help="steps between two refreshes")
    stat_decay: Annotated[float, Gt(0), Lt(1)] = hyper(
        0.95, search=Choice((0.8, 0.9, 0.95, 0.99, 0.999)), help="decay of the factors, γ"
    )
    form: RankOneForm = hyper("code", help="which rank-one update")
    warmup_steps: Annotated[int, Ge(0)] = hyper(0, help="steps at the start that each refresh the factors")
    clipping_value: Annotated[float, Gt(0)] = hyper(100.0, help="bound of the rows' entries before they are averaged")
    half_precision: bool = hyper(True, help="store the factors in fp16 in the place of fp32")
    momentum: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="SGD's decay of the buffer, μ")
    beta1: Annotated[float, Ge(0), Lt(1)] = hyper(0.9, help="LAMB's and AdamW's decay of the first moment, β₁")
    beta2: Annotated[float, Ge(0), Lt(1)] = hyper(0.999, help="LAMB's and AdamW's decay of the second moment, β₂")
    eps: Annotated[float, Ge(0)] = hyper(1e-6, help="ε, added to the corrected root of the second moment")
    weight_decay: Annotated[float, Ge(0)] = hyper(
        0.01, search=Log(1e-3, 0.3), help="weight decay λ: coupled after the preconditioning for SGD, else decoupled"
    )

    def adapt(self, model: nn.Module, run: Run) -> nn.Module:
        """Put a tap on every layer that is to be preconditioned and return ``model``."""
        trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        layers: list[Any] = [module for module in model.modules() if tappable(module)]
        layers = [layer for layer in layers if id(layer.weight) in trained]
        chosen = [layer for layer in layers if run.role(trained[id(layer.weight)]) not in UNTAPPED_ROLES]
        if not chosen:
            raise SlotMismatch(
                f"{self.name} found no linear layer or convolution to precondition",
                hint="use lamb, sgd or adamw, or build the model of nn.Linear and nn.Conv2d",
            )
        for layer in chosen:
            tap(layer, self.clipping_value)
        return model

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> MKOROptimizer:
        """Return one optimizer with a group that decays and a group of norms and biases that does not."""
        return self._build(MKOROptimizer, named_parameters, run)

    def _build(self, kind: type[Kind], named_parameters: NamedParameters, run: Run, **more: Any) -> Kind:
        sides: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
        for name, parameter in named_parameters:
            sides[run.role(name) not in UNDECAYED_ROLES].append((name, parameter))
        decays = {True: self.weight_decay, False: 0.0}
        return kind(
            [{"params": sides[side], "weight_decay": decays[side]} for side in sides if sides[side]],
            lr=self.lr or published_rate(self.base, run.steps),
            betas=(self.beta1, self.beta2),
            **{name: getattr(self, name) for name in OPTIONS if name != "lr"},
            **more,
        )


OPTIONS = (
    *("lr", "weight_decay", "base", "update_gap", "stat_decay", "form"),
    *("warmup_steps", "half_precision", "momentum", "eps"),
)
"""The options of a group that are fields of :class:`MKOR` too."""


def published_rate(base: FirstOrder, steps: int) -> float:
    """Return the published learning rate of ``base``, LAMB's for a run of ``steps``."""
    if base == "lamb":
        return min(3e-2, 6e-3 * math.sqrt(max(1.0, PUBLISHED_STEPS / max(1, steps))))
    return {"sgd": 0.1, "adamw": 1e-3}[base]


class MKOROptimizer(BaseOptimizer):
    r"""MKOR for the layers that have a tap, and the first-order rule alone for everything else.

    A layer with weight W (d_out, d_in) and its bias behind it has the gradient G (d_out, d_in + 1); a convolution is
    seen as (out, in kh kw). With t = 0, 1, 2, ... steps made before this one and T = ``update_gap``, if t mod T = 0 or
    t < ``warmup_steps``:

        a, g = mean input and mean output gradient of the layer     see ``_taps``
        L⁻¹, R⁻¹ = I                                                the first time, and after an entry above 2
        L⁻¹ ← rank-one update by g,  R⁻¹ ← rank-one update by a     every other time, see ``_inverse_factors``

    The default form ("code") is, with J = γ L⁻¹ + (1-γ) I and γ = ``stat_decay``,

        L⁻¹ ← J - (J g)(J g)ᵀ / (1 + gᵀ J g)

    and at every step

        D = L⁻¹ G R⁻¹
        D ← D (‖G_w‖ + ‖G_b‖) / (‖D_w‖ + ‖D_b‖)                     unless that is not finite: then D = G

    D takes the gradient's place in ``base``: "lamb", "sgd" (with ``momentum``) or "adamw", see ``_first_order``. State
    of a layer, beside that of the base: L⁻¹ and R⁻¹, d_out² + (d_in + 1)² elements (d_in² without a bias) in fp16, or
    fp32 with ``half_precision=False``.

    Layers are preconditioned if they have a tap; :meth:`MKOR.adapt` puts them on in the suite, this outside of it:

        >>> from bench.plugins.optimizers.mkor import tap_layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        >>> tap_layers(model, without=[model[2]])
        >>> optimizer = MKOROptimizer(model.parameters(), lr=0.1, base="sgd")
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    Loss scaling has to be undone before the backward pass, or g is scaled too. ``foreach=False`` steps one tensor at a
    time. Bad values raise :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``.

    Source: arXiv:2306.01685, Mohammad-Mozaffari/mkor ``mkor/mkor.py``. Deviations: those of :class:`MKOR`.
    """

    algorithm: ClassVar[type[MKOR]] = MKOR
    """Where the domains of the options are written."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 6e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        base: FirstOrder = "lamb",
        update_gap: int = 10,
        stat_decay: float = 0.95,
        form: RankOneForm = "code",
        warmup_steps: int = 0,
        half_precision: bool = True,
        momentum: float = 0.9,
        foreach: bool = True,
    ) -> None:
        options = (lr, weight_decay, base, update_gap, stat_decay, form, warmup_steps, half_precision, momentum, eps)
        super().__init__(params, dict(zip(OPTIONS, options, strict=True)) | {"betas": betas, "foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        beta1, beta2 = options["betas"]
        self.algorithm.check(beta1=beta1, beta2=beta2, **{name: options[name] for name in OPTIONS})
        super().add_param_group(param_group)
        self._arm()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict`` and let the taps note what the next step needs."""
        super().load_state_dict(state_dict)
        self._arm()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and with them what the taps have noted."""
        super().zero_grad(set_to_none)
        for noted in map(tap_of, all_parameters(self)):
            if noted is not None:
                noted.clear()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step with the gradients at hand and return the loss of ``closure``, which is called first."""
        return self._advance(closure)

    def _advance(self, closure: Callable[[], float] | None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        replaced: dict[Tensor, Tensor] = {}
        for group in self.param_groups:  # all layers first: a bias may belong to another group than its weight
            for weight in with_gradient(group):
                noted = tap_of(weight)
                if noted is not None:
                    replaced |= self._preconditioned(weight, noted, group)
        for group in self.param_groups:
            parameters = with_gradient(group)
            self._step_base(group, {parameter: replaced.get(parameter, parameter.grad) for parameter in parameters})
        self._arm()
        return loss

    def _preconditioned(self, weight: Tensor, noted: Tap, group: Group) -> dict[Tensor, Tensor]:
        """Refresh the factors where it is time and return what replaces the gradients of the layer."""
        state, means = self.state[weight], noted.means()
        if means is not None and self._due(weight, group):
            refresh_factors(state, *means, group)
        noted.clear()
        return layer_directions(weight, noted.bias, state) if "left" in state else {}

    def _step_base(self, group: Group, gradients: Mapping[Tensor, Any]) -> None:
        for parameter in gradients:
            state = self.state[parameter]
            if "step" not in state:
                start_first_order(state, parameter, group["base"])
            state["step"] += 1
        for bucket in bucketed(gradients, lambda p: (p.device, p.dtype, self.state[p]["step"])):
            for piece in pieces(bucket) if group["foreach"] else ([parameter] for parameter in bucket):
                directions, states = [gradients[p] for p in piece], [self.state[p] for p in piece]
                if group["foreach"]:
                    first_order_foreach(piece, directions, states, group)
                else:
                    first_order_single(piece[0], directions[0], states[0], group)

    def _arm(self) -> None:
        """Let each tap note the next backward pass exactly if its layer is due for a refresh."""
        for group in self.param_groups:
            for weight in group["params"]:
                noted = tap_of(weight)
                if noted is not None:
                    noted.active = self._due(weight, group)

    def _due(self, weight: Tensor, group: Group) -> bool:
        """Return whether the next step refreshes the factors of the layer of ``weight``."""
        step = self.state.get(weight, {}).get("step", 0)
        return bool(step % group["update_gap"] == 0 or step < group["warmup_steps"])
