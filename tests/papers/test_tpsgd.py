"""tpSGD against its formulas and the code of its parent method; no package and no reference code of it is public.

The update of a layer is compared with autograd of its own loss, the parent's with the rule of DRTP's code.
"""

from __future__ import annotations

import copy
import doctest
import math
import weakref

import pytest
import torch
from torch import nn

from bench import Role, Run, checkpoint
from bench.errors import BadValue, SlotMismatch
from bench.plugins.optimizers import tpsgd as module
from bench.plugins.optimizers._local_layers import accumulate, local_error
from bench.plugins.optimizers.tpsgd import TargetProjection, TpSGD

pytestmark = pytest.mark.paper

CLASSES, FEATURES, ROWS = 3, 6, 8
SIGMA = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu, "identity": lambda z: z}


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["label"])


def weighted(model, batch):
    losses = nn.functional.cross_entropy(model(batch["x"]), batch["label"], reduction="none")
    return (batch["weights"] * losses).sum() / batch["weights"].sum()


def network(seed=0, width=16, depth=2):
    torch.manual_seed(seed)
    layers = [nn.Linear(FEATURES, width), nn.Tanh()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(ROWS, FEATURES, generator=generator),
        "label": torch.arange(ROWS) % CLASSES,
        "weights": torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 0.0, 1.0, 3.0]),
    }


def learner(model, loss=entropy, lr=0.1, **options):
    return TargetProjection(model, model[-1], torch.optim.SGD(model.parameters(), lr=lr), loss, **options)


