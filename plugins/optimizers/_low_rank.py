"""What optimizers with low-rank matrices share: which matrices they are, at which rank, and the basis of each.

A group with a ``rank`` holds matrices that are projected; a group whose rank is ``None`` holds everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.errors import BadValue, SlotMismatch
from bench.roles import Role

from ._base import Group, parameter_name
from ._projection import BasisFunction, Projection, Side, undefined_projection

if TYPE_CHECKING:
    from bench import NamedParameters, Run

PROJECTED_ROLES = frozenset({Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_O, Role.MLP})
"""The roles whose matrices the published runs project."""

FOREIGN_OPTIONS = {
    "basis": "give the basis function to the optimizer itself",
    "update_proj_gap": "it is called update_gap here",
    "proj_type": "the short side is projected; there is no other kind here",
    "alpha": "it is called scale here",
    "galore_scale": "it is called scale here",
}
"""Options that people write into a group, where torch would keep them without a word and nothing would use them."""

Named = list[tuple[str, Tensor]]


def projected_and_rest(name: str, named_parameters: NamedParameters, run: Run) -> tuple[Named, Named]:
    """Return the matrices with an attention or MLP role, and the other parameters, for the algorithm ``name``.

    Raises:
        SlotMismatch: there is no such matrix.
    """
    matrices: Named = []
    rest: Named = []
    for key, parameter in named_parameters:
        projected = run.role(key) in PROJECTED_ROLES and parameter.ndim == 2
        (matrices if projected else rest).append((key, parameter))
    if not matrices:
        raise SlotMismatch(
            f"{name} found no matrix with an attention or MLP role, so nothing to project",
            hint="use adamw, or give the workload's matrices their roles",
        )
    return matrices, rest


def rank_groups(name: str, named_parameters: NamedParameters, run: Run, rank: int | None) -> list[Group]:
    """Return a group for each rank and one for everything else; ``rank=None`` means a quarter of the short side."""
    matrices, rest = projected_and_rest(name, named_parameters, run)
    by_rank: dict[int, Named] = {}
    for key, matrix in matrices:
        by_rank.setdefault(rank or max(1, min(matrix.shape) // 4), []).append((key, matrix))
    groups: list[Group] = [{"params": members, "rank": number} for number, members in by_rank.items()]
    return [*groups, {"params": rest}] if rest else groups


def refuse_foreign_options(name: str, param_group: Group) -> None:
    """Raise ``BadValue`` if ``param_group`` has an option that goes by another name or stands elsewhere here."""
    for option in param_group.keys() & FOREIGN_OPTIONS.keys():
        raise BadValue(f"{name}: {option} is no option of a group", hint=FOREIGN_OPTIONS[option])


def refuse_bad_shapes(name: str, group: Group) -> None:
    """Raise ``BadValue`` if ``group`` has a rank and holds what is no matrix or too small for it."""
    rank = group["rank"]
    for parameter in group["params"] if rank is not None else ():
        which = parameter_name(group, parameter)
        if parameter.ndim != 2:
            raise BadValue(
                f"{name}: {which} is no matrix and cannot be projected",
                hint="put it into a group without a rank, where it takes plain Adam steps",
            )
        if rank > min(parameter.shape):
            raise BadValue(
                f"{name}: rank = {rank!r} ({type(rank).__name__}) is not allowed for {which}",
                hint=f"rank is an int, 1 <= rank <= {min(parameter.shape)}, the matrix's short side",
            )


def stacked(tensors: list[Tensor]) -> Tensor:
    """Return ``tensors`` of one shape as one batch; a single one without a copy."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def stored_projection(states: list[dict[str, Any]]) -> Projection | None:
    """Return the stacked bases that ``states`` of one shape hold, ``None`` before the first."""
    bases = [stacked([state[side] for state in states]) if side in states[0] else None for side in Projection._fields]
    return Projection(*bases) if any(basis is not None for basis in bases) else None


def store_projection(states: list[dict[str, Any]], projection: Projection) -> None:
    """Put the stacked bases of ``projection`` into ``states``, each a tensor of its own."""
    for side, bases in zip(Projection._fields, projection, strict=True):
        if bases is not None:
            for state, basis in zip(states, bases.unbind(), strict=True):
                state[side] = basis.clone()  # a view would keep the whole batch alive


def new_projection(
    basis: BasisFunction, gradients: Tensor, rank: int, side: Side, previous: Projection | None
) -> Projection:
    """Return what ``basis`` finds for ``gradients`` (..., m, n), and bases of NaN where these are not finite."""
    try:
        return basis(gradients, rank, side, previous)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if gradients.isfinite().all():
            raise
        # A run that diverges must end as every optimizer lets it end, in weights that are not finite.
        return undefined_projection(gradients, rank, side)
