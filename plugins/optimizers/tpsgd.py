"""tpSGD: every hidden layer learns a fixed random projection of the label; no error travels backwards."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor, nn

from bench import Algorithm, Choice, Log, Role, hyper
from bench.errors import SlotMismatch

from ._evaluating import evaluating
from ._local_layers import LAYERS, Activation, Layer, LayerLoss, accumulate, local_error
from ._outputs import at_outputs, micro_batches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench import Batch, Loss, NamedParameters, Run

Order = Literal["online", "greedy"]

OUTPUT_ROLES = frozenset({Role.LM_HEAD, Role.CLASSIFIER})


@dataclass(frozen=True, kw_only=True)
class TpSGD(Algorithm):
    r"""tpSGD for every linear and convolution layer of a classifier or language model, with plain SGD.

    Layer i has input x_i and output z_i = W_i x_i + b_i; y* is the one-hot label of one of C classes, the next token
    where rows are positions of text. With y_i = σ(z_i), ``activation`` σ and ``layer_loss``:

        t_i = P_i y*                               P_i (d_i, C) drawn once, U(-√(6/d_i), √(6/d_i)) ``projection_scale``
        e_i = (t_i - y_i) σ'(z_i)                  "l2", J_i = ‖t_i - y_i‖², its factor 2 absorbed in η
        e_i = sign(t_i - y_i) σ'(z_i)              "l1", J_i = ‖t_i - y_i‖₁
        e_i = -t_i σ'(z_i)                         "drtp": the parent method, direct random target projection
        W_i ← W_i + η e_i x_iᵀ,   b_i ← b_i + η e_i    weighted over rows as the workload's loss weights them

    d_i is the size of what layer i puts out per label, all channels and positions of a convolution together. The layer
    of role lm_head or classifier takes the gradient of the workload's own loss, which ends there. Everything else,
    embeddings and norms, stays as it was drawn. What goes on to the next layer is z_i as it was before the update, in
    whatever way the model uses it. Targets are moved into the range of σ, which they fill while no entry of P exceeds
    1: ½ + ½ P y* for the sigmoid, |P y*| for the ReLU. η is ``lr``.

    A language model is more than the paper had in mind: there each attention and MLP matrix has a target of its own at
    each position, and attention, products, residual sums and norms only pass on what they get, since no error travels
    through them. Expect little: tpSGD trains two or three layers well, and loses with depth.

    ``order="online"`` updates all layers in each step; "greedy" one after the other, each for an equal part of the run.
    State: none; P_i is drawn anew from a seed whenever it is used. A forward pass keeps nothing but what the layer at
    work needs, and its gradient is freed by the update that follows its output. The paper's own settings are not known
    to us: all defaults are assumptions, of DRTP's code where it has one, with η for means over rows, at every size.

    Source: arXiv:2208.08503; P and "drtp": ChFrenkel/DirectRandomTargetProjection ``function.py``.
    Deviations: see ``deviations``.
    """

    name = "tpsgd"
    deviations = (
        "Learning rate, activation, distribution of P and the order of updates are not known to us and were assumed.",
        (
            "σ belongs to the rule and not to the model: where the model has another activation behind a layer, or "
            "none, the layer still learns to make σ(z) the target."
        ),
        (
            "In a language model, which the paper does not treat, every position is an example with the next token as "
            "its label, and every attention and MLP matrix has a target."
        ),
        "Where a batch comes in several micro-batches, gradients are held until they have added up.",
        (
            "Labels are read off the gradient of the loss at outputs of zero, since a learner is not told them; the "
            "shape of the outputs costs one more forward pass at the first step."
        ),
        "Errors are averaged over rows in all three layer losses; DRTP's code sums them.",
        "Recurrent layers are not trained.",
    )

    lr: Annotated[float, Gt(0)] = hyper(1e-2, search=Log(1e-4, 1.0), help="learning rate η")
    layer_loss: LayerLoss = hyper("l2", search=Choice(("l2", "l1")), help="distance of a layer's output to its target")
    activation: Activation = hyper("tanh", search=Choice(("tanh", "sigmoid", "relu")), help="σ of the layer losses")
    projection_scale: Annotated[float, Gt(0)] = hyper(1.0, search=Log(0.1, 10.0), help="factor of the projections P")
    order: Order = hyper("online", help="all layers at each step, or one after the other")

    def optimizer(self, named_parameters: NamedParameters, run: Run) -> torch.optim.SGD:
        """Return plain SGD over all parameters; those without a rule never have a gradient."""
        return torch.optim.SGD(list(named_parameters), lr=self.lr)

    def learner(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, run: Run) -> TargetProjection:
        """Return what replaces back-propagation."""
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]
        heads = [layer for name, layer in layers if run.role(f"{name}.weight") in OUTPUT_ROLES]
        if len(heads) != 1:
            raise SlotMismatch(
                f"{self.name} found {len(heads)} linear layers of role lm_head or classifier; it needs exactly one",
                hint="use it on a classifier or a language model",
            )
        generator = run.rng("projections")
        return TargetProjection(
            model,
            heads[0],
            optimizer,
            loss,
            layer_loss=self.layer_loss,
            activation=self.activation,
            projection_scale=self.projection_scale,
            order=self.order,
            seed=int(torch.randint(2**62, (), generator=generator, device=generator.device)),
            steps=run.steps,
            pieces=run.micro_batches,
        )


class _Labels(NamedTuple):
    """Label and weight of each row of a batch, both of shape (rows...)."""

    classes: int
    label: Tensor
    weight: Tensor


class TargetProjection:
    """The learner of :class:`TpSGD`: call it with a batch; it returns the loss before the step.

    ``head`` is the layer whose output is the model's; all other linear and convolution layers of ``model`` whose weight
    requires a gradient are hidden ones. ``loss(model, batch)`` returns the scalar mean cross-entropy of a batch, a
    mapping of tensors; ``optimizer`` steps on the gradients that are left in the parameters; ``seed`` makes the
    projections; ``steps`` is the length of the run, for ``order="greedy"``; ``pieces`` is into how many micro-batches a
    batch is cut.

        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> def loss(model, batch):
        ...     return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        >>> learner = TargetProjection(model, model[2], torch.optim.SGD(model.parameters(), lr=0.5), loss)
        >>> batch = {"x": torch.eye(8), "y": torch.arange(8) % 3}
        >>> losses = [float(learner(batch)) for _ in range(20)]
        >>> losses[-1] < losses[0]
        True

    A loss that is no cross-entropy of classes, a model whose output is not its head's, and a layer whose output has no
    row for each label raise :class:`~bench.errors.SlotMismatch`.

    Source: arXiv:2208.08503. Deviations: those of :class:`TpSGD`.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Layer,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        layer_loss: LayerLoss = "l2",
        activation: Activation = "tanh",
        projection_scale: float = 1.0,
        order: Order = "online",
        seed: int = 0,
        steps: int = 1,
        pieces: int = 1,
    ) -> None:
        TpSGD.check(layer_loss=layer_loss, activation=activation, projection_scale=projection_scale, order=order)
        self.model, self.head, self.optimizer, self.loss = model, head, optimizer, loss
        self.layer_loss, self.activation, self.projection_scale = layer_loss, activation, projection_scale
        self.order, self.seed, self.steps, self.pieces = order, seed, steps, pieces
        layers = [module for module in model.modules() if isinstance(module, LAYERS) and module is not head]
        self.hidden: list[Layer] = [layer for layer in layers if layer.weight.requires_grad]
        self.step = 0
        self._shapes: dict[tuple[torch.Size, ...], torch.Size] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """Make one step on ``batch`` and return the loss at its beginning."""
        self.optimizer.zero_grad(set_to_none=True)
        pieces = list(micro_batches(batch, self.pieces))
        losses = [self._learn(piece, share, alone=len(pieces) == 1) for piece, share in pieces]
        if len(pieces) > 1:
            self._update()
        self.step += 1
        return torch.stack(losses).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps made and the seed of the projections."""
        return {"step": self.step, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.step, self.seed = state["step"], state["seed"]

    def trained(self) -> list[Layer]:
        """Return the layers that the next step updates."""
        layers: list[Layer] = [*self.hidden, self.head]
        if self.order == "online":
            return layers
        return [layers[min(self.step * len(layers) // self.steps, len(layers) - 1)]]

    def projection(self, layer: Layer, classes: int, features: int) -> Tensor:
        """Return P_i of a hidden ``layer`` as (classes, features): the same at each call."""
        device = next(layer.parameters()).device
        generator = torch.Generator(device).manual_seed((self.seed + self.hidden.index(layer)) % 2**63)
        bound = self.projection_scale * math.sqrt(6.0 / features)
        return torch.empty(classes, features, device=device).uniform_(-bound, bound, generator=generator)

    def _update(self) -> None:
        """Step with the gradients at hand and free them; a parameter without one stays as it is."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _learn(self, batch: Batch, share: float, *, alone: bool) -> Tensor:
        """Train the layers on ``batch``, ``share`` of all rows, and return its part of the loss.

        ``alone`` makes each layer's update as soon as its output exists; otherwise gradients are left to add up.
        """
        labels, trained, seen = self._labels(batch), self.trained(), []

        def gradient(layer: Layer, features: Tensor, error: Tensor) -> None:
            accumulate(layer, features, share * error)
            if alone:
                self._update()

        def learn(layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            gradient(layer, inputs[0], self._error(layer, output, labels))

        def remember(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((inputs[0], output))

        def forward(*arguments: Any, **keywords: Any) -> Any:
            with torch.no_grad(), ExitStack() as hooks:
                for layer in trained:
                    if layer is not self.head:
                        hooks.callback(layer.register_forward_hook(learn).remove)
                hooks.callback(self.head.register_forward_hook(remember).remove)
                return self.model(*arguments, **keywords)

        found = at_outputs(self.loss, forward, batch)
        if len(seen) != 1 or seen[0][1].data_ptr() != found.outputs.data_ptr():
            raise SlotMismatch("tpsgd: the output of the model is not that of its lm_head or classifier layer")
        if self.head in trained:
            features, output = seen[0]
            gradient(self.head, features, -found.gradient.reshape(output.shape))
        return share * found.loss

    def _labels(self, batch: Batch) -> _Labels:
        """Read label and weight of each row off the loss: at outputs of zero only the label's gradient is negative."""
        found = at_outputs(self.loss, self._zeros, batch)
        gradient, classes = found.gradient.float(), found.gradient.shape[-1]
        lowest, label = gradient.min(dim=-1)
        if self.step == 0 and (classes < 2 or bool(((gradient < 0).sum(dim=-1) > 1).any())):
            raise SlotMismatch("tpsgd needs one class label per row of the model's outputs, and this loss has none")
        return _Labels(classes, label, -lowest.clamp(max=0.0) * classes / (classes - 1))

    def _zeros(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Return zeros of the shape that the model's outputs have for such inputs."""
        tensors = [value for value in [*arguments, *keywords.values()] if isinstance(value, Tensor)]
        key = tuple(tensor.shape for tensor in tensors)
        if key not in self._shapes:
            with torch.no_grad(), evaluating(self.model):
                self._shapes[key] = self.model(*arguments, **keywords).shape
        return torch.zeros(self._shapes[key], device=next(self.model.parameters()).device)

    def _error(self, layer: Layer, output: Tensor, labels: _Labels) -> Tensor:
        """Return e_i of a hidden ``layer``, times each row's weight, in the shape of its ``output``."""
        rows = labels.label.shape
        if output.shape[: len(rows)] != rows:
            raise SlotMismatch(
                f"tpsgd: a layer puts out {tuple(output.shape)} for labels of shape {tuple(rows)}",
                hint="every layer must put out one row per label",
            )
        features = output.shape[len(rows) :].numel()
        raw = self.projection(layer, labels.classes, features)[labels.label].reshape(output.shape)
        weight = labels.weight.reshape(*rows, *[1] * (output.ndim - len(rows)))
        return weight * local_error(output.float(), raw, self.activation, self.layer_loss)