def step_of(model, lr, options, batch, loss=entropy):
    """Return by how much one step with rate ``lr`` changes each parameter, divided by -lr: the gradient."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = learner(model, loss, lr, **options)
    made(batch)
    return made, {name: (before[name] - p.detach()) / lr for name, p in model.named_parameters()}


def targets(made, layer, labels, activation, features):
    raw = made.projection(layer, CLASSES, features)[labels]
    return {"sigmoid": 0.5 + 0.5 * raw, "relu": raw.abs()}.get(activation, raw)


def inputs_and_outputs(model, x):
    """Return the input and output of every linear layer."""
    found = []
    for layer in model:
        output = layer(x)
        if isinstance(layer, nn.Linear):
            found.append((layer, x.detach(), output.detach()))
        x = output
    return found


# -- the rule ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layer_loss", ["l2", "l1"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "identity"])
def test_the_update_of_every_hidden_layer_is_autograd_of_its_own_loss(batch, activation, layer_loss):
    model = network(depth=3)
    original = copy.deepcopy(model)
    options = {"activation": activation, "layer_loss": layer_loss, "projection_scale": 2.0}
    made, moved = step_of(model, 1.0, options, batch)
    *hidden, _ = inputs_and_outputs(original, batch["x"])
    assert len(made.hidden) == len(hidden) == 3
    for number, (layer, x, _) in enumerate(hidden):
        y = SIGMA[activation](layer(x))
        target = targets(made, made.hidden[number], batch["label"], activation, 16)
        distance = 0.5 * (target - y).square() if layer_loss == "l2" else (target - y).abs()
        gradients = torch.autograd.grad(distance.sum(dim=1).mean(), layer.parameters())
        for name, gradient in zip(("weight", "bias"), gradients, strict=True):
            assert torch.allclose(moved[f"{2 * number}.{name}"], gradient, atol=1e-6), (number, name)


def test_the_output_layer_takes_the_gradient_of_the_loss_that_ends_there(batch):
    model = network()
    original = copy.deepcopy(model)
    _, moved = step_of(model, 1.0, {}, batch)
    head, x, _ = inputs_and_outputs(original, batch["x"])[-1]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(head(x), batch["label"]), head.parameters())
    for name, gradient in zip(("weight", "bias"), gradients, strict=True):
        assert torch.allclose(moved[f"4.{name}"], gradient, atol=1e-6)


def test_rows_count_as_the_loss_weights_them(batch):
    made, moved = step_of(network(), 1.0, {}, batch, weighted)
    layer, x, z = inputs_and_outputs(network(), batch["x"])[0]
    weight = (batch["weights"] / batch["weights"].sum()).unsqueeze(1)
    y = z.tanh()
    error = weight * (targets(made, made.hidden[0], batch["label"], "tanh", 16) - y) * (1 - y * y)
    assert torch.allclose(moved["0.weight"], -error.T @ x, atol=1e-6)
    assert layer is not None


def test_drtp_is_the_parent_codes_gradient(batch):
    """There the error that arrives at a hidden activation is the label's row of B, and σ' gates it."""
    made, moved = step_of(network(), 1.0, {"layer_loss": "drtp"}, batch)
    for number, (_, x, z) in enumerate(inputs_and_outputs(network(), batch["x"])[:-1]):
        b = made.projection(made.hidden[number], CLASSES, 16)
        one_hot = nn.functional.one_hot(batch["label"], CLASSES).float()
        arriving = one_hot @ b * (1 - z.tanh() ** 2)
        assert torch.allclose(moved[f"{2 * number}.weight"], arriving.T @ x / ROWS, atol=1e-6)


def test_an_identity_target_and_no_activation_are_least_squares():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)
    theirs.load_state_dict(ours.state_dict())
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1)
    x, one_hot = torch.randn(ROWS, 5), torch.eye(CLASSES)[torch.arange(ROWS) % CLASSES]
    for _ in range(5):
        with torch.no_grad():
            ours.zero_grad()
            accumulate(ours, x, local_error(ours(x), one_hot, "identity", "l2"))
            for parameter in ours.parameters():
                parameter.sub_(0.1 * parameter.grad)
        sgd.zero_grad()
        (0.5 * (theirs(x) - one_hot).square().sum()).backward()
        sgd.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-5)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-5)


def test_one_linear_layer_learns_a_separable_set_completely():
    model = nn.Sequential(nn.Linear(FEATURES, CLASSES))
    batch = {"x": torch.eye(FEATURES), "label": torch.arange(FEATURES) % CLASSES}
    made = learner(model, lr=1.0)
    assert made.hidden == []
    for _ in range(100):
        made(batch)
    assert torch.equal(model(batch["x"]).argmax(dim=1), batch["label"])


def test_a_shallow_network_learns(batch):
    made = learner(network(), lr=0.5)
    losses = [float(made(batch)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (5, 3, 7, 6)),
        (nn.Conv1d(3, 4, 3, padding="same", padding_mode="circular"), (5, 3, 7)),
        (nn.Conv2d(4, 4, 2, groups=2, bias=False), (5, 4, 5, 5)),
        (nn.Linear(6, 4), (5, 7, 6)),
    ],
    ids=["conv2d", "conv1d", "grouped", "sequence"],
)
def test_the_gradient_of_one_layer_is_that_of_autograd(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    error = torch.randn_like(layer(x))
    expected = torch.autograd.grad(layer(x), list(layer.parameters()), -error)
    with torch.no_grad():
        accumulate(layer, x, error)
        accumulate(layer, x, error)
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, 2 * gradient, atol=1e-5)


def test_a_convolution_has_one_map_per_class(batch):
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(8, CLASSES))
    original = copy.deepcopy(model)
    made, moved = step_of(model, 1.0, {}, batch)
    convolution = original[1]
    x = original[0](batch["x"])
    target = targets(made, made.hidden[0], batch["label"], "tanh", 8).view(ROWS, 4, 1, 2)
    loss = 0.5 * (target - convolution(x).tanh()).square().sum() / ROWS
    (gradient, bias) = torch.autograd.grad(loss, list(convolution.parameters()))
    assert torch.allclose(moved["1.weight"], gradient, atol=1e-6)
    assert torch.allclose(moved["1.bias"], bias, atol=1e-6)


# -- what is kept and what is not ------------------------------------------------------------------------------------
@pytest.mark.parametrize("pieces", [1, 2])
def test_the_gradient_of_one_layer_is_alive_at_a_time_unless_micro_batches_have_to_add_up(batch, pieces):
    model, most = network(depth=6), []
    made = learner(model, pieces=pieces)

    def watch(*_):
        most.append(sum(layer.weight.grad is not None for layer in [*made.hidden, made.head]))

    for layer in model:
        layer.register_forward_hook(watch)
    made(batch)
    made(batch)
    assert (max(most) <= 1) == (pieces == 1)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("depth", [2, 12])
def test_activations_of_one_layer_are_alive_at_a_time_and_no_graph_spans_two(batch, depth):
    model, alive, most = network(depth=depth), [], []

    def watch(_, __, output):
        assert output.grad_fn is None
        alive.append(weakref.ref(output))
        most.append(sum(reference() is not None for reference in alive))

    made = learner(model)
    made(batch)
    for layer in model:
        layer.register_forward_hook(watch)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        made(batch)
    assert len(most) == 2 * depth + 1, "one forward pass"
    assert max(most) <= 3
    assert all(16 not in shape for shape in saved), "nothing of a hidden layer's width is kept for a backward pass"


def test_the_same_seed_gives_the_same_projections_and_nothing_is_stored(batch):
    one, again, other = (learner(network(), seed=seed) for seed in (5, 5, 6))
    one(batch)
    p = one.projection(one.hidden[0], CLASSES, 16)
    assert torch.equal(p, one.projection(one.hidden[0], CLASSES, 16))
    assert torch.equal(p, again.projection(again.hidden[0], CLASSES, 16))
    assert not torch.equal(p, other.projection(other.hidden[0], CLASSES, 16))
    assert not torch.equal(p, one.projection(one.hidden[1], CLASSES, 16))
    assert not any(isinstance(value, torch.Tensor) for value in vars(one).values())
    assert one.state_dict() == {"step": 1, "seed": 5}


def test_projections_are_kaiming_uniform_and_scaled():
    made = learner(network(width=4000), projection_scale=3.0)
    p = made.projection(made.hidden[0], 10, 4000)
    bound = 3.0 * math.sqrt(6.0 / 4000)
    assert p.shape == (10, 4000)
    assert 0.99 * bound < float(p.abs().max()) <= bound
    assert float(p.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)


@torch.no_grad()
def layer_by_layer(model, made, batch, lr):
    """The paper's order: each layer is updated as soon as its output exists, before the next one runs."""
    x, pending = batch["x"], []
    for layer in model:
        output = layer(x)
        if layer in made.hidden:
            error = local_error(output, made.projection(layer, CLASSES, 16)[batch["label"]], "tanh", "l2")
            layer.weight += lr * error.T @ x / ROWS
            layer.bias += lr * error.mean(dim=0)
        pending.append(x)
        x = output
    error = (nn.functional.one_hot(batch["label"], CLASSES) - x.softmax(dim=1)) / ROWS
    model[-1].weight += lr * error.T @ pending[-1]
    model[-1].bias += lr * error.sum(dim=0)


