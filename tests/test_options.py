"""The options of a run have one definition; whatever lists them agrees with it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import msgspec
import pytest

import asyncdump
from asyncdump.cli.app import cli
from asyncdump.manifest.compression import Compress
from asyncdump.manifest.keywords import given
from asyncdump.manifest.models import Defaults, Manifest, Retries
from asyncdump.manifest.options import OPTIONS, Overrides

FUNCTIONS = [asyncdump.dump_all, asyncdump.open_run, asyncdump.plan_all, asyncdump.dump_sync]
NAMES = [option.name for option in OPTIONS]
OF_THE_RUN = {"output", "allow_filters", "overwrite", "resume", "trust_receipt"}
"""Options that a manifest has no key for, or another meaning of: its output is relative to its own directory."""

OF_THE_COMMAND = {"dry_run", "progress", "log_format", "quiet", "help"}
HINTS = get_type_hints(Overrides, localns={"Compress": Compress, "Retries": Retries})
REFERENCE = Path(__file__).parent.parent / "docs" / "reference-cli.md"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_signature_spells_them_out(function) -> None:
    parameters = inspect.signature(function).parameters
    assert [name for name in parameters if name not in {"what", "on_event"}] == NAMES
    for option in OPTIONS:
        parameter = parameters[option.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is option.default
        assert parameter.annotation == HINTS[option.name]


@pytest.mark.parametrize("function", FUNCTIONS[:3], ids=lambda function: function.__name__)
def test_so_does_a_docstring(function) -> None:
    described = re.findall(r"^    (\w+): ", inspect.cleandoc(function.__doc__), re.MULTILINE)
    assert [name for name in described if name in NAMES] == NAMES


def test_the_command_line_has_each() -> None:
    command = cli.commands["run"]
    options = {each.name: each for each in command.get_params(click.Context(command)) if isinstance(each, click.Option)}
    assert options.keys() == {*NAMES, *OF_THE_COMMAND}
    for name in NAMES:
        flag = f"--{name.replace('_', '-')}"
        assert options[name].opts == [flag] or options[name].opts == [flag.replace("--", "--no-")]
        assert options[name].help
        assert "{" not in str(options[name].help)


def test_the_reference_lists_each() -> None:
    table = REFERENCE.read_text().partition("| option | meaning |")[2].partition("\n\n")[0]
    flags = re.findall(r"^\| `--([a-z-]+)", table, re.MULTILINE)
    assert {flag.removeprefix("no-").replace("-", "_") for flag in flags} == {*NAMES, *OF_THE_COMMAND} - {
        "quiet",
        "help",
    }


def test_a_manifest_has_the_others() -> None:
    fields = {field.name: field for model in (Manifest, Defaults) for field in msgspec.structs.fields(model)}
    assert {name for name in NAMES if name not in fields} | {"output"} == OF_THE_RUN


@pytest.mark.parametrize("name", ["method", "checksum", "on_error", "on_read_error"])
def test_the_same_values_are_allowed_in_a_manifest(name) -> None:
    (option,) = (option for option in OPTIONS if option.name == name)
    kinds = {field.name: field.type for model in (Manifest, Defaults) for field in msgspec.structs.fields(model)}
    assert option.choices == get_args(get_args(kinds[name])[0])


# --- what they do -----------------------------------------------------------------------------------------------------


WRONG: dict[str, Any] = {
    "concurrency": 0,
    "method": "teleport",
    "checksum": "md5",
    "compress": "gzip",
    "on_error": "ignore",
    "on_read_error": "skip",
    "retries": -1,
    "durable": "yes",
}


async def test_all_wrong_values_are_reported(tmp_path: Path) -> None:
    with pytest.raises(asyncdump.ManifestError) as caught:
        await asyncdump.plan_all([tmp_path / "source"], output=tmp_path / "dumps", **WRONG)
    assert {problem.key for problem in caught.value.problems} == WRONG.keys()


async def test_an_unknown_one_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="overwrit'"):
        await asyncdump.plan_all([tmp_path / "source"], output=tmp_path, overwrit=True)  # type: ignore[call-arg]


def test_what_overrides_nothing_is_not_given() -> None:
    assert given(Overrides(output=None, overwrite=False, durable=None, retries=None)) == []
    assert given(Overrides(output="x", overwrite=True, durable=False, retries=0)) == [
        "output",
        "overwrite",
        "durable",
        "retries",
    ]
