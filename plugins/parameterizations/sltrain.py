r"""SLTrain: every hidden weight is a low-rank product plus a sparse matrix on a random support that never changes."""
# B and A are the paper's names of the factors.
# ruff: noqa: N803, N806

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench import Algorithm, Choice, Log, Role, hyper
from bench.errors import BadValue, SlotMismatch
from bench.roles import HIDDEN_MATRICES

if TYPE_CHECKING:
    from bench import Run

MATRIX_ROLES = HIDDEN_MATRICES - {Role.CONV}
"""The roles whose linear layers are replaced: attention and MLP, as published."""


@dataclass(frozen=True, kw_only=True)
class SLTrain(Algorithm):
    r"""SLTrain for the linear layers of attention and MLP roles; embedding, head and norms stay dense.

    See :class:`SLTrainLinear` for the rule. The layers are drawn anew, so this is for training from scratch.

    Published: r = d/4 of the hidden size d for LLaMA 60M, 350M, 1B and 7B (128, 256, 512, 1024) and d/3 for 130M;
    ``rank=None`` is a quarter of each weight's short side, at least 1, which gives the four. α was tuned per size
    (32, 16, 16, 8, 8), so that α / r falls from 1/4 to 1/128 as models grow.

    Only ``adapt`` is filled: optimizer, learning rate and schedule stay the reference's or those of ``--with``, so that
    a comparison changes the parameterization alone. The published runs have Adam at 3e-3 for all parameters, without
    weight decay: decay of B and A is not decay of W, so keep it at 0. All three new tensors have the role ``adapter``;
    an optimizer that looks for hidden matrices by role (muon, galore) finds none and says so.

    Source: arXiv:2406.02214; andyjm3/SLTrain.
    Deviations: see ``deviations``.
    """

    name = "sltrain"
    adapter_roles: ClassVar[Mapping[str, Role]] = {r"(.*\.)?(B|A|values)": Role.ADAPTER}
    deviations = (
        "Layers are chosen by role; the code takes those whose name contains attn, attention or mlp.",
        "The default rank is a quarter of the short side; the script has 128, and 256 of 768 was published for 130M.",
        "The optimizer is not part of it: its rate is the reference's, where the published runs have 3e-3.",
        "Positions of the support are int32 where they fit, half of the bytes of the code's int64.",
        "A bias stays the one that the layer has; the code draws it anew.",
        "δ may be 0 (low-rank alone) or 1 (all entries); the code refuses both.",
    )

    rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank r; none: a quarter of the short side")
    density: Annotated[float, Ge(0), Le(1)] = hyper(
        0.03, search=Log(0.01, 0.1), help="part of the entries that the sparse matrix has, δ"
    )
    alpha: Annotated[float, Gt(0)] = hyper(
        32.0, search=Choice((8.0, 16.0, 32.0)), help="the product is multiplied by α / r"
    )

    def adapt(self, model: nn.Module, run: Run) -> nn.Module:
        """Replace the linear layers of attention and MLP roles in place and return ``model``."""
        chosen = {name for name, role in run.roles.items() if role in MATRIX_ROLES}
        count = replace_linears(
            model,
            lambda path, _: f"{path}.weight" in chosen,
            generator=run.rng("layers"),
            **self.hyperparameters(),
        )
        if not count:
            raise SlotMismatch(
                f"{self.name} found no torch.nn.Linear with an attention or MLP role inside the model",
                hint="build the model of torch.nn.Linear and give its matrices their roles",
            )
        return model


