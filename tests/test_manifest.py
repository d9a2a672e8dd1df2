"""The models of a manifest, and the JSON Schema that must say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from strategies import LOADER, as_yaml, documents, nonempty, scalars, values

from asyncdump.engines import ENGINES
from asyncdump.errors import ManifestError, Problem
from asyncdump.manifest.complaints import fields, required, unknown_key
from asyncdump.manifest.models import Defaults, Dump, Manifest, Sparse
from asyncdump.manifest.schema import json_schema
from asyncdump.manifest.yaml import parse_manifest
from asyncdump.vocabulary.size import MAXIMUM
from asyncdump.vocabulary.values import Checksum, Choice, OnError

SCHEMA = json_schema()
MODELS = {"Manifest": Manifest, "Defaults": Defaults, "Dump": Dump}


def complaints(model: Any, **given: Any) -> dict[str, str]:
    """Return what a model says of its fields, by their names."""
    with pytest.raises(ManifestError) as refused:
        model(**given)
    return {problem.key: problem.message for problem in refused.value.problems}


# --- the models -------------------------------------------------------------------------------------------------------


def test_what_is_not_given_has_the_documented_value() -> None:
    dump = Dump(source="s")
    manifest = Manifest(output="o", dumps=(dump,))
    assert (dump.name, dump.offset, dump.length) == (None, 0, None)
    assert (dump.method, dump.checksum, dump.durable, dump.sparse) == (None, None, None, None)
    assert (manifest.version, manifest.concurrency, manifest.on_error) == (1, "auto", "continue")
    defaults = manifest.defaults
    assert (defaults.method, defaults.checksum, defaults.durable, defaults.sparse) == ("auto", "xxh128", True, "auto")
    assert (dump.on_read_error, defaults.on_read_error) == (None, "fail")


def test_a_path_serves_as_well_as_text() -> None:
    assert Dump(source=Path("/dev/shm/x")).source == "/dev/shm/x"
    assert Manifest(output=Path("o"), dumps=(Dump(source="s"),)).output == "o"


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        (Dump, "source", ""),
        (Dump, "source", None),
        (Dump, "source", b"s"),
        (Dump, "name", ""),
        (Dump, "name", 7),
        (Dump, "offset", -1),
        (Dump, "offset", "16 MiBs"),
        (Dump, "offset", MAXIMUM + 1),
        (Dump, "offset", None),
        (Dump, "offset", 1.5),
        (Dump, "offset", True),
        (Dump, "length", "1.5GiB"),
        (Dump, "length", []),
        (Dump, "method", "redd"),
        (Dump, "checksum", "sha265"),
        (Dump, "checksum", "md5"),
        (Dump, "durable", "yes"),
        (Dump, "durable", 1),
        (Dump, "sparse", "always"),
        (Dump, "on_read_error", "skip"),
        (Defaults, "on_read_error", None),
        (Defaults, "method", None),
        (Defaults, "durable", None),
        (Manifest, "version", 2),
        (Manifest, "version", True),
        (Manifest, "version", 1.0),
        (Manifest, "output", ""),
        (Manifest, "concurrency", 0),
        (Manifest, "concurrency", 257),
        (Manifest, "concurrency", True),
        (Manifest, "concurrency", 4.0),
        (Manifest, "concurrency", "auot"),
        (Manifest, "on_error", "stop"),
        (Manifest, "dumps", ()),
    ],
)
def test_a_wrong_value_is_named(model, name, value) -> None:
    right: dict[Any, dict[str, Any]] = {
        Dump: {"source": "s"},
        Defaults: {},
        Manifest: {"output": "o", "dumps": (Dump(source="s"),)},
    }
    found = complaints(model, **{**right[model], name: value})
    assert list(found) == [name]
    assert value in ("", b"s", ()) or repr(value) in found[name] or str(MAXIMUM) in found[name]


def test_all_wrong_values_are_named_at_once() -> None:
    found = complaints(Dump, source=5, offset="x", length=-1, method="fast", durable=None, sparse="no")
    assert set(found) == {"source", "offset", "length", "method", "sparse"}


@pytest.mark.parametrize("concurrency", [1, 256, "auto"])
def test_the_ends_of_the_range_belong_to_it(concurrency) -> None:
    assert Manifest(output="o", dumps=(Dump(source="s"),), concurrency=concurrency).concurrency == concurrency


def test_a_model_cannot_be_changed_past_its_checks() -> None:
    dump = Dump(source="s")
    with pytest.raises(AttributeError):
        dump.offset = -1  # type: ignore[misc]


def test_an_unknown_key_gets_a_suggestion_or_the_known_ones() -> None:
    assert unknown_key(Manifest, "concurency").count("concurrency") == 1
    assert all(field in unknown_key(Defaults, "zzz") for field in Defaults.__struct_fields__)


def test_a_problem_says_where_it_stands() -> None:
    assert str(Problem(file="m.yaml", line=7, key="dumps[1].length", message="no")) == "m.yaml:7: dumps[1].length: no"
    assert str(Problem(file="m.yaml", message="no")) == "m.yaml: no"
    assert str(Problem(key="output", message="no")) == "output: no"
    error = ManifestError(Problem(key="a", message="1"), Problem(key="b", message="2"))
    assert str(error) == "a: 1\nb: 2"


# --- the schema -------------------------------------------------------------------------------------------------------


def definition(model: str) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA["$defs"][model]
    return found


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    prefix, _, name = schema["$ref"].rpartition("/")
    assert prefix == "#/$defs"
    return definition(name)


def is_type(value: Any, name: str) -> bool:
    """Tell types as JSON does: a boolean is no number."""
    if isinstance(value, bool):
        return name == "boolean"
    kinds: dict[str, Any] = {
        "string": str,
        "integer": int,
        "null": type(None),
        "boolean": bool,
        "object": dict,
        "array": (list, tuple),
    }
    return isinstance(value, kinds[name])


def is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Validate as a JSON Schema validator does, as far as this schema goes; any other keyword is an error here."""
    schema = resolve(schema)
    tests = {
        "type": lambda name: is_type(value, name),
        "enum": lambda choices: any(is_same(value, choice) for choice in choices),
        "const": lambda constant: is_same(value, constant),
        "anyOf": lambda schemas: any(conforms(value, each) for each in schemas),
        "minLength": lambda least: not isinstance(value, str) or len(value) >= least,
        "minItems": lambda least: not isinstance(value, list) or len(value) >= least,
        "minimum": lambda least: not isinstance(value, int) or value >= least,
        "maximum": lambda most: not isinstance(value, int) or value <= most,
        "items": lambda each: not isinstance(value, list) or all(conforms(item, each) for item in value),
        "required": lambda names: not isinstance(value, dict) or set(names) <= set(value),
        "properties": lambda known: (
            not isinstance(value, dict)
            or all(conforms(item, known[name]) for name, item in value.items() if name in known)
        ),
        "additionalProperties": lambda allowed: (
            allowed or not isinstance(value, dict) or set(value) <= set(schema["properties"])
        ),
    }
    told = {"title", "description", "default", "examples", "$schema", "$defs"}
    return all(tests[keyword](limit) for keyword, limit in schema.items() if keyword not in told)


