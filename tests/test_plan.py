"""What will be done: sources, names and the output looked at beforehand, without writing anything."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from files import GiB, KiB, mentions, noise, write_pages
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import file_names, templates, text

import asyncdump
from asyncdump.errors import ManifestError
from asyncdump.manifest.models import Defaults, Dump, Manifest
from asyncdump.manifest.options import Overrides
from asyncdump.manifest.yaml import Marks, parse_manifest, read_manifest
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.plan.planner import make_plan
from asyncdump.plan.templates import render_name
from asyncdump.vocabulary.names import RESERVED, name_complaint
from asyncdump.vocabulary.size import format_size

not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")

Planner = Callable[..., Plan]
Complainer = Callable[..., list[str]]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with some sources in it."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in (10, 9, 2, 1):
        (folder / f"rtemap_{number}").write_bytes(noise(number * 100))
    (folder / "ring.bin").write_bytes(noise(5000))
    return folder


@pytest.fixture
def plan(files: Path, tmp_path: Path) -> Planner:
    """Plans dumps of sources that are relative to their folder: ``plan(Dump(...), overwrite=True)``."""

    def plan(*dumps: Dump, marks: Marks | None = None, defaults: Defaults | None = None, **options: Any) -> Plan:
        options.setdefault("output", tmp_path / "out")
        manifest = Manifest(output="elsewhere", dumps=dumps, defaults=defaults or Defaults())
        return make_plan(manifest, marks or Marks(), os.fspath(files), cast(Overrides, options))

    return plan


@pytest.fixture
def complaints(plan: Planner) -> Complainer:
    """Returns what is wrong with dumps, as the user reads it."""

    def complaints(*dumps: Dump, **options: Any) -> list[str]:
        with pytest.raises(ManifestError) as refused:
            plan(*dumps, **options)
        return [str(problem) for problem in refused.value.problems]

    return complaints


def names(plan: Plan) -> list[str]:
    return [dump.name for dump in plan.dumps]


def sources(plan: Plan) -> list[str]:
    return [os.path.basename(dump.source.path) for dump in plan.dumps]


def everything(folder: Path) -> dict[str, Any]:
    """Return what can be seen of a folder and of all that is in it."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        found[os.fspath(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_glob_stands_for_its_matches_in_natural_order(plan: Planner) -> None:
    assert names(plan(Dump(source="rtemap_*"))) == ["rtemap_1", "rtemap_2", "rtemap_9", "rtemap_10"]
    assert names(plan(Dump(source="rtemap_?"))) == ["rtemap_1", "rtemap_2", "rtemap_9"]
    assert names(plan(Dump(source="rtemap_[!9]*"))) == ["rtemap_1", "rtemap_2", "rtemap_10"]


def test_dumps_stay_in_the_order_of_the_manifest(plan: Planner) -> None:
    assert names(plan(Dump(source="ring.bin"), Dump(source="rtemap_[12]"))) == ["ring.bin", "rtemap_1", "rtemap_2"]


def test_two_stars_reach_into_folders(plan: Planner, files: Path) -> None:
    (files / "a" / "b").mkdir(parents=True)
    (files / "a" / "b" / "deep.bin").touch()
    assert names(plan(Dump(source="**/*.bin"))) == ["deep.bin", "ring.bin"]


