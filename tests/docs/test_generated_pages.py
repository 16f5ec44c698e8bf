"""The pages that are written from the code: every plugin, protocol, command and public name has one, with all of it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path, PurePosixPath

import click
import pytest

import bench
from bench.algorithm import slots
from bench.claims import load_claims
from bench.cli import VERBS, cli
from bench.protocol import protocols
from bench.registry import Registry

REGISTRY = Registry()
PUBLIC = sorted(bench.__all__)


def cells(page):
    return {cell for line in page.splitlines() if line.startswith("|") for cell in line.strip("| ").split(" | ")}


@pytest.mark.parametrize("name", REGISTRY.algorithms)
def test_an_algorithm_has_a_page_with_hyperparameters_slots_deviations_and_how_to_run_it(name, generated):
    page, cls = generated[f"algorithms/{name}.md"], REGISTRY.algorithm_class(name)
    assert page.startswith("# ")
    assert {f"`{field.name}`" for field in dataclasses.fields(cls)} <= cells(page)
    assert all(f"../../slots.md#{slot}" in page for slot in slots(cls))
    assert page.count("\n- ", page.index("## Deviations"), page.index("## Claims")) == len(cls.deviations)
    assert f"bench run --plugin {name} --workload" in page
    assert f"]({name}.md)" in generated["algorithms/index.md"]


def test_equations_keep_their_lines_and_columns(generated):
    for name, equation in {
        "galore": "M ← β₁ M + (1-β₁) R,   V ← β₂ V + (1-β₂) R²       neither reset",
        "lion": "W ← W - η sign(β₁ M + (1-β₁) G)          sign(0) = 0",
        "ties": "merge   τ = sum (or mean) over the tasks",
        "eora": "U Σ Vᵀ = SVD(ΔW S)",
    }.items():
        blocks = re.findall(r"```text\n(.*?)```", generated[f"algorithms/{name}.md"], re.DOTALL)
        assert any(equation in block for block in blocks), name


@pytest.mark.parametrize(("name", "said"), [("galore", "s r + 2 r l elements"), ("lora", "2 r (m + n) per weight")])
def test_the_page_says_what_state_is_kept(name, said, generated):
    lines = generated[f"algorithms/{name}.md"].splitlines()
    assert any(line.startswith("| **State** | ") and said in line for line in lines)


def test_every_claim_is_on_the_page_of_its_algorithm_with_what_the_records_say(generated, extension):
    told = extension("docstring").inline
    claims = load_claims(REGISTRY)
    assert claims
    for claim in claims:
        assert told(claim.statement) in generated[f"algorithms/{claim.algorithm}.md"], (claim.algorithm, claim.id)
    page = generated["algorithms/galore.md"]
    assert "**held**" in page
    assert "### Not testable here" in page


def test_a_row_of_a_committed_board_is_on_the_page_of_its_algorithm(generated):
    page = generated["algorithms/muon.md"]
    assert "## Measured here" in page
    assert re.search(r"\| llama-c4 tiny, embedded data, default, cpu-2 \| 1 \| 1 \| 5/5 \| 179\.5 ", page)


@pytest.mark.parametrize("name", REGISTRY.workloads)
def test_a_workload_has_a_page_with_every_tier_its_target_budget_reference_and_data(name, generated):
    page, cls = generated[f"workloads/{name}.md"], REGISTRY.workload_class(name)
    for tier_name, tier in cls.tiers.items():
        part = page[page.index(f"\n### {tier_name}\n") :]
        assert f"| `{tier_name}` | " in page
        assert all(f"`{filler}(" in part for filler in tier.reference)
        assert ("none yet" if tier.target is None else f"**Target** | {tier.target.value:g}. ") in part
    assert f"]({name}.md)" in generated["workloads/index.md"]


@pytest.mark.parametrize("name", protocols())
def test_a_protocol_has_a_page_with_its_rules_hash_and_points(name, generated):
    page, one = generated[f"protocols/{name}.md"], protocols()[name]
    assert one.sha256 in page
    assert sum(f"{point[0]:.6f}" in page for study in one.points for point in study) == sum(map(len, one.points))


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_has_a_page_with_every_option_and_argument(verb, generated):
    page, context = generated[f"commands/{verb}.md"], click.Context(cli, info_name="bench", **cli.context_settings)
    command = cli.get_command(context, verb)
    own = click.Context(command, context, verb)
    for parameter in command.get_params(own):
        wanted = parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.make_metavar(own)
        assert wanted.replace("|", "\\|") in page, parameter
    assert f"]({verb}.md)" in generated["commands/index.md"]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_description_and_a_place_in_the_reference(name, generated, extension):
    home = bench._HOME[name]
    module = importlib.import_module(f"bench.{home}")
    assert extension("api").description(module, name).strip(), f"{name} has no docstring"
    page = generated[f"api/{home}.md"]
    assert f"\n## `{name}`\n" in page
    assert f"]({home}.md#{name.lower()})" in generated["api/index.md"]


@pytest.mark.parametrize("name", [name for name in PUBLIC if isinstance(getattr(bench, name), type)])
def test_every_public_method_of_a_public_class_is_documented(name, generated):
    cls, page = getattr(bench, name), generated[f"api/{bench._HOME[name]}.md"]
    own = {
        key: value
        for key, value in vars(cls).items()
        if not key.startswith("_")
        and (isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value))
    }
    for key, value in own.items():
        assert inspect.getdoc(value), f"{name}.{key}"
        assert f"### `{key}`" in page


FURTHER = ("bench.conformance", "bench.diagnostics", "bench.bundle")


@pytest.mark.parametrize("home", FURTHER)
def test_every_name_of_a_package_for_others_is_described(home, generated, extension):
    module = importlib.import_module(home)
    page = generated[f"api/{home.removeprefix('bench.')}.md"]
    for name in module.__all__:
        assert extension("api").description(module, name).strip(), f"{home}.{name} has no docstring"
        assert f"\n## `{name}`\n" in page


def test_every_error_is_described(generated):
    from bench import errors

    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(f"\n## `{error.__name__}`\n" in generated["api/errors.md"] for error in found)


def test_links_between_the_pages_lead_to_pages_of_the_site(generated):
    docs = Path(__file__).parents[2] / "docs"
    for path, page in generated.items():
        bare = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", bare):
            home = PurePosixPath("generated", path).parent
            file = Path(docs, home, target).resolve()
            inside = file.relative_to(docs / "generated").as_posix() if file.is_relative_to(docs / "generated") else ""
            assert inside in generated if inside else file.exists(), f"{path}: {target}"


def test_every_generated_page_is_in_a_table_of_contents(generated):
    known = {"algorithms/index", "workloads/index", "protocols/index", "commands/index", "api/index"}
    known |= {"contributing", "changes", "results"}
    for path, page in generated.items():
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page, re.DOTALL):
            entries = [line for line in block.splitlines() if line.strip() and not line.startswith(":")]
            known |= {f"{PurePosixPath(path).parent}/{entry}" for entry in entries}
    assert {path.removesuffix(".md") for path in generated} == known


# -- docstrings ------------------------------------------------------------------------------------------------------
def test_a_docstring_becomes_paragraphs_equations_examples_and_lists(extension):
    found = extension("docstring").markdown(
        """Adds a_1 * b to ``W``; see :func:`~x.y.step`.

        With *G*:

            W ← W - η G        ``eps``

            y = 2

        >>> 1 + 1
        2

        Args:
            name: what it is,
                in two lines.
            other: see <b>.

        Source: arXiv:1711.05101, "x".
        Deviations: none.
        """
    )
    assert found.split("\n\n", 2)[0] == r"Adds a\_1 \* b to `W`; see `step`."
    assert "```text\nW ← W - η G        eps\n\ny = 2\n```" in found
    assert "- `name`: what it is, in two lines.\n- `other`: see \\<b\\>." in found
    assert 'Source: [arXiv:1711.05101](https://arxiv.org/abs/1711.05101), "x".\n\nDeviations: none.' in found


def test_examples_are_marked_as_python(extension):
    assert "```pycon\n>>> 1 + 1\n2\n```" in extension("docstring").markdown("One.\n\n    >>> 1 + 1\n    2\n")


def test_text_of_a_plugin_cannot_become_markup(extension):
    hostile = "<script>alert(1)</script> ![x](http://a) [y](javascript:b) {raw}`html` # head | cell\n- item"
    found = extension("docstring").inline(hostile)
    assert "<script" not in found.replace(r"\<script", "")
    assert "](" not in found.replace(r"\](", "")
    assert extension("markdown").code("a `b`") == "`` a `b` ``"
    assert extension("markdown").table(("a|b",), [("c\nd | e",)]) == "| a\\|b |\n| --- |\n| c d \\| e |"
