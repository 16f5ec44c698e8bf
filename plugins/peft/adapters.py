"""Adapters on any module outside the suite: put them in, fold them into the weights, save and load what they learnt.

>>> from torch import nn
>>> from bench.plugins.peft.lora import LoraLinear
>>> model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
>>> adapted = adapted_linears(model, ["0", "2"], lambda linear: LoraLinear(linear, rank=2))
>>> plain = merge_adapters(adapted)
"""

from __future__ import annotations

from ._adapter import AdaptedLinear, adapted_linears, adapter_state_dict, load_adapter, merge_adapters

__all__ = ["AdaptedLinear", "adapted_linears", "adapter_state_dict", "load_adapter", "merge_adapters"]
