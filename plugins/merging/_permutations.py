"""Reorderings of the hidden units of a network, and the one by which two networks agree best.

*Axes* say for each tensor which permutation acts on each of its axes: ``{"hidden.weight": ("units", None),
"hidden.bias": ("units",), "out.weight": (None, "units")}``. A permutation of n units is their order: position i gets
unit ``order[i]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bench.errors import BadValue

from ._vectors import Values, norm

Axes = Mapping[str, tuple[str | None, ...]]
Orders = Mapping[str, Tensor]
"""An order of units for each permutation."""


def groups(axes: Axes, values: Mapping[str, Tensor]) -> dict[str, list[tuple[str, int]]]:
    """Return for each permutation the tensors of ``values`` that it acts on, with the axis, in order of their names.

    Raises:
        BadValue: axes that do not fit the tensors or one another.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for name in sorted(axes.keys() & values.keys()):
        if len(axes[name]) != values[name].ndim:
            raise BadValue(
                f"axes of {name!r} are {axes[name]!r}, its shape is {tuple(values[name].shape)}",
                hint="name a permutation, or None, for each of its axes",
            )
        for axis, permutation in enumerate(axes[name]):
            if permutation is not None:
                found.setdefault(permutation, []).append((name, axis))
    for permutation, places in found.items():
        widths = {values[name].shape[axis] for name, axis in places}
        if len(widths) > 1:
            raise BadValue(f"permutation {permutation!r} acts on axes of {sorted(widths)} units: {places}")
    return dict(sorted(found.items()))


def identity(axes: Axes, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the orders that change nothing."""
    return {
        permutation: torch.arange(values[places[0][0]].shape[places[0][1]])
        for permutation, places in groups(axes, values).items()
    }


def shuffled(orders: Orders, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Return random orders of as many units."""
    device = "cpu" if generator is None else generator.device
    return {
        name: torch.randperm(len(order), generator=generator, device=device).cpu() for name, order in orders.items()
    }


def relative(orders: Orders, frame: Orders) -> dict[str, Tensor]:
    """Return what is left of ``orders`` when all models are reordered by the inverse of ``frame``."""
    return {name: order[frame[name].argsort()] for name, order in orders.items()}


def reordered(values: Mapping[str, Tensor], axes: Axes, orders: Orders) -> Values:
    """Return ``values`` with the units of each axis taken in their order."""
    return {name: _reordered(value, axes.get(name, ()), orders) for name, value in values.items()}


def _reordered(value: Tensor, axes: Sequence[str | None], orders: Orders, but: int | None = None) -> Tensor:
    for axis, permutation in enumerate(axes):
        if permutation is not None and axis != but:
            value = value.index_select(axis, orders[permutation].to(value.device))
    return value


def match(
    fixed: Mapping[str, Tensor],
    moving: Mapping[str, Tensor],
    axes: Axes,
    start: Orders,
    *,
    generator: torch.Generator | None = None,
    sweeps: int = 100,
    tolerance: float = 1e-12,
) -> tuple[dict[str, Tensor], float]:
    """Return orders of the units of ``moving``, and the inner product ⟨fixed, reordered moving⟩ that they reach.

    Coordinate ascent from ``start``. A sweep visits the permutations in a random order; each becomes the exact solution
    of the linear assignment problem for

        C = Σ over its (tensor, axis) of A Bᵀ       A, B: the tensors with that axis first, the rest flattened,
                                                    B with all its other axes reordered already

    if the inner product gains by more than ``tolerance`` ‖fixed‖ ‖moving‖. It ends with a sweep without a gain, at a
    local optimum, or after ``sweeps``. C is fp64, and the assignment is solved on the CPU.
    """
    places = groups(axes, moving)
    orders = {name: start[name] for name in places}
    least = tolerance * norm(fixed) * norm(moving)
    for _ in range(sweeps):
        gained = False
        for number in shuffled({"": torch.arange(len(places))}, generator)[""].tolist():
            name = list(places)[number]
            better = orders | {name: _assigned(fixed, moving, axes, orders, places[name])}
            touched = sorted({tensor for tensor, _ in places[name]})
            if _agreement(fixed, moving, axes, better, touched) > least + _agreement(
                fixed, moving, axes, orders, touched
            ):
                orders, gained = better, True
        if not gained:
            break
    return orders, _agreement(fixed, moving, axes, orders, moving)


def _assigned(
    fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], axes: Axes, orders: Orders, places: list[tuple[str, int]]
) -> Tensor:
    total: Tensor | None = None
    for name, axis in places:
        value = _reordered(moving[name], axes[name], orders, but=axis)
        ours, theirs = (
            tensor.double().movedim(axis, 0).reshape(tensor.shape[axis], -1) for tensor in (fixed[name], value)
        )
        product = ours @ theirs.T
        total = product if total is None else total + product
    assert total is not None, "a permutation without a place does not exist"
    return torch.from_numpy(linear_sum_assignment(total.cpu().numpy(), maximize=True)[1])


def _agreement(
    fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], axes: Axes, orders: Orders, names: Iterable[str]
) -> float:
    """Return the inner product over the tensors in ``names``."""
    products = [
        (fixed[name].double() * _reordered(moving[name], axes.get(name, ()), orders).double()).sum() for name in names
    ]
    return float(torch.stack(products).sum())
