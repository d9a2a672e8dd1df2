"""What a glob matches: as Python's own does, but through no link, each file once, within bounds, and it can be ended."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncdump
import asyncdump.plan.globbing
from asyncdump import Dump
from asyncdump.errors import InterruptedDumpError
from asyncdump.plan.globbing import find, is_glob
from asyncdump.plan.look import look_at
from asyncdump.plan.planner import make_plan

NAMES = st.sampled_from(["a", "b", "ab", ".a", ".hidden", "a1", "a10", "a2", "[a]", "*", "é", "x y"])
PARTS = st.sampled_from(
    [
        "*",
        "**",
        "a*",
        "?",
        "[ab]",
        "[!a]*",
        ".*",
        "*a*",
        "a",
        "b",
        ".hidden",
        "[",
        "[]a]",
        "a[12]*",
        "**a",
        "[.]a",
        "é",
        "*.*",
        "***",
    ]
)
NOBODY = 65534


def nothing() -> None:
    """Don't end it."""


def found(folder: Path, pattern: str) -> list[str]:
    finds = find(str(folder), pattern, nothing)
    assert not finds.failures
    return [os.path.relpath(each.path, folder) for each in finds.files]


def expected(folder: str, pattern: str) -> set[str]:
    matches = glob.glob(os.path.join(glob.escape(folder), pattern), recursive=True)
    return {os.path.normpath(os.path.relpath(match, folder)) for match in matches if os.path.isfile(match)}


@settings(max_examples=int(os.environ.get("ASYNCDUMP_FUZZ", "1")) * 150, deadline=None)
@given(
    st.lists(st.tuples(st.lists(NAMES, max_size=3), NAMES), max_size=12),
    st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=6),
    st.booleans(),
)
def test_it_matches_what_python_does(tree, patterns, slash) -> None:
    folder = tempfile.mkdtemp(prefix="[*]")
    try:
        for parents, name in tree:
            path = os.path.join(folder, *parents)
            try:
                os.makedirs(path, exist_ok=True)
                Path(path, name).touch()
            except OSError:  # A file is in the place of the folder.
                continue
        for written in patterns:
            pattern = written + "/" * slash
            if not is_glob(pattern):
                continue
            files = found(Path(folder), pattern)
            literal = {os.path.normpath(pattern)} if os.path.isfile(os.path.join(folder, pattern)) else set()
            assert {os.path.normpath(file) for file in files} == expected(folder, pattern) | literal
            assert len(files) == len(set(files))
    finally:
        shutil.rmtree(folder)


def test_natural_order(tmp_path: Path) -> None:
    for name in ("a10", "a9", "a1b2", "a1b10", "b", "a"):
        (tmp_path / name).touch()
    assert found(tmp_path, "*") == ["a", "a1b2", "a1b10", "a9", "a10", "b"]


def test_links_are_not_followed_but_those_before_the_first_wildcard(tmp_path: Path) -> None:
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "real/sub/file").touch()
    (tmp_path / "named").symlink_to("real")
    (tmp_path / "real/planted").symlink_to("/etc")
    (tmp_path / "real/self").symlink_to(".")
    (tmp_path / "real/passwd").symlink_to("/etc/passwd")
    assert found(tmp_path, "named/**") == ["named/sub/file"]
    assert found(tmp_path, "named/*/file") == ["named/sub/file"]
    assert found(tmp_path, "*/sub/file") == ["real/sub/file"]
    for pattern in (
        "real/*",
        "real/p*",
        "real/planted*/passwd",
        "*/planted/passwd",
        "**/passwd",
        "*/self/sub/file",
        "*/passwd",
    ):
        assert found(tmp_path, pattern) == []


def test_a_link_that_is_called_as_the_pattern_is_written(tmp_path: Path) -> None:
    (tmp_path / "*").symlink_to("/etc/passwd")
    (tmp_path / "file").touch()
    assert found(tmp_path, "*") == ["file"]


def test_a_file_with_several_names_is_found_once(tmp_path: Path) -> None:
    (tmp_path / "a2").touch()
    (tmp_path / "a10").hardlink_to(tmp_path / "a2")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a1").hardlink_to(tmp_path / "a2")
    assert found(tmp_path, "**") == ["a2"]
    assert found(tmp_path, "*/*") == ["sub/a1"]