def test_the_order_of_updates_within_a_step_does_not_matter(batch):
    model, other = network(), network()
    made, same = learner(model), learner(other)
    for _ in range(5):
        made(batch)
        layer_by_layer(other, same, batch, 0.1)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_greedy_order_trains_one_layer_after_the_other(batch):
    model = network()
    made, moved = learner(model, order="greedy", steps=9), []
    for _ in range(9):
        before = [p.detach().clone() for p in model.parameters()]
        made(batch)
        changed = [not torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True)]
        moved.append(changed[::2])
    assert moved == [[True, False, False]] * 3 + [[False, True, False]] * 3 + [[False, False, True]] * 3


def test_micro_batches_add_up(batch):
    whole, cut = network(), network()
    learner(whole)(batch)
    learner(cut, pieces=4)(batch)
    for left, right in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_hooks_are_gone_after_a_step(batch):
    model = network()
    learner(model)(batch)
    assert not any(layer._forward_hooks for layer in model)


# -- in the suite --------------------------------------------------------------------------------------------------
def test_it_trains_the_layers_of_a_workload_and_leaves_its_norms(micro):
    workload = micro.workload(micro_batch_size=2, steps=30, evaluate_every=30)
    parts = micro.parts(TpSGD(lr=0.2), workload=workload, micro_batches=3)
    before = micro.weights(parts)
    losses = [evaluation.metrics["loss"] for evaluation in micro.train(parts, workload)]
    assert losses[-1] < losses[0]
    moved = {name for name, value in micro.weights(parts).items() if not torch.equal(before[name], value)}
    assert moved == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}
    assert not parts.optimizer.state_dict()["state"] or all(
        value is None for state in parts.optimizer.state.values() for value in state.values()
    )


