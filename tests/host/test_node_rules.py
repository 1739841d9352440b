"""Rules that every node of the pack keeps: names, tooltips, help pages, translations. Each test lists all offenders."""

import inspect
import json
import os
import re
import warnings

import pytest
from comfy_api.latest._io import WidgetInput
from comfy_api.v0_0_2 import io
from conftest import ROOT

JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
CORE_TYPES = {kind.io_type for kind in vars(io).values() if isinstance(getattr(kind, "io_type", None), str)}


@pytest.fixture(scope="module")
def schemas(pack_nodes):
    return {node_id: node.GET_SCHEMA() for node_id, node in pack_nodes.items()}


def all_inputs(inputs, prefix=""):
    """(id, input) of every input, those inside dynamic combos and templates too, as `parent.child`."""
    for entry in inputs:
        yield prefix + entry.id, entry
        for option in getattr(entry, "options", None) or []:
            if isinstance(option, io.DynamicCombo.Option):
                yield from all_inputs(option.inputs, f"{prefix}{entry.id}.")


def test_the_pack_has_nodes(schemas):
    assert schemas


def test_ids_and_categories(schemas):
    bad = [name for name in schemas if not re.fullmatch(r"GuidanceLab_[A-Za-z0-9]+", name)]
    bad += [
        f"{name}: category {schema.category}"
        for name, schema in schemas.items()
        if not schema.category.startswith("Guidance Lab/")
    ]
    assert not bad, "\n".join(bad)


def test_names_descriptions_and_aliases(schemas):
    missing = [
        f"{name}: {field}"
        for name, schema in schemas.items()
        for field in ("display_name", "description", "search_aliases")
        if not getattr(schema, field)
    ]
    assert not missing, "\n".join(missing)


def test_every_input_and_output_has_a_tooltip(schemas):
    missing = []
    for name, schema in schemas.items():
        missing += [f"{name}: input {key}" for key, entry in all_inputs(schema.inputs) if not entry.tooltip]
        missing += [f"{name}: output {index}" for index, output in enumerate(schema.outputs) if not output.tooltip]
    assert not missing, "\n".join(missing)


def test_socket_types_are_core_or_prefixed(schemas):
    assert {kind for kind in used_types(schemas) - CORE_TYPES if not kind.startswith("GUIDANCELAB_")} == set()


def used_types(schemas) -> set[str]:
    entries = [entry for schema in schemas.values() for entry in [*schema.inputs, *schema.outputs]]
    return {part for entry in entries for part in entry.io_type.split(",")}


def test_optional_inputs_have_the_same_default_in_schema_and_code(pack_nodes, schemas):
    """A prompt that was saved before the input existed runs `execute` without it."""
    different = []
    for name, schema in schemas.items():
        parameters = inspect.signature(pack_nodes[name].execute).parameters
        for entry in schema.inputs:
            if entry.optional and parameters[entry.id].default != getattr(entry, "default", None):
                different.append(
                    f"{name}.{entry.id}: {getattr(entry, 'default', None)!r} and {parameters[entry.id].default!r}"
                )
    assert not different, "\n".join(different)


def test_the_first_option_of_a_dynamic_combo_has_no_socket(schemas):
    """The canvas fails to make such a node ("Failed to find input socket"), and drops it from workflows without a
    word.
    """
    bad = [
        f"{name}.{key}: option {entry.options[0].key} starts with socket {item.id}"
        for name, schema in schemas.items()
        for key, entry in all_inputs(schema.inputs)
        if isinstance(entry, io.DynamicCombo.Input)
        for item in entry.options[0].inputs
        if not isinstance(item, WidgetInput)
    ]
    assert not bad, "\n".join(bad)


def need_japanese(problems: list[str]) -> None:
    """Japanese texts are welcome, not demanded: what is missing is listed, and fails where a release is made."""
    if problems and os.environ.get("GUIDANCE_LAB_RELEASE"):
        pytest.fail("\n".join(problems))
    if problems:
        warnings.warn("Japanese texts that are missing:\n" + "\n".join(problems), stacklevel=2)


def test_a_missing_japanese_text_is_listed_and_stops_a_release(monkeypatch):
    monkeypatch.delenv("GUIDANCE_LAB_RELEASE", raising=False)
    with pytest.warns(UserWarning, match="web/docs/X/ja.md"):
        need_japanese(["web/docs/X/ja.md"])
    monkeypatch.setenv("GUIDANCE_LAB_RELEASE", "1")
    with pytest.raises(pytest.fail.Exception):
        need_japanese(["web/docs/X/ja.md"])


def test_help_pages_in_english_and_japanese(schemas):
    docs = ROOT / "web" / "docs"
    missing, untranslated_pages = [], []
    for name in schemas:
        for page in (docs / f"{name}.md", docs / name / "ja.md"):
            if not page.is_file():
                (untranslated_pages if page.name == "ja.md" else missing).append(str(page.relative_to(ROOT)))
                continue
            text = page.read_text(encoding="utf-8")
            if page.name == "ja.md" and not JAPANESE.search(text):
                untranslated_pages.append(f"{page.relative_to(ROOT)} is not Japanese")
            # The frontend resolves relative pictures against web/docs for both languages.
            for picture in re.findall(r"!\[[^]]*\]\((?!https?:)([^)\s]+)", text):
                if not (docs / picture).is_file():
                    missing.append(f"{page.relative_to(ROOT)} shows {picture}, which is not in web/docs")
    assert not missing, "\n".join(missing)
    need_japanese(untranslated_pages)


def test_help_pages_belong_to_nodes(schemas):
    docs = ROOT / "web" / "docs"
    pages = {path.stem for path in docs.glob("GuidanceLab_*.md")} | {
        path.parent.name for path in docs.glob("GuidanceLab_*/*.md")
    }
    assert pages - set(schemas) == set()


def test_japanese_names_are_complete(schemas):
    translated = json.loads((ROOT / "locales" / "ja" / "nodeDefs.json").read_text(encoding="utf-8"))
    unknown = [f"{name}: no such node" for name in translated if name not in schemas]
    problems = []
    for name, schema in schemas.items():
        entry = translated.get(name, {})
        problems += [
            f"{name}: {field}" for field in ("display_name", "description") if not JAPANESE.search(entry.get(field, ""))
        ]
        nested = {
            key.replace(".", "_") for key, _ in all_inputs(schema.inputs)
        }  # the frontend looks up `method_blocks` for method.blocks
        problems += untranslated(f"{name}: input", entry.get("inputs", {}), [item.id for item in schema.inputs], nested)
        outputs = [str(index) for index in range(len(schema.outputs))]
        problems += untranslated(f"{name}: output", entry.get("outputs", {}), outputs, set(outputs))
    assert not unknown, "\n".join(unknown)
    need_japanese(problems)


def untranslated(where: str, texts: dict, required: list[str], known: set[str]) -> list[str]:
    problems = [f"{where} {key} does not exist" for key in texts if key not in known]
    for key in required:
        if not texts.get(key, {}).get("name") or not JAPANESE.search(texts[key].get("tooltip", "")):
            problems.append(f"{where} {key} needs a name and a Japanese tooltip")
    return problems


@pytest.mark.parametrize("locale", ["en", "ja"])
def test_categories_and_types_are_named(schemas, locale):
    names = json.loads((ROOT / "locales" / locale / "main.json").read_text(encoding="utf-8"))
    parts = {part for schema in schemas.values() for part in schema.category.split("/")}
    assert parts - set(names["nodeCategories"]) == set()
    assert {kind for kind in used_types(schemas) if kind.startswith("GUIDANCELAB_")} - set(names["dataTypes"]) == set()
