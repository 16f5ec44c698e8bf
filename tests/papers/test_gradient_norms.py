"""The log of gradient norms: what it writes, that it changes nothing, and that the refined schedule takes it.

There is no package to compare a log with; the norms that it writes are recomputed from the gradients.
"""

from __future__ import annotations

import math

import pytest
import torch

from bench import Run
from bench.errors import BadValue
from bench.plugins.schedules.gradient_norms import POINTS, GradientNorms, gradient_norm, write
from bench.plugins.schedules.refined import Refined, parsed_norms

pytestmark = pytest.mark.paper

STEPS = 40


def model_and_gradients():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    generator = torch.Generator().manual_seed(1)
    return model, [
        [torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()] for _ in range(STEPS)
    ]


def train(model, gradients, log, first=0, last=STEPS):
    for step in range(first, last):
        log(step)
        for parameter, gradient in zip(model.parameters(), gradients[step], strict=True):
            parameter.grad = gradient


def opened(model, folder, **fields):
    return GradientNorms(folder=str(folder), **fields).freezer(model, Run(seed=5, steps=STEPS))


def written(folder, norm="l1"):
    return (folder / f"gradient-norms-{norm}-5.txt").read_text(encoding="ascii")


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_file_holds_the_norm_of_every_step_but_the_last(norm, tmp_path):
    model, gradients = model_and_gradients()
    train(model, gradients, opened(model, tmp_path / "new", norm=norm))
    flat = [torch.cat([gradient.flatten() for gradient in step]) for step in gradients]
    expected = [float(one.abs().sum() if norm == "l1" else one.square().sum().sqrt()) for one in flat[:-1]]
    assert parsed_norms(written(tmp_path / "new", norm)).tolist() == pytest.approx(expected, rel=1e-5)


def test_parameters_and_gradients_stay_as_they_are(tmp_path):
    model, gradients = model_and_gradients()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, gradients, opened(model, tmp_path))
    for parameter, old, gradient in zip(model.parameters(), before, gradients[-1], strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is gradient
        assert parameter.requires_grad


def test_a_resumed_log_goes_on_and_says_which_norm_it_missed(tmp_path):
    model, gradients = model_and_gradients()
    log = opened(model, tmp_path / "whole")
    train(model, gradients, log)
    first = opened(model, tmp_path / "resumed")
    train(model, gradients, first, last=15)
    again = opened(model, tmp_path / "resumed")
    again.load_state_dict(first.state_dict())
    model.zero_grad(set_to_none=True)
    train(model, gradients, again, first=15)
    whole, resumed = (written(tmp_path / name).split() for name in ("whole", "resumed"))
    assert [i for i, (one, other) in enumerate(zip(whole, resumed, strict=True)) if one != other] == [14]
    assert resumed[14] == "nan"


def test_a_log_that_saw_nothing_yet_can_be_saved_and_loaded(tmp_path):
    model, gradients = model_and_gradients()
    log = opened(model, tmp_path)
    log.load_state_dict(opened(model, tmp_path).state_dict())
    train(model, gradients, log)
    assert len(written(tmp_path).split()) == STEPS - 1


def test_a_model_without_gradients_has_no_norm():
    assert math.isnan(float(gradient_norm(torch.nn.Linear(2, 2), "l1")))


def test_long_logs_are_thinned_evenly_from_the_first_to_the_last(tmp_path):
    write(tmp_path / "norms.txt", [float(i) for i in range(25_001)])
    values = parsed_norms((tmp_path / "norms.txt").read_text())
    assert (len(values), values[0], values[-1]) == (POINTS, 0.0, 25_000.0)
    assert max(abs(value - i * 25_000 / (POINTS - 1)) for i, value in enumerate(values)) <= 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["norms.txt"]


def test_the_refined_schedule_takes_the_file_as_it_is(tmp_path):
    model, gradients = model_and_gradients()
    for gradient in (gradient for step in gradients[:8] for gradient in step):
        gradient.mul_(10.0)
    train(model, gradients, opened(model, tmp_path))
    factor = Refined(norms=written(tmp_path)).schedule(Run(seed=0, steps=200))
    values = [factor(step) for step in range(200)]
    assert values.index(max(values)) == pytest.approx(200 * 8 / 39, abs=6)  # what was large at first is warmed up
    assert values[0] < 0.2
    assert values[-1] == 0.0


def test_without_a_folder_the_file_lies_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, gradients = model_and_gradients()
    train(model, gradients, GradientNorms().freezer(model, Run(seed=5, steps=STEPS)))
    assert len(written(tmp_path).split()) == STEPS - 1


def test_an_unknown_norm_is_refused():
    with pytest.raises(BadValue, match="gradient-norms: norm = 'max'"):
        GradientNorms(norm="max")