def test_a_run_goes_on_bit_for_bit_from_its_checkpoint(micro, tmp_path):
    workload = micro.workload()
    algorithm = TpSGD(order="greedy", lr=0.1)
    whole = micro.parts(algorithm, workload=workload)
    micro.train(whole, workload)
    half = micro.parts(algorithm, workload=workload)
    micro.train(half, workload, stop_at=6)
    checkpoint.save(tmp_path / "checkpoint.pt", half, {})
    resumed = micro.parts(algorithm, workload=workload)
    checkpoint.restore(checkpoint.read(tmp_path / "checkpoint.pt"), resumed)
    micro.train(resumed, workload, start=6)
    assert micro.equal(micro.weights(whole), micro.weights(resumed))


def test_another_seed_draws_other_projections(micro):
    one, same, other = (micro.parts(TpSGD(), seed=seed).learn.seed for seed in (0, 0, 1))
    assert one == same != other


def test_next_tokens_are_the_labels_of_a_language_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.mlp = nn.Linear(4, 4, bias=False)
            self.lm_head = nn.Linear(4, 7, bias=False)

        def forward(self, tokens):
            x = self.embedding(tokens)
            return self.lm_head(x + self.mlp(x))

    def next_token(model, batch):
        logits = model(batch["tokens"])
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["tokens"][:, 1:].flatten())

    torch.manual_seed(0)
    model, batch = Model(), {"tokens": torch.randint(7, (3, 5))}
    roles = {"embedding.weight": Role.EMBEDDING, "mlp.weight": Role.MLP, "lm_head.weight": Role.LM_HEAD}
    run = Run(seed=0, steps=3, roles=roles)
    optimizer = TpSGD(lr=1.0).optimizer(list(model.named_parameters()), run)
    made = TpSGD().learner(model, optimizer, next_token, run)
    labels = made._labels(batch)
    assert labels.classes == 7
    assert torch.equal(labels.label[:, :-1], batch["tokens"][:, 1:])
    assert torch.allclose(labels.weight[:, :-1], torch.full((3, 4), 1 / 12))
    assert float(labels.weight[:, -1].abs().max()) == 0.0
    x, embedding = model.embedding(batch["tokens"]).detach(), model.embedding.weight.detach().clone()
    before = model.mlp.weight.detach().clone()
    y = (x @ before.T).tanh()
    error = labels.weight.unsqueeze(2) * (made.projection(model.mlp, 7, 4)[labels.label] - y) * (1 - y * y)
    made(batch)
    assert torch.allclose(model.mlp.weight - before, error.flatten(0, 1).T @ x.flatten(0, 1), atol=1e-6)
    assert torch.equal(model.embedding.weight, embedding)


def test_what_has_no_labels_or_no_single_output_layer_is_refused(batch):
    def regression(model, data):
        return (model(data["x"]) - data["x"][:, :CLASSES]).square().mean()

    with pytest.raises(SlotMismatch, match="one class label per row"):
        learner(network(), regression)(batch)
    model = nn.Sequential(*network(), nn.Softmax(dim=1))
    with pytest.raises(SlotMismatch, match="is not that of its"):
        TargetProjection(model, model[-2], torch.optim.SGD(model.parameters(), lr=0.1), entropy)(batch)
    model = network()
    roles = {name: Role.MLP for name, _ in model.named_parameters()}
    with pytest.raises(SlotMismatch, match="found 0 linear layers"):
        TpSGD().learner(model, torch.optim.SGD(model.parameters(), lr=0.1), entropy, Run(seed=0, steps=1, roles=roles))
    wide = nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1), nn.Linear(3, 3), nn.Unflatten(0, (-1, 2)), nn.Flatten()
    )
    with pytest.raises(SlotMismatch, match=r"puts out \(16, 3\) for labels of shape \(8,\)"):
        learner(nn.Sequential(*wide, nn.Linear(6, CLASSES)))(batch)


def test_bad_values_are_refused_with_name_value_and_domain():
    for wrong in ({"layer_loss": "l3"}, {"activation": "gelu"}, {"projection_scale": 0.0}, {"order": "random"}):
        with pytest.raises(BadValue, match=rf"tpsgd: {next(iter(wrong))} = "):
            TpSGD(**wrong)
        with pytest.raises(BadValue, match=rf"tpsgd: {next(iter(wrong))} = "):
            learner(network(), **wrong)
    with pytest.raises(BadValue, match="tpsgd: lr = "):
        TpSGD(lr=-1.0)


def test_example_in_the_documentation_runs():
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
