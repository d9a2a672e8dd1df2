"""What can be dumped: the path of a manifest, a manifest, a plan, one dump, or an iterable of dumps and of paths."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from files import noise, read
from hypothesis import given
from hypothesis import strategies as st

import asyncdump
from asyncdump.manifest.models import Defaults, Retries
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.vocabulary.values import Source


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "sources" / f"ring_{number}" for number in range(3)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(noise(5000 + number, number))
    return paths


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


def held(output: Path) -> dict[str, bytes]:
    return {name: read(output / name) for name in os.listdir(output) if name not in {"receipt.json", "XXH128SUMS"}}


WHATS: dict[str, Any] = {
    "a list of dumps": lambda sources: [asyncdump.Dump(source) for source in sources],
    "a list of paths": list,
    "a list of texts": lambda sources: list(map(str, sources)),
    "a tuple of both": lambda sources: (asyncdump.Dump(sources[0]), sources[1], str(sources[2])),
    "a generator": lambda sources: (source for source in sources),
    "a glob": lambda sources: [f"{sources[0].parent}/ring_*"],
    "a dump": lambda sources: asyncdump.Dump(f"{sources[0].parent}/ring_*"),
    "a dump of a path": lambda sources: asyncdump.Dump(sources[0].parent / "ring_*"),
    "a manifest": lambda sources: asyncdump.Manifest(output="x", dumps=[asyncdump.Dump(path) for path in sources]),
}


@pytest.mark.parametrize("what", WHATS)
async def test_each_is_dumped(what, sources, output) -> None:
    report = await asyncdump.dump_all(WHATS[what](sources), output=output)
    report.raise_for_failures()
    assert held(output) == {path.name: path.read_bytes() for path in sources}


async def test_the_path_of_a_manifest(sources, output) -> None:
    path = sources[0].parent / "manifest.yaml"
    path.write_text("version: 1\noutput: ../dumps\ndumps: [{source: 'ring_*'}]\n")
    for what in (str(path), path):
        (await asyncdump.dump_all(what, overwrite=True)).raise_for_failures()
        assert held(output).keys() == {path.name for path in sources}


async def test_what_is_nothing_of_these_is_told_with_its_place(sources, output) -> None:
    what: Any = [sources[0], 7, None]
    with pytest.raises(asyncdump.ManifestError) as caught:
        await asyncdump.dump_all(what, output=output)
    assert [problem.key for problem in caught.value.problems] == ["dumps[1]", "dumps[2]"]


@pytest.mark.parametrize("what", ["a dump", "a list of paths"])
async def test_sources_need_an_output(what, sources) -> None:
    with pytest.raises(asyncdump.ManifestError) as caught:
        await asyncdump.dump_all(WHATS[what](sources))
    assert [problem.key for problem in caught.value.problems] == ["output"]


# --- models -----------------------------------------------------------------------------------------------------------


def test_sequences_become_tuples() -> None:
    dumps = [asyncdump.Dump("a", filter=[["cat", "-u"], ("gzip",)])]
    retries = asyncdump.Retries(errors=["EAGAIN"])
    manifest = asyncdump.Manifest(output=Path("x"), dumps=dumps, retries=retries, defaults=Defaults(filter=[["cat"]]))
    assert manifest.dumps == tuple(dumps)
    assert manifest.dumps[0].filter == (("cat", "-u"), ("gzip",))
    assert manifest.defaults.filter == (("cat",),)
    assert retries.errors == ("EAGAIN",)
    assert (manifest.output, dumps[0].source) == ("x", "a")
    hash(manifest)


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("filter", lambda: asyncdump.Dump("a", filter="gzip")),
        ("filter", lambda: asyncdump.Dump("a", filter=["gzip"])),
        ("filter", lambda: asyncdump.Dump("a", filter=[["gzip", 9]])),  # type: ignore[list-item]
        ("errors", lambda: Retries(errors="EINTR")),  # type: ignore[arg-type]
        ("dumps", lambda: asyncdump.Manifest(output="x", dumps="a")),  # type: ignore[arg-type]
        ("dumps", lambda: asyncdump.Manifest(output="x", dumps=["a"])),  # type: ignore[list-item]
        ("dumps", lambda: asyncdump.Manifest(output="x", dumps=[])),
        ("source", lambda: asyncdump.Dump(7)),  # type: ignore[arg-type]
        ("source", lambda: asyncdump.Dump("")),
    ],
)
def test_a_text_is_no_sequence(key, make) -> None:
    with pytest.raises(asyncdump.ManifestError) as caught:
        make()
    assert [problem.key for problem in caught.value.problems] == [key]


def test_only_the_source_is_taken_by_position() -> None:
    with pytest.raises(TypeError):
        asyncdump.Dump("a", "b")  # type: ignore[call-arg]


# --- plans ------------------------------------------------------------------------------------------------------------


async def test_a_plan_is_run_as_it_was_made(sources, output) -> None:
    plan = await asyncdump.plan_all(sources, output=output, compress="zstd", durable=False)
    sources[0].write_bytes(noise(5000, 9))  # The same file, with other content.
    report = await asyncdump.dump_all(pickle.loads(pickle.dumps(plan)))
    report.raise_for_failures()
    assert [file.name for file in report.files] == [dump.name for dump in plan.dumps]
    with asyncdump.open_dump(output / "ring_0.zst") as dump:
        assert dump.read() == noise(5000, 9)


async def test_it_fails_for_a_source_that_was_replaced(sources, output) -> None:
    plan = await asyncdump.plan_all(sources, output=output)
    replacement = sources[0].parent / "new"
    replacement.write_bytes(noise(5000))
    replacement.rename(sources[1])
    report = await asyncdump.dump_all(plan)
    assert [type(file.error) for file in report.files] == [type(None), asyncdump.SourceChangedError, type(None)]


async def test_it_takes_no_options(sources, output) -> None:
    plan = await asyncdump.plan_all(sources, output=output)
    with pytest.raises(asyncdump.ManifestError) as caught:
        await asyncdump.dump_all(plan, overwrite=True, output=output, resume=False, method=None)
    assert {problem.key for problem in caught.value.problems} == {"overwrite", "output"}
    assert await asyncdump.plan_all(plan, resume=False) == plan


@pytest.mark.parametrize("name", ["../x", "receipt.json", "ring_1"])
async def test_names_are_checked_again(name, sources, output) -> None:
    plan = await asyncdump.plan_all(sources, output=output)
    renamed = msgspec.structs.replace(plan.dumps[0], name=name)
    with pytest.raises(asyncdump.ManifestError) as caught:
        await asyncdump.dump_all(msgspec.structs.replace(plan, dumps=(renamed, *plan.dumps[1:])))
    assert caught.value.problems[0].key.startswith("dumps")
    assert not output.exists()


async def test_a_second_run_of_a_plan_is_refused(sources, output) -> None:
    plan = await asyncdump.plan_all(sources, output=output)
    (await asyncdump.dump_all(plan)).raise_for_failures()
    with pytest.raises(asyncdump.TargetExistsError, match="after this one was planned"):
        await asyncdump.dump_all(plan)


async def test_the_parts_of_a_plan_are_run_in_directories_of_their_own(sources, tmp_path) -> None:
    plan = await asyncdump.plan_all(sources, output=tmp_path / "dumps")
    found: dict[str, bytes] = {}
    for number, part in enumerate(plan.split(2)):
        place = tmp_path / f"part-{number}"
        (await asyncdump.dump_all(part.into(place))).raise_for_failures()
        assert (await asyncdump.verify_all(place)).ok
        found |= held(place)
    assert found == {path.name: path.read_bytes() for path in sources}


def planned(number: int, length: int) -> PlannedDump:
    source = Source(
        path=f"/s{number}", filesystem="tmpfs", page=4096, size=length, allocated=0, device=1, inode=number, mtime_ns=0
    )
    return PlannedDump(
        source=source,
        name=f"s{number}",
        offset=0,
        length=length,
        method="auto",
        checksum="none",
        durable=True,
        sparse=True,
    )


@given(st.lists(st.integers(0, 1 << 40), max_size=30), st.integers(1, 8))
def test_parts_are_the_plan_together_and_about_equal(lengths, parts) -> None:
    dumps = tuple(planned(number, length) for number, length in enumerate(lengths))
    plan = Plan(
        output="/x", dumps=dumps, concurrency="auto", on_error="continue", overwrite=True, free=0, manifest_sha256="abc"
    )
    split = plan.split(parts)
    assert len(split) == min(parts, len(dumps))
    assert sorted((dump for part in split for dump in part.dumps), key=dumps.index) == list(dumps)
    for part in split:
        assert part.dumps
        assert msgspec.structs.replace(part, dumps=dumps) == plan
        assert list(part.dumps) == sorted(part.dumps, key=dumps.index)
        assert part.bytes <= plan.bytes / parts + max(lengths)


def test_a_plan_is_not_split_into_nothing() -> None:
    plan = Plan(output="/x", dumps=(), concurrency=1, on_error="continue", overwrite=False, free=0, manifest_sha256="")
    assert plan.split(3) == ()
    with pytest.raises(ValueError, match="0 parts"):
        plan.split(0)
