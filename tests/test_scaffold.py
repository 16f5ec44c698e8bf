"""What `bench new-plugin` writes: names that are refused, files that are whole, and text in the style of the house."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import resources
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

import bench
from bench.claims import read_claims
from bench.cli import main
from bench.entry import TRACKS, Entry, WorkloadEntry
from bench.errors import BadValue, UnknownName
from bench.registry import Broken, Registry
from bench.scaffold import create, names, render
from bench.scaffold.example import example
from bench.scaffold.names import LONGEST

ROOT = Path(__file__).parents[1]
REGISTRY = Registry()
TEMPLATES = Path(str(resources.files("bench.scaffold"))) / "templates"
NAMES = ("ab", "sign-descent", "w" * LONGEST, "a1-b2")
"""The shortest, a usual one, the longest, and one whose class looks like a constant."""

every_track = pytest.mark.parametrize("track", TRACKS)


def rendered(track, name="sign-descent", author=""):
    return render(names(name, REGISTRY), track, REGISTRY, author)


# -- names -------------------------------------------------------------------------------------------------------------
def test_everything_follows_from_the_name():
    found = names("sign-descent-2", REGISTRY)
    assert (found.module, found.cls) == ("sign_descent_2", "SignDescent2")
    assert (found.package, found.distribution) == ("bench_sign_descent_2", "bench-sign-descent-2")


@pytest.mark.parametrize(
    "name",
    [
        *("", "a", "A", "Sign", "sign_descent", "sign--descent", "-sign", "sign-", "1sign", "a" * (LONGEST + 1)),
        *("sign descent", "sign\n", "sign\x00", "\x1b[31m", "süß", "\u0430dam", "\u202esign", "x" * 100_000),
        *(".", "..", "../sign", "/etc/sign", "a/b", "a\\b", "~sign", "$HOME", "a;b", "%s", "{{x}}", "con.x"),
    ],
)
def test_a_name_of_another_form_is_refused_with_its_domain(name):
    with pytest.raises(BadValue, match="NAME is") as refused:
        names(name, REGISTRY)
    assert "lower-case letters" in refused.value.hint
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("name", ["class", "lambda", "match", "json", "random", "typing", "con", "conformance"])
def test_a_word_of_python_and_the_name_of_a_module_are_refused(name):
    with pytest.raises(BadValue, match="NAME"):
        names(name, REGISTRY)


@pytest.mark.parametrize("name", ["algorithm", "run", "log", "role", "tensor", "exception", "named-parameters", "ge"])
def test_a_name_whose_class_would_hide_another_is_refused(name):
    with pytest.raises(BadValue, match="makes a class"):
        rendered("optimizer", name)


@pytest.mark.parametrize("name", [min(REGISTRY.algorithms), min(REGISTRY.workloads), "optimizers", "training"])
def test_a_name_that_somebody_has_is_refused(name):
    with pytest.raises(BadValue, match=f"NAME '{name}'"):
        names(name, REGISTRY)


def test_the_name_of_a_broken_plugin_and_of_a_package_on_the_path_are_refused(tmp_path, monkeypatch):
    registry = Registry([])
    registry.broken.append(Broken(name="torn", package="somebody", reason="it raised"))
    with pytest.raises(BadValue, match="'torn'"):
        names("torn", registry)
    (tmp_path / "bench_there.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadValue, match="'bench-there' is installed"):
        names("there", registry)


@given(st.from_regex(r"[a-z0-9_./\\~-]{1,40}", fullmatch=True))
def test_whatever_is_accepted_makes_one_folder_and_two_identifiers(name):
    try:
        found = names(name, REGISTRY)
    except BadValue:
        return
    assert Path(found.distribution).name == found.distribution
    assert found.module.isidentifier()
    assert found.cls.isidentifier()
    assert found.cls not in vars(builtins)


@every_track
def test_a_name_whose_class_would_hide_an_import_of_its_module_is_refused(track):
    """Every name that the module imports is tried, where a plugin can be called so at all."""
    tree = ast.parse(rendered(track)["src/bench_sign_descent/sign_descent.py"])
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {alias.name for node in imports for alias in node.names}
    plain = {name: "-".join(re.findall("[A-Z][a-z0-9]*", name)).lower() for name in imported}
    tried = [name for name in imported if name == "".join(part.capitalize() for part in plain[name].split("-"))]
    assert {"Algorithm", "Annotated", "Run"} & set(tried)
    for name in tried:
        with pytest.raises(BadValue, match=f"makes a class {name}"):
            rendered(track, plain[name])


# -- files -------------------------------------------------------------------------------------------------------------
@every_track
def test_a_package_has_all_its_parts(track):
    files = rendered(track)
    assert set(files) == {
        *("pyproject.toml", "README.md", "LICENSE", ".gitignore", ".github/workflows/test.yml"),
        *("tests/test_conformance.py", "tests/test_sign_descent.py"),
        *(f"src/bench_sign_descent/{name}" for name in ("__init__.py", "py.typed", "sign_descent.py")),
        "src/bench_sign_descent/sign_descent.claims.toml",
    }
    assert all(text.endswith("\n") and not text.endswith("\n\n") for text in files.values() if text)
    assert not [path for path, text in files.items() if "{%" in text or "{{" in text.replace("${{", "")]


def test_every_template_is_used():
    used = {
        *(f"{track}/{name}" for track in TRACKS for name in ("facts.toml", "algorithm.py.j2", "test_algorithm.py.j2"))
    }
    there = {path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*") if path.is_file()}
    assert {path for path in there if not path.startswith("common/")} == used
    assert len(there) == len(used) + 9


@every_track
def test_the_package_declares_what_it_is(track):
    files = rendered(track, author='A "quoted" \\ Näme')
    facts = tomllib.loads(files["pyproject.toml"])
    assert facts["project"]["name"] == "bench-sign-descent"
    assert facts["project"]["authors"] == [{"name": 'A "quoted" \\ Näme'}]
    assert facts["project"]["entry-points"]["bench"] == {"sign-descent": "bench_sign_descent"}
    (needed,) = map(Requirement, facts["project"]["dependencies"])
    assert needed.name == "bench-training"
    assert needed.specifier.contains(bench.Registry().version(min(REGISTRY.algorithms)), prereleases=True)
    assert 'A "quoted" \\ Näme' in files["LICENSE"]


@every_track
def test_the_entry_module_is_light_and_names_the_track(track, tmp_path):
    file = tmp_path / "entries.py"
    file.write_text(rendered(track)["src/bench_sign_descent/__init__.py"], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("entries", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (entry,) = module.bench_algorithms()
    assert (entry.name, entry.track) == ("sign-descent", track)
    assert entry.paper.startswith("arXiv:")
    assert "import torch" not in file.read_text().replace("not import torch", "")


@every_track
def test_nothing_is_claimed_and_the_example_of_a_claim_is_a_claim(track):
    text = rendered(track)["src/bench_sign_descent/sign_descent.claims.toml"]
    registry = Registry()
    registry.algorithms["sign-descent"] = Entry(name="sign-descent", target="x:Y", track=track, paper="p", summary="s")
    assert read_claims(text.encode(), "x.claims.toml", ["sign-descent"], registry) == []
    lines = text[text.index("# [[claim]]") :].splitlines()
    filled = "\n".join(line.removeprefix("# ") for line in lines)
    (claim,) = read_claims(filled.encode(), "x.claims.toml", ["sign-descent"], registry)
    assert claim.published_effect == 0.5


@every_track
def test_the_readme_names_commands_that_exist_and_a_workload_that_runs_them(track):
    text = rendered(track)["README.md"]
    from bench.cli import VERBS

    assert {line.split()[1] for line in text.splitlines() if line.startswith("    bench ")} <= set(VERBS)
    line = next(line for line in text.splitlines() if "bench run" in line).split()
    workload, tier = line[line.index("--workload") + 1], line[line.index("--tier") + 1]
    assert tier in REGISTRY.workloads[workload].tiers
    assert "cpu" in REGISTRY.workload_class(workload).tiers[tier].default_on


def test_without_a_workload_words_stand_in_its_place():
    files = render(names("sign-descent", Registry([])), "optimizer", Registry([]))
    assert "--workload WORKLOAD --tier TIER" in files["README.md"]


def test_a_workload_that_does_not_load_is_passed_over():
    registry = Registry([])
    registry.workloads["torn"] = WorkloadEntry(name="torn", target="no.such:Thing", tiers=("x",), summary="s")
    registry.packages["torn"] = "somebody"
    assert example(registry, "optimizer", ()) is None


# -- style -------------------------------------------------------------------------------------------------------------
def ruff():
    return importlib.util.find_spec("ruff") is not None


@pytest.mark.skipif(not ruff(), reason="ruff is not installed")
def test_every_package_is_in_the_style_of_the_house_and_passes_its_own_rules(tmp_path):
    house = tmp_path / "ruff.toml"
    house.write_text(
        f'extend = "{ROOT.as_posix()}/pyproject.toml"\n'
        'lint.isort.known-first-party = ["bench", "bench_*"]\n'
        "[lint.extend-per-file-ignores]\n"
        '"**/src/**" = ["ARG002"]\n'  # as plugins/**: a slot takes its contract's arguments, used or not
        '"**/tests/**" = ["D", "INP001", "ANN"]\n'  # as tests/**
    )
    for name in NAMES:
        for track in TRACKS:
            for path, text in rendered(track, name).items():
                file = tmp_path / name / track / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
    ruff = [sys.executable, "-P", "-m", "ruff"]
    for command in (
        [*ruff, "check", "--no-cache", "--config", house, tmp_path],
        [*ruff, "check", "--no-cache", tmp_path],
        [*ruff, "format", "--no-cache", "--check", tmp_path],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr


@every_track
def test_every_class_and_public_function_says_what_it_is_and_the_plugin_names_its_source(track):
    for path, text in rendered(track).items():
        if path.startswith("src/") and path.endswith(".py"):
            tree = ast.parse(text)
            assert max(map(len, text.splitlines())) <= 120
            assert ast.get_docstring(tree)
            for node in tree.body:
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                    assert ast.get_docstring(node), node.name
    module = ast.parse(rendered(track)["src/bench_sign_descent/sign_descent.py"])
    (algorithm,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "SignDescent")
    assert "Source: arXiv:" in ast.get_docstring(algorithm)
    assert "Deviations:" in ast.get_docstring(algorithm)


# -- writing -----------------------------------------------------------------------------------------------------------
def test_what_is_written_is_what_was_rendered(tmp_path):
    root = create(names("sign-descent", REGISTRY), "schedule", REGISTRY, folder=tmp_path)
    assert root == tmp_path / "bench-sign-descent"
    there = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in root.rglob("*") if path.is_file()}
    assert there == rendered("schedule")


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_nothing_that_exists_is_touched(tmp_path, kind):
    place = tmp_path / "bench-sign-descent"
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadValue, match="exists already"):
        create(names("sign-descent", REGISTRY), "schedule", REGISTRY, folder=tmp_path)
    assert list(tmp_path.iterdir()) == [place]
    assert kind != "folder" or list(place.iterdir()) == []
    assert kind != "file" or place.read_text() == "mine"


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    found = names("sign-descent", REGISTRY)
    with pytest.raises(BadValue, match="does not exist"):
        create(found, "schedule", REGISTRY, folder=tmp_path / "none")
    with pytest.raises(BadValue, match="is no folder"):
        create(found, "schedule", REGISTRY, folder=tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    real = Path.write_text

    def fails(self, *arguments, **options):  # the fifth file is sent to a device that is full
        return real(Path("/dev/full") if self.name == "test.yml" else self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(BadValue, match="No space left on device"):
        create(names("sign-descent", REGISTRY), "schedule", REGISTRY, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("author", ["two\nlines", "\x1b[31mred", " space", "x" * 101, "\u202eback"])
def test_an_author_who_is_no_line_of_text_is_refused(author, tmp_path):
    with pytest.raises(BadValue, match="--author"):
        create(names("sign-descent", REGISTRY), "schedule", REGISTRY, folder=tmp_path, author=author)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_track_is_refused_with_the_nearest_one():
    with pytest.raises(UnknownName, match="optimizer"):
        rendered("optimiser")


# -- the command -------------------------------------------------------------------------------------------------------
def test_the_command_prints_what_it_wrote_and_the_next_three_commands(tmp_path, capsys):
    folder = tmp_path / "a b"
    folder.mkdir()
    assert main(["new-plugin", "sign-descent", "--track", "merging", "--dir", str(folder), "--author", "A. N."]) == 0
    out = capsys.readouterr().out
    wrote = [Path(line.removeprefix("wrote ")) for line in out.splitlines() if line.startswith("wrote ")]
    assert len(wrote) == 11
    assert all(path.is_file() for path in wrote)
    commands = [line.strip() for line in out.partition("Next:")[2].splitlines() if line.strip()]
    place = folder / "bench-sign-descent"
    assert commands == [
        f"python -m pip install -e '{place}[test]'",
        f"python -m pytest '{place}'",
        "bench check sign-descent",
    ]
    assert "A. N." in (place / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["../x", "--track", "peft"], "NAME is '../x'"),
        (["sign-descent", "--track", "optimiser"], "did you mean 'optimizer'?"),
        (["sign-descent"], "--track"),
        (["sign-descent", "--track", "peft", "--dir", "/no/such/folder"], "does not exist"),
        (["sign-descent", "--track", "peft", "--author", "x\ny"], "--author"),
    ],
)
def test_bad_input_is_one_message_and_writes_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


# -- every track at work -----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_packages_of_all_tracks_pass_their_own_tests_at_once(tmp_path):
    """They are installed side by side, and their tests run in one process; endtoend/test_scaffold.py has optimizers."""
    tracks = [track for track in TRACKS if track != "optimizer"]
    site = tmp_path / "site"
    for track in tracks:
        found = names(f"new-{track}", REGISTRY)
        root = create(found, track, REGISTRY, folder=tmp_path)
        shutil.copytree(root / "src", site, dirs_exist_ok=True)
        facts = site / f"{found.package}-0.1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {found.distribution}\nVersion: 0.1.0\n")
        (facts / "entry_points.txt").write_text(f"[bench]\n{found.name} = {found.package}\n")
    tests = [tmp_path / f"bench-new-{track}" / "tests" for track in tracks]
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", f"--rootdir={tmp_path}"]
    program = (
        f"import json, sys; sys.path.insert(0, {str(site)!r})\n"
        "import pytest\n"
        f"sys.exit(pytest.main(json.loads({json.dumps([*options, *map(str, tests)])!r})))"
    )
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "passed" in done.stdout


def test_entries_of_the_packages_are_listed(tmp_path, monkeypatch):
    found = names("new-schedule", REGISTRY)
    root = create(found, "schedule", REGISTRY, folder=tmp_path)
    monkeypatch.syspath_prepend(root / "src")
    registry = Registry([EntryPoint(name=found.name, value=found.package, group="bench")])
    assert registry.broken == []
    assert registry.algorithm("new-schedule").hyperparameters() == {"warmup_fraction": 0.1}
