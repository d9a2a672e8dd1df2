"""Errors: what each is for, and what it tells in Python and on the command line."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from files import noise

import asyncdump
from asyncdump.errors import AsyncdumpError
from asyncdump.manifest.options import OPTIONS
from asyncdump.sinks.folder import Folder
from asyncdump.spelling import command_line, python, speak, spelled

PACKAGE = Path(asyncdump.__file__).parent
REFERENCE = Path(__file__).parent.parent / "docs" / "reference-cli.md"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "ring"
    path.write_bytes(noise(5000))
    return path


@pytest.fixture
def on_the_command_line() -> Iterator[None]:
    speak(command_line)
    yield
    speak(python)


# --- what callers decide on -------------------------------------------------------------------------------------------


async def test_another_run_is_running(source, tmp_path: Path) -> None:
    output = Folder(str(tmp_path / "dumps"))
    output.lock()
    try:
        with pytest.raises(asyncdump.BusyError) as caught:
            await asyncdump.dump_all([source], output=output.path)
    finally:
        output.close()
    assert (caught.value.path, caught.value.operation) == (output.path, "flock")
    assert caught.value.errno in {errno.EAGAIN, errno.EWOULDBLOCK}
    assert caught.value.exit_code == 3


async def test_the_output_can_not_be_created(source) -> None:
    with pytest.raises(asyncdump.OutputError) as caught:
        await asyncdump.dump_all((await asyncdump.plan_all([source], output="/dev/shm")).into("/proc/dumps"))
    assert (caught.value.path, caught.value.operation, caught.value.errno) == ("/proc/dumps", "mkdir", errno.ENOENT)
    assert caught.value.exit_code == 2
    assert caught.value.hint == ""  # That there is nothing of the kind is said.


async def test_neither_can_that_of_a_restore(source, tmp_path: Path) -> None:
    (await asyncdump.dump_all([source], output=tmp_path / "dumps")).raise_for_failures()
    with pytest.raises(asyncdump.OutputError) as caught:
        await asyncdump.restore_all(tmp_path / "dumps", "/proc/back")
    assert caught.value.path == "/proc/back"


async def test_dumps_exist(source, tmp_path: Path) -> None:
    (await asyncdump.dump_all([source], output=tmp_path / "dumps")).raise_for_failures()
    with pytest.raises(asyncdump.TargetExistsError) as caught:
        await asyncdump.dump_all([source], output=tmp_path / "dumps")
    assert isinstance(caught.value, asyncdump.ManifestError)
    assert caught.value.path == str(tmp_path / "dumps")
    assert [problem.key for problem in caught.value.problems] == ["output"]


async def test_targets_exist(source, tmp_path: Path) -> None:
    (await asyncdump.dump_all([source], output=tmp_path / "dumps")).raise_for_failures()
    (await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back")).raise_for_failures()
    with pytest.raises(asyncdump.TargetExistsError) as caught:
        await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back")
    assert isinstance(caught.value, asyncdump.ReceiptError)
    assert (caught.value.path, caught.value.errno) == (str(tmp_path / "back" / "ring"), errno.EEXIST)


async def test_the_file_that_is_the_matter_is_named(make, tmp_path: Path) -> None:
    source = make("tmpfs", noise(5000))  # From which no kernel clones.
    report = await asyncdump.dump_all(asyncdump.Dump(source), output=tmp_path / "dumps", method="reflink")
    error = report.files[0].error
    assert isinstance(error, asyncdump.MethodRefusedError)
    assert (error.path, error.operation) == (source, "reflink")
    assert error.errno


# --- exit codes -------------------------------------------------------------------------------------------------------


def classes(root: type[AsyncdumpError]) -> set[type[AsyncdumpError]]:
    return {root}.union(*map(classes, root.__subclasses__()))


def test_each_exit_code_is_documented() -> None:
    table = REFERENCE.read_text().partition("## Exit codes")[2].partition("\n\n|")[2].partition("\n\n")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+)", table, re.MULTILINE)}
    assert {kind.exit_code for kind in classes(AsyncdumpError) if kind.__module__ == "asyncdump.errors"} <= documented


def test_the_command_line_exits_with_it(source, tmp_path: Path) -> None:
    manifest = tmp_path / "m.yaml"
    manifest.write_text(f"version: 1\noutput: dumps\ndumps: [{{source: {source}}}]\n")
    folder = Folder(str(tmp_path / "dumps"))
    folder.lock()
    command = [sys.executable, "-m", "asyncdump", str(manifest)]
    try:
        assert subprocess.run(command, capture_output=True, check=False).returncode == asyncdump.BusyError.exit_code
    finally:
        folder.close()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert subprocess.run(command, capture_output=True, check=False).returncode == asyncdump.TargetExistsError.exit_code


# --- options in hints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "keyword", "flag"),
    [
        ("pass {overwrite}", "pass overwrite=True", "pass --overwrite"),
        ("{allow_filters} does", "allow_filters=True does", "--allow-filters does"),
        ("{on_read_error=zero}, too", 'on_read_error="zero", too', "--on-read-error zero, too"),
        ("{durable=False}", "durable=False", "--no-durable"),
        ("{compressed=False} {compressed=zstd}", 'compressed=False compressed="zstd"', "--raw --zstd"),
        ("{} {0} {a b} {A} {x=}", "{} {0} {a b} {A} {x=}", "{} {0} {a b} {A} {x=}"),
    ],
)
def test_an_option_is_spelled_as_the_interface_has_it(template, keyword, flag) -> None:
    assert spelled(template) == spelled(template, python) == keyword
    assert spelled(template, command_line) == flag


def test_a_hint_speaks_the_language_of_the_process_that_shows_it(on_the_command_line: None) -> None:
    error = pickle.loads(pickle.dumps(asyncdump.DumpError("no", hint="pass {overwrite}")))
    problem = asyncdump.ManifestError(asyncdump.Problem(message="no", key="a", remedy="pass {resume}"))
    assert (error.hint, str(problem)) == ("pass --overwrite", "a: no: pass --resume")
    speak(python)
    assert (error.hint, str(problem)) == ("pass overwrite=True", "a: no: pass resume=True")


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHERS = {"--long", "--no-"}
"""Options of zstd; the beginning of some of ours."""


def texts() -> Iterator[tuple[str, str]]:
    """Yield every text of the package that isn't a docstring or the command line's own, with its file."""
    import ast

    for path in PACKAGE.rglob("*.py"):
        if path.parent.name in {"cli", "dd"} or path.name in {"spelling.py", "__main__.py"}:
            continue
        tree = ast.parse(path.read_text())
        prose = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                yield path.name, node.value


def test_no_message_of_the_library_has_a_flag() -> None:
    found = {(name, flag) for name, message in texts() for flag in FLAG.findall(message)}
    assert {(name, flag) for name, flag in found if flag not in OTHERS} == set()


def test_each_option_in_a_hint_is_one() -> None:
    known = {option.name for option in OPTIONS} | {"against_source", "compressed"}
    used = {name for _, message in texts() for name in re.findall(r"(?<![{\w])\{([a-z_]+)(?:=[A-Za-z]+)?\}", message)}
    templates = {"name", "stem", "suffix", "parent", "index", "pid"}  # Of names of dumps.
    assert {"overwrite", "resume", "allow_filters"} <= used
    assert used - templates <= known


def test_an_error_has_the_name_itself_and_a_text_that_can_be_shown() -> None:
    name = os.fsdecode(b"/x/\xff\n")
    error = asyncdump.DumpError(f"open of {name}: no", path=name, errno=2)
    assert error.path == name
    assert str(error).isprintable()