def test_a_glob_passes_over_what_is_no_file(plan: Planner, files: Path) -> None:
    (files / "rtemap_folder").mkdir()
    (files / "rtemap_broken").symlink_to("nowhere")
    os.mkfifo(files / "rtemap_fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        # A path of a socket is short: it is bound from within its folder.
        fd = os.open(files, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{fd}/rtemap_socket")
        os.close(fd)
        assert names(plan(Dump(source="rtemap_*"))) == ["rtemap_1", "rtemap_2", "rtemap_9", "rtemap_10"]


def test_a_path_that_exists_is_taken_as_it_is_written(plan: Planner, files: Path) -> None:
    for name in ("rtemap_*", "[ring].bin"):
        (files / name).touch()
        assert name in names(plan(Dump(source=name)))
    assert names(plan(Dump(source="[ring].bin"))) == ["[ring].bin"]
    assert len(names(plan(Dump(source="rtemap_*")))) > 1  # It doesn't hide what the pattern matches.


def test_a_glob_that_matches_nothing(complaints: Complainer) -> None:
    for pattern in ("nothing_*", "[z-a]*"):
        (complaint,) = complaints(Dump(source=pattern))
        assert mentions(complaint, "dumps[0].source: ", pattern)


def test_home(plan: Planner, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.fspath(files))
    assert sources(plan(Dump(source="~/ring.bin"), Dump(source="~/rtemap_[12]"))) == [
        "ring.bin",
        "rtemap_1",
        "rtemap_2",
    ]


def test_paths_are_relative_to_the_folder_and_not_to_the_working_directory(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    dumps = (Dump(source="ring.bin"), Dump(source="../sources/rtemap_1"), Dump(source=os.fspath(files / "rtemap_2")))
    made = make_plan(Manifest(output="out", dumps=dumps), Marks(), os.fspath(files), Overrides())
    assert made.output == os.fspath(files / "out")
    assert [os.path.realpath(dump.source.path) for dump in made.dumps] == [
        os.path.realpath(files / name) for name in ("ring.bin", "rtemap_1", "rtemap_2")
    ]
    # The folder itself is where the working directory says, and so is an output that overrides the manifest's.
    monkeypatch.chdir(tmp_path)
    made = make_plan(Manifest(output="../out", dumps=dumps), Marks(), "sources", Overrides())
    assert made.output == os.fspath(tmp_path / "out")
    made = make_plan(Manifest(output="../out", dumps=dumps), Marks(), "sources", Overrides(output="other"))
    assert made.output == os.fspath(tmp_path / "other")


def test_a_link_to_a_source_is_followed_and_names_the_dump(plan: Planner, files: Path) -> None:
    (files / "link").symlink_to("ring.bin")
    (dump,) = plan(Dump(source="link")).dumps
    assert dump.name == "link"
    assert dump.source.inode == (files / "ring.bin").stat().st_ino


def test_what_is_not_there(complaints: Complainer, files: Path) -> None:
    (files / "broken").symlink_to("nowhere")
    (files / "loop").symlink_to("loop")
    for name, reason in {
        "missing": "ENOENT",
        "broken": "ENOENT",
        "loop": "ELOOP",
        "ring.bin/x": "ENOTDIR",
        "ring.bin/": "ENOTDIR",
        "x" * 300: "ENAMETOOLONG",
    }.items():
        (complaint,) = complaints(Dump(source=name))
        assert complaint.startswith(f"dumps[0].source: open of {files}/{name}: {reason} (")


@pytest.mark.timeout(10)
def test_what_is_no_file_is_named(complaints: Complainer, files: Path) -> None:
    os.mkfifo(files / "fifo")
    for name, kind in {"fifo": "fifo", "/dev/null": "character device", ".": "directory"}.items():
        (complaint,) = complaints(Dump(source=name, name="x"))
        assert mentions(complaint, "dumps[0].source: ", name, kind)


def test_a_nul_is_in_no_path(complaints: Complainer) -> None:
    (complaint,) = complaints(Dump(source="ri\0ng*"))
    assert mentions(complaint, "dumps[0].source: ", "NUL")


@not_root
def test_a_source_that_only_others_may_read(complaints: Complainer, files: Path) -> None:
    (files / "ring.bin").chmod(0)
    (complaint,) = complaints(Dump(source="ring.bin"))
    assert "EACCES" in complaint


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, None, (0, 5000)),
        (0, 0, (0, 0)),
        (0, "1K", (0, 1024)),
        (4999, None, (4999, 1)),
        (5000, None, (5000, 0)),
        ("4K", "1GiB", (4096, 904)),
        ("0", 5001, (0, 5000)),
    ],
)
def test_a_range_ends_where_the_source_does(plan: Planner, offset, length, expected) -> None:
    (dump,) = plan(Dump(source="ring.bin", offset=offset, length=length)).dumps
    assert (dump.offset, dump.length) == expected


def test_an_offset_behind_the_end(complaints: Complainer, files: Path) -> None:
    (complaint,) = complaints(Dump(source="ring.bin", offset=5001))
    assert mentions(complaint, "dumps[0].offset: ", 5001, files / "ring.bin", 5000)
    # One of a glob is enough, and each is named.
    first, second = complaints(Dump(source="rtemap_*", offset=500))
    assert mentions(first, files / "rtemap_1")
    assert mentions(second, files / "rtemap_2")


# --- what holds for a dump --------------------------------------------------------------------------------------------


