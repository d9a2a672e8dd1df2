"""SIGKILL at any moment: what has its name is whole, what is recorded is true, and a second run completes the first.

ASYNCDUMP_KILLS is how many runs are killed in `test_killed_at_any_moment`, half of them raw and half compressed.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from files import HUGE_PAGE, KiB, MiB, content, digest_of, leftovers, noise, read, write_huge, write_pages
from tool import (
    ENOUGH,
    Dumps,
    Gate,
    asyncdump,
    check_complete,
    check_whole,
    checked,
    content_of,
    journal_of,
    receipt_of,
    resume,
    started,
    wait_for,
    write_manifest,
)

from asyncdump.vocabulary.names import JOURNAL

PAGE_AND_A_BIT = 4096 + 5
KILLS = int(os.environ.get("ASYNCDUMP_KILLS", "24"))
SMALL = 256
LARGE = 4
HUGE = 4

Maker = Callable[..., Dumps]


@pytest.fixture(scope="module")
def sources(tmpfs: Path, hugetlbfs: Path) -> Iterator[dict[Path, bytes]]:
    """Hundreds of small files in shared memory, some large ones, some of huge pages: their content, by their paths."""
    small, huge = tmpfs / "killed", hugetlbfs / "killed"
    made: dict[Path, bytes] = {}
    for folder in (small, huge):
        folder.mkdir()
    for number in range(SMALL):
        made[small / f"small-{number}"] = noise(1 + number * 157, number)
    for number in range(LARGE):
        made[small / f"large-{number}"] = content(6 * MiB + number)
    for number in range(HUGE):
        made[huge / f"huge-{number}"] = noise((number + 1) * HUGE_PAGE, number)
    for path, data in made.items():
        (write_huge if path.parent == huge else write_pages)(path, data)
    yield made
    for folder in (small, huge):
        shutil.rmtree(folder)


@pytest.fixture
def dumps_by(sources: dict[Path, bytes], ext4: Path, tmp_path: Path) -> Iterator[Maker]:
    """Makes manifests for those files; with ``patterns``, for some of them."""
    made: list[Path] = []

    def make(compress: str = "none", *patterns: str) -> Dumps:
        output = ext4 / f"killed-{tmp_path.name}-{len(made)}"
        made.append(output)
        folders = sorted({str(path.parent) for path in sources})
        dumps = [{"source": f"{folder}/*"} for folder in folders]
        manifest = write_manifest(tmp_path / f"{len(made)}.yaml", output, dumps, defaults={"compress": compress})
        suffix = ".zst" if compress == "zstd" else ""
        return Dumps(manifest, output, {path.name + suffix: data for path, data in sources.items()})

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def killed(chance: random.Random, *arguments: str | Path, events: int) -> bool:
    """Kill a run some time after one of its first events; return whether it was killed before its end."""
    with started(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(chance.randint(1, events)):
            if not process.stdout.readline():
                break
        time.sleep(chance.uniform(0, 0.03))  # Events come in bunches: the moment is to be any, not that of one.
        process.kill()
        process.stdout.read()
        said = process.stderr.read()
        assert "Traceback" not in said, said
    assert process.returncode in {-9, 0}, said
    return process.returncode == -9


@contextmanager
def told(seed: int) -> Iterator[random.Random]:
    try:
        yield random.Random(seed)
    except AssertionError as wrong:
        wrong.add_note(f"seed {seed}")
        raise


def check_what_is_left(dumps: Dumps) -> str:
    """Assert that all which a killed run has left is true; return how far it had come."""
    output = dumps.output
    present = check_whole(output, dumps.expected)
    recorded = journal_of(output)
    if recorded is None:
        assert (output / "receipt.json").exists() or present == set()
    else:
        assert present <= set(recorded), "what has its name was recorded before"
        for name in present:
            assert recorded[name].digest == f"xxh128:{digest_of(read(output / name), 'xxh128')}", name
            assert recorded[name].inode == (output / name).stat().st_ino
    verified = asyncdump("verify", output, "--json")
    ended = (output / "receipt.json").exists() and (recorded is None or present == set(dumps.expected))
    if recorded is None and not (output / "receipt.json").exists():
        assert verified.returncode == 2
        return "before it began"
    found = json.loads(verified.stdout)
    assert {file["name"] for file in found["files"] if file["verdict"] == "ok"} == present
    assert {file["verdict"] for file in found["files"] if file["name"] not in present} <= {"missing"}
    assert verified.returncode == (0 if present == set(dumps.expected) else 1), found
    if ended:
        return "at its end"
    return "with dumps" if present else "before the first"


def events_of(*arguments: str | Path) -> int:
    """Return how many events a whole run tells."""
    return len(checked(asyncdump(*arguments, "--progress", "json")).stdout.splitlines())


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_killed_at_any_moment(compress, dumps_by: Maker) -> None:
    dumps = dumps_by(compress)
    events = events_of(dumps.manifest)
    check_complete(dumps)
    moments: Counter[str] = Counter()
    kept: list[int] = []
    for seed in range(KILLS // 2):
        shutil.rmtree(dumps.output)
        with told(seed) as chance:
            killed(chance, dumps.manifest, events=events)
            moment = check_what_is_left(dumps)
            if seed % 3 == 2 and moment != "at its end":
                # Once more, while it goes on.
                killed(chance, dumps.manifest, "--resume", events=events)
                moment = f"again {check_what_is_left(dumps)}"
            done = set(check_whole(dumps.output, dumps.expected))
            outcome = resume(dumps)
            assert {name for name, was in outcome.items() if was} == done
            kept.append(len(done))
        moments[moment] += 1
    print(f"{compress}: {KILLS // 2} killed, {dict(moments)}; kept {sorted(kept)}")
    assert len(set(kept)) > 1, "all were killed at the same place"


@pytest.mark.slow
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_killed_while_newer_content_replaces_older(compress, tmpfs: Path, ext4: Path, tmp_path) -> None:
    """What changed through a mapping has the size, the time and the inode of before: only the journal tells."""
    place, output = tmpfs / tmp_path.name, ext4 / tmp_path.name
    place.mkdir()
    suffix = ".zst" if compress == "zstd" else ""
    names = [f"dump-{number:02}" for number in range(64)]
    sizes = [(number % 8) * 300 * KiB + PAGE_AND_A_BIT for number in range(64)]
    manifest = write_manifest(tmp_path / "m.yaml", output, [{"source": f"{place}/*"}], defaults={"compress": compress})
    for name, size in zip(names, sizes, strict=True):
        write_pages(place / name, noise(size, 1))
    mappings = {name: Mapped(place / name) for name in names}
    events = events_of(manifest)
    kills = 0
    try:
        for seed in range(4):
            with told(seed) as chance:
                expected = {}
                for name, size in zip(names, sizes, strict=True):
                    data = noise(size, 1000 * (seed + 2) + size)
                    mappings[name].store(data)
                    expected[name + suffix] = data
                dumps = Dumps(manifest, output, expected)
                if not killed(chance, manifest, "--overwrite", events=events // 2) or not (output / JOURNAL).exists():
                    check_complete(dumps)  # It had ended, or all but its process.
                    continue
                kills += 1
                asyncdump("verify", output)
                if seed % 2:
                    killed(chance, manifest, "--resume", "--overwrite", events=events // 2)
                refused = asyncdump(manifest, "--resume", "-q")
                old = [name for name in expected if content_of(output / name) != expected[name]]
                if refused.returncode:  # It doesn't take older dumps for its own.
                    assert refused.returncode in {1, 2}
                    assert "--overwrite" in refused.stderr
                    resume(dumps, "--overwrite")
                else:
                    assert old == []
                    check_complete(dumps)
    finally:
        for mapped in mappings.values():
            mapped.close()
        shutil.rmtree(place)
        shutil.rmtree(output, ignore_errors=True)
    assert kills


PAGE_AND_A_BIT = 4096 + 5


class Mapped:
    """A mapping of a file as a database or a packet processor has it: there for long, all of its pages too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("r+b") as file:
            self._mapping = mmap.mmap(file.fileno(), path.stat().st_size)
        self._mapping[:] = self._mapping[:]  # The first store to a page sets the time; it's the last to do so.
        self._before = path.stat()

    def store(self, data: bytes) -> None:
        """Replace the content, which leaves no trace in the times."""
        self._mapping[:] = data
        now, before = self._path.stat(), self._before
        assert (now.st_mtime_ns, now.st_size, now.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)

    def close(self) -> None:
        self._mapping.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "hugetlbfs"])
