"""A trial's identity: everything that can change the result, and nothing else."""

from __future__ import annotations

import copy
import json

import pytest

from bench.errors import BadStore
from bench.trial import MEASURED, OUTCOMES, Trial, digest

FACTS = {
    "algorithm": {
        "name": "galore",
        "version": "0.1.0",
        "source_sha256": "a" * 64,
        "slots": ["optimizer"],
        "values": {"lr": 0.01, "rank": None, "projection_type": "std"},
    },
    "fillers": [
        {
            "name": "warmup-linear",
            "version": "0.1.0",
            "source_sha256": "b" * 64,
            "slots": ["schedule"],
            "values": {"warmup_fraction": 0.1},
        }
    ],
    "workload": "micro",
    "workload_version": "1.2.3",
    "tier": "small",
    "precision": "fp32",
    "data": {
        "source": "drawn",
        "directory": None,
        "tokenizer": None,
        "sha256": "d" * 64,
        "label": "drawn features",
        "models": [],
    },
    "protocol": {"name": "quick", "version": "1.0", "sha256": "e" * 64},
    "study": 0,
    "point": 0,
    "seed": 3,
    "device": "cpu",
    "device_class": "cpu-2",
    "threads": 2,
    "timeout_s": 60.0,
    "checkpoint_every_s": 10.0,
    "command_line": "bench run --plugin galore --workload micro",
    "phase": "measure",
    "reference": "adamw",
    "is_reference": False,
    "budget_factor": 1.0,
    "stop_at_target": False,
    "reproduces": None,
}


def trial(path=None, value=None):
    """Return the trial, with the fact at ``path`` changed."""
    facts = copy.deepcopy(FACTS)
    if path is not None:
        *parents, last = path
        place = facts
        for key in parents:
            place = place[key]
        place[last] = value
    return Trial.model_validate(facts)


def test_the_identity_of_a_trial_never_changes():
    assert trial().trial_id == "ddb2d4bfda7b86951ec8"


def test_the_id_is_the_beginning_of_the_digest_of_the_identity():
    one = trial()
    assert one.trial_id == digest(one.identity())[:20]
    assert len(one.trial_id) == 20


IDENTITY = [
    (("algorithm", "name"), "galore-8bit"),
    (("algorithm", "version"), "0.1.1"),
    (("algorithm", "source_sha256"), "c" * 64),
    (("algorithm", "slots"), ["optimizer", "schedule"]),
    (("algorithm", "values", "lr"), 0.02),
    (("algorithm", "values", "rank"), 8),
    (("fillers", 0, "name"), "warmup-cosine"),
    (("fillers", 0, "version"), "0.1.1"),
    (("fillers", 0, "source_sha256"), "c" * 64),
    (("fillers", 0, "slots"), []),
    (("fillers", 0, "values", "warmup_fraction"), 0.2),
    (("fillers",), []),
    (("workload",), "macro"),
    (("workload_version",), "1.2.4"),
    (("tier",), "large"),
    (("precision",), "bf16"),
    (("data", "source"), "local"),
    (("data", "sha256"), "0" * 64),
    (("protocol", "name"), "default"),
    (("protocol", "version"), "1.1"),
    (("protocol", "sha256"), "f" * 64),
    (("study",), 1),
    (("point",), 1),
    (("seed",), 4),
    (("device_class",), "cpu-16"),
]
INCIDENTAL = [
    (("device",), "cuda:1"),
    (("threads",), None),
    (("timeout_s",), 1.0),
    (("checkpoint_every_s",), 1.0),
    (("command_line",), "bench plan"),
    (("data", "directory"), "/elsewhere"),
    (("data", "tokenizer"), "bytes"),
    (("data", "label"), "the same by another name"),
    (("data", "models"), ["/elsewhere"]),  # their content is in the hash of the data
    (("phase",), "rerun"),  # its seed and the protocol tell it apart
    (("reference",), "sgd"),
    (("is_reference",), True),
    (("budget_factor",), 1.5),  # a rule of the protocol, whose hash is in the identity
    (("stop_at_target",), True),
    (("reproduces",), "e" * 64),  # said of it later
]


@pytest.mark.parametrize(
    ("path", "value"), IDENTITY, ids=lambda part: "-".join(map(str, part)) if isinstance(part, tuple) else ""
)
def test_whatever_can_change_the_result_changes_the_identity(path, value):
    assert trial(path, value).trial_id != trial().trial_id


@pytest.mark.parametrize(
    ("path", "value"), INCIDENTAL, ids=lambda part: "-".join(map(str, part)) if isinstance(part, tuple) else ""
)
def test_nothing_else_changes_it(path, value):
    assert trial(path, value).trial_id == trial().trial_id


def leaves(value, path=()):
    if isinstance(value, dict) and path[-1:] != ("values",):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path


def test_every_fact_is_known_to_be_part_of_the_identity_or_not():
    covered = {path for path, _ in [*IDENTITY, *INCIDENTAL]} | {("algorithm", "values")}
    assert set(leaves(FACTS)) <= covered


def test_the_order_of_hyperparameters_is_not_part_of_the_identity():
    values = dict(reversed(FACTS["algorithm"]["values"].items()))
    assert trial(("algorithm", "values"), values).trial_id == trial().trial_id


def test_a_trial_survives_being_written_and_read(tmp_path):
    trial().write(tmp_path / "trial.json")
    assert Trial.read(tmp_path / "trial.json") == trial()
    assert Trial.read(tmp_path / "trial.json").trial_id == trial().trial_id
    assert json.loads((tmp_path / "trial.json").read_text(encoding="utf-8")) == FACTS


def test_a_trial_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        trial().seed = 4


def test_a_missing_file_is_one_clear_message(tmp_path):
    with pytest.raises(BadStore, match=r"cannot read .*trial\.json: No such file") as caught:
        Trial.read(tmp_path / "trial.json")
    assert "trial.json" in caught.value.hint


def test_a_folder_in_its_place_is_one_clear_message(tmp_path):
    with pytest.raises(BadStore, match="cannot read"):
        Trial.read(tmp_path)


def broken(**changes):
    return json.dumps({**FACTS, **changes})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "file: Invalid JSON"),
        (b"{", "file: Invalid JSON"),
        (b"[]", "file: Input should be an object"),
        (b"\xff\xfe", "can't decode byte"),
        (b"{}", "algorithm: Field required"),
        (broken(seed="many").encode(), "seed: Input should be a valid integer"),
        (broken(colour="red").encode(), "colour: Extra inputs are not permitted"),
        (broken(data={"source": "drawn"}).encode(), "data.directory: Field required"),
    ],
)
def test_a_broken_file_is_named_with_the_first_thing_wrong(tmp_path, content, why):
    path = tmp_path / "trial.json"
    path.write_bytes(content)
    with pytest.raises(BadStore) as caught:
        Trial.read(path)
    assert caught.value.message.startswith(f"{path} is not a trial of this version of bench: ")
    assert why in caught.value.message


def test_digests_ignore_order_and_refuse_what_json_has_not():
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})


def test_measured_outcomes_are_outcomes_and_failures_are_tried_again():
    assert set(OUTCOMES) - MEASURED == {"out_of_memory", "error", "interrupted"}
