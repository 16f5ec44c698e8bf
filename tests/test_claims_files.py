"""Claims files: what is in ours, how a stranger's are found, and that whatever is wrong in one is said clearly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import Registry
from bench.beside import CLAIMS, claims_beside
from bench.claims import Claim, broken_claims, claims_of, load_claims, read_claims
from bench.commands import show
from bench.errors import BenchError, BrokenPlugin
from bench.ledger import ledger
from bench.source import source_sha256
from bench.verdicts import BROKEN

ROOT = Path(__file__).parents[1]

GOOD = {
    "id": "half-the-state",
    "statement": "It keeps half of the state.",
    "source": "a paper, Table 1",
    "baseline": "sgd",
    "metric": "optimizer_state",
    "direction": "lower",
    "comparison": "ratio",
    "published_value": 1.0,
    "published_baseline_value": 2.0,
    "workload": "llama-c4",
    "tier": "60m",
    "smallest_tier": "tiny",
}


def toml(*claims, head=""):
    """Return a claims file; JSON's texts, numbers, switches and arrays are TOML's too, ``None`` leaves the key out."""
    lines = [head]
    for claim in claims:
        lines.append("[[claim]]")
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in claim.items() if value is not None
        ]
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


@pytest.fixture(scope="session")
def read(registry):
    """Return ``(content) -> claims`` of a file of ``lion``."""
    return lambda content: read_claims(content, "lion.claims.toml", ["lion"], registry)


def refusal(read, content):
    with pytest.raises(BrokenPlugin) as raised:
        read(content)
    assert "lion.claims.toml" in raised.value.message
    return raised.value.message


# -- our own files ---------------------------------------------------------------------------------------------------
def test_every_file_of_ours_is_sound_and_found(registry):
    assert broken_claims(registry) == []
    files = {path.name.removesuffix(CLAIMS) for path in (ROOT / "plugins").rglob(f"*{CLAIMS}")}
    targets = [registry.algorithms[claim.algorithm].target.partition(":")[0] for claim in load_claims(registry)]
    assert {target.rpartition(".")[2] for target in targets} == files


def test_every_optimizer_of_ours_has_two_claims_of_which_one_can_be_tested_on_a_laptop(registry):
    claims = load_claims(registry)
    ours = [name for name, entry in registry.algorithms.items() if entry.target.startswith("bench.plugins.")]
    for name in (name for name in ours if registry.algorithms[name].track == "optimizer"):
        mine = [claim for claim in claims if claim.algorithm == name]
        assert len(mine) >= 2, name
        assert "tiny" in {claim.smallest_tier for claim in mine}, name


def test_every_claim_of_ours_names_its_source_and_ends_its_sentence(registry):
    for claim in load_claims(registry):
        assert claim.statement.endswith("."), claim.id
        assert any(mark in claim.source for mark in ("arXiv:", "Jordan et al., 2024", "Sutskever et al.")), claim.id


def test_claims_are_data_and_change_no_identity_of_recorded_trials(registry, monkeypatch):
    cls = registry.algorithm_class("lion")
    before = source_sha256(cls)
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"")
    assert source_sha256(cls) == before
    for name, module in sys.modules.items():
        assert not (name.startswith("bench.plugins") and "claims" in vars(module)), name


def test_loading_imports_neither_torch_nor_a_plugin():
    code = (
        "import sys; from bench import Registry; from bench.claims import load_claims; "
        "print(len(load_claims(Registry()))); "
        "print([m for m in ('torch', 'pandas', 'scipy', 'bench.plugins.optimizers.lion') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    number, imported = done.stdout.splitlines()
    assert int(number) > 10
    assert imported == "[]"


# -- what a file may say ---------------------------------------------------------------------------------------------
def test_a_good_claim_is_read_as_it_stands(read):
    (claim,) = read(toml(GOOD))
    assert claim == Claim(**GOOD, algorithm="lion")
    assert claim.published_effect == 0.5


def test_whole_numbers_are_numbers(read):
    (claim,) = read(toml(GOOD | {"published_value": 1, "published_baseline_value": 2}))
    assert claim.published_effect == 0.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "Half"}, "id is 'Half' (str): must be lower-case"),
        ({"id": "a--b"}, "must be lower-case"),
        ({"id": ""}, "must be lower-case"),
        ({"id": 3}, "id is 3 (int)"),
        ({"statement": ""}, "statement is '' (str): must be one line"),
        ({"statement": "two\nlines"}, "must be one line"),
        ({"statement": "\x1b[31m"}, "must be one line"),
        ({"source": " "}, "must be one line"),
        ({"algorithm": "muon"}, "algorithm is 'muon' (str): this file belongs to lion"),
        ({"baseline": "lion"}, "an algorithm is not its own baseline"),
        ({"baseline": "adamz"}, "baseline is 'adamz' (str): algorithms are adafactor, adamw"),
        ({"metric": "speed"}, "metric is 'speed' (str): Input should be 'time_to_target'"),
        ({"direction": "better"}, "direction is 'better' (str): Input should be 'lower' or 'higher'"),
        ({"comparison": "percent"}, "comparison is 'percent' (str): Input should be 'ratio' or 'difference'"),
        ({"comparison": "difference"}, "optimizer_state in this unit compares as a ratio"),
        ({"metric": "quality"}, "quality in this unit compares as a difference"),
        ({"published_unit": "perplexity"}, "optimizer_state has no perplexity"),
        ({"published_unit": "percent"}, "published_unit is 'percent'"),
        ({"published_value": "1"}, "published_value is '1' (str): Input should be a valid number"),
        ({"published_value": True}, "published_value is True (bool)"),
        ({"published_value": -1.0}, "published_value is -1.0 (float): what makes a ratio must be positive"),
        ({"published_baseline_value": 0.0}, "what makes a ratio must be positive"),
        ({"published_baseline_value": 1e-320}, "published_baseline_value is 1e-320 (float): with it the effect is no"),
        ({"published_value": 3.0}, "the published ratio is 1.5, not lower than 1"),
        ({"direction": "higher"}, "the published ratio is 0.5, not higher than 1"),
        ({"workload": "llama-c5"}, "workload is 'llama-c5' (str): workloads are compress-llama, "),
        ({"workload": None, "tier": None, "published_on": "x"}, "smallest_tier is 'tiny' (str): it goes with workload"),
        ({"smallest_tier": None}, "it goes with workload"),
        ({"workload": None, "smallest_tier": None}, "a tier belongs to a workload"),
        ({"tier": "61m"}, "tier is '61m' (str): tiers of llama-c4 are tiny, 9m"),
        ({"smallest_tier": "small"}, "smallest_tier is 'small' (str): tiers of llama-c4 are tiny"),
        ({"tier": None}, "by exactly one of tier and published_on"),
        ({"published_on": "another model"}, "by exactly one of tier and published_on"),
        ({"publised_value": 1.0}, "unknown key 'publised_value'; keys are id, statement"),
        ({"source": None}, "lacks the key 'source'"),
    ],
)
def test_what_is_wrong_is_named_with_file_claim_key_value_and_what_is_allowed(read, changes, said):
    message = refusal(read, toml(GOOD | {"id": "other"}, GOOD | changes))
    assert "claim 2" in message
    assert said in message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_published_value_is_finite(read, value):
    content = toml(GOOD).replace(b"published_value = 1.0", f"published_value = {value}".encode())
    assert "published_value" in refusal(read, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "claim is None; it must be one or more tables"),
        (b"claim = 3", "claim is 3"),
        (b"claim = []", "must be one or more tables"),
        (b"claim = [1]", "must be one or more tables"),
        (b"[claim]\nid = 'x'", "must be one or more tables"),
        (b"version = 1\n", "unknown key 'version'"),
        (b"[[claim]", "no TOML"),
        (b"\xff\xfe", "no TOML in UTF-8"),
        (b"claim = " + b"[" * 20_000, "no TOML"),
        (b"[[claim]]\nid = 0x" + b"f" * 6_000, "id is a number of very many digits"),
        (b"[[claim]]\nid = 1979-05-27", "id is datetime.date(1979, 5, 27) (date)"),
    ],
)
def test_a_file_of_another_form_is_refused(read, content, said):
    assert said in refusal(read, content)


def test_an_id_is_used_once_within_an_algorithm(read):
    assert "id 'half-the-state' is taken" in refusal(read, toml(GOOD, GOOD))


def test_a_module_of_two_algorithms_says_for_each_claim_which_is_meant(registry):
    file, both = "pair.claims.toml", ["lion", "muon"]
    claims = read_claims(toml(GOOD | {"algorithm": "lion"}, GOOD | {"algorithm": "muon"}), file, both, registry)
    assert [claim.algorithm for claim in claims] == both
    with pytest.raises(BrokenPlugin, match="lacks the key 'algorithm'"):
        read_claims(toml(GOOD), file, both, registry)


VALUES = st.recursive(
    st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*Claim.model_fields]) | st.from_regex(r"[a-z_]{1,9}", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_whatever_a_claim_holds_it_is_read_or_refused_with_a_bench_error(read, changes):
    try:
        (claim,) = read(toml(GOOD | changes))
    except BenchError as error:
        assert error.message.startswith("lion.claims.toml: ")  # noqa: PT017 - being read is right as well
    else:
        assert (claim.published_effect < claim.neutral) == (claim.direction == "lower")


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_bytes_a_file_holds_they_are_refused_with_a_bench_error(read, content):
    assert refusal(read, content)


# -- strangers -------------------------------------------------------------------------------------------------------
LIGHT = """
from bench import Entry, hookimpl

