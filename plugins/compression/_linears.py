"""Which linears of a model are compressed, how small each must become, and a copy with others in their place."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.errors import BadValue
from bench.roles import HIDDEN_MATRICES, Role

if TYPE_CHECKING:
    from bench import Run

ROUNDING = 1e-9
"""What is added before a count is rounded down: 0.7 * 30 is 20.999999999999996 in floating point."""


def hidden_linears(model: nn.Module, roles: Mapping[str, Role]) -> dict[str, nn.Linear]:
    """Return the linears of ``model`` whose weight has a role of ``HIDDEN_MATRICES``, by name in the model's order.

    Raises :class:`~bench.errors.BadValue` where there is none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and roles.get(f"{name}.weight".removeprefix(".")) in HIDDEN_MATRICES
    }
    if not found:
        raise BadValue(
            "the model has no nn.Linear whose weight is a hidden matrix, so there is nothing to compress",
            hint=f"the roles are {sorted({str(role) for role in roles.values()})}; hidden matrices are "
            f"{sorted(map(str, HIDDEN_MATRICES))}",
        )
    return found


def with_replaced(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of ``model`` with each key of ``replacements`` replaced by its value, wherever it stands.

    ``model`` stays as it is and nothing that is replaced is copied. A replacement takes over the mode of training.
    """
    for old, new in replacements.items():
        new.train(old.training)
    return copy.deepcopy(model, {id(old): new for old, new in replacements.items()})


def dense_weight(module: nn.Module) -> Tensor:
    """Return the matrix (out, in) that ``module`` multiplies by: a linear's weight, or what ``dense()`` returns."""
    if isinstance(module, nn.Linear):
        return module.weight.detach()
    dense = getattr(module, "dense", None)
    if not callable(dense):
        raise BadValue(
            f"a {type(module).__name__} does not say which matrix it multiplies by",
            hint="compressed linears are nn.Linear or have a method dense()",
        )
    weight: Tensor = dense()
    return weight.detach()


def with_weight(linear: nn.Linear, weight: Tensor) -> nn.Linear:
    """Return a linear like ``linear`` with ``weight`` in its dtype, and a copy of its bias."""
    rows, columns = weight.shape
    with torch.device("meta"):
        result = nn.Linear(columns, rows, bias=False)
    result.weight = nn.Parameter(weight.to(linear.weight.dtype).contiguous())
    if linear.bias is not None:
        result.bias = nn.Parameter(linear.bias.detach().clone())
    return result


# -- what a point asks -------------------------------------------------------------------------------------------------
def asked_ratio(run: Run) -> float:
    """Return the kept ratio of the run's point."""
    if run.point is None or run.point.kept_ratio is None:
        raise BadValue(f"the point ({run.point}) has no kept ratio", hint="name one, Point(kept_ratio=0.5)")
    return run.point.kept_ratio


def asked_rank(run: Run) -> int:
    """Return the branch rank of the run's point."""
    if run.point is None or run.point.rank is None:
        raise BadValue(f"the point ({run.point}) has no rank of a branch", hint="name one, Point(rank=16)")
    return run.point.rank


def kept_count(kept_ratio: float, count: int) -> int:
    """Return how many of ``count`` values are kept: floor(ρ count)."""
    return math.floor(kept_ratio * count + ROUNDING)


def rank_for(kept_ratio: float, rows: int, columns: int) -> int:
    """Return the largest rank whose two factors fit into the kept ratio ρ of an m x n matrix: floor(ρ m n / (m + n)).

    At ρ = 1 the matrix itself fits, so the answer is the full rank min(m, n), to be stored unfactored.
    """
    if kept_ratio >= 1.0:
        return min(rows, columns)
    return math.floor(kept_ratio * rows * columns / (rows + columns) + ROUNDING)
