"""M-FAC: the gradient times the exact inverse of an empirical Fisher matrix of the last gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench import Algorithm, Choice, Log, hyper

from ._base import BaseOptimizer, Group, piece_elements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim.optimizer import ParamsT

    from bench import NamedParameters, Run

PUBLISHED_WINDOW = 1024
"""The window to which the published learning rate belongs."""

LARGEST_WINDOW = 2**31
"""How many elements the window has at most where nobody asks for a size: 8 GiB."""


@dataclass(frozen=True, kw_only=True)
class MFAC(Algorithm):
    """M-FAC's optimizer, over all parameters as one vector.

    See :class:`MFACOptimizer` for the rule. The window is the memory: m copies of the model. ``window=None`` means the
    published 1024, or a tenth of a shorter run (at least 32), and never more than 2³¹ elements in all; the 300 steps of
    a tiny tier get 32. As long as λ is small beside ‖g‖²/m a step is proportional to m and inversely proportional to
    the gradient, η m / ‖g‖ where the gradients of the window are orthogonal. So ``lr=None`` keeps η m as published: the
    rate is 1e-3 at m = 1024 and 3.2e-2 at m = 32. The other defaults are those of the authors' class.

    Source: arXiv:2107.03356 (NeurIPS 2021), IST-DASLab/M-FAC ``optim.py``.
    Deviations: see ``deviations``. The paper's pruning is an algorithm of its own and not part of this one.
    """

    name = "m-fac"
    deviations = (
        (
            "The inverse is applied as m Gᵀ (m λ I + G Gᵀ)⁻¹ e in fp64 from gradients kept in fp32; the authors' code "
            "factors without pivoting in fp32 and subtracts two large vectors: the same but for rounding."
        ),
        "Every parameter group has a window of its own; the authors' code has one over all groups.",
        "A missing gradient counts as zero and its parameter stays; the authors' code needs every gradient.",
        "The default window is at most a tenth of a run of 320 steps or more and at most 2**31 elements.",
        "The default rate rises as the window falls below the published one, so that steps keep their length.",
    )

    lr: Annotated[float, Gt(0)] | None = hyper(
        None, search=Log(1e-4, 1e-1), help="peak learning rate η; none: 1.024 / m, the published 1e-3 at m = 1024"
    )
    window: Annotated[int, Ge(1)] | None = hyper(
        None, search=Choice((32, 64, 128)), help="gradients kept, m; none: min(1024, max(32, steps / 10))"
    )
    damping: Annotated[float, Gt(0)] = hyper(1e-5, search=Log(1e-6, 1e-4), help="multiple of the identity in F, λ")
    momentum: Annotated[float, Ge(0), Lt(1)] = hyper(
        0.0, search=Choice((0.0, 0.9)), help="decay of the average of directions, μ"
    )
    weight_decay: Annotated[float, Ge(0)] = hyper(0.0, help="coupled weight decay, part of every stored gradient, ω")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> MFACOptimizer:
        """Return M-FAC over all parameters, in one group."""
        parameters = list(named_parameters)
        elements = sum(parameter.numel() for _, parameter in parameters)
        window = self.window or default_window(run.steps, elements)
        return MFACOptimizer(
            parameters,
            lr=self.lr or 1e-3 * PUBLISHED_WINDOW / window,
            window=window,
            damping=self.damping,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


def default_window(steps: int, elements: int) -> int:
    """Return m for a run of ``steps`` with ``elements`` trainable weights."""
    return max(1, min(PUBLISHED_WINDOW, max(32, steps // 10), LARGEST_WINDOW // max(1, elements)))


class MFACOptimizer(BaseOptimizer):
    r"""M-FAC for any parameters; those of a group are one vector of d elements.

    With weights w, gradient g, the last m gradients as rows of G (m, d) (all zero at first) and k = 0, 1, 2, ... steps
    made before this one:

        g ← g + ω w                                  coupled decay
        row k mod m of G ← g
        u = (λ I + GᵀG/m)⁻¹ g
        v ← μ v + (1-μ) u,   u ← v                   if μ > 0
        w ← w - η u

    η is ``lr``, m is ``window``, λ is ``damping``, μ is ``momentum``, ω is ``weight_decay``. m is the size of the
    window also while it is filling. As g is the row that the unit vector e picks, g = Gᵀe, and

        u = m Gᵀ (m λ I + G Gᵀ)⁻¹ e

    so that nothing of size d by d exists: two passes over G a step, and an m by m solution. Both passes are made in
    fp64, piece by piece: where gradients resemble each other the weights of G's rows are large and cancel, and in fp32
    nothing would be left of u. State: each parameter's columns of G, and v if μ > 0, in fp32 (fp64 for fp64
    parameters); G Gᵀ (m, m) in fp64, which lies with the group's first parameter. So m d + m² elements, and d more with
    momentum.

        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = MFACOptimizer(model.parameters(), lr=1e-3, window=16)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()

    There is one path: the work lies in two products with each parameter's window. Bad values raise
    :class:`~bench.errors.BadValue`, sparse gradients ``RuntimeError``. A gradient that is not finite makes the weights
    NaN, as with any optimizer.

    Source: arXiv:2107.03356, IST-DASLab/M-FAC ``optim.py``. Deviations: those of :class:`MFAC`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        window: int = 1024,
        damping: float = 1e-5,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"lr": lr, "window": window, "damping": damping, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options."""
        options: Group = self.defaults | param_group
        MFAC.check(**{name: options[name] for name in ("lr", "window", "damping", "momentum", "weight_decay")})
        super().add_param_group(param_group)

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        if not parameters:
            return
        home = next(parameter for parameter in group["params"] if parameter.numel())
        shared = self.state[home]
        if "gram" not in shared:
            size = (group["window"], group["window"])
            shared |= {"step": 0, "gram": torch.zeros(size, dtype=torch.float64, device=home.device)}
        row = shared["step"] % group["window"]
        self._insert(group, parameters, row)
        dots = self._products(group, row, home.device)
        weights = newest_in_terms_of_all(shared["gram"], row, dots, group["damping"])
        for parameter in parameters:
            step_parameter(parameter, self.state[parameter], weights, group)
        shared["step"] += 1

    def _insert(self, group: Group, parameters: list[Tensor], row: int) -> None:
        """Put the gradients into the ``row`` of the windows, zeros where there is none."""
        for parameter in parameters:
            state = self.state[parameter]
            if "window" not in state:
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                state["window"] = parameter.new_zeros((group["window"], parameter.numel()), dtype=dtype)
            assert parameter.grad is not None
            stored = state["window"][row].copy_(parameter.grad.flatten())
            if group["weight_decay"]:
                stored.add_(parameter.flatten(), alpha=group["weight_decay"])
        given = set(map(id, parameters))
        for parameter in group["params"]:
            if id(parameter) not in given and "window" in self.state.get(parameter, {}):
                self.state[parameter]["window"][row].zero_()

    def _products(self, group: Group, row: int, device: torch.device) -> Tensor:
        """Return G g, summed over the parameters in fp64."""
        dots = torch.zeros(group["window"], dtype=torch.float64, device=device)
        for parameter in group["params"]:
            if "window" in self.state.get(parameter, {}):
                for columns in in_pieces(self.state[parameter]["window"]):
                    dots += (columns @ columns[row]).to(device)
        return dots


def in_pieces(window: Tensor) -> Iterator[Tensor]:
    """Yield the columns of ``window`` (m, d) in fp64, as many at a time as fit the cache."""
    size = max(1, piece_elements(window.device) // len(window))
    for first in range(0, window.shape[1], size):
        yield window[:, first : first + size].double()


def newest_in_terms_of_all(gram: Tensor, row: int, dots: Tensor, damping: float) -> Tensor:
    """Renew ``row`` of G Gᵀ by ``dots`` = G g and return m (m λ I + G Gᵀ)⁻¹ e: the direction as weights of G's rows."""
    gram[row, :] = dots
    gram[:, row] = dots
    m = len(gram)
    unit = torch.zeros_like(dots)
    unit[row] = m
    # LU and not Cholesky, which stops at a gradient that is not finite and leaves numbers that look like a solution.
    damped = gram + m * damping * torch.eye(m, dtype=gram.dtype, device=gram.device)
    weights: Tensor = torch.linalg.solve_ex(damped, unit).result
    return weights


def step_parameter(parameter: Tensor, state: dict[str, Any], weights: Tensor, options: Group) -> None:
    """Move one parameter along its share of u = Gᵀ ``weights``."""
    window = state["window"]
    weights = weights.to(window.device)
    direction = torch.cat([weights @ columns for columns in in_pieces(window)]).to(window.dtype)
    if options["momentum"]:
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(direction)
        direction = state["momentum_buffer"].lerp_(direction, 1.0 - options["momentum"])
    parameter.sub_(direction.reshape(parameter.shape).to(parameter.dtype), alpha=options["lr"])