class SLTrainLinear(nn.Module):
    r"""A linear layer whose weight W (m, n), m outputs and n inputs, is never kept.

        W = α/r B A + S,    y = x Wᵀ + b            B (m, r), A (r, n)
        G = ∂_yᵀ x,    ∂_x = ∂_y W,    ∂_B = α/r G Aᵀ,    ∂_A = α/r Bᵀ G,    ∂_v = G at the support of S

    S holds the k = floor(δ m n) ``values`` v at fixed places of the whole matrix. W is rebuilt in the forward and again
    in the backward pass, and only x, B, A, v and the places are kept between them; G is a temporary. Beside a dense
    layer over T tokens this costs 4r/(3T) more multiply-adds.

    At first B = 0, A and v are uniform in ±1/√n, a bias in ±1/√m: the layer is S alone. The ``support`` (k,) holds the
    sorted positions of v in W flattened by rows, drawn without replacement; it is a buffer, so it is part of every
    ``state_dict``, int32 where m n allows. State of Adam: 2 (r (m + n) + k).

    r is ``rank`` (``None``: a quarter of the short side, at least 1), δ ``density``, α ``alpha``. All draws come from
    ``generator``, which must live on ``device``; nothing is drawn on the meta device.

        >>> layer = SLTrainLinear(64, 256, rank=16, generator=torch.Generator().manual_seed(0))
        >>> optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     layer(torch.ones(8, 64)).square().mean().backward()
        ...     optimizer.step()

    Gradients of gradients are not supported, except through :attr:`weight`.

    Raises:
        BadValue: a setting is outside its domain, or the rank exceeds the short side.

    Source: arXiv:2406.02214. Deviations: those of :class:`SLTrain`.
    """

    support: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        rank: int | None = None,
        density: float = 0.03,
        alpha: float = 32.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        SLTrain.check(rank=rank, density=density, alpha=alpha)
        short = min(in_features, out_features)
        self.rank = max(1, short // 4) if rank is None else rank
        if self.rank > short:
            raise BadValue(
                f"rank = {rank!r} (int) is not allowed for a weight of shape {(out_features, in_features)}",
                hint=f"rank is an int, 1 <= rank <= {short}, or none",
            )
        self.in_features, self.out_features, self.scale = in_features, out_features, float(alpha) / self.rank
        size = in_features * out_features
        count = math.floor(density * size)
        options: Any = {"device": device, "dtype": dtype}
        self.B = nn.Parameter(torch.empty(out_features, self.rank, **options))
        self.A = nn.Parameter(torch.empty(self.rank, in_features, **options))
        self.values = nn.Parameter(torch.empty(count, **options))
        self.bias = nn.Parameter(torch.empty(out_features, **options)) if bias else None
        integer = torch.int32 if size <= torch.iinfo(torch.int32).max else torch.int64
        self.register_buffer("support", torch.empty(count, device=device, dtype=integer))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw factors, values, a bias and the support anew from ``generator`` (``None``: torch's global one)."""
        if self.values.is_meta:
            return
        bound = 1.0 / math.sqrt(self.in_features)
        self.B.zero_()
        self.A.uniform_(-bound, bound, generator=generator)
        self.values.uniform_(-bound, bound, generator=generator)
        if self.bias is not None:
            bound = 1.0 / math.sqrt(self.out_features)
            self.bias.uniform_(-bound, bound, generator=generator)
        size = self.in_features * self.out_features
        drawn = torch.randperm(size, generator=generator, device=self.support.device)
        self.support.copy_(drawn[: self.support.numel()].sort().values)

    @classmethod
    def like(cls, linear: nn.Linear, **options: Any) -> SLTrainLinear:
        """Return a layer in place of ``linear``: of its shape, device, dtype and mode, with its very bias."""
        weight = linear.weight
        layer = cls(linear.in_features, linear.out_features, device=weight.device, dtype=weight.dtype, **options)
        layer.bias = linear.bias
        return layer.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """W (m, n), formed anew and differentiable: for looking at it, and for a dense layer in the end."""
        return compose(self.B, self.A, self.values, self.support, self.scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``features`` (..., n) Wᵀ + b, (..., m); under autocast all of it is in autocast's dtype."""
        tensors: list[Tensor | None] = [features, self.B, self.A, self.values, self.bias]
        kind = features.device.type
        # The meta device has no autocast to ask about.
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
        *inputs, bias = tensors
        output: Tensor = _Product.apply(*inputs, self.support, self.scale)  # type: ignore[no-untyped-call]
        return output if bias is None else output + bias

    def extra_repr(self) -> str:
        """Return the sizes, as torch prints them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"rank={self.rank}, values={self.values.numel()}, scale={self.scale:g}"
        )


def replace_linears(model: nn.Module, wanted: Callable[[str, nn.Linear], bool], **options: Any) -> int:
    """Replace in place each linear layer for which ``wanted(path, layer)``, by :meth:`SLTrainLinear.like`.

    ``options`` are those of :class:`SLTrainLinear`. A layer that stands in several places is made once; ``model``
    itself is never replaced. Returns how many layers there were.

        >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> replace_linears(model, lambda path, _: path != "2", rank=16)
        1
    """
    made: dict[nn.Linear, SLTrainLinear] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if path and isinstance(module, nn.Linear) and wanted(path, module):
            if module not in made:
                made[module] = SLTrainLinear.like(module, **options)
            model.set_submodule(path, made[module])
    return len(made)


def compose(B: Tensor, A: Tensor, values: Tensor, support: Tensor, scale: float) -> Tensor:
    """Return W = ``scale`` B A plus ``values`` at the places ``support`` of the flattened matrix."""
    product = B @ (scale * A)
    product.view(-1).index_add_(0, support, values)
    return product


class _Product(torch.autograd.Function):
    """x Wᵀ; the backward pass rebuilds W from what is small."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, B: Tensor, A: Tensor, values: Tensor, support: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(features, B, A, values, support)
        ctx.scale = scale
        return nn.functional.linear(features, compose(B, A, values, support, scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, B, A, values, support = ctx.saved_tensors
        of_features, *of_weight = ctx.needs_input_grad[:4]
        gradients: list[Tensor | None] = [None, None, None, None]
        if of_features:
            gradients[0] = output_gradient @ compose(B, A, values, support, ctx.scale)
        if any(of_weight):
            rows = output_gradient.reshape(-1, output_gradient.shape[-1])
            G = rows.T @ features.reshape(-1, features.shape[-1])
            gradients[1] = ctx.scale * (G @ A.T)
            gradients[2] = ctx.scale * (B.T @ G)
            gradients[3] = G.flatten().index_select(0, support)
        return (*gradients, None, None)
