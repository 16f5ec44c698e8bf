"""The registry against modules of strangers: listed from light entries, imported when used, broken ones named."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from bench import Algorithm, Registry, Workload
from bench.errors import BadValue, BrokenPlugin, UnknownName

HEADER = "from bench import Algorithm, Entry, WorkloadEntry, hookimpl, hyper\n"
ENTRY = """
@hookimpl
def bench_algorithms():
    return [Entry(name="{name}", target="{target}", track="{track}", paper="none", summary="a stranger's")]
"""
CLASS = """
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Signum(Algorithm):
    name = "signum"
    lr: float = hyper(0.1, help="learning rate")

    def optimizer(self, named_parameters, run):
        return None
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Return ``(name, text) -> None``, which writes a module that can be imported during the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)

    def write(name, text=""):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        future = "from __future__ import annotations\n"
        text = future + HEADER + text.removeprefix(future) if text.startswith(future) else HEADER + text
        path.write_text(text, encoding="utf-8")

    yield write
    for name in set(sys.modules) - known:
        if name.startswith("stranger"):
            del sys.modules[name]


def point(module, name="stranger"):
    return EntryPoint(name=name, value=module, group="bench")


def entry(name="signum", target="stranger_code:Signum", track="optimizer"):
    return ENTRY.format(name=name, target=target, track=track)


def listed(modules, light, code=CLASS):
    """Return the registry of one stranger: ``light`` is its light module, ``code`` the one with the class."""
    modules("stranger_light", light)
    modules("stranger_code", code)
    return Registry([point("stranger_light")])


def reason(registry):
    assert not registry.algorithms
    assert not registry.workloads
    (broken,) = registry.broken
    assert (broken.name, broken.package) == ("stranger", "stranger_light")
    return broken.reason


# -- a plugin that works ---------------------------------------------------------------------------------------------
def test_a_stranger_is_listed_without_importing_its_code(modules):
    registry = listed(modules, entry(), code='raise RuntimeError("imported by a listing")')
    assert list(registry.algorithms) == ["signum"]
    assert not registry.broken
    assert "stranger_code" not in sys.modules


def test_a_stranger_is_imported_and_built_when_it_is_used(modules):
    registry = listed(modules, entry())
    assert registry.algorithm_class("signum").__name__ == "Signum"
    assert registry.algorithm("signum").hyperparameters() == {"lr": 0.1}
    assert registry.algorithm("signum", {"lr": "3"}, lr=2.0).hyperparameters() == {"lr": 3.0}
    assert registry.algorithm("signum", lr=2.0).hyperparameters() == {"lr": 2.0}


def test_building_refuses_unknown_and_bad_values(modules):
    registry = listed(modules, entry())
    with pytest.raises(UnknownName, match="hyperparameter of signum named 'rl'"):
        registry.algorithm("signum", rl=1.0)
    with pytest.raises(BadValue, match="signum: lr = 'fast'"):
        registry.algorithm("signum", {"lr": "fast"})


def test_a_hyperparameter_may_have_any_name(modules):
    registry = listed(modules, entry(), CLASS.replace("lr: float", "texts: float"))
    assert registry.algorithm("signum", texts=2.0).hyperparameters() == {"texts": 2.0}


def test_the_version_of_a_package_without_metadata_is_unknown(modules):
    assert listed(modules, entry()).version("signum") == "unknown"


def test_a_module_may_list_nothing_and_report_events_only(modules):
    registry = listed(modules, "@hookimpl\ndef bench_started(trial):\n    trial['seen'] = True\n")
    assert not registry.broken
    trial = {}
    registry.hooks.hook.bench_started(trial=trial)
    assert trial == {"seen": True}