def settings(dump: PlannedDump) -> tuple[Any, ...]:
    return dump.method, dump.checksum, dump.durable, dump.sparse, dump.on_read_error


def test_what_a_dump_does_not_say_comes_from_the_defaults(plan: Planner) -> None:
    (dump,) = plan(Dump(source="ring.bin")).dumps
    assert settings(dump) == ("auto", "xxh128", True, True, "fail")
    defaults = Defaults(method="read", checksum="sha256", durable=False, sparse="never", on_read_error="zero")
    said = Dump(
        source="ring.bin",
        name="x",
        method="auto",
        checksum="none",
        durable=True,
        sparse="auto",
        on_read_error="fail",
    )
    first, second = plan(Dump(source="ring.bin"), said, defaults=defaults).dumps
    assert settings(first) == ("read", "sha256", False, False, "zero")
    assert settings(second) == ("auto", "none", True, True, "fail")


def test_options_hold_over_everything(plan: Planner) -> None:
    said = Dump(source="ring.bin", method="mmap", checksum="none", durable=True, on_read_error="fail")
    (dump,) = plan(said, method="auto", checksum="blake3", durable=False, on_read_error="zero").dumps
    assert settings(dump) == ("auto", "blake3", False, True, "zero")
    (dump,) = plan(Dump(source="ring.bin", durable=False), durable=True).dumps
    assert dump.durable


def test_the_head_of_the_plan(plan: Planner, tmp_path: Path) -> None:
    made = plan(Dump(source="ring.bin"), Dump(source="rtemap_[12]"), marks=Marks(sha256="0ff"))
    assert made.output == os.fspath(tmp_path / "out")
    assert made.bytes == 5000 + 100 + 200
    assert (made.concurrency, made.on_error, made.overwrite, made.manifest_sha256) == ("auto", "continue", False, "0ff")
    made = plan(Dump(source="ring.bin"), concurrency=3, on_error="abort", overwrite=True)
    assert (made.concurrency, made.on_error, made.overwrite) == (3, "abort", True)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{name}", "rtemap_7.tar.bin"),
        ("{stem}", "rtemap_7.tar"),
        ("{suffix}", ".bin"),
        ("{parent}", "hugepages"),
        ("{index}", "2"),
        ("{index:04}", "0002"),
        ("{index:3}", "  2"),
        ("{parent}-{index:02}{suffix}.dump", "hugepages-02.bin.dump"),
        ("{{{name}}}", "{rtemap_7.tar.bin}"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_fields_of_a_name(template, expected) -> None:
    assert render_name(template, "/dev/hugepages/rtemap_7.tar.bin", 2) == expected


def test_a_source_without_a_suffix() -> None:
    assert render_name("{stem}|{suffix}|{parent}", "/dev/hugepages/rtemap_7", 0) == "rtemap_7||hugepages"
    assert render_name("{stem}|{suffix}|{parent}", "/core", 0) == "core||"


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{nmae}", "{nmae}"),
        ("{}", "{}"),
        ("{0}", "{0}"),
        ("{name.__class__}", "{name.__class__}"),
        ("{index[0]}", "{index[0]}"),
        ("{name!r}", "{name}"),
        ("{index:x}", "{index:x}"),
        ("{index:{index}}", "{index:{index}}"),
        ("{index:999999999}", "{index:999999999}"),
    ],
)
def test_a_field_that_no_name_has(template, shown) -> None:
    with pytest.raises(ValueError, match=re.escape(shown)) as told:
        render_name(template, "/a/b", 0)
    assert mentions(told.value, "{name}", "{stem}", "{suffix}", "{parent}", "{index}")


@pytest.mark.parametrize("template", ["{", "}", "{name", "a}b", "{name!}", "{[}"])
def test_a_template_that_is_none(template) -> None:
    with pytest.raises(ValueError, match=r"\{\{"):
        render_name(template, "/a/b", 0)


@pytest.mark.parametrize("name", ["a", "...", "a..b", " ", "größe", "x" * 255, "ö" * 127, ".hidden", "receipt.json.gz"])
def test_names_that_are_taken(name) -> None:
    assert name_complaint(name) == ""