def test_links_to_where_they_are_cost_nothing(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"link{number}").symlink_to(".")
    (tmp_path / "file").touch()
    assert found(tmp_path, "/".join(["**"] * 20)) == ["file"]
    assert found(tmp_path, "**/link*/**/file") == []


def test_many_nested_folders(tmp_path: Path) -> None:
    depth = 1500
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    try:
        assert found(tmp_path, "**/file") == ["d/" * depth + "file"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_deeper_than_a_path_can_say_is_told(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    try:
        finds = find(str(tmp_path), "**/file", nothing)
        assert len(finds.failures) == 1
    finally:
        subprocess.run(["rm", "-rf", tmp_path / ("d" * 250)], check=True)


def test_more_names_than_are_looked_at(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(asyncdump.plan.globbing, "MOST_ENTRIES", 10)
    for number in range(11):
        (tmp_path / f"{number}").touch()
    with pytest.raises(asyncdump.DumpError):
        find(str(tmp_path), "x*", nothing)
    manifest = tmp_path / "m.yaml"
    manifest.write_text("{version: 1, output: out, dumps: [{source: '*'}]}")
    with pytest.raises(asyncdump.ManifestError):
        anyio.run(asyncdump.plan_all, manifest)


def test_a_folder_that_is_exchanged_for_a_link(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/passwd").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/passwd").touch()
    real = asyncdump.plan.globbing._Walk._look_into

    def exchange(walk, folder) -> None:
        if folder.path.endswith("/folder"):
            shutil.rmtree(tmp_path / "folder")
            (tmp_path / "folder").symlink_to("elsewhere")
        real(walk, folder)

    monkeypatch.setattr(asyncdump.plan.globbing._Walk, "_look_into", exchange)
    assert found(tmp_path, "f*/passwd") == []


def test_a_folder_that_is_exchanged_for_another(tmp_path: Path, monkeypatch) -> None:
    for name in ("folder", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "passwd").touch()
    real = asyncdump.plan.globbing._Walk._look_into

    def exchange(walk, folder) -> None:
        if folder.path.endswith("/folder"):
            (tmp_path / "folder").rename(tmp_path / "away")
            (tmp_path / "elsewhere").rename(tmp_path / "folder")
        real(walk, folder)

    monkeypatch.setattr(asyncdump.plan.globbing._Walk, "_look_into", exchange)
    assert found(tmp_path, "f*/passwd") == []


@pytest.mark.parametrize("when", ["found", "planned"])
async def test_a_link_to_the_very_match_is_no_match(when, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / name).write_text(name)
    steps: dict[str, tuple[str, Callable[..., Any]]] = {
        "found": ("asyncdump.plan.planner", find),
        "planned": ("asyncdump.dumping", make_plan),
    }
    module, step = steps[when]

    def exchange(*given):
        answer = step(*given)
        (tmp_path / "in/a").rename(tmp_path / "moved")
        (tmp_path / "in/a").symlink_to(tmp_path / "moved")
        return answer

    monkeypatch.setattr(module + "." + step.__name__, exchange)
    report = await asyncdump.dump_all([Dump(source=tmp_path / "in/?")], output=tmp_path / "out")
    assert {file.name: file.ok for file in report.files} == {"a": False, "b": True}


def test_files_that_a_process_has_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    memfd = os.memfd_create("ring")
    again = os.dup(memfd)
    reading = os.open(tmp_path / "file", os.O_RDONLY)
    (tmp_path / "other").touch()
    (tmp_path / "secret").touch()
    writing = os.open(tmp_path / "other", os.O_WRONLY)
    passing = os.open(tmp_path / "secret", os.O_PATH)
    try:
        finds = find("/", f"/proc/{os.getpid()}/fd/*", nothing)
        inodes = [each.inode for each in finds.files]
        assert inodes.count(os.fstat(memfd).st_ino) == 1
        assert (tmp_path / "file").stat().st_ino in inodes
        assert not {os.fstat(fd).st_ino for fd in (writing, passing)} & set(inodes)
        assert finds.failures == ()
        os.write(memfd, b"memory")
        (source,) = [look_at(each.path, each) for each in finds.files if each.inode == os.fstat(memfd).st_ino]
        assert (source.memfd, source.size) == (True, 6)
    finally:
        for fd in (memfd, again, reading, writing, passing):
            os.close(fd)


def test_a_folder_called_fd_is_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "fd").mkdir()
    (tmp_path / "fd/1").symlink_to("/etc/passwd")
    assert found(tmp_path, "fd/*") == []


async def test_a_match_that_is_exchanged_fails_by_itself(tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_text(name)

    def exchange(*given):
        finds = find(*given)
        (tmp_path / "a").unlink()
        (tmp_path / "a").symlink_to("/etc/passwd")
        (tmp_path / "b").unlink()
        (tmp_path / "c").unlink()
        (tmp_path / "new").write_text("other")
        (tmp_path / "new").rename(tmp_path / "c")
        return finds

    monkeypatch.setattr("asyncdump.plan.planner.find", exchange)
    report = await asyncdump.dump_all([Dump(source=tmp_path / "?")], output=tmp_path / "out")
    assert {file.name: (file.ok, file.phase) for file in report.files} == {
        "a": (False, "plan"),
        "b": (False, "plan"),
        "c": (False, "plan"),
        "d": (True, "done"),
    }
    assert (tmp_path / "out/d").read_text() == "d"
    verified = await asyncdump.verify_all(tmp_path / "out")
    assert [file.verdict for file in verified.files] == ["missing", "missing", "missing", "ok"]
    monkeypatch.undo()
    again = await asyncdump.dump_all([Dump(source=tmp_path / "?")], output=tmp_path / "out", resume=True)
    assert {file.name: file.ok for file in again.files} == {"c": True, "d": True}


def _powerless(*command: object) -> subprocess.CompletedProcess[str]:
    """Run it as a root that permissions hold for."""
    powers = "--bounding-set=-dac_override,-dac_read_search"
    run = ["setpriv", powers, sys.executable, "-m", "asyncdump", *map(str, command)]
    return subprocess.run(run, capture_output=True, text=True, check=False)


@pytest.mark.sample(1)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
@pytest.mark.parametrize("on_error", ["continue", "abort"])
def test_what_may_not_be_read_fails_and_the_rest_is_dumped(on_error) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        (folder / "in/open").mkdir(parents=True)
        (folder / "in/closed").mkdir()
        (folder / "in/closed/file").write_text("1")
        (folder / "in/open/file").write_text("2")
        (folder / "in/open/secret").write_text("3")
        (folder / "m.yaml").write_text(
            f"{{version: 1, output: out, on_error: {on_error}, dumps: [{{source: in/**}}, {{source: m.yaml}}]}}"
        )
        for path in (folder / "in/closed", folder / "in/open/secret"):
            os.chown(path, NOBODY, NOBODY)
            path.chmod(0o600)
        done = _powerless(folder / "m.yaml", "--concurrency", "1")
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        if on_error == "continue":
            assert sorted(
                name for name in os.listdir(folder / "out") if name in {"file", "m.yaml", "secret", "closed"}
            ) == [
                "file",
                "m.yaml",
            ]
            assert (folder / "out/receipt.json").read_text().count("EACCES") >= 2
        (folder / "m.yaml").write_text("{version: 1, output: out2, dumps: [{source: in/closed/*}]}")
        assert _powerless(folder / "m.yaml").returncode == 2
        (folder / "m.yaml").write_text("{version: 1, output: out2, dumps: [{source: in/open/secret}]}")
        assert _powerless(folder / "m.yaml").returncode == 2
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def large(tmp_path: Path, monkeypatch) -> Path:
    """A folder that it takes for ever to walk, for it has no end."""
    real = asyncdump.plan.globbing._Walk._look_into

    def endless(walk, folder) -> None:
        walk._waiting.append(folder)
        real(walk, folder)

    monkeypatch.setattr(asyncdump.plan.globbing._Walk, "_look_into", endless)
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize("call", [asyncdump.plan_all, asyncdump.dump_all])
async def test_planning_is_cancelled(call, large: Path) -> None:
    began = time.monotonic()
    with anyio.move_on_after(0.2):
        await call([Dump(source=large / "**")], output=large / "out")
        pytest.fail("it has ended")
    assert time.monotonic() - began < 5
    assert not (large / "out").exists()


def test_check_ends_it(large: Path) -> None:
    looks = iter([None] * 100)

    def check() -> None:
        if next(looks, 1):
            raise InterruptedDumpError("enough")

    with pytest.raises(InterruptedDumpError):
        find(str(large), "**", check)
