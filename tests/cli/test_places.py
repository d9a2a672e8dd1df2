"""The command where a host lacks something: a working directory, /proc, descriptors, memory, a locale. Never a traceback."""

from __future__ import annotations

import os
import pty
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import COMMAND, ENOUGH, environment, write_manifest
from files import MiB, noise, unavailable


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a run in ``out``."""
    (tmp_path / "ring").write_bytes(noise(MiB))
    write_manifest(tmp_path, tmp_path / "ring")
    subprocess.run([*COMMAND, "m.yaml", "-q"], cwd=tmp_path, check=True)
    write_manifest(tmp_path, tmp_path / "ring", name="n.yaml", output=str(tmp_path / "new"))
    return tmp_path


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what is said, which is one line."""
    assert "Traceback" not in done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("asyncdump")
    return line


def within(script: str, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    env = environment(ASYNCDUMP=" ".join(COMMAND))
    command = ["sh", "-c", script]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=ENOUGH, check=False, **options
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "arguments",
    [
        "{}/m.yaml --output x",
        "m.yaml",
        "verify out",
        "restore {}/out --to back",
        "cat ring",
        "info ring",
        "probe ring .",
    ],
)
def test_a_working_directory_that_was_removed(arguments: str, place: Path) -> None:
    (place / "gone").mkdir()
    done = within(f"cd gone; rmdir ../gone; exec $ASYNCDUMP {arguments.format(place)}", place)
    assert done.returncode == 2
    assert one_line(done)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "arguments", ["{}/n.yaml -q", "verify {}/out -q", "restore {}/out --to {}/back -q", "cat {}/ring", "info {}/ring"]
)
def test_what_needs_none_works_there(arguments: str, place: Path) -> None:
    (place / "gone").mkdir()
    done = within(f"cd gone; rmdir ../gone; exec $ASYNCDUMP {arguments.format(place, place)} > /dev/null", place)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.sample(1)
@pytest.mark.parametrize("limit", [5, 8, 12, 18, 25])
@pytest.mark.parametrize("arguments", ["n.yaml", "verify out", "restore out --to back", "n.yaml --dry-run"])
def test_hardly_any_descriptors(arguments: str, limit: int, place: Path) -> None:
    done = within(f"ulimit -n {limit}; exec $ASYNCDUMP {arguments}", place)
    if "--dry-run" in arguments and done.returncode == 0:
        return
    assert done.returncode == 2
    assert "EMFILE" in one_line(done) or "open files" in done.stderr
    assert not (place / "new").exists() or os.listdir(place / "new") == []


@pytest.mark.sample(1)
@pytest.mark.parametrize("megabytes", [56, 60, 64])
def test_hardly_any_memory(megabytes: int, place: Path) -> None:
    done = within(f"ulimit -v {megabytes << 10}; exec $ASYNCDUMP n.yaml --progress none > /dev/null", place)
    if done.returncode == 127:
        pytest.skip("not even Python starts")
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, 1, 2}


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "POSIX"}]
)
def test_odd_names_where_only_ascii_is_known(locale: dict[str, str], tmp_path: Path) -> None:
    names = [b"gr\xc3\xb6\xc3\x9fe", b"\xff\xfe", b"a b"]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(noise(5000))
    (tmp_path / "m.yaml").write_text('version: 1\noutput: out\ndumps: [{source: "[!m]*"}]\n')
    env = environment(**locale)
    for arguments in (
        ["m.yaml"],
        ["verify", "out"],
        ["restore", "out", "--to", "back"],
        ["m.yaml", "--progress", "json"],
    ):
        done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, env=env, capture_output=True, check=False)
        assert b"Traceback" not in done.stderr
        assert done.returncode == (2 if arguments[-1] == "json" else 0), done.stderr
    with open(os.fsencode(tmp_path) + b"/back/" + names[1], "rb") as file:
        assert file.read() == noise(5000)


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", [[], ["--compress", "zstd"], ["--allow-filters"]])
def test_a_dump_to_standard_output_among_thousands_of_descriptors(options: list[str], place: Path) -> None:
    """Numbers beyond what select(2) knows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        unavailable("too few files may be open")
    entry: dict[str, object] = {"source": str(place / "ring")}
    if options == ["--allow-filters"]:
        entry["filter"] = [["cat"]]
    write_manifest(place, entry, name="n.yaml")
    script = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (3000, {hard}))\n"
        "held = [os.open('/dev/null', os.O_RDONLY) for _ in range(2000)]\n"
        "import asyncio, asyncdump\n"
        f"options = {{'allow_filters': True}} if 'filter' in open('n.yaml').read() else {{}}\n"
        f"options |= {{'compress': 'zstd'}} if {options!r}[:1] == ['--compress'] else {{}}\n"
        "report = asyncio.run(asyncdump.dump_all('n.yaml', output='-', **options))\n"
        "report.raise_for_failures()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=place, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(10)
        time.sleep(0.3)  # The pipe is full, and it waits.
        told = first + process.stdout.read()
        assert process.wait(ENOUGH) == 0
    if options != ["--compress", "zstd"]:
        assert told == noise(MiB)


def test_a_terminal_that_does_not_know_its_width(place: Path) -> None:
    master, slave = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "n.yaml", "--progress", "none"],
        cwd=place,
        stdout=slave,
        stderr=subprocess.PIPE,
        timeout=ENOUGH,
        check=False,
    )
    os.close(slave)
    os.close(master)
    assert (done.returncode, done.stderr) == (0, b"")