@pytest.mark.parametrize(
    "name",
    [
        "a/b", "../x", "/etc/passwd", "", ".", "..", "a\0b", "a\nb", "a\x7f", "\x1b[1m", "x" * 256, "ö" * 128,
        "receipt.json", "XXH128SUMS", "B3SUMS", "SHA256SUMS", ".asyncdump-x",
    ],
)  # fmt: skip
def test_names_that_are_refused(name, plan: Planner, complaints: Complainer) -> None:
    assert name_complaint(name)
    if name:  # No manifest can hold an empty one; a field may be empty, though.
        assert complaints(Dump(source="ring.bin", name=name)) == [f"dumps[0].name: {name_complaint(name)}"]


def test_a_field_that_is_empty_makes_no_name(complaints: Complainer) -> None:
    (complaint,) = complaints(Dump(source="rtemap_1", name="{suffix}"))
    assert mentions(complaint, "dumps[0].name: ", "''")


def test_a_wrong_field_is_told_for_the_dump(complaints: Complainer) -> None:
    (complaint,) = complaints(Dump(source="ring.bin"), Dump(source="ring.bin", name="{nmae}"))
    assert mentions(complaint, "dumps[1].name: ", "{nmae}")


@given(templates | text, file_names, st.integers(0, 10**6))
@example("{parent}/../x", "name", 0)
@example("{name}", "..", 0)
@example("{suffix}.", ".", 0)
def test_an_accepted_name_stays_in_its_folder(template: str, base: str, index: int) -> None:
    try:
        name = render_name(template, f"/dev/{base}", index)
    except ValueError:
        return
    if name_complaint(name):
        return
    path = os.path.join("/srv/out", name)
    assert os.path.dirname(os.path.normpath(path)) == "/srv/out"
    assert os.path.normpath(path) == path
    assert 0 < len(os.fsencode(name)) <= 255
    assert not any(ord(character) < 32 or ord(character) == 127 for character in name)
    assert name not in RESERVED
    assert not name.startswith(".asyncdump-")


@given(file_names)
def test_an_accepted_name_can_be_created(tmpfs: Path, name: str) -> None:
    if name_complaint(name):
        ours = name in RESERVED or name.startswith(".asyncdump-")
        assert ours or name in {"-", ".", ".."} or len(os.fsencode(name)) > 255
        return
    path = tmpfs / name
    path.touch()
    assert path.name in os.listdir(tmpfs)
    path.unlink()


@given(file_names)
def test_braces_that_are_doubled_stand_for_themselves(name: str) -> None:
    braced = f"{{{name}}}"
    assert render_name(braced.replace("{", "{{").replace("}", "}}"), "/a/b", 0) == braced


def test_each_match_of_a_glob_has_its_index(plan: Planner) -> None:
    made = plan(Dump(source="rtemap_*", name="{index:04}.bin"), Dump(source="ring.bin", name="{index}"))
    assert names(made) == ["0000.bin", "0001.bin", "0002.bin", "0003.bin", "0"]
    assert sources(made) == ["rtemap_1", "rtemap_2", "rtemap_9", "rtemap_10", "ring.bin"]


def test_a_source_may_be_dumped_twice_under_two_names(plan: Planner) -> None:
    made = plan(Dump(source="ring.bin", length=100), Dump(source="ring.bin", name="rest", offset=100))
    assert [(dump.name, dump.offset, dump.length) for dump in made.dumps] == [("ring.bin", 0, 100), ("rest", 100, 4900)]


def test_two_dumps_with_one_name(complaints: Complainer, files: Path) -> None:
    (files / "other").mkdir()
    (files / "other" / "ring.bin").touch()
    (complaint,) = complaints(Dump(source="ring.bin"), Dump(source="other/ring.bin"))
    assert mentions(complaint, "dumps[1].name: ", files / "ring.bin", files / "other/ring.bin", "{index}", "{parent}")


def test_one_source_twice_under_one_name(complaints: Complainer) -> None:
    (complaint,) = complaints(Dump(source="ring.bin"), Dump(source="ring.bin", offset=1))
    assert complaint.startswith("dumps[1].name: ring.bin ")
    (complaint,) = complaints(Dump(source="rtemap_*"), Dump(source="rtemap_9"))
    assert complaint.startswith("dumps[1].name: rtemap_9 ")


def test_a_glob_whose_matches_share_a_name(complaints: Complainer) -> None:
    found = complaints(Dump(source="rtemap_*", name="same"))
    assert len(found) == 3
    assert all(line.startswith("dumps[0].name: same ") for line in found)


