"""Tasks in subspaces: what they share, what their examples are, and that a seed fixes them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.workloads._subspace_tasks import Generator, draw_tasks

SMALL = Generator(tasks=3, inputs=40, shared=4, own=6, pretraining=20, training=200, test=100, validation=50)


@pytest.fixture(scope="module")
def published():
    """The first two tasks at their full dimensions, with few examples."""
    return draw_tasks(Generator(tasks=2, pretraining=20, training=4000, test=20, validation=20), 0)


def same(left, right):
    parts = ("pretraining", "training", "test", "validation")
    pairs = [(getattr(left, part), getattr(right, part)) for part in parts]
    return all(torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels) for a, b in pairs)


def test_a_seed_gives_the_same_bits_and_another_seed_another_problem():
    assert all(map(same, draw_tasks(SMALL, 5), draw_tasks(SMALL, 5)))
    assert not any(map(same, draw_tasks(SMALL, 5), draw_tasks(SMALL, 6)))


def test_the_first_tasks_are_the_same_however_many_there_are():
    assert all(map(same, draw_tasks(SMALL, 0), draw_tasks(replace(SMALL, tasks=5), 0)))


def test_validation_examples_come_from_a_stream_of_their_own():
    some, more = draw_tasks(SMALL, 0)[1], draw_tasks(replace(SMALL, validation=70), 0)[1]
    assert torch.equal(some.test.inputs, more.test.inputs)
    assert torch.equal(some.validation.labels[:10], more.validation.labels[:10])
    rows = [tuple(row) for part in (some.training, some.test, some.validation) for row in part.inputs[:, :3].tolist()]
    assert len(set(rows)) == len(rows) == 350


def test_the_order_of_the_draws_is_that_of_version_1():
    tasks = draw_tasks(replace(SMALL, tasks=2), 0)
    labels = torch.cat([torch.cat([task.pretraining.labels, task.training.labels, task.test.labels]) for task in tasks])
    digest = hashlib.sha256(labels.to(torch.uint8).numpy().tobytes()).hexdigest()
    assert digest[:16] == "092b4c24c3186727"


def test_tasks_share_a_subspace_and_meet_by_chance_in_the_rest(published):
    first, second = (task.basis for task in published)
    np.testing.assert_allclose(first.T @ first, np.eye(48), atol=1e-12)
    cosines = np.linalg.svd(first.T @ second, compute_uv=False)
    np.testing.assert_allclose(cosines[:16], 1, atol=1e-12)
    assert cosines[16] < 0.75  # 32 directions of 240 against 32 others
    assert np.abs(first[:, :16] - second[:, :16]).max() > 0.05  # each uses the shared ones in its own way


def test_an_example_lies_in_its_subspace_but_for_the_noise(published):
    task = published[0]
    inputs, basis = task.training.inputs.double().numpy(), task.basis
    inside = inputs @ basis
    outside = inputs - inside @ basis.T
    assert outside.std() == pytest.approx(0.05 * np.sqrt(208 / 256), rel=0.01)
    assert np.abs(inside).max() < 2 + 5 * 0.05


def test_without_noise_an_example_is_a_squashed_normal_cloud_around_a_centre_of_its_class():
    task = draw_tasks(replace(SMALL, noise=0.0), 1)[0]
    examples = task.training
    u = 2 * np.arctanh(np.clip(examples.inputs.double().numpy() @ task.basis / 2, -1 + 1e-9, 1 - 1e-9))
    squares = ((u[:, None] - task.centres[examples.labels.numpy()]) ** 2).mean(-1)  # (N, centres)
    assert squares.min(1).mean() == pytest.approx(0.96, abs=0.1)  # of the nearest centre: at most the variance 1
    assert squares.max(1).mean() > 1.8  # the others are 0.8² + 0.8² away, too
    assert task.centres.std() == pytest.approx(0.8, rel=0.1)


def test_sizes_types_and_classes_are_as_named(published):
    task = published[0]
    assert [len(part) for part in (task.pretraining, task.training, task.test, task.validation)] == [20, 4000, 20, 20]
    assert task.training.inputs.shape == (4000, 256)
    assert (task.training.inputs.dtype, task.training.labels.dtype) == (torch.float32, torch.int64)
    counts = torch.bincount(task.training.labels, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 300  # 400 expected, 19 its standard deviation
