"""The hash of an algorithm's source: what it uses counts, what its neighbours use does not."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

from bench.source import source_sha256

FILES = {
    "stranger_pack/__init__.py": "",
    "stranger_pack/_shared.py": "from stranger_pack._deep import constant\n\ndef step():\n    return constant\n",
    "stranger_pack/_deep.py": "def constant():\n    return 1\n",
    "stranger_pack/_numbers.py": "FACTOR = 0.5\n",
    "stranger_pack/_unrelated.py": "def other():\n    return 2\n",
    "stranger_pack/_base.py": "class Base:\n    pass\n",
    "stranger_pack/alpha.py": (
        "import os\nfrom stranger_pack._base import Base\nfrom . import _shared\nfrom ._numbers import FACTOR\n\n"
        "class Alpha(Base):\n    factor = FACTOR\n    step = _shared.step\n"
    ),
    "stranger_pack/beta.py": "from stranger_pack._unrelated import other\n\nclass Beta:\n    step = other\n",
    "stranger_pack/gamma.py": "from stranger_pack.alpha import Alpha\n\nclass Gamma(Alpha):\n    pass\n",
}


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """Return ``(module, class) -> hash`` over a package on disk, imported afresh at each call."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def forget():
        for name in [name for name in sys.modules if name.startswith("stranger_pack")]:
            del sys.modules[name]

    def sha256(module, name, change=None):
        forget()
        before = {}
        if change is not None:
            path = tmp_path / "stranger_pack" / change
            before = {path: path.read_text(encoding="utf-8")}
            path.write_text(before[path] + "\n# changed\n", encoding="utf-8")
        importlib.invalidate_caches()
        try:
            return source_sha256(getattr(importlib.import_module(f"stranger_pack.{module}"), name))
        finally:
            for path, text in before.items():
                path.write_text(text, encoding="utf-8")

    yield sha256
    forget()


def test_the_hash_is_a_sha256_and_does_not_depend_on_when_it_is_taken(pack):
    first = pack("alpha", "Alpha")
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert pack("alpha", "Alpha") == first


@pytest.mark.parametrize("change", ["alpha.py", "_base.py", "_shared.py", "_deep.py", "_numbers.py"])
def test_a_change_in_a_module_that_it_uses_changes_the_hash(pack, change):
    assert pack("alpha", "Alpha", change) != pack("alpha", "Alpha")


@pytest.mark.parametrize("change", ["beta.py", "_unrelated.py", "gamma.py", "__init__.py"])
def test_a_change_in_any_other_module_does_not(pack, change):
    assert pack("alpha", "Alpha", change) == pack("alpha", "Alpha")


def test_a_subclass_depends_on_the_modules_of_its_base(pack):
    assert pack("gamma", "Gamma", "_deep.py") != pack("gamma", "Gamma")
    assert pack("beta", "Beta", "_deep.py") == pack("beta", "Beta")


def test_other_packages_and_the_framework_are_not_part_of_it(pack, monkeypatch):
    first = pack("alpha", "Alpha")
    monkeypatch.setattr("os.__doc__", "changed")
    assert pack("alpha", "Alpha") == first


def test_a_class_without_a_source_file_has_a_hash_by_name():
    namespace = {"__name__": "stranger_cell"}
    module = type(sys)("stranger_cell")
    sys.modules["stranger_cell"] = module
    try:
        exec("class Cell:\n    pass\n", namespace)  # noqa: S102 - what a notebook does
        assert re.fullmatch("[0-9a-f]{64}", source_sha256(namespace["Cell"]))
    finally:
        del sys.modules["stranger_cell"]


def test_built_in_algorithms_depend_on_the_numerics_that_they_share(registry):
    hashes = {name: source_sha256(registry.algorithm_class(name)) for name in registry.algorithms}
    assert len(set(hashes.values())) == len(hashes)
