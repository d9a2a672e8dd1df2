"""Names are compared by the filesystem: where it folds them, no dump, receipt or journal of a run replaces another."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from files import MiB, leftovers, mentions, noise, unavailable
from fuse import mounted
from tool import asyncdump as command
from tool import write_manifest

import asyncdump
from asyncdump.errors import DumpError
from asyncdump.records.journal import Head, Journal
from asyncdump.sinks.clash import clashes
from asyncdump.sinks.draft import Draft
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.names import JOURNAL, LISTS

COMPOSED, DECOMPOSED = "\u00e4", "a\u0308"
ALIKE = [
    ("Ring", "ring"),
    ("ring", "ring."),
    (COMPOSED, DECOMPOSED),
    (f"{COMPOSED}.BIN", f"{DECOMPOSED}.bin.."),
    ("stra\u00dfe", "STRASSE"),
]


@pytest.fixture(params=[(), ("noreplace",)], ids=["renameat2", "rename"])
def folding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A filesystem to which names are the same that differ in case, in normal form or in dots at their end."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        unavailable("a filesystem of our own needs root and /dev/fuse")
    with mounted(tmp_path_factory.mktemp("folding"), "fold", *request.param) as point:
        yield point


@pytest.fixture
def sources(tmpfs: Path) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory(dir=tmpfs) as place:
        made = [Path(place, f"source-{number}") for number in range(3)]
        for number, path in enumerate(made):
            path.write_bytes(noise(MiB + number, number))
        yield made


def written(folder: Folder, name: str, data: bytes) -> Draft:
    draft = folder.create(name)
    draft.write(memoryview(data), 0)
    return draft


def dumps_of(sources: list[Path], *names: str) -> list[asyncdump.Dump]:
    return [asyncdump.Dump(source=str(source), name=name) for source, name in zip(sources, names, strict=False)]


# --- enforced where a name is given ----------------------------------------------------------------------------------


@pytest.mark.sample(9)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_the_first_stays(first, second, grouped, overwrite, folding: Path) -> None:
    folder = Folder(str(folding / "out"))
    drafts = [written(folder, first, b"first"), written(folder, second, b"second")]
    if grouped:
        errors = folder.publish(drafts, durable=True, overwrite=overwrite)
    else:
        errors = [folder.publish([draft], durable=True, overwrite=overwrite)[0] for draft in drafts]
    assert errors[0] is None
    assert isinstance(errors[1], DumpError)
    assert (errors[1].operation, errors[1].errno) == ("rename", errno.EEXIST)
    assert first in str(errors[1])
    assert os.listdir(folder.path) == [first]
    assert (folding / "out" / first).read_bytes() == b"first"
    folder.close()


def test_an_older_dump_is_replaced_under_its_name_in_another_case(folding: Path) -> None:
    (folding / "RING").write_bytes(b"older")
    folder = Folder(str(folding))
    assert folder.publish([written(folder, "ring", b"newer")], durable=True, overwrite=True) == [None]
    assert (folding / "ring").read_bytes() == b"newer"
    # The name that is listed is the old one still: only the inode tells that it is ours now.
    [error] = folder.publish([written(folder, "RING", b"newest")], durable=True, overwrite=True)
    assert error is not None
    assert (folding / "ring").read_bytes() == b"newer"
    folder.close()


def test_a_journal_is_held(folding: Path) -> None:
    folder = Folder(str(folding))
    journal = Journal(folder, Head(files=1))
    [error] = folder.publish([written(folder, JOURNAL.upper(), b"x")], durable=True, overwrite=True)
    assert error is not None
    assert JOURNAL in str(error)
    journal.close()
    folder.close()


def test_the_same_name_may_be_published_anew(folding: Path) -> None:
    """As a retry does, after a folder that could not be synced."""
    folder = Folder(str(folding))
    for data in (b"first", b"second"):
        assert folder.publish([written(folder, "ring", data)], durable=True, overwrite=False) == [None]
    assert (folding / "ring").read_bytes() == b"second"
    folder.close()


# --- found before a byte is written ----------------------------------------------------------------------------------


@pytest.mark.sample(8)
@pytest.mark.parametrize(("first", "second"), ALIKE)
@pytest.mark.parametrize("overwrite", [False, True])
async def test_names_that_clash_are_refused(first, second, overwrite, folding: Path, sources) -> None:
    with pytest.raises(asyncdump.ManifestError) as refused:
        await asyncdump.dump_all(dumps_of(sources, first, second), output=folding / "out", overwrite=overwrite)
    assert mentions(refused.value, first, second)
    assert os.listdir(folding / "out") == []


@pytest.mark.parametrize("own", ["receipt.json", *LISTS.values()])
async def test_what_asyncdump_writes_is_no_dump(own, folding: Path, sources) -> None:
    other = own.swapcase()
    with pytest.raises(asyncdump.ManifestError, match=own):
        await asyncdump.dump_all(dumps_of(sources, other), output=folding / "out")
    (folding / "out" / own).write_bytes(b"{}")
    with pytest.raises(asyncdump.ManifestError, match=own):
        await asyncdump.dump_all(dumps_of(sources, other), output=folding / "out", overwrite=True)


def test_the_command_refuses(folding: Path, sources, tmp_path) -> None:
    dumps = [{"source": str(source), "name": name} for source, name in zip(sources, ("Ring", "ring"), strict=False)]
    done = command(write_manifest(tmp_path / "m.yaml", folding / "out", dumps), "--overwrite", "-q")
    assert done.returncode == 2
    assert mentions(done.stderr, "ring", "Ring")


async def test_where_names_differ_they_are_dumped(ext4: Path, sources, tmp_path) -> None:
    output = ext4 / tmp_path.name
    names = ("Ring", "ring", "RECEIPT.JSON")
    (await asyncdump.dump_all(dumps_of(sources, *names), output=output)).raise_for_failures()
    assert {name: (output / name).read_bytes() for name in names} == {
        name: source.read_bytes() for name, source in zip(names, sources, strict=True)
    }
    assert json.loads((output / "receipt.json").read_bytes())["ok"]
    assert (await asyncdump.verify_all(output)).ok
    assert leftovers(output) == []


def test_the_filesystem_is_asked_and_not_python(folding: Path) -> None:
    folder = Folder(str(folding))
    # Equal in compatibility, which this filesystem doesn't fold; too long, and not UTF-8.
    assert clashes(folder, ["\uff21", "A", "b", "c", "b"]) == []
    assert clashes(folder, ["x" * 255, "X" * 255]) == [("X" * 255, "x" * 255)]
    assert clashes(folder, ["\udcff", "A\udcff", "a\udcff"]) == [("a\udcff", "A\udcff")]
    assert os.listdir(folding) == []
    folder.close()


def test_a_killed_attempt_is_swept(folding: Path) -> None:
    folder = Folder(str(folding))
    with pytest.raises(RuntimeError), folder.nook() as nook:  # noqa: PT012
        os.close(os.open("Ring", os.O_CREAT | os.O_WRONLY, dir_fd=nook))
        [left] = os.listdir(folding)
        os.mkdir(folding / left.replace("-1.", "-2."))
        (folding / left.replace("-1.", "-2.") / "Ring").touch()
        raise RuntimeError
    assert leftovers(folding) != []
    folder.sweep()
    assert leftovers(folding) == []
    folder.close()


# --- a restore -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
async def test_a_restore_replaces_nothing_of_its_own(overwrite, folding: Path, sources, ext4, tmp_path) -> None:
    output = ext4 / tmp_path.name
    (await asyncdump.dump_all(dumps_of(sources, "Ring", "ring", "third"), output=output)).raise_for_failures()
    with pytest.raises(asyncdump.ReceiptError, match="Ring"):
        await asyncdump.restore_all(output, folding / "back", overwrite=overwrite)
    assert os.listdir(folding / "back") == []
    report = await asyncdump.restore_all(output, folding / "back", map={"ring": "other"}, overwrite=overwrite)
    report.raise_for_failures()
    assert sorted(os.listdir(folding / "back")) == ["Ring", "other", "third"]


# --- going on --------------------------------------------------------------------------------------------------------


async def test_a_dump_that_is_kept_is_not_replaced(folding: Path, sources, ext4, tmp_path) -> None:
    """Copied from where names differ to where they don't, one of the two is there no more."""
    output = ext4 / tmp_path.name
    (await asyncdump.dump_all(dumps_of(sources, "Ring", "ring"), output=output)).raise_for_failures()
    target = folding / "out"
    target.mkdir()
    for name in ("receipt.json", "Ring"):
        (target / name).write_bytes((output / name).read_bytes())
    with pytest.raises(asyncdump.ManifestError, match="Ring"):
        await asyncdump.dump_all(dumps_of(sources, "Ring", "ring"), output=target, resume=True)
    assert (target / "Ring").read_bytes() == sources[0].read_bytes()
