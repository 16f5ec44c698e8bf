"""What a compressed model stores: values, and bytes at 16 bits a value. One set of rules for every family of methods.

The counter knows no algorithm. It walks the whole tree of the returned model once, and every tensor counts once, by
identity. At each module, the first rule that fits:

1. A method ``stored_values() -> int`` is believed, and nothing below the module is looked at. Its bytes are what
   ``stored_bytes() -> int`` says, or two a value where there is no such method. For formats that the other rules
   would count wrongly: packed bits, scales, a dictionary.
2. A ``nn.Linear`` (also a subclass, or one whose weight is parametrised: what counts is ``module.weight``), m x n:

   - without a zero: m n values, 16 bits each;
   - with zeros, where each M consecutive weights of a row have at most N others (the pattern N:M of the point):
     m n N/M values, 16 bits and ⌈log₂ M⌉ bits of position each (2:4 is 9/16 of dense);
   - with zeros otherwise: as many values as are not zero, 16 bits each and one mask bit per weight, but never more
     bytes than dense ones.

   Its bias is m values.
3. Anything else: its own parameters and *persistent* buffers, then its children by these rules. A floating-point
   element is a value of 16 bits (8 in an 8-bit type), an integer a value of its own width, a Boolean one mask bit and
   no value. So a factored layer, B (m x r) and A (r x n), is r (m + n) values without a word from its author, and a
   layer with a branch is its base, a child module, and the branch.

The kept ratio is what all of it stores, less the parameters that stay dense (embedding, head, norms: those that still
have their names), over the dense values of the compressed linears. An extra tensor counts wherever it is put, and
zeros in the head gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from bench.errors import SlotFault
from bench.roles import HIDDEN_MATRICES

if TYPE_CHECKING:
    from torch import Tensor

    from bench import Point, Role

VALUE_BITS: Final = 16
_OF_A_LINEAR: Final = frozenset({"weight", "bias", "weight_orig", "weight_mask", "bias_orig", "bias_mask"})
"""Names of tensors that ``module.weight`` and ``module.bias`` speak for, those of ``torch.nn.utils.prune`` too."""


@dataclass(frozen=True)
class Stored:
    """A number of values and of bits; adds up."""

    values: int = 0
    bits: int = 0

    def __add__(self, other: Stored) -> Stored:
        return Stored(self.values + other.values, self.bits + other.bits)


@dataclass(frozen=True)
class Layout:
    """The dense model: shape (m, n) of each linear that is compressed, and elements of each parameter that is not."""

    linears: Mapping[str, tuple[int, int]]
    rest: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, roles: Mapping[str, Role]) -> Layout:
        """Return the layout of a dense model; a ``nn.Linear`` whose weight is a hidden matrix is to be compressed."""
        linears = {
            name: (module.out_features, module.in_features)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and roles.get(f"{name}.weight") in HIDDEN_MATRICES
        }
        weights = {f"{name}.weight" for name in linears}
        rest = {name: value.numel() for name, value in model.named_parameters() if name not in weights}
        return cls(linears, rest)

    @property
    def linear_values(self) -> int:
        """Dense values of the linears that are compressed."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def values(self) -> int:
        """Dense values of the whole model."""
        return self.linear_values + sum(self.rest.values())

    def allowed_values(self, point: Point) -> float | None:
        """Return how many values the linears may store at ``point``; ``None`` where it sets no limit.

        That is ρ m n or m n N/M, and r (m + n) for a branch, summed over the linears; plus one value each, so that a
        number may be rounded to the nearest.
        """
        shares = [point.kept_ratio, None if point.pattern is None else point.pattern[0] / point.pattern[1]]
        share = next((share for share in shares if share is not None), None)
        if share is None:
            return None
        branch = (point.rank or 0) * sum(rows + columns for rows, columns in self.linears.values())
        return share * self.linear_values + branch + len(self.linears)