def test_killed_while_it_restores(kind, request, make, ext4, tmp_path) -> None:
    target = request.getfixturevalue(kind) / f"restored-{tmp_path.name}"
    output = ext4 / tmp_path.name
    count = 24 if kind == "ext4" else 8
    expected = {f"dump-{n}": noise((1 + n % 3) * HUGE_PAGE, n) for n in range(count)}
    dumps = [
        {
            "source": make("tmpfs", data),
            "name": f"{name}{'.zst' if n % 2 else ''}",
            "compress": "zstd" if n % 2 else "none",
        }
        for n, (name, data) in enumerate(expected.items())
    ]
    manifest = write_manifest(tmp_path / "m.yaml", output, dumps)
    assert asyncdump(manifest, "-q").returncode == 0
    there: list[int] = []
    try:
        events = events_of("restore", output, "--to", target)
        for seed in range(4):
            with told(seed) as chance:
                if seed % 2:
                    shutil.rmtree(target)  # Else what stands there is replaced.
                killed(chance, "restore", output, "--to", target, "--overwrite", events=events)
                there.append(len(check_whole(target, expected)))
                again = asyncdump("restore", output, "--to", target, "--overwrite", "-q")
                assert again.returncode == 0, again.stderr
                assert check_whole(target, expected) == set(expected)
                assert leftovers(target) == []
        verified = asyncdump("verify", output)
        assert verified.returncode == 0, verified.stderr
    finally:
        shutil.rmtree(output)
        shutil.rmtree(target, ignore_errors=True)