# -- a plugin that is broken -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("light", "why"),
    [
        ("raise OSError('no driver')", "OSError: no driver"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("@hookimpl\ndef bench_algorithms():\n    raise KeyError('x')\n", "KeyError: 'x'"),
        ("@hookimpl\ndef bench_algorithms():\n    return None\n", "TypeError"),
        ("@hookimpl\ndef bench_algorithms():\n    return ['signum']\n", "returned 'signum' (str), not Entry objects"),
        ("@hookimpl\ndef bench_algoritms():\n    return []\n", "bench_algoritms"),
        ("@hookimpl\ndef bench_algorithms(registry):\n    return []\n", "registry"),
        (entry(track="optimisers"), "names the track 'optimisers'; tracks are optimizer, schedule"),
        (entry(target="stranger_code"), "is not of the form 'package.module:Class'"),
        (entry(target=":Signum"), "is not of the form 'package.module:Class'"),
        (entry(target="stranger_nowhere:Signum"), "there is no module 'stranger_nowhere'"),
        (entry(target="stranger_nowhere.signum:Signum"), "there is no module 'stranger_nowhere.signum'"),
        (ENTRY.replace("Entry(", "WorkloadEntry(").replace("track=", "tiers="), "WorkloadEntry"),
    ],
)
def test_a_plugin_that_cannot_be_listed_is_kept_with_its_reason(modules, light, why):
    assert why in reason(listed(modules, light))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "'signum'",
            "'two\\nlines'",
            "the name of an entry is 'two\\nlines' (str); it must be one line of printable text",
        ),
        ("'signum'", "3", "the name of an entry is 3 (int)"),
        ("'optimizer'", "['schedule']", "the track of an entry is ['schedule'] (list)"),
        ("'stranger_code:Signum'", "None", "the target of an entry is None (NoneType)"),
    ],
)
def test_an_entry_that_no_listing_can_show_is_broken(modules, old, new, why):
    light = entry().replace(old.replace("'", '"'), new).replace(old, new)
    assert light != entry()
    assert why in reason(listed(modules, light))


def test_listing_runs_no_code_of_the_packages_above_a_target(modules, monkeypatch, tmp_path):
    package = tmp_path / "loud_package"
    (package / "inner").mkdir(parents=True)
    for folder in (package, package / "inner"):
        (folder / "__init__.py").write_text("raise RuntimeError('ran')\n", encoding="utf-8")
    (package / "inner" / "code.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = listed(modules, entry(target="loud_package.inner.code:Signum"))
    assert registry.broken == []
    assert "signum" in registry.algorithms
    assert "loud_package" not in sys.modules


def test_a_broken_plugin_stops_nothing_else(modules):
    modules("stranger_light", entry())
    modules("stranger_code", CLASS)
    modules("stranger_broken", "raise SystemExit")
    registry = Registry([point("stranger_broken", "first"), point("stranger_light", "second")])
    assert list(registry.algorithms) == ["signum"]
    assert [broken.name for broken in registry.broken] == ["first"]
    assert registry.broken[0].reason == "SystemExit"


def test_a_plugin_is_listed_whole_or_not_at_all(modules):
    workloads = "\n@hookimpl\ndef bench_workloads():\n    raise OSError('half')\n"
    assert "OSError: half" in reason(listed(modules, entry() + workloads))


def test_using_a_broken_plugin_says_why_and_what_to_do(modules):
    registry = listed(modules, "raise OSError('no driver')")
    for use in (registry.algorithm_class, registry.workload_class):
        with pytest.raises(
            BrokenPlugin, match="'stranger' of the package 'stranger_light' is broken: OSError"
        ) as error:
            use("stranger")
        assert "pip uninstall stranger_light" in error.value.hint


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise OSError('no driver')", "stranger_code:Signum cannot be imported: OSError: no driver"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("x = 1", "has no attribute 'Signum'"),
        ("Signum = 3", "stranger_code:Signum is 3; it must be a subclass of bench.Algorithm"),
        ("class Signum:\n    name = 'signum'", "it must be a subclass of bench.Algorithm"),
        (CLASS.replace('"signum"', '"signam"'), "calls itself 'signam'; entry and class must agree"),
        (CLASS.replace("def optimizer", "def optimiser"), "overrides no slot of bench.Algorithm"),
        (CLASS.replace("@dataclass(frozen=True, kw_only=True)\n", ""), "Signum declares lr but is no dataclass"),
        ("from __future__ import annotations\n" + CLASS.replace(": float", ": Rate"), "name 'Rate' is not defined"),
    ],
)
def test_a_class_that_is_not_what_its_entry_says_is_refused_when_used(modules, code, why):
    registry = listed(modules, entry(), code)
    with pytest.raises(BrokenPlugin) as caught:
        registry.algorithm_class("signum")
    assert why in caught.value.message


# -- names -----------------------------------------------------------------------------------------------------------
def test_the_first_of_two_plugins_keeps_a_name_and_the_second_is_broken(modules):
    modules("stranger_light", entry())
    modules("stranger_light2", entry(target="stranger_other:Signum"))
    modules("stranger_code", CLASS)
    modules("stranger_other", CLASS)
    registry = Registry([point("stranger_light", "first"), point("stranger_light2", "second")])
    assert registry.algorithms["signum"].target == "stranger_code:Signum"
    assert registry.packages["signum"] == "stranger_light"
    (broken,) = registry.broken
    assert broken.name == "second"
    assert "the name 'signum' is taken already, by the package 'stranger_light'" in broken.reason


