"""Text of one's own in C4's format: labelled as local, identified by its content, and learnable."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.assembly import assemble
from bench.clock import Clock
from bench.context import Run
from bench.loop import Evaluation, train
from bench.registry import Registry
from bench.request import Request, stacks
from bench.workload import DataRequest

PLAN = ("plan", "--plugin", "galore,adamw", "--workload", "llama-c4")
SENTENCE = "a bird that sings at night is heard before it is seen and few who hear it ask for its name"


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two shards for training and one for validation, under ``en`` as in C4."""
    draw = random.Random(5)
    folder = tmp_path / "mine" / "en"
    folder.mkdir(parents=True)
    for name in ("train.00000-of-00002", "train.00001-of-00002", "validation.00000-of-00001"):
        with gzip.open(folder / f"c4-{name}.json.gz", "wt", encoding="utf-8") as file:
            for _ in range(200):
                row = {
                    "text": " ".join(draw.choices(SENTENCE.split(), k=100)),
                    "timestamp": "2019-04-25T12:57:54Z",
                    "url": "-",
                }
                file.write(json.dumps(row) + "\n")
    return folder.parent


def header(out: str) -> dict[str, str]:
    """Return what the head of a plan says, by its first word."""
    lines = [line.split(None, 1) for line in out.partition("\n\n")[0].splitlines()]
    return {line[0]: line[1] for line in lines}


def trials(bench_here, *arguments: object) -> dict[str, str]:
    """Return the trials' identities by algorithm."""
    answer = bench_here(*PLAN, *arguments, "--format", "json")
    assert (answer.code, answer.err) == (0, "")
    return {row["algorithm"]: row["trial"] for row in json.loads(answer.out)}


def test_plan_says_that_the_data_is_local_and_which(bench_here, shards):
    local = bench_here(*PLAN, "--data-dir", shards)
    embedded = bench_here(*PLAN)
    assert (local.code, local.err, embedded.code, embedded.err) == (0, "", 0, "")
    assert header(local.out)["data"].startswith("local shards 'mine'")
    assert header(embedded.out)["data"].startswith("embedded corpus")
    hashes = [re.search("sha256 ([0-9a-f]{12})$", header(said.out)["data"]) for said in (local, embedded)]
    assert all(hashes)
    assert len({found[1] for found in hashes if found}) == 2
    assert str(shards) not in header(local.out)["data"], "a record names no place of this machine"


def test_identity_follows_the_content_and_not_the_place(bench_here, shards, tmp_path):
    embedded, local = trials(bench_here), trials(bench_here, "--data-dir", shards)
    assert set(embedded) == set(local) == {"galore", "adamw"}
    assert not set(embedded.values()) & set(local.values())
    moved = shutil.move(shards, tmp_path / "elsewhere")
    assert trials(bench_here, "--data-dir", moved) == local
    assert trials(bench_here, "--data-dir", "elsewhere") == local
    with gzip.open(Path(moved) / "en" / "c4-train.00001-of-00002.json.gz", "at", encoding="utf-8") as file:
        file.write(json.dumps({"text": "one more", "timestamp": "", "url": ""}) + "\n")
    assert not set(trials(bench_here, "--data-dir", moved).values()) & set(local.values())


def curve(name: str, directory: Path, steps: int) -> list[Evaluation]:
    """Train tier ``tiny`` on local text for a few steps, with a short validation set."""
    registry = Registry()
    published = registry.workload_class("llama-c4")
    tier = replace(published.tiers["tiny"], steps=steps, evaluate_every=4, validation_tokens=2048)
    workload = type("Short", (published,), {"tiers": {"tiny": tier}})("tiny", DataRequest(directory=directory))
    run = Run(seed=0, steps=steps)
    request = Request(plugins=[name], workload="llama-c4", reference=False)
    torch.manual_seed(0)
    parts = assemble(stacks(registry, request, workload)[name], workload, run, workload.model(0, run.device))
    seen: list[Evaluation] = []
    train(parts, workload, Clock(run.device), lambda evaluation: seen.append(evaluation) or False)
    return seen


def test_real_text_is_learned():
    """Adam's first steps on Wikipedia, a byte at a time, from the loss of a uniform guess downwards."""
    default = Path(__file__).parents[2].parent / "shared" / "data"
    directory = Path(os.environ.get("BENCH_SHARED_DATA", default)) / "wikitext-c4"
    if not directory.is_dir():
        pytest.skip(f"no {directory.name} in {directory.parent} (BENCH_SHARED_DATA names another folder)")
    losses = [evaluation.metrics["loss"] for evaluation in curve("adamw", directory, 12)]
    assert losses[0] == pytest.approx(torch.tensor(256.0).log().item(), abs=0.3)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.75 * losses[0]


def test_text_of_one_s_own_is_learned(shards):
    losses = [evaluation.metrics["loss"] for evaluation in curve("adamw", shards, 8)]
    assert losses == sorted(losses, reverse=True)