@dataclass(frozen=True)
class Account:
    """What a compressed model stores: ``linears`` what takes the place of the compressed linears, ``rest`` the rest."""

    layout: Layout
    linears: Stored
    rest: Stored

    @property
    def kept_ratio(self) -> float:
        """Stored values of the compressed linears over their dense values, ρ."""
        return self.linears.values / self.layout.linear_values

    @property
    def whole_model_ratio(self) -> float:
        """Stored values of the whole model over its dense values."""
        return (self.linears + self.rest).values / self.layout.values

    @property
    def linear_bytes(self) -> int:
        """Bytes of what takes the place of the compressed linears."""
        return -(-self.linears.bits // 8)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole model."""
        return -(-(self.linears + self.rest).bits // 8)

    def check(self, point: Point) -> None:
        """Raise :class:`~bench.errors.SlotFault` if more is stored than ``point`` allows."""
        allowed = self.layout.allowed_values(point)
        if allowed is not None and self.linears.values > allowed:
            raise SlotFault(
                f"the compressed linears store {self.linears.values:,} values, {self.kept_ratio:.4f} of the dense "
                f"ones; at the point ({point}) at most {int(allowed):,} are allowed",
                hint="biases, scales, and whatever else a method adds as parameters or persistent buffers count; "
                "lower the rank by what they need",
            )


def account(model: nn.Module, layout: Layout, pattern: tuple[int, int] | None = None) -> Account:
    """Count what ``model``, made of the model with this ``layout``, stores; ``pattern`` is that of the point."""
    seen: set[int] = set()
    linears, rest = Stored(), Stored()
    for name, stored in _walk("", model, layout, pattern, seen):
        if name in layout.rest:
            rest += stored
        else:
            linears += stored
    return Account(layout, linears, rest)


def _walk(
    prefix: str, module: nn.Module, layout: Layout, pattern: tuple[int, int] | None, seen: set[int]
) -> Iterator[tuple[str, Stored]]:
    """Yield name and storage of every tensor below ``module``; ``seen`` has the identities of those counted."""
    if id(module) in seen:
        return
    seen.add(id(module))
    if hasattr(module, "stored_values"):
        seen.update(map(id, (*module.modules(), *module.parameters(), *module.buffers())))
        yield prefix, _reported(prefix, module)
        return
    known: frozenset[str] = frozenset()
    if isinstance(module, nn.Linear) and f"{prefix}weight" not in layout.rest:
        known = _OF_A_LINEAR
        yield from _linear(prefix, module, pattern, seen)
    for name, tensor in _own(module):
        if name not in known and id(tensor) not in seen:
            seen.add(id(tensor))
            yield prefix + name, _plain(tensor)
    for name, child in module.named_children():
        if not (known and name == "parametrizations"):
            yield from _walk(f"{prefix}{name}.", child, layout, pattern, seen)


def _reported(prefix: str, module: nn.Module) -> Stored:
    report = [getattr(module, name, None) for name in ("stored_values", "stored_bytes")]
    found = [None if method is None else method() for method in report]
    values, size_bytes = found
    right = [isinstance(number, int) and number >= 0 for number in found if number is not None]
    if values is None or not all(right):
        raise SlotFault(
            f"{type(module).__name__} at {prefix.rstrip('.')!r} says that it stores {values!r} values in "
            f"{size_bytes!r} bytes",
            hint="stored_values() and stored_bytes() return whole numbers",
        )
    return Stored(values, VALUE_BITS * values if size_bytes is None else 8 * size_bytes)


def _linear(
    prefix: str, module: nn.Linear, pattern: tuple[int, int] | None, seen: set[int]
) -> Iterator[tuple[str, Stored]]:
    source = getattr(module, "weight_orig", module._parameters.get("weight"))  # noqa: SLF001 - no public way to ask
    if source is None or id(source) not in seen:
        seen.add(id(source))
        yield f"{prefix}weight", _matrix(module.weight.detach(), pattern)
    bias: Tensor | None = module.bias
    if bias is not None and id(bias) not in seen:
        seen.add(id(bias))
        yield f"{prefix}bias", _plain(bias)


def _matrix(weight: Tensor, pattern: tuple[int, int] | None) -> Stored:
    if weight.is_meta:
        return _plain(weight)
    elements, kept = weight.numel(), int(torch.count_nonzero(weight))
    if kept == elements:
        return _plain(weight)
    if pattern is not None and _follows(weight, pattern):
        few, many = pattern
        kept = elements * few // many
        return Stored(kept, kept * (VALUE_BITS + (many - 1).bit_length()))
    return Stored(kept, min(VALUE_BITS * kept + elements, VALUE_BITS * elements))


def _follows(weight: Tensor, pattern: tuple[int, int]) -> bool:
    few, many = pattern
    if weight.shape[1] % many:
        return False
    return int((weight.reshape(len(weight), -1, many) != 0).sum(-1).max()) <= few


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    transient = module._non_persistent_buffers_set  # noqa: SLF001 - no public way to ask
    for name, buffer in module.named_buffers(recurse=False):
        if name not in transient:
            yield name, buffer


def _plain(tensor: Tensor) -> Stored:
    if tensor.dtype == torch.bool:
        return Stored(0, tensor.numel())
    width = 8 * tensor.element_size()
    if tensor.is_floating_point():
        width = min(width, VALUE_BITS)
    return Stored(tensor.numel(), width * tensor.numel())