def test_one_plugin_cannot_use_a_name_twice(modules):
    twice = "\n@hookimpl\ndef bench_algorithms():\n    one = _one()\n    return [*one, *one]\n"
    light = entry().replace("@hookimpl\ndef bench_algorithms", "def _one") + twice
    assert "'signum' is taken already" in reason(listed(modules, light))


def test_a_workload_cannot_take_the_name_of_an_algorithm(modules):
    workloads = (
        "\n@hookimpl\ndef bench_workloads():\n"
        "    return [WorkloadEntry(name='signum', target='stranger_code:W', tiers=('a',), summary='')]\n"
    )
    assert "'signum' is taken already" in reason(listed(modules, entry() + workloads))


def test_two_packages_may_call_their_entry_points_alike(modules):
    modules("stranger_light", entry() + "\n@hookimpl\ndef bench_started(trial):\n    trial['first'] = True\n")
    modules("stranger_light2", entry("other") + "\n@hookimpl\ndef bench_started(trial):\n    trial['second'] = True\n")
    modules("stranger_code", CLASS)
    registry = Registry([point("stranger_light", "optimizers"), point("stranger_light2", "optimizers")])
    assert registry.broken == []
    assert list(registry.algorithms) == ["signum", "other"]
    trial = {}
    registry.hooks.hook.bench_started(trial=trial)
    assert trial == {"first": True, "second": True}


def test_a_broken_namesake_does_not_silence_the_plugin_that_works(modules):
    modules("stranger_light", "@hookimpl\ndef bench_started(trial):\n    trial['first'] = True\n")
    modules("stranger_broken", "raise OSError")
    registry = Registry([point("stranger_light", "optimizers"), point("stranger_broken", "optimizers")])
    trial = {}
    registry.hooks.hook.bench_started(trial=trial)
    assert trial == {"first": True}


def test_the_plugin_set_can_be_pinned(modules, monkeypatch):
    modules("stranger_light", entry())
    modules("stranger_light2", entry("other"))
    modules("stranger_code", CLASS)
    points = [point("stranger_light", "first"), point("stranger_light2", "second")]
    monkeypatch.setenv("BENCH_PLUGINS", "second, ")
    assert list(Registry(points).algorithms) == ["other"]
    monkeypatch.setenv("BENCH_PLUGINS", "secnd")
    with pytest.raises(UnknownName, match="did you mean 'second'"):
        Registry(points)
    monkeypatch.setenv("BENCH_PLUGINS", "")
    assert list(Registry(points).algorithms) == []
    monkeypatch.delenv("BENCH_PLUGINS")
    assert list(Registry(points).algorithms) == ["signum", "other"]


# -- the installed ones ----------------------------------------------------------------------------------------------
def test_our_own_plugins_register_by_entry_points_and_none_is_broken(registry):
    assert registry.broken == []
    assert {"adamw", "sgd", "lion", "muon", "galore", "warmup-cosine", "warmup-linear"} <= set(registry.algorithms)
    assert {"llama-c4", "llama-c4-bf16"} <= set(registry.workloads)
    assert set(registry.packages.values()) == {"bench-training"}
    assert registry.version("galore") != "unknown"


def test_every_listed_class_is_what_its_entry_says(registry):
    assert all(issubclass(registry.algorithm_class(name), Algorithm) for name in registry.algorithms)
    assert all(issubclass(registry.workload_class(name), Workload) for name in registry.workloads)


def test_unknown_names_suggest_known_ones(registry):
    with pytest.raises(UnknownName, match="no plugin named 'galor'") as caught:
        registry.algorithm("galor")
    assert caught.value.hint == "did you mean 'galore'?"
    with pytest.raises(UnknownName, match="no workload named 'llama'") as caught:
        registry.workload_class("llama")
    assert "llama-c4" in caught.value.hint


def test_a_workload_whose_entry_lists_other_tiers_is_refused(modules):
    light = (
        "@hookimpl\ndef bench_workloads():\n"
        "    return [WorkloadEntry(name='llama-c4', target='bench.workloads.llama_c4:LlamaC4', tiers=('tiny',), "
        "summary='')]\n"
    )
    with pytest.raises(BrokenPlugin, match=r"its entry says \('tiny',\)"):
        listed(modules, light).workload_class("llama-c4")
