"""A disk that fails below the page cache, and heals: nothing that is called done may differ from its source.

Each case is drawn from a seed: filesystem, method, digest, stages, groups, what stood there before, when the disk begins
to lie and for how long. ASYNCDUMP_LIES says how many are run, ASYNCDUMP_LIES_FROM the first seed.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files import KiB, MiB, leftovers, noise, write_pages
from liar import Liar
from tool import content_of

import asyncdump
from asyncdump.vocabulary.names import JOURNAL

COUNT = int(os.environ.get("ASYNCDUMP_LIES", "24"))
FIRST = int(os.environ.get("ASYNCDUMP_LIES_FROM", "0"))
SLICE = 12
FILESYSTEMS = ("ext4", "xfs", "btrfs")


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    with Liar() as liar:
        yield liar


@pytest.fixture
def place(tmpfs: Path) -> Iterator[Path]:
    """A folder on tmpfs for one case's sources."""
    folder = Path(tempfile.mkdtemp(dir=tmpfs))
    yield folder
    shutil.rmtree(folder)


class Case:
    """One case: what is dumped, how, and how the disk lies meanwhile."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.seed = seed
        self.filesystem = chance.choice(FILESYSTEMS)
        many = chance.random() < 0.4
        self.sizes = [
            chance.choice((0, 5, 3 * KiB, 70 * KiB, MiB + 7))
            if many
            else chance.randrange(1, chance.choice((3, 40)) * MiB)
            for _ in range(chance.randrange(3, 60) if many else chance.randrange(1, 5))
        ]
        self.runs = chance.random() < 0.3
        self.compress = chance.choice(("none", "none", "zstd"))
        self.filtered = chance.random() < 0.2
        feeds = self.filtered or self.compress == "zstd"
        methods = (
            ("auto", "read", "splice") if feeds else ("auto", "read", "sendfile", "splice", "mmap", "direct", "auto")
        )
        self.method = chance.choice(methods)
        if self.filtered and self.compress == "zstd" and self.method == "splice":
            self.method = "read"
        self.options: dict[str, Any] = {
            "method": self.method,
            "compress": self.compress,
            "checksum": chance.choice(("xxh128", "xxh128", "blake3", "sha256", "none")),
            "concurrency": chance.choice(("auto", 1, 3, 8)),
            "durable": chance.random() < 0.9,
            "on_read_error": chance.choice(("fail", "zero")),
        }
        self.replacing = chance.random() < 0.4
        total = sum(self.sizes)
        self.after = chance.randrange(0, total + 1)
        self.writes = chance.choice((1, 1, 1, 2, 5, 20, 1000))

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.filesystem}, {len(self.sizes)} files, {sum(self.sizes)} bytes, runs={self.runs}, "
            f"filtered={self.filtered}, {self.options}, replacing={self.replacing}, {self.writes} after {self.after}"
        )

    def write(self, place: Path, version: int) -> dict[str, bytes]:
        """Write the sources, and return what each dump is to hold."""
        expected = {}
        for number, size in enumerate(self.sizes):
            data = bytearray(noise(size, self.seed * 7919 + version * 104729 + number))
            if self.runs:  # More pieces than are written past the page cache.
                for start in range(0, size, 16 * KiB):
                    data[start : start + 8 * KiB] = bytes(len(data[start : start + 8 * KiB]))
            write_pages(place / f"f{number}", bytes(data))
            expected[f"f{number}{'.zst' if self.compress == 'zstd' else ''}"] = bytes(data)
        return expected

    def dumps(self, place: Path) -> list[asyncdump.Dump]:
        # Compressed after the filter, so that a dump can be read back here.
        stages: dict[str, Any] = {"filter": (("cat",),), "first": "filter"} if self.filtered else {}
        suffix = ".zst" if self.compress == "zstd" else ""
        return [
            asyncdump.Dump(source=str(place / f"f{number}"), name=f"f{number}{suffix}", **stages)
            for number in range(len(self.sizes))
        ]


def dump(case: Case, place: Path, output: Path, **options: Any) -> asyncdump.Report:
    dumping = asyncdump.dump_all(case.dumps(place), output=output, allow_filters=True, **{**case.options, **options})
    return asyncio.run(dumping)


def names_in(folder: Path, expected: dict[str, bytes]) -> set[str]:
    return set(os.listdir(folder)) & set(expected) if folder.is_dir() else set()


def check_names(folder: Path, expected: dict[str, bytes], older: dict[str, bytes] | None) -> set[str]:
    """Assert that no name stands without its content; return those that do."""
    present = names_in(folder, expected)
    for name in present:
        held = content_of(folder / name)
        right = held == expected[name] or (older is not None and held == older[name])
        assert right, f"{name} is neither old nor new"
    if older:
        assert present == set(expected), "neither the old nor the new"
    return present


def suffer(case: Case, liar: Liar, place: Path, told: Counter[str]) -> None:
    """Dump onto the lying disk, and look at what it holds when all caches are gone."""
    with liar.formatted(case.filesystem):
        output = liar.point / "out"
        older = case.write(place, 1) if case.replacing else None
        if older is not None:
            dump(case, place, output, durable=True).raise_for_failures()
        expected = case.write(place, 2)
        before = liar.refused
        with liar.lying(case.after, case.writes):
            try:
                report = dump(case, place, output, overwrite=case.replacing)
            except asyncdump.DumpError:
                told["refused"] += 1
                report = None
        told["lied"] += liar.refused > before
        if not liar.mount_again():
            told["lost"] += 1
            assert report is None or not report.ok
            return
        done = {file.name for file in report.files if file.ok} if report is not None else set()
        told["ok" if report is not None and report.ok else "failed"] += 1
        promised = case.options["durable"]
        if promised:
            present = check_names(output, expected, older)
            assert done <= present, "a name is gone"
            for name in done:
                right = content_of(output / name) == expected[name]
                assert right, f"{name} isn't what was dumped"
        # A run that couldn't begin, or not write its records, leaves those of the run before: they tell of the old.
        check_verify(case, output, expected, done if promised else set(), older or {})
        if report is None or not report.ok:
            check_resumed(case, place, output, expected)


def check_verify(case: Case, output: Path, expected: dict[str, bytes], done: set[str], older: dict[str, bytes]) -> None:
    try:
        verified = asyncio.run(asyncdump.verify_all(output))
    except asyncdump.ReceiptError:
        assert not done or (output / JOURNAL).exists()
        return
    verdicts = {file.name: file.verdict for file in verified.files}
    for name, verdict in verdicts.items():
        if verdict == "ok":
            held = content_of(output / name)
            right = held == expected[name] or (not done and held == older.get(name))
            assert right, f"{name} is called ok"
    proved = case.options["checksum"] != "none" or case.compress == "zstd"
    assert not proved or all(verdicts[name] == "ok" for name in done), verdicts


def check_resumed(case: Case, place: Path, output: Path, expected: dict[str, bytes]) -> None:
    """Assert that a second run on the healed disk completes the first."""
    report = dump(case, place, output, resume=True, overwrite=case.replacing, durable=True)
    report.raise_for_failures()
    assert check_names(output, expected, None) == set(expected)
    assert leftovers(output) == []


def restore(case: Case, liar: Liar, place: Path, told: Counter[str]) -> None:
    """Restore onto the lying disk."""
    expected = {name.removesuffix(".zst"): data for name, data in case.write(place, 2).items()}
    report = dump(case, place, place / "out", durable=False)
    report.raise_for_failures()
    with liar.formatted(case.filesystem):
        before = liar.refused
        target = liar.point / "back"
        with liar.lying(case.after, case.writes):
            try:
                report = asyncio.run(asyncdump.restore_all(place / "out", target))
            except asyncdump.DumpError:
                return
        told["lied"] += liar.refused > before
        told["restored" if report.ok else "not restored"] += 1
        if not liar.mount_again():
            assert not report.ok
            return
        done = {os.path.basename(file.path) for file in report.files if file.ok}
        assert done <= check_names(target, expected, None)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, SLICE))
def test_nothing_that_is_called_done_differs(first: int, liar: Liar, place: Path, capsys) -> None:
    told: Counter[str] = Counter()
    for seed in range(first, min(first + SLICE, FIRST + COUNT)):
        case = Case(seed)
        folder = place / str(seed)
        folder.mkdir()
        try:
            if seed % 5 == 4 and not case.filtered:
                restore(case, liar, folder, told)
            else:
                suffer(case, liar, folder, told)
        except BaseException as error:
            error.add_note(str(case))
            raise
        shutil.rmtree(folder)
    with capsys.disabled():
        if COUNT > SLICE * 2:
            print(f" {dict(told)}", end="", flush=True)
    assert told["lied"]