# --- the output -------------------------------------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_an_output_that_is_no_folder(complaints: Complainer, plan: Planner, tmp_path: Path, out: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    for output, place in {"file": "file", "file/below": "file", "broken": "broken", "broken/x": "broken"}.items():
        (complaint,) = complaints(Dump(source="ring.bin"), output=tmp_path / output)
        assert complaint.startswith(f"output: {tmp_path}/{place} ")
    (tmp_path / "link").symlink_to("out")
    assert plan(Dump(source="ring.bin"), output=tmp_path / "link" / "deep").output == f"{tmp_path}/link/deep"


@not_root
@pytest.mark.parametrize("mode", [0o500, 0o600, 0])
def test_an_output_that_only_others_may_write(complaints: Complainer, out: Path, mode) -> None:
    out.chmod(mode)
    for output in (out, out / "below"):
        (complaint,) = complaints(Dump(source="ring.bin"), output=output)
        assert mentions(complaint, "output: ", out, "EACCES")
    out.chmod(0o700)


def test_an_output_on_a_filesystem_that_is_read_only(complaints: Complainer, read_only: Path) -> None:
    (complaint,) = complaints(Dump(source="ring.bin"), output=read_only)
    assert complaint.startswith("output: ")
    assert "read-only" in complaint


def test_dumps_that_are_there_already(complaints: Complainer, plan: Planner, out: Path) -> None:
    dumps = (Dump(source="rtemap_*"), Dump(source="ring.bin"))
    (out / "unrelated").touch()
    assert len(plan(*dumps).dumps) == 5
    (out / "rtemap_2").touch()
    (out / "ring.bin").symlink_to("nowhere")
    (out / "receipt.json").touch()
    with pytest.raises(asyncdump.TargetExistsError) as caught:
        plan(*dumps)
    (problem,) = caught.value.problems
    assert (problem.key, caught.value.path) == ("output", str(out))
    assert "rtemap_2, ring.bin, receipt.json" in problem.message
    assert "overwrite=True" in problem.hint
    assert len(plan(*dumps, overwrite=True).dumps) == 5
    (out / "rtemap_1").touch()
    (complaint,) = complaints(*dumps)
    assert "rtemap_1, rtemap_2, ring.bin and 1 more" in complaint


def test_existing_dumps_and_another_mistake(plan: Planner, out: Path) -> None:
    """All is reported; that something exists isn't all that a caller has to decide."""
    (out / "ring.bin").touch()
    with pytest.raises(asyncdump.ManifestError) as caught:
        plan(Dump(source="ring.bin"), Dump(source="nothing"))
    assert type(caught.value) is asyncdump.ManifestError
    assert {problem.key for problem in caught.value.problems} == {"output", "dumps[1].source"}


def test_a_folder_that_has_the_name_of_a_dump(complaints: Complainer, out: Path) -> None:
    (out / "ring.bin").mkdir()
    for overwrite in (False, True):
        (complaint,) = complaints(Dump(source="ring.bin"), overwrite=overwrite)
        assert mentions(complaint, "dumps[0].name: ring.bin ", out)


def test_a_dump_never_replaces_a_source(complaints: Complainer, plan: Planner, files: Path) -> None:
    dumps = (Dump(source="ring.bin", name="copy"), Dump(source="rtemap_1", name="ring.bin"))
    for overwrite in (False, True):
        (complaint,) = complaints(*dumps, output=files, overwrite=overwrite)
        assert mentions(complaint, "dumps[1].name: ring.bin ", files / "ring.bin")
    assert len(plan(*dumps[:1], output=files).dumps) == 1


def test_nor_by_another_path_or_a_hard_link(complaints: Complainer, files: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "link").symlink_to("sources")
    (complaint,) = complaints(Dump(source="ring.bin"), output=tmp_path / "link", overwrite=True)
    assert mentions(complaint, "dumps[0].name: ring.bin ", files / "ring.bin")
    (out / "ring.bin").hardlink_to(files / "ring.bin")
    (complaint,) = complaints(Dump(source="ring.bin"), overwrite=True)
    assert mentions(complaint, "dumps[0].name: ring.bin ", files / "ring.bin")