@hookimpl
def bench_algorithms():
    return [
        Entry(name="signum", target="{package}.code:Signum", track="optimizer", paper="none", summary="a stranger's"),
    ]
"""
SIGNUM = """
from dataclasses import dataclass
import torch
from bench import Algorithm

@dataclass(frozen=True, kw_only=True)
class Signum(Algorithm):
    name = "signum"

    def optimizer(self, named_parameters, run):
        return torch.optim.SGD(list(named_parameters), lr=0.1)
"""
CLAIM = GOOD | {"baseline": "adamw"}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Return ``(package, claims file) -> registry`` of ours and a stranger's package."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(package, content, target=None, file="code.claims.toml"):
        folder = tmp_path / package
        folder.mkdir()
        text = LIGHT.format(package=package)
        (folder / "__init__.py").write_text(text if target is None else text.replace(f"{package}.code", target))
        (folder / "code.py").write_text('raise RuntimeError("imported for its claims")\n')
        if content is not None:
            (folder / file).write_bytes(content)
        return Registry([*_ours(), EntryPoint(name="signum", value=package, group="bench")])

    yield install
    for name in [name for name in sys.modules if name.startswith("stranger_")]:
        del sys.modules[name]


def _ours():
    return [point for point in entry_points(group="bench") if point.value.startswith("bench.")]


def of_signum(registry):
    claims, unread = claims_of("signum", registry)
    assert unread == ""
    return [claim.id for claim in claims]


def test_a_strangers_claims_are_found_beside_its_module_without_registration_or_import(stranger):
    registry = stranger("stranger_good", toml(CLAIM))
    assert of_signum(registry) == ["half-the-state"]
    assert broken_claims(registry) == []
    assert "stranger_good.code" not in sys.modules


def test_claims_of_a_class_in_a_package_lie_inside_that_package(stranger):
    file = "stranger_whole.claims.toml"
    assert of_signum(stranger("stranger_whole", toml(CLAIM), target="stranger_whole", file=file)) == ["half-the-state"]


def test_a_plugin_without_a_claims_file_has_no_claims(stranger):
    registry = stranger("stranger_none", None)
    assert of_signum(registry) == []
    assert broken_claims(registry) == []


def test_a_module_outside_any_package_has_no_claims(stranger, tmp_path):
    (tmp_path / "stranger_alone.py").write_text("")
    (tmp_path / "stranger_alone.claims.toml").write_bytes(toml(CLAIM))
    assert of_signum(stranger("stranger_light", None, target="stranger_alone")) == []


@pytest.mark.parametrize("content", [b"# nothing yet\n", b"\n  # two\n# lines"])
def test_a_file_of_comments_alone_claims_nothing(content):
    assert read_claims(content, "x.claims.toml", ["lion"], Registry([])) == []


@pytest.mark.parametrize("content", [b"\xff", toml(CLAIM | {"baseline": "unknown-plugin"})])
def test_one_broken_file_is_listed_with_its_reason_and_stops_no_other(stranger, registry, content):
    found = stranger("stranger_bad", content)
    assert load_claims(found) == load_claims(registry)
    (broken,) = broken_claims(found)
    assert claims_of("signum", found) == ([], broken.reason)
    assert claims_of("lion", found) == claims_of("lion", registry)
    assert (broken.name, broken.package) == ("stranger_bad.code.claims.toml", "stranger_bad")
    rows = ledger([], found)
    (row,) = rows[rows["verdict"] == BROKEN].to_dict("records")
    assert row["claim"] == broken.name
    assert row["reason"] == broken.reason
    assert len(rows) == len(load_claims(registry)) + 1


def test_a_listing_counts_what_loading_finds(registry):
    found = Counter(claim.algorithm for claim in load_claims(registry))
    assert {name: claims_beside(entry.target) for name, entry in registry.algorithms.items()} == {
        name: found[name] for name in registry.algorithms
    }


def test_a_listing_survives_a_file_that_cannot_be_opened(stranger, monkeypatch):
    target = stranger("stranger_count", toml(CLAIM)).algorithms["signum"].target
    assert claims_beside(target) == 1

    def shut(module, suffix):
        raise PermissionError(f"no way into {module}{suffix}")

    monkeypatch.setattr("bench.beside.beside", shut)
    assert claims_beside(target) is None


def test_showing_a_plugin_says_that_its_claims_cannot_be_read(stranger, tmp_path, monkeypatch, capsys):
    registry = stranger("stranger_shown", b"\xff")
    (tmp_path / "stranger_shown" / "code.py").write_text(SIGNUM)
    monkeypatch.setattr("bench.commands.show.Registry", lambda: registry)
    show.command.main(["signum"], standalone_mode=False)
    assert "Claims cannot be read: stranger_shown.code.claims.toml: no TOML in UTF-8" in capsys.readouterr().out


def test_a_file_that_cannot_be_opened_is_broken_too(stranger, monkeypatch):
    registry = stranger("stranger_shut", toml(CLAIM))

    def shut(module, suffix):
        raise PermissionError(f"no way into {module}{suffix}")

    monkeypatch.setattr("bench.claims.beside", shut)
    assert load_claims(registry) == []
    assert {broken.reason.partition(":")[0] for broken in broken_claims(registry)} == {"PermissionError"}
