"""The cache of trained weights: built once per recipe, known by its hash."""

from __future__ import annotations

import threading

import pytest
import torch

from bench import cached
from bench.artifacts import cache_folder, tensors_sha256

RECIPE = {"version": 1, "steps": 3}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


class Builder:
    """Counts how often it builds."""

    def __init__(self, value=1.0):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return {"weight": torch.full((2, 3), self.value), "step": torch.tensor(3)}


def test_what_was_built_once_is_read_the_second_time():
    builder = Builder()
    first, one = cached("models", RECIPE, builder)
    second, two = cached("models", RECIPE, builder)
    assert builder.calls == 1
    assert one == two
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("other", [{"version": 2, "steps": 3}, {"version": 1, "steps": 4}, {"version": 1}])
def test_another_recipe_is_built_for_itself(other):
    cached("models", RECIPE, Builder())
    builder = Builder(2.0)
    state, _ = cached("models", other, builder)
    assert (builder.calls, state["weight"][0, 0]) == (1, 2.0)


def test_another_kind_is_built_for_itself():
    cached("models", RECIPE, Builder())
    builder = Builder()
    cached("others", RECIPE, builder)
    assert builder.calls == 1


def test_a_file_that_cannot_be_read_is_made_anew():
    cached("models", RECIPE, Builder())
    (path,) = (cache_folder() / "models").glob("*.pt")
    path.write_bytes(path.read_bytes()[:40])
    builder = Builder()
    cached("models", RECIPE, builder)
    cached("models", RECIPE, builder)
    assert builder.calls == 1


def test_of_several_that_ask_at_once_one_builds():
    builder = Builder()
    threads = [threading.Thread(target=cached, args=("models", RECIPE, builder)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builder.calls == 1


def test_a_folder_that_cannot_be_written_stops_nobody_and_nothing_is_made_twice(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "file"))
    builder = Builder()
    assert cached("models", RECIPE, builder)[1] == cached("models", RECIPE, builder)[1]
    assert builder.calls == 1


def test_what_a_build_raises_is_raised():
    def broken():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        cached("models", RECIPE, broken)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(2, 3)},
        {"a": torch.ones(3, 2)},
        {"a": torch.ones(2, 3, dtype=torch.float64)},
        {"b": torch.ones(2, 3)},
        {"a": torch.ones(2, 3), "b": torch.ones(1)},
    ],
)
def test_the_hash_tells_content_shape_type_and_name_apart(other):
    assert tensors_sha256(other) != tensors_sha256({"a": torch.ones(2, 3)})


def test_the_hash_does_not_see_order_or_layout():
    square = torch.arange(6.0).reshape(2, 3)
    one = {"a": square, "b": torch.ones(1)}
    two = {"b": torch.ones(1), "a": square.t().contiguous().t()}
    assert tensors_sha256(one) == tensors_sha256(two)
    assert tensors_sha256({"a": torch.tensor(3.0)}) == tensors_sha256({"a": torch.tensor(3.0)})
