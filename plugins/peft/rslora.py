"""rsLoRA: LoRA with a scale that falls with the root of the rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from bench import hyper

from .lora import Lora


@dataclass(frozen=True, kw_only=True)
class RsLora(Lora):
    """LoRA with s = α/√r.

    See :class:`~bench.plugins.peft.lora.LoraLinear` for the layer. With LoRA's α/r the update that one step makes falls
    as r grows, so that high ranks learn no more than low ones; with α/√r the size of outputs and gradients does not
    depend on r. α is ``alpha``, r is ``rank``.

    Source: arXiv:2312.03732.
    Deviations: those of :class:`~bench.plugins.peft.lora.Lora`.
    """

    name = "rslora"

    alpha: Annotated[float, Gt(0)] = hyper(8.0, help="numerator α of the scale s = α/√r")

    @property
    def scale(self) -> float:
        """s, the factor of B A."""
        return self.alpha / math.sqrt(self.rank)