# --- the lock --------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_work(make, ext4, tmp_path) -> Iterator[tuple[Dumps, subprocess.Popen[str], Gate]]:
    """A run of which one dump is done, while the other waits in a filter for a gate to be opened."""
    data = noise(MiB)
    output = ext4 / tmp_path.name
    gate = Gate(tmp_path)
    dumps = [
        {"source": make("tmpfs", data), "name": "first"},
        {"source": make("tmpfs", data), "name": "second", "filter": [[str(gate.program)]]},
    ]
    manifest = write_manifest(tmp_path / "m.yaml", output, dumps)
    with started(manifest, "--allow-filters") as process:
        wait_for(process, "file_finished")
        yield Dumps(manifest, output, {"first": data, "second": data}), process, gate
    shutil.rmtree(output)


def test_one_run_at_a_time(at_work) -> None:
    dumps, process, gate = at_work
    for command in (
        [dumps.manifest, "--allow-filters", "--resume"],
        [dumps.manifest, "--allow-filters", "--overwrite"],
        ["verify", dumps.output],
        ["verify", dumps.output / "receipt.json"],
        ["restore", dumps.output, "--to", dumps.output.with_suffix(".back")],
        ["restore", dumps.output, "--to", dumps.output],
    ):
        refused = asyncdump(*command)
        assert refused.returncode == 3, (command, refused.stderr)
        assert str(dumps.output) in refused.stderr, command
    refused = asyncdump(dumps.manifest, "--allow-filters")
    assert refused.returncode == 2
    assert "first" in refused.stderr
    assert leftovers(dumps.output) != []  # Nobody has swept what the run is writing.
    gate.open()
    _, said = process.communicate(timeout=ENOUGH)
    assert process.returncode == 0, said
    check_complete(dumps)


def test_the_lock_goes_with_its_process(at_work) -> None:
    dumps, process, gate = at_work
    process.kill()
    process.wait()
    assert asyncdump("verify", dumps.output).returncode == 1
    gate.open()  # The filter of the killed run still waits; another one will.
    with started(dumps.manifest, "--allow-filters", "--resume") as again:
        gate.open()
        _, said = again.communicate(timeout=ENOUGH)
        assert again.returncode == 0, said
    check_complete(dumps)
    assert {file["name"]: file["kept"] for file in receipt_of(dumps.output)["files"]} == {
        "first": True,
        "second": False,
    }
