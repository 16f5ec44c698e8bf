"""GradNormLoRP: weights as magnitude times normalised direction, and GaLore's projected Adam for the direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt
from torch import nn

from bench import Choice, Log, Role, hyper
from bench.errors import BadValue, SlotMismatch

from ._low_rank import PROJECTED_ROLES
from ._weight_norm import NormalizedLinear, replace_linears
from .galore import GaLore, GaLoreAdamW

if TYPE_CHECKING:
    from bench import NamedParameters, Run

    from ._base import Group


@dataclass(frozen=True, kw_only=True)
class GradNormLoRP(GaLore):
    r"""GradNormLoRP for the linear layers of attention and MLP roles, plain Adam for everything else.

    Each such weight (m, n) becomes a magnitude times a normalised direction, and starts as it was:

        W = M V / ‖V‖
        ∂_M = <∂_W, V/‖V‖>,   ∂_V = M/‖V‖ (∂_W - (∂_W · V/‖V‖) V/‖V‖)

    with one M and one ‖V‖ per output neuron (row of W); ``axis="input"`` takes one per column. V, or both factors of a
    low-rank V, take GaLore's projected Adam step (:class:`~bench.plugins.optimizers.galore.GaLoreAdamW`) with
    η = ``lr``, α = ``scale``, r = ``rank``, T = ``update_gap``; M takes Adam at the full rate. The projection "full" of
    ``projection_type`` is the two-sided one that the paper writes, "std" the one-sided one of its code.

    Pre-training (``adapter_rank=None``): V is the whole weight. State per weight: s r + 2 r l + 2 m (s short, l long
    side, 2 n with ``axis="input"``). The published LLaMA 60M run has rank 128 of 512; ``rank=None`` keeps that share, a
    quarter of the short side, and ``update_gap=None`` is 200 steps or a sixth of a shorter run.

    Fine-tuning (``adapter_rank`` r_a; GLUE: 8, with rank 4 or 8, scale 4, gap 500, lr 3e-5): V = W₀ + a I J with W₀
    frozen, I (m, r_a), J (r_a, n), a = ``adapter_scale``. Only M, I, J and parameters of the classifier role are
    trained. State: s r + 2 r l per factor and 2 m; ``rank=None`` is half of r_a.

    The release's optimizer follows GaLore's trajectory exactly, since it throws its learnt magnitudes away and does not
    remove the radial part; it is not this algorithm.

    Source: arXiv:2412.19616; Jhhuangkay/Gradient-Weight-normalized-Low-rank-Projection-for-Efficient-LLM-Training.
    Deviations: see ``deviations``.
    """

    name = "gradnorm-lorp"
    adapter_roles: ClassVar[Mapping[str, Role]] = {r"(.*\.)?(magnitude|left|right)": Role.ADAPTER}
    deviations: ClassVar[tuple[str, ...]] = (
        (
            "The magnitudes are learnt, as in the paper; the released optimizer sets them back to the norms of the "
            "direction at every step."
        ),
        "The gradient of a direction has no radial part, as in the paper; the release leaves it in.",
        "One magnitude per output neuron, as the release and DoRA have it; the paper writes norms of columns.",
        "The projection is one-sided by default, as in the code; the paper writes a two-sided one.",
        (
            "Pre-training trains whole directions; the release's script wraps a freshly drawn model in rank-8 "
            "adapters, so that its weights stay near their random values."
        ),
        "Adapters have no dropout, since the weight is formed whole; the release has 0.1 at their input.",
        "Norms are at least 1e-6; a row of zeros gives NaN in the release.",
        "The default update gap is at most a sixth of the run; the README says 250, the scripts 200.",
        "Bases are found as in galore; the release replaces gradients that are not finite and tries again.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-2, search=Log(1e-5, 2e-2), help="peak learning rate η")
    rank: Annotated[int, Ge(1)] | None = hyper(
        None, help="rank r of the projection; none: a quarter of the short side, half of that of a factor"
    )
    update_gap: Annotated[int, Ge(1)] | None = hyper(
        None,
        search=Choice((50, 100, 200, 250, 500, 1000)),
        help="steps between two bases, T; none: min(200, steps / 6)",
    )
    scale: Annotated[float, Gt(0)] = hyper(0.25, search=Log(0.1, 8.0), help="factor of the projected update, α")
    axis: Literal["output", "input"] = hyper("output", help="what has a magnitude and a norm of its own")
    adapter_rank: Annotated[int, Ge(1)] | None = hyper(None, help="rank r_a of the direction's factors; none: whole")
    adapter_scale: Annotated[float, Gt(0)] = hyper(2.0, help="factor a of I J; published 16 / 8")

    def adapt(self, model: nn.Module, run: Run) -> nn.Module:
        """Re-parameterise the linear layers of attention and MLP roles in place and return ``model``."""
        roles = {id(parameter): run.role(name) for name, parameter in model.named_parameters()}
        if self.adapter_rank is not None:
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.requires_grad and roles[id(parameter)] is Role.CLASSIFIER)
        chosen = {key for key, role in roles.items() if role in PROJECTED_ROLES}
        if not replace_linears(model, chosen, lambda linear: self._normalized(linear, run)):
            raise SlotMismatch(
                f"{self.name} found no torch.nn.Linear with an attention or MLP role inside the model",
                hint="use adamw, or build the model of torch.nn.Linear and give its matrices their roles",
            )
        return model

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> GradNormLoRPAdamW:
        """Return one optimizer with a projected group per rank and a group of plain Adam."""
        return self._build(GradNormLoRPAdamW, named_parameters, run)

    def _normalized(self, linear: nn.Linear, run: Run) -> NormalizedLinear:
        if self.adapter_rank is not None and self.adapter_rank > min(linear.weight.shape):
            raise BadValue(
                f"{self.name}: adapter_rank = {self.adapter_rank!r} (int) is not allowed for a weight of shape "
                f"{tuple(linear.weight.shape)}",
                hint=f"adapter_rank is an int, 1 <= adapter_rank <= {min(linear.weight.shape)}, or none",
            )
        return NormalizedLinear(
            linear,
            axis=self.axis,
            adapter_rank=self.adapter_rank,
            adapter_scale=self.adapter_scale,
            generator=None if self.adapter_rank is None else run.rng("adapters"),
        )

    def _groups(self, named_parameters: NamedParameters, run: Run) -> list[Group]:
        factors: list[tuple[str, nn.Parameter]] = []
        others: list[tuple[str, nn.Parameter]] = []
        for name, parameter in named_parameters:
            is_factor = run.role(name) is Role.ADAPTER and parameter.ndim == 2
            (factors if is_factor else others).append((name, parameter))
        if not factors:
            return super()._groups(others, run)
        half = max(1, min(min(parameter.shape) for _, parameter in factors) // 2)
        return [{"params": factors, "rank": self.rank or half}, {"params": others}]


class GradNormLoRPAdamW(GaLoreAdamW):
    """The optimizer of :class:`GradNormLoRP`: GaLore's, over the parameters of re-parameterised layers.

    Outside the suite, :class:`~bench.plugins.optimizers._weight_norm.NormalizedLinear` makes such a layer:

        >>> import torch
        >>> layer = NormalizedLinear(torch.nn.Linear(16, 64))
        >>> optimizer = GradNormLoRPAdamW([{"params": [layer.weight], "rank": 4}], lr=0.01)
        >>> optimizer.add_param_group({"params": [layer.magnitude, layer.bias]})
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     layer(torch.ones(8, 16)).square().mean().backward()
        ...     optimizer.step()

    Source: arXiv:2412.19616. Deviations: those of :class:`GradNormLoRP`.
    """

    algorithm = GradNormLoRP