@pytest.mark.parametrize("name", MODELS)
def test_the_schema_has_the_keys_of_the_model_and_no_others(name) -> None:
    model, schema = MODELS[name], definition(name)
    assert list(schema["properties"]) == list(fields(model))
    assert schema["additionalProperties"] is False
    assert schema["type"] == "object"
    first = ["version"] if name == "Manifest" else []
    assert schema.get("required", []) == [*first, *required(model)]


def test_a_file_must_have_what_the_reference_calls_required() -> None:
    assert definition("Manifest")["required"] == ["version", "output", "dumps"]
    assert definition("Dump")["required"] == ["source"]
    assert definition("Defaults").get("required", []) == []


def choices_of(model: str, key: str) -> set[Any]:
    schema = definition(model)["properties"][key]
    found = [each.get("enum", []) for each in (schema, *schema.get("anyOf", []))]
    return {choice for choices in found for choice in choices}


@pytest.mark.parametrize("model", ["Defaults", "Dump"])
def test_the_schema_has_the_choices_of_the_models(model) -> None:
    optional = {None} if choices_of(model, "method") >= {None} else set()
    assert choices_of(model, "method") - optional == set(get_args(Choice)) == {"auto", *ENGINES}
    assert choices_of(model, "checksum") - optional == set(get_args(Checksum))
    assert choices_of(model, "sparse") - optional == set(get_args(Sparse))
    assert choices_of(model, "on_read_error") - optional == {"fail", "zero"}


def test_the_schema_of_the_head() -> None:
    head = definition("Manifest")["properties"]
    assert choices_of("Manifest", "on_error") == set(get_args(OnError))
    assert head["version"].get("const", head["version"].get("enum")) in (1, [1])
    assert "default" not in head["version"]
    number = next(each for each in head["concurrency"]["anyOf"] if each.get("type") == "integer")
    assert (number["minimum"], number["maximum"]) == (1, 256)
    assert head["dumps"]["minItems"] == 1
    assert conforms("auto", head["concurrency"])


def test_the_schema_is_one_that_validators_take() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert resolve({"$ref": SCHEMA["$ref"]}) is definition("Manifest")


def test_every_key_is_explained() -> None:
    silent = [
        f"{model}.{key}"
        for model in MODELS
        for key, schema in definition(model)["properties"].items()
        if not any("description" in each for each in (schema, *schema.get("anyOf", [])))
    ]
    assert silent == []


@given(documents)
def test_what_the_reader_takes_conforms_to_the_schema(document: dict[str, Any]) -> None:
    assert conforms(document, SCHEMA)


def reads(document: Any) -> bool:
    """Tell whether the reader takes a document; what is wrong with a size is more than a schema can say."""
    try:
        parse_manifest(as_yaml(document), "m.yaml")
    except ManifestError as error:
        return all("not a size" in problem.message or "can contain" in problem.message for problem in error.problems)
    return True


SPOILERS = scalars.filter(lambda value: value is None or type(value) in {bool, int, str})


@given(documents, st.data())
def test_the_schema_and_the_reader_agree_on_what_is_wrong(document: dict[str, Any], data: st.DataObject) -> None:
    parts = [document, *document["dumps"], *([document["defaults"]] if "defaults" in document else [])]
    part = data.draw(st.sampled_from(parts))
    spoiled = data.draw(st.sampled_from(sorted({*part, "method", "source", "version", "concurrency", "surplus"})))
    if data.draw(st.booleans()):
        part.pop(spoiled, None)
    else:
        part[spoiled] = data.draw(SPOILERS | nonempty | st.just([]) | st.just({}))
    assert conforms(document, SCHEMA) == reads(document)


@given(values)
def test_the_schema_takes_nothing_that_yaml_reads_otherwise(document: Any) -> None:
    written = as_yaml(document)
    try:
        parse_manifest(written, "m.yaml")
    except ManifestError:
        return
    assert conforms(yaml.load(written, Loader=LOADER), SCHEMA)