def test_too_little_space(complaints: Complainer, plan: Planner, files: Path) -> None:
    huge = files / "huge"
    huge.touch()
    status = os.statvfs(files)
    size = status.f_bavail * status.f_frsize * 3 // 2
    os.truncate(huge, size)
    (complaint,) = complaints(Dump(source="huge", sparse="never"))
    assert mentions(complaint, f"output: {files.parent} ", format_size(size))
    # Holes take no space unless they are to be filled; a part takes what a part takes.
    assert plan(Dump(source="huge")).bytes == size
    assert plan(Dump(source="huge", sparse="never", length="1M")).bytes == 1024 * KiB
    # It is the dumps together that don't fit.
    half = Dump(source="huge", sparse="never", length=size // 2)
    assert plan(half).free > size // 2
    assert len(complaints(half, Dump(source="huge", name="other", sparse="never", offset=size // 2))) == 1


def test_the_free_space_is_that_of_the_output(plan: Planner, tmpfs: Path) -> None:
    status = os.statvfs(tmpfs)
    free = plan(Dump(source="ring.bin"), output=tmpfs / "not" / "yet").free
    assert abs(free - status.f_bavail * status.f_frsize) < GiB


# --- all at once ------------------------------------------------------------------------------------------------------

WRONG = """\
version: 1
output: out
dumps:
  - source: nothing_*
  - source: missing
  - source: ring.bin
    offset: 1TiB
  - source: ring.bin
    name: ../x
  - source: rtemap_1
    name: taken
  - source: rtemap_2
    name: "{{stem}}"
  - source: rtemap_9
    name: "{stem"
  - source: rtemap_10
    name: "{{stem}}"
"""


def test_all_that_is_wrong_is_told_at_once_with_its_line(files: Path) -> None:
    (files / "out").mkdir()
    (files / "out" / "taken").touch()
    manifest, marks = parse_manifest(WRONG.encode(), "m.yaml")
    with pytest.raises(ManifestError) as refused:
        make_plan(manifest, marks, os.fspath(files), Overrides())
    found = [str(problem).partition(": ")[0::2] for problem in refused.value.problems]
    assert [(place, rest.partition(":")[0]) for place, rest in found] == [
        ("m.yaml:2", "output"),
        ("m.yaml:4", "dumps[0].source"),
        ("m.yaml:5", "dumps[1].source"),
        ("m.yaml:7", "dumps[2].offset"),
        ("m.yaml:9", "dumps[3].name"),
        ("m.yaml:15", "dumps[6].name"),
        ("m.yaml:17", "dumps[7].name"),
    ]


def test_nothing_is_written(plan: Planner, complaints: Complainer, tmp_path: Path, files: Path) -> None:
    write_pages(files / "holey", bytes(64 * KiB) + b"x", holes=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ring.bin").touch()
    before = everything(tmp_path)
    plan(Dump(source="*"), overwrite=True)
    plan(Dump(source="*"), output=tmp_path / "a" / "b" / "c")
    complaints(Dump(source="*"), Dump(source="missing"), Dump(source="ring.bin", name="{"))
    assert everything(tmp_path) == before


def test_no_descriptor_is_left_open(plan: Planner, complaints: Complainer, files: Path) -> None:
    os.mkfifo(files / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    plan(Dump(source="rtemap_*"))
    complaints(Dump(source="fifo"), Dump(source="ring.bin", offset="1G"), Dump(source="ring.bin", name="{"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_gone_before_it_is_looked_at(complaints: Complainer, files: Path) -> None:
    """A folder that went away is no traceback either."""
    shutil.rmtree(files)
    assert len(complaints(Dump(source="rtemap_*"), Dump(source="ring.bin"))) == 2


def test_the_same_dump_twice_is_two_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"x")
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(f"version: 1\noutput: out\ndumps: [&a {{source: {tmp_path}/s}}, *a]\n")
    read, marks = read_manifest(str(manifest))
    with pytest.raises(ManifestError) as refused:
        make_plan(read, marks, str(tmp_path), Overrides())
    assert [problem.key for problem in refused.value.problems] == ["dumps[1].name"]


def test_a_folder_with_wildcards_in_its_name_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]*"
    folder.mkdir()
    (folder / "ring_1").write_bytes(b"x")
    manifest = folder / "manifest.yaml"
    manifest.write_text("version: 1\noutput: out\ndumps: [{source: ring_*}]\n")
    read, marks = read_manifest(str(manifest))
    assert [dump.name for dump in make_plan(read, marks, str(folder), Overrides()).dumps] == ["ring_1"]


def test_an_output_with_a_nul_is_told(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"x")
    with pytest.raises(ManifestError, match="NUL"):
        make_plan(Manifest(output="a\0b", dumps=(Dump(source="s"),)), Marks(), str(tmp_path), Overrides())
