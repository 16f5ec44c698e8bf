"""Bone: each block row of a weight is multiplied by one small matrix, which is also added ("bat" in later code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bench import Log, Role, hyper
from bench.errors import BadValue

from ._adapter import AdaptedLinear, wide
from ._base import AdapterTuning

if TYPE_CHECKING:
    from bench import Run


@dataclass(frozen=True, kw_only=True)
class Bone(AdapterTuning):
    """Block-affine adaptation of the linear layers of attention and MLP, trained by AdamW.

    See :class:`BoneLinear` for the layer. r is ``rank``, the size of a block, which must divide both sides of every
    adapted weight. λ pulls towards the pretrained weights. State: 2 r m per weight (m, n), against 2 m n; on square
    weights a block size of 2 r has the parameters of LoRA at rank r.

    Three methods have carried the name. This is the one of the first version of the paper, with the weight in its
    update: ``init_weights="bat"`` of peft. Its later default, without the weight, is ``miss``.

    Published: r = 64 with lr 2e-5 (LLaMA-2-7B, MetaMathQA); in a model of 0.1M parameters the best lr at r = 8 is 1e-2.
    Reruns of others saw it forget four times as much as LoRA: look at forgetting beside the quality.

    Source: arXiv:2409.15371 (v1), JL-er/Bone.
    Deviations: see ``deviations``.
    """

    name = "bone"
    adapter_roles: ClassVar[Mapping[str, Role]] = {r"(.*\.)?blocks_affine": Role.ADAPTER}
    deviations: ClassVar[tuple[str, ...]] = (
        "The block size is 16 by default, with the parameters of LoRA at rank 8; published runs take 64.",
        "Block matrices are fp32 beside a half-precision weight; the authors' scripts keep them in bf16.",
    )

    lr: Annotated[float, Gt(0)] = hyper(3e-3, search=Log(3e-5, 3e-1), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] = hyper(16, help="size r of a block, which divides both sides of every weight")

    def layer(self, linear: nn.Linear, run: Run) -> BoneLinear:
        """Return the layer with block matrices that start as zeros."""
        return BoneLinear(linear, rank=self.rank)


class BoneLinear(AdaptedLinear):
    r"""A linear layer with a block-affine update.

    Frozen W (m, n) is cut into blocks W_ji (r, r), j = 1 .. m/r along the outputs, i = 1 .. n/r along the inputs. With
    one matrix b_j (r, r) per row of blocks:

        dW_ji = W_ji b_j + b_j,                  y = (W + dW) x + bias
        ∂_b_j = Σ_i (W_jiᵀ ∂_W_ji + ∂_W_ji)

    ``blocks_affine`` (m/r, r, r) starts as zeros: at first y has the bits of the base layer. It is fp32 beside a
    half-precision W, and W + dW is rounded once. dW costs m n r multiply-adds and two m x n temporaries per pass,
    whatever the number of tokens.

        >>> layer = BoneLinear(nn.Linear(16, 8), rank=4)
        >>> tuple(layer.blocks_affine.shape)
        (2, 4, 4)

    A ``rank`` that does not divide both m and n raises :class:`~bench.errors.BadValue`.

    Source: arXiv:2409.15371 (v1). Deviations: those of :class:`Bone`.
    """

    def __init__(self, base: nn.Linear, *, rank: int = 16) -> None:
        Bone.check(rank=rank)
        rows, columns = base.weight.shape
        if rows % rank or columns % rank:
            raise BadValue(
                f"bone: rank = {rank!r} (int) does not divide a weight of shape {(rows, columns)} into blocks",
                hint="choose a common divisor of both sides of every weight that is adapted, or the plugin miss",
            )
        super().__init__(base)
        blocks = torch.zeros(rows // rank, rank, rank, dtype=wide(base.weight.dtype), device=base.weight.device)
        self.blocks_affine = nn.Parameter(blocks)

    def delta(self) -> Tensor:
        """Return dW (m, n)."""
        return block_affine(self.base.weight.to(self.blocks_affine.dtype), self.blocks_affine)


def block_affine(weight: Tensor, blocks: Tensor) -> Tensor:
    """Return W_ji b_j + b_j for every block of ``weight`` W (m, n); ``blocks`` b is (m/r, r, r)."""
    rows, rank, _ = blocks.shape
    # A row of blocks, reshaped to (r n/r, r), multiplies b_j from the left with all its blocks at once.
    products = weight.reshape(rows, -1, rank) @ blocks
    return (products.view(rows, rank, -1, rank) + blocks.unsqueeze(2)).view(weight.shape)


def block_affine_inverse(merged: Tensor, blocks: Tensor) -> Tensor:
    """Return the W (m, n) of which ``merged`` is W + dW: W_ji = (W'_ji - b_j)(I + b_j)⁻¹.

    Raises ``torch.linalg.LinAlgError`` where I + b_j has no inverse.
    """
    rows, rank, _ = blocks.shape
    shifted = (merged.reshape(rows, rank, -1, rank) - blocks.unsqueeze(2)).reshape(rows, -1, rank)
    affine = blocks + torch.eye(rank, dtype=blocks.dtype, device=blocks.device)
    weight: Tensor = torch.linalg.solve(affine, shifted, left=False)
    return weight.view(merged.shape)
