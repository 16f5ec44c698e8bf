"""The diagonal of the Fisher information of a classifier, one example at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from bench.errors import BadValue

from ._vectors import Values, weights_of, zeros_like

if TYPE_CHECKING:
    from torch import nn

CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Per-example gradients of one class that are computed at a time, at least one example's: a CPU's caches hold few."""


def diagonal_fisher(
    model: nn.Module,
    inputs: Iterable[Tensor],
    *,
    examples: int | None = None,
    samples: int | None = None,
    heads: Collection[str] = (),
    generator: torch.Generator | None = None,
) -> Values:
    """Return F, of the shape of each weight: how much the model's own predictions depend on it.

        F = (1/N) Σ_x Σ_c p(c|x) (∂ log p(c|x) / ∂θ)²

    over N examples x and all classes c; p is the softmax of ``model(inputs)`` (B, C), in evaluation mode. With
    ``samples`` the sum over c is the mean over so many classes drawn from p by ``generator`` (unbiased; where there are
    many classes). The square is taken of each example's own gradient, so batches change rounding alone, and in fp32.

    ``inputs`` are batches, of which the first ``examples`` examples are used (``None``: all); labels are not needed.

    Raises:
        BadValue: there is no example.
    """
    names = list(weights_of(model, heads))
    parameters = {name: value.detach() for name, value in model.named_parameters() if name in names}
    size = sum(value.numel() * value.element_size() for value in parameters.values())
    fisher = zeros_like(weights_of(model, heads))
    chunk_bytes = CHUNK_BYTES.get(next(iter(fisher.values())).device.type, CHUNK_BYTES["cuda"])
    seen = 0

    def squares(x: Tensor, cotangents: Tensor) -> Values:
        def log_probabilities(weights: Values) -> Tensor:
            logits: Tensor = functional_call(model, weights, (x.unsqueeze(0),))
            return logits[0].float().log_softmax(dim=-1)

        pull = vjp(log_probabilities, parameters)[1]
        total: Values = {}
        for cotangent in cotangents:
            for name, gradient in pull(cotangent)[0].items():
                wide = gradient.to(fisher[name].dtype)
                total[name] = torch.addcmul(total[name], wide, wide) if name in total else wide.square()
        return total

    with evaluating(model), torch.no_grad():
        for chunk in chunks(inputs, max(1, chunk_bytes // max(1, size)), examples):
            cotangents = scores(model(chunk).float().softmax(dim=-1), samples, generator)
            for name, value in vmap(squares)(chunk, cotangents).items():
                fisher[name] += value.sum(dim=0)
            seen += len(chunk)
    if not seen:
        raise BadValue("the Fisher information of no example", hint="give each model inputs of its own task")
    return {name: value / seen for name, value in fisher.items()}


def scores(probabilities: Tensor, samples: int | None, generator: torch.Generator | None) -> Tensor:
    """Return V (B, S, C) such that Σ_s (V_s · g)² is the expectation of g_c² over c, for ``probabilities`` p (B, C).

    V = diag(√p), S = C, is the exact one; ``samples`` S one-hot rows times 1/√S an unbiased one.
    """
    if samples is None:
        return probabilities.sqrt().diag_embed()
    drawn = torch.multinomial(probabilities, samples, replacement=True, generator=generator)
    hot = torch.nn.functional.one_hot(drawn, probabilities.shape[1])
    return hot.to(probabilities.dtype).div(float(samples) ** 0.5)


def chunks(batches: Iterable[Tensor], size: int, limit: int | None) -> Iterator[Tensor]:
    """Yield the first ``limit`` rows of ``batches``, at most ``size`` at a time."""
    left = limit
    for batch in batches:
        rows = batch if left is None else batch[:left]
        yield from torch.split(rows, size) if len(rows) else ()
        if left is not None:
            left -= len(rows)
            if left == 0:
                return


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode for a while; each module gets its own mode back."""
    modes: Sequence[tuple[nn.Module, bool]] = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
