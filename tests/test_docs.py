"""The documentation names everything that is public, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import errors, record, spec
from bench.algorithm import SLOTS
from bench.cli import VERBS
from bench.registry import Registry
from bench.roles import Role
from bench.trial import OUTCOMES

ROOT = Path(__file__).parents[1]
INTERFACE = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")
RECORDS = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOOKS = [name for name in vars(spec) if name.startswith("bench_")]
ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("name", [*SLOTS, *HOOKS, *ERRORS, *Role, *Registry().algorithms])
def test_the_interface_page_names_every_slot_hook_error_role_and_plugin(name):
    assert f"`{name}`" in INTERFACE or f"`{name}(" in INTERFACE


@pytest.mark.parametrize("name", [*record.TRIALS.names, *record.CURVES.names, *OUTCOMES])
def test_the_records_page_names_every_column_and_outcome(name):
    assert f"`{name}`" in RECORDS


@pytest.mark.parametrize("name", VERBS)
def test_the_readme_names_every_verb(name):
    assert f"bench {name}" in README


@pytest.mark.parametrize("name", [*SLOTS])
def test_documented_slot_signatures_are_the_real_ones(name):
    import inspect

    from bench.algorithm import Algorithm

    names = list(inspect.signature(getattr(Algorithm, name)).parameters)[1:]
    assert f"`{name}({', '.join(names)})`" in INTERFACE


@pytest.mark.parametrize("name", HOOKS)
def test_documented_hook_signatures_are_the_real_ones(name):
    import inspect

    names = list(inspect.signature(getattr(spec, name)).parameters)
    assert f"`{name}({', '.join(names)})`" in INTERFACE


def blocks():
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            yield pytest.param(code, id=f"{page.name}-{number}")


@pytest.mark.parametrize("code", list(blocks()))
def test_python_blocks_of_the_documentation_run(code):
    exec(compile(code, "documentation", "exec"), {})  # noqa: S102 - our own documentation
    assert code


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if not target.startswith("http")
    ]
    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []
