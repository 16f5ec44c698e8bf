"""Fisher merging: the diagonal Fisher against closed forms, autograd and finite batches; the weighted mean; its limits.

No package implements this estimator: FusionBench's squares one gradient of a whole batch, so that terms between
examples and classes remain and the result depends on the batch size. Instead the definition is written out below, one
backward pass for each example and class.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench import Experts, Role, Run
from bench.errors import BadValue
from bench.plugins.merging._fisher import chunks, diagonal_fisher, scores
from bench.plugins.merging._vectors import norm
from bench.plugins.merging.average import average
from bench.plugins.merging.fisher_merging import FisherMerging, fisher_merging

pytestmark = pytest.mark.paper

CLASSES = 4


class Net(nn.Module):
    """A network with a layer that is used twice, dropout and a batch norm."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.norm.running_mean.normal_()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, inputs):
        hidden = torch.tanh(self.first(self.norm(torch.tanh(self.first(inputs)))))
        return self.head(self.dropout(hidden))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(model, inputs):
    """Return Σ_x Σ_c p_c (∂ log p_c)² / N, one backward pass each, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    names, values = zip(*model.named_parameters(), strict=True)
    fisher = {name: torch.zeros_like(value) for name, value in zip(names, values, strict=True)}
    for x in inputs:
        log_p = model(x[None])[0].log_softmax(dim=0)
        for c in range(len(log_p)):
            gradients = torch.autograd.grad(log_p[c], values, retain_graph=True)
            for name, gradient in zip(names, gradients, strict=True):
                fisher[name] += log_p[c].exp().detach() * gradient.square() / len(inputs)
    return fisher


def close(left, right, tolerance=1e-6):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-5, atol=tolerance)


INPUTS = drawn(20, 6)


# -- the diagonal Fisher ---------------------------------------------------------------------------------------------
def test_of_a_network_it_is_the_sum_over_examples_and_classes_of_squared_gradients():
    close(diagonal_fisher(Net(), [INPUTS]), naive(Net(), INPUTS))


def test_of_softmax_regression_it_has_a_closed_form():
    model = nn.Linear(6, CLASSES)
    probabilities = model(INPUTS).softmax(dim=1).detach()
    variances = probabilities * (1 - probabilities)  # p_c (1 - p_c): the second derivative in logit c
    fisher = diagonal_fisher(model, [INPUTS])
    torch.testing.assert_close(fisher["weight"], variances.T @ INPUTS.square() / len(INPUTS), rtol=0, atol=1e-6)
    torch.testing.assert_close(fisher["bias"], variances.mean(dim=0), rtol=0, atol=1e-6)


def test_of_a_perceptron_it_is_the_product_of_squares_of_its_layers():
    # With one vector per example the squared gradient of a linear layer is (d²)ᵀ (a²): inputs a, output gradients d.
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    hidden = model[0](INPUTS).requires_grad_()
    active = torch.tanh(hidden)
    logits = model[2](active)
    log_p, probabilities = logits.log_softmax(dim=1), logits.softmax(dim=1).detach()
    expected = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for c in range(CLASSES):
        gradients = torch.autograd.grad(log_p[:, c].sum(), [hidden, logits], retain_graph=True)
        for number, gradient, inputs in zip((0, 2), gradients, (INPUTS, active.detach()), strict=True):
            weighted = probabilities[:, c : c + 1] * gradient.square() / len(INPUTS)
            expected[f"{number}.weight"] += weighted.T @ inputs.square()
            expected[f"{number}.bias"] += weighted.sum(dim=0)
    close(diagonal_fisher(model, [INPUTS]), expected)


@pytest.mark.parametrize("size", [1, 3, 32])
def test_the_size_of_the_batches_does_not_matter(size):
    close(diagonal_fisher(Net(), INPUTS.split(size)), diagonal_fisher(Net(), [INPUTS]))


@pytest.mark.parametrize("limit", [1, 7, 20, 100])
def test_only_the_first_examples_are_used(limit):
    seen = INPUTS[: min(limit, 20)]
    close(diagonal_fisher(Net(), INPUTS.split(6), examples=limit), diagonal_fisher(Net(), [seen]))
    assert sum(map(len, chunks(INPUTS.split(6), 4, limit))) == len(seen)
    assert max(map(len, chunks(INPUTS.split(6), 4, limit))) <= 4


def test_sampled_classes_are_unbiased():
    exact = diagonal_fisher(Net(), [INPUTS])
    generator = torch.Generator().manual_seed(0)
    sampled = diagonal_fisher(Net(), [INPUTS], samples=400, generator=generator)
    for name, value in exact.items():
        assert float((sampled[name] - value).norm()) < 0.1 * float(value.norm()), name


def test_one_sampled_class_is_one_row_and_the_exact_expectation_is_diagonal():
    probabilities = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    exact = scores(probabilities, None, None)
    assert torch.equal(exact.square(), probabilities.diag_embed())
    rows = scores(probabilities, 3, torch.Generator().manual_seed(0))
    assert rows.shape == (2, 3, 2)
    torch.testing.assert_close(rows.square().sum(dim=(1, 2)), torch.ones(2))
    assert rows[1, :, 1].eq(0).all()


def test_it_is_taken_in_evaluation_mode_and_leaves_the_model_as_it_was():
    model = Net().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    close(diagonal_fisher(model, [INPUTS]), naive(model, INPUTS))
    assert model.training
    assert model.dropout.training
    assert not model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


def test_it_is_fp32_for_bf16_models_and_leaves_out_heads():
    fisher = diagonal_fisher(Net().bfloat16(), [INPUTS.bfloat16()], heads=["head.weight"])
    assert fisher.keys() == dict(Net().named_parameters()).keys() - {"head.weight"}
    assert {value.dtype for value in fisher.values()} == {torch.float32}


def test_no_example_is_refused():
    with pytest.raises(BadValue, match="the Fisher information of no example"):
        diagonal_fisher(Net(), [])


# -- the weighted mean -----------------------------------------------------------------------------------------------
MODELS = [Net(seed) for seed in range(3)]


def given(*fishers):
    return lambda index, _: fishers[index]


def constant(model, value):
    return {name: torch.full_like(weight, value) for name, weight in model.named_parameters()}


def random_fisher(seed):
    """Return a Fisher above every floor that is used here."""
    return {name: drawn(*value.shape, seed=seed).square() + 1e-3 for name, value in Net().named_parameters()}


def difference(left, right):
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


FISHERS = [random_fisher(seed) for seed in range(3)]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("coefficients", [None, [1.0, 0.5, 3.0]])
def test_weights_are_the_mean_weighted_by_the_fishers(normalize, coefficients):
    merged = fisher_merging(MODELS, given(*FISHERS), coefficients=coefficients, normalize=normalize)
    shares = coefficients or [1.0, 1.0, 1.0]
    shares = [share / (norm(fisher) if normalize else 1.0) for share, fisher in zip(shares, FISHERS, strict=True)]
    for name, value in merged.named_parameters():
        weights = [share * fisher[name].double() for share, fisher in zip(shares, FISHERS, strict=True)]
        terms = [w * model.get_parameter(name).detach() for w, model in zip(weights, MODELS, strict=True)]
        torch.testing.assert_close(value.detach().double(), sum(terms) / sum(weights), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [1.0, 0.02])
def test_equal_fishers_without_normalisation_give_the_weighted_average(value):
    fishers = given(*[constant(model, value) for model in MODELS])
    merged = fisher_merging(MODELS, fishers, normalize=False)
    assert difference(merged, average(MODELS)) <= 1e-6
    merged = fisher_merging(MODELS, fishers, coefficients=[1.0, 2.0, 1.0], normalize=False)
    assert difference(merged, average([MODELS[0], MODELS[1], MODELS[1], MODELS[2]])) <= 1e-6


@pytest.mark.parametrize("count", [1, 3])
def test_of_one_model_whatever_its_fisher_it_is_that_model_to_the_bit(count):
    assert difference(fisher_merging([MODELS[0]] * count, given(*FISHERS)), MODELS[0]) == 0.0


def test_a_scaled_fisher_changes_the_result_unless_it_is_normalised():
    scaled = [{name: 10 * value for name, value in FISHERS[0].items()}, *FISHERS[1:]]
    for normalize, same in ((True, True), (False, False)):
        before, after = (fisher_merging(MODELS, given(*f), normalize=normalize) for f in (FISHERS, scaled))
        assert (difference(before, after) <= 1e-6) == same


@pytest.mark.parametrize("normalize", [True, False])
def test_where_nobody_depends_on_a_weight_it_is_averaged_or_the_target_s_and_never_nan(normalize):
    fishers = copy.deepcopy(FISHERS)
    for fisher in fishers:
        fisher["first.weight"].zero_()
    merged = fisher_merging(MODELS, given(*fishers), normalize=False)
    plain = torch.stack([model.first.weight for model in MODELS]).mean(dim=0)
    torch.testing.assert_close(merged.first.weight, plain, rtol=0, atol=1e-6)
    merged = fisher_merging(MODELS, given(*fishers), normalize=normalize, favor_target=True)
    assert torch.equal(merged.first.weight, MODELS[0].first.weight)


@pytest.mark.parametrize(
    "options", [{}, {"favor_target": True}, {"favor_target": True, "coefficients": [0.0, 1.0, 1.0]}]
)
def test_fishers_that_are_zero_everywhere_give_finite_weights(options):
    merged = fisher_merging(MODELS, given(*[constant(model, 0.0) for model in MODELS]), **options)
    assert all(bool(value.isfinite().all()) for value in merged.parameters())
    if not options:
        assert difference(merged, average(MODELS)) <= 1e-6


def test_tasks_that_depend_on_different_weights_get_each_its_own():
    one, other = constant(MODELS[0], 0.0), constant(MODELS[1], 0.0)
    one["first.weight"].fill_(1.0)
    other["head.weight"].fill_(1.0)
    merged = fisher_merging(MODELS[:2], given(one, other), floor=1e-9)
    torch.testing.assert_close(merged.first.weight, MODELS[0].first.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged.head.weight, MODELS[1].head.weight, rtol=0, atol=1e-6)


def test_the_order_of_the_models_does_not_matter():
    back = fisher_merging(MODELS[::-1], given(*FISHERS[::-1]))
    assert difference(fisher_merging(MODELS, given(*FISHERS)), back) <= 1e-6


@pytest.mark.parametrize("coefficients", [[1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
def test_coefficients_that_make_no_mean_are_refused(coefficients):
    with pytest.raises(BadValue, match="coefficients are"):
        fisher_merging(MODELS, given(*FISHERS), coefficients=coefficients)


# -- the plugin ------------------------------------------------------------------------------------------------------
ROLES = {name: Role.CLASSIFIER if name.startswith("head.") else Role.MLP for name, _ in Net().named_parameters()}


def test_the_plugin_takes_each_model_s_fisher_on_inputs_of_its_own_task():
    batches = [[{"inputs": drawn(4, 6, seed=10 * task + part)} for part in range(3)] for task in range(3)]
    algorithm = FisherMerging(examples=10, floor=1e-9)
    experts = Experts(3, Net)
    merged = algorithm.merge(experts, batches, Run(seed=0, steps=1, roles=ROLES, algorithm=algorithm.name))
    heads = ["head.weight", "head.bias"]

    def fisher(index, model):
        inputs = [torch.cat([batch["inputs"] for batch in batches[index]])[:10]]
        return diagonal_fisher(model, inputs, heads=heads)

    expected = fisher_merging(MODELS, fisher, floor=1e-9, heads=heads)
    assert difference(merged, expected) <= 1e-6
    assert torch.equal(merged.head.weight, MODELS[0].head.weight)


def test_the_plugin_draws_classes_from_the_generators_of_the_run():
    batches = [[{"inputs": INPUTS}]] * 3

    def merge(seed):
        run = Run(seed=seed, steps=1, roles=ROLES, algorithm="fisher-merging")
        return FisherMerging(samples=1).merge(Experts(3, Net), batches, run)

    assert difference(merge(0), merge(0)) == 0.0
    assert difference(merge(0), merge(1)) > 0.0


def test_what_it_looks_at_are_inputs_without_labels():
    assert FisherMerging.information == "inputs"
    with pytest.raises(BadValue, match="floor"):
        fisher_merging(MODELS, given(*FISHERS), floor=0.0)
