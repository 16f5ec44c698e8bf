r"""A projector kept as codes in a parameter's state, with a gap between renewals that grows while it hardly changes.

State: ``gap``, the steps between two renewals, ``renewals``, how many there were, ``first_vector`` u and ``queue``, the
last k similarities of successive first vectors; ``codes``, ``scales`` and ``zeros`` of the basis in groups of 256
consecutive elements of its transpose on the right and of itself on the left, or ``basis`` where it is not quantized.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ._affine import Quantized, dequantize, grouped, packed, quantize, ungrouped, unpacked
from ._base import Group

State = dict[str, Any]

GROUP = 256
"""Elements that share a scale."""


def is_due(state: State, group: Group) -> bool:
    """Whether the projector of ``state`` is renewed in the step to come; sets the gap at first."""
    if "gap" not in state:
        state |= {"gap": group["update_gap"], "renewals": 0}
    return bool(state.get("step", 0) % state["gap"] == 0)


def renew(state: State, vectors: Tensor, group: Group, *, right: bool) -> None:
    """Store the basis ``vectors`` (s, r) in ``state`` and let its gap grow if the last k first vectors were alike.

    ``group`` has ``threshold``, ``gap_factor``, ``queue_size``, ``similarity`` and ``projector_bits``.
    """
    first = vectors[:, 0].clone()
    if state["renewals"]:
        similarity = cosine_similarity(state["first_vector"].float(), first.float(), dim=0)
        similarity = similarity.abs() if group["similarity"] == "absolute" else similarity.clamp(min=-1.0)
        state["queue"] = torch.cat((state["queue"], similarity.view(1)))[-group["queue_size"] :].clone()
        full = len(state["queue"]) == group["queue_size"]
        # Estimates on the meta device have shapes only, and no shape depends on the gap.
        if full and not vectors.is_meta and float(state["queue"].mean()) >= group["threshold"]:
            state["gap"] = int(state["gap"] * group["gap_factor"])
    else:
        state["queue"] = torch.zeros(0, device=vectors.device)
    state |= {"first_vector": first, "renewals": state["renewals"] + 1}
    bits = group["projector_bits"]
    if bits is None:
        state["basis"] = vectors.clone()
        return
    codes, scales, zeros = quantize(grouped(vectors.mT if right else vectors, GROUP), bits)
    state |= {"codes": packed(codes) if bits <= 4 else codes, "scales": scales, "zeros": zeros}


def stored(state: State, size: tuple[int, int], group: Group, *, right: bool) -> Tensor:
    """Return the basis (s, r) = ``size`` that ``state`` holds, in fp32 where it is quantized."""
    if "basis" in state:
        basis: Tensor = state["basis"]
        return basis
    codes = unpacked(state["codes"], GROUP) if group["projector_bits"] <= 4 else state["codes"]
    groups = dequantize(Quantized(codes, state["scales"], state["zeros"]))
    return ungrouped(groups, torch.Size(size[::-1])).mT if right else ungrouped(groups, torch.Size(size))
