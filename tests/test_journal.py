"""The journal and the receipt read back: cut anywhere, damaged, hostile, or no file at all."""

from __future__ import annotations

import base64
import errno
import os
import resource
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from files import GiB, MiB
from hypothesis import given
from hypothesis import strategies as st
from strategies import text as any_text

from asyncdump.engines import Method
from asyncdump.errors import DumpError
from asyncdump.records import record as records
from asyncdump.records.journal import Head, Journal, line, read_journal
from asyncdump.records.receipt import Receipt, read_receipt
from asyncdump.records.record import Record, file_record
from asyncdump.records.report import FileReport
from asyncdump.sinks.folder import Folder
from asyncdump.text import text as shown
from asyncdump.vocabulary.names import JOURNAL, RECEIPT, name_complaint
from asyncdump.vocabulary.values import Identity

FOLDER = "/dumps"


def record_of(file: FileReport) -> dict[str, Any]:
    """Return a record as JSON has it."""
    record: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(file_record(file)))
    return record


def file_of(record: Any, folder: str) -> FileReport:
    """Read a record as a receipt is read."""
    return records.file_of(msgspec.json.decode(msgspec.json.encode(record), type=Record), folder)


# --- what is drawn ----------------------------------------------------------------------------------------------------

names = (
    st.binary(min_size=1, max_size=12).map(os.fsdecode)
    | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    | st.sampled_from(["größe", "\u2028", "a\\b", "\udcff", "x" * 255])
).filter(lambda name: not name_complaint(name))
"""Names that a dump may have: what isn't UTF-8 is in them too."""

paths = (st.binary(max_size=12) | any_text.map(str.encode)).map(
    lambda name: os.fsdecode(b"/" + name.replace(b"\0", b""))
)
numbers = st.integers(0, 2**63 - 1)
unsigned = st.integers(0, 2**64 - 1)


def hexadecimal(length: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=length // 2, max_size=length // 2).map(bytes.hex)


digests = (
    st.none()
    | hexadecimal(32).map("xxh128:".__add__)
    | st.tuples(st.sampled_from(["sha256:", "blake3:"]), hexadecimal(64)).map("".join)
)
failures = st.builds(
    DumpError,
    any_text | paths,
    errno=st.none() | st.sampled_from([errno.ENOSPC, errno.EIO, errno.EWOULDBLOCK]),
    hint=any_text,
)
identities = st.builds(Identity, inode=unsigned, size=numbers, mtime_ns=st.integers(-(2**63), 2**64))

reports = st.builds(
    lambda **values: FileReport(path=os.path.join(FOLDER, values["name"]), **values),
    source=paths,
    name=names,
    bytes=numbers,
    stored=numbers,
    seconds=st.integers(0, 10**12).map(lambda microseconds: microseconds / 10**6),
    method=st.none() | st.sampled_from(get_args(Method)),
    digest=digests,
    content_digest=digests,
    error=st.none() | failures,
    phase=st.sampled_from(["plan", "open", "move", "digest", "sync", "done"]),
    stages=st.lists(st.sampled_from(["zstd:3", "age", "gzip"]) | any_text.map(shown), max_size=3).map(tuple),
    offset=numbers,
    size=numbers,
    identity=st.none() | identities,
    inode=unsigned,
    marks=st.lists(hexadecimal(8), max_size=5).map("".join),
)
several = st.lists(reports, max_size=6, unique_by=lambda file: file.name)
heads = st.builds(Head, files=st.integers(0, 10**6), started=any_text, manifest_sha256=hexadecimal(64))


def lines_of(head: Head, files: list[FileReport]) -> list[bytes]:
    return [line(msgspec.to_builtins(head)), *(line(file_record(file)) for file in files)]


def plain(file: FileReport) -> Any:
    """Return a report as it can be compared: an error is equal to itself only, and is shown escaped."""
    error = file.error
    told = error and (shown(str(error)), getattr(error, "errno", None), error.hint)
    return msgspec.structs.asdict(msgspec.structs.replace(file, error=None, kept=False, run="")), told


def same(found: Any, files: Any) -> bool:
    return list(map(plain, found)) == list(map(plain, files))


# --- a record ---------------------------------------------------------------------------------------------------------


@given(reports)
def test_a_record_comes_back_as_it_was_written(file: FileReport) -> None:
    assert same([file_of(record_of(file), FOLDER)], [file])


@pytest.mark.parametrize("inode", [2**63 - 1, 2**63, 2**64 - 1])
def test_inodes_have_64_bits(inode) -> None:
    record = record_of(report(inode=inode, identity=Identity(inode=inode, size=1, mtime_ns=-1)))
    read = file_of(record, FOLDER)
    assert (read.inode, read.identity) == (inode, Identity(inode=inode, size=1, mtime_ns=-1))


@pytest.mark.parametrize("seconds", [253_402_300_800, -(2**40)])
def test_a_source_of_the_far_future_has_a_record(seconds) -> None:
    """On tmpfs a time may be any number of 64 bits of seconds."""
    file = report(identity=Identity(inode=1, size=1, mtime_ns=seconds * 10**9))
    assert same(records_of(b"".join(lines_of(Head(), [file]))), [file])


def test_a_program_that_is_not_utf8_has_a_record() -> None:
    read = file_of(record_of(report(stages=("zstd:3", os.fsdecode(b"caf\xe9"), "a\nb"))), FOLDER)
    assert read.stages == ("zstd:3", r"caf\xe9", r"a\nb")


def report(name: str = "a", **changes: Any) -> FileReport:
    given: dict[str, Any] = {"source": "/s", "name": name, "path": f"{FOLDER}/{name}", "bytes": 1, "stored": 1}
    given |= {"seconds": 0.5, "method": "read", "digest": None, "error": None, "phase": "done", **changes}
    return FileReport(**given)


def records_of(content: bytes) -> Sequence[FileReport] | None:
    read = read_journal(content, FOLDER)
    return None if read is None else read[1]


# --- a journal that was damaged ---------------------------------------------------------------------------------------


@given(heads, several, st.data())
def test_what_is_cut_anywhere_is_read_up_to_there(head: Head, files: list[FileReport], data: st.DataObject) -> None:
    lines = lines_of(head, files)
    content = b"".join(lines)
    # Near the ends of lines is where a reader would go wrong.
    ends = [len(b"".join(lines[: count + 1])) for count in range(len(lines))]
    near = st.builds(lambda end, by: min(max(end + by, 0), len(content)), st.sampled_from(ends), st.integers(-2, 2))
    cut = data.draw(st.integers(0, len(content)) | near)
    whole = sum(end <= cut for end in ends)
    read = read_journal(content[:cut], FOLDER)
    if whole == 0:
        assert read is None
    else:
        assert read is not None
        assert read[0] == head
        assert same(read[1], files[: whole - 1])


def test_what_is_cut_at_each_byte() -> None:
    files = [report(name=f"dump-{number}", marks="01234567" * number) for number in range(4)]
    lines = lines_of(Head(files=4), files)
    content = b"".join(lines)
    for cut in range(len(content) + 1):
        whole = content[:cut].count(b"\n")
        read = records_of(content[:cut])
        assert read is None if whole == 0 else same(read, files[: whole - 1])


@given(heads, several, st.data())
def test_what_has_a_wrong_byte_is_never_read(head: Head, files: list[FileReport], data: st.DataObject) -> None:
    lines = lines_of(head, files)
    content = bytearray(b"".join(lines))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    check_damaged(bytes(content), place, lines, files)


def check_damaged(content: bytes, place: int, lines: list[bytes], files: list[FileReport]) -> None:
    """Say that a journal with a wrong byte tells what stands before it, and what it tells is right."""
    before = b"".join(lines)[:place].count(b"\n")
    read = records_of(content)
    if read is None:
        assert before == 0
        return
    assert same(read, files[: len(read)])
    # Between the checksum and the JSON stands a space, which nobody looks at.
    assert len(read) == before - 1 or content[place - 8 : place].isalnum()


@pytest.mark.parametrize("mask", [1, 0x20, 0x80, 0xFF])
def test_a_wrong_byte_at_each_place(mask) -> None:
    files = [report(name=f"dump-{number}") for number in range(3)]
    lines = lines_of(Head(files=3), files)
    content = b"".join(lines)
    for place in range(len(content)):
        wrong = bytearray(content)
        wrong[place] ^= mask
        check_damaged(bytes(wrong), place, lines, files)


@given(heads, st.lists(reports, max_size=8))
def test_of_what_stands_twice_the_last_counts(head: Head, files: list[FileReport]) -> None:
    twice = [*files, *(msgspec.structs.replace(file, phase="done", error=None, bytes=7) for file in reversed(files))]
    last = {file.name: file for file in twice}
    read = read_journal(b"".join(lines_of(head, twice)), FOLDER)
    assert read is not None
    assert same(read[1], last.values())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*record_of(report()), "name_base64", "source_base64"]) | any_text, inner)
    ),
    max_leaves=10,
)
near_records = st.builds(
    lambda file, changes: {**record_of(file), **changes},
    reports,
    st.dictionaries(st.sampled_from([*record_of(report()), "name_base64", "source_base64"]), json_values, max_size=3),
)


def signed(encoded: bytes) -> bytes:
    """Return a line whose checksum is right, whatever is in it."""
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


@given(st.binary(max_size=200), st.binary(max_size=50), json_values | near_records, several)
def test_garbage_is_no_record(garbage: bytes, inner: bytes, value: Any, files: list[FileReport]) -> None:
    good = b"".join(lines_of(Head(), files))
    assert records_of(garbage) is None
    assert records_of(signed(inner)) is None
    read_journal(line(value), FOLDER)
    read_journal(signed(b'{"journal":1,' + inner + b"}"), FOLDER)
    for more in (garbage, signed(inner)):
        read = records_of(good + more)
        assert read is not None
        assert same(read, files)
    # One that is right in form is taken for what it says, and never leaves the folder.
    for file in records_of(good + line(value)) or ():
        assert os.path.dirname(os.path.normpath(file.path)) == FOLDER
        assert not name_complaint(file.name)


@given(json_values | near_records)
def test_any_json_is_a_record_or_a_value_error(value: Any) -> None:
    try:
        file = file_of(value, FOLDER)
    except ValueError:
        return
    assert os.path.join(FOLDER, file.name) == file.path == os.path.normpath(file.path)
    assert same([file_of(record_of(file), FOLDER)], [file])


@pytest.mark.parametrize("version", ["1", None, [], 1.5])
def test_a_journal_without_a_version_is_none(version) -> None:
    head: Any = {"journal": version}
    assert records_of(line(head) + line(file_record(report()))) is None


# --- hostile records --------------------------------------------------------------------------------------------------

DEEP = 10_000


def nested(opening: str, closing: str) -> bytes:
    return (opening * DEEP + closing * DEEP).encode()


HOSTILE: dict[str, dict[str, Any]] = {
    **{
        f"name {name!r}": {"name": name} for name in ("../x", "/etc/passwd", "a/b", "", ".", "..", "-", RECEIPT, "a\0b")
    },
    **{f"name {name!r}": {"name": name} for name in (JOURNAL, "XXH128SUMS", "a\nb", "\x1b[2J", "x" * 256, "\ud800")},
    **{
        f"name {name!r} in base64": {"name": "shown", "name_base64": base64.b64encode(name).decode()}
        for name in (b"../x", b"/etc/passwd", b"", b"..", RECEIPT.encode(), b"a\0b", JOURNAL.encode(), b"a\xff/b")
    },
    "no base64": {"name_base64": "!!!!"},
    "base64 of the wrong length": {"name_base64": "YQ"},
    "base64 that is not ASCII": {"name_base64": "é" * 4},
    "source with a NUL": {"source": "/s\0x"},
    "source with a NUL in base64": {"source_base64": base64.b64encode(b"/s\0x").decode()},
    "source with half a pair": {"source": "/\ud800"},
    **{
        f"{key} {value!r:.12}": {key: value}
        for key in ("bytes", "offset", "size", "stored", "inode")
        for value in (-1, 0.5)
    },
    **{f"{key} that is huge": {key: 10**25} for key in ("bytes", "offset", "size", "stored")},
    **{f"{key} that is text": {key: "1"} for key in ("bytes", "offset", "seconds", "inode", "identity", "error")},
    **{f"{key} that is a list": {key: []} for key in ("source", "name", "bytes", "digest", "marks", "method", "phase")},
    **{f"{key} that is null": {key: None} for key in ("source", "name", "bytes", "offset", "stages", "marks", "inode")},
    **{
        f"digest {digest!r:.24}": {"digest": digest}
        for digest in (
            *("", "xxh128", "xxh128:", "md5:" + "0" * 32, "xxh128:" + "0" * 31, "xxh128:" + "0" * 64),
            *("xxh128:" + "0" * 32 + "\n", "sha256:" + "0" * 32, "blake3:" + "A" * 64, "xxh128:" + "g" * 32),
            *(" xxh128:" + "0" * 32, "sha256:" + "0" * 65, "none:", "xxh128:../../../../../../../etc/passwd"),
        )
    },
    "content digest": {"content_digest": "sha256:0"},
    **{f"marks {marks!r}": {"marks": marks} for marks in ("0", "0" * 7, "0" * 9, "0000000G", "00000000\n", "0000 000")},
    "method": {"method": "teleport"},
    "stages of numbers": {"stages": [1]},
    "stages that are text": {"stages": "zstd:3"},
    "identity without a size": {"identity": {"inode": 1, "mtime_ns": 1}},
    "identity of text": {"identity": {"inode": "1", "size": 1, "mtime_ns": 1}},
    "error without a message": {"error": {}},
    "error that is nested deep": {"error": {"message": [[[[[]]]]]}},
}
hostile = pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)


def wrong(changes: dict[str, Any]) -> dict[str, Any]:
    return {**record_of(report(name="wrong")), **changes}


@hostile
def test_a_hostile_record_is_a_value_error(changes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        file_of(wrong(changes), FOLDER)


@pytest.mark.parametrize("value", [None, [], "x", 1, 10**400, {}, {"name": "a"}, [[]], True])
def test_what_is_no_record_is_a_value_error(value) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        file_of(value, FOLDER)


@pytest.mark.parametrize("key", ["stages", "error", "name", "identity", "bad"])
def test_what_is_nested_deep_is_refused(key) -> None:
    for deep in DEEP_JSON.values():
        with pytest.raises((ValueError, RecursionError)):
            records.file_of(msgspec.json.decode(as_json({key: "here"}).replace(b'"here"', deep), type=Record), FOLDER)


def as_json(changes: dict[str, Any]) -> bytes:
    """Write a record as whoever means harm would: half a surrogate pair is written by its number."""
    half = "\ud800"
    escaped = {key: value.replace(half, "HALF") if isinstance(value, str) else value for key, value in changes.items()}
    return msgspec.json.encode(wrong(escaped)).replace(b"HALF", rb"\ud800")


@hostile
def test_a_hostile_record_ends_a_journal(changes) -> None:
    good = [report(name="first"), report(name="second")]
    content = b"".join(lines_of(Head(files=4), good))
    read = records_of(content + signed(as_json(changes)) + line(file_record(report(name="behind"))))
    assert read is not None
    assert same(read, good)


DEEP_JSON = {
    "lists": nested("[", "]"),
    "objects": nested('{"a":', "}")[:-DEEP] + b"1" + b"}" * DEEP,
    "open": b"[" * DEEP,
}


@pytest.mark.parametrize("encoded", [*DEEP_JSON.values(), b"\xff", b'"\\ud800"', b"1" * 5000, b"1e999", b"nan", b""])
def test_json_that_no_parser_takes_ends_a_journal(encoded) -> None:
    good = [report(name="first")]
    content = b"".join(lines_of(Head(), good))
    inside = as_json({}).replace(b'"wrong"', encoded)
    beside = as_json({})[:-1] + b',"more":' + encoded + b"}"
    for bad in (encoded, inside, beside):
        read = records_of(content + signed(bad) + line(file_record(report(name="behind"))))
        assert read is not None
        if bad is beside and encoded[:1].isdigit():  # A number, if a long one: what has no place is skipped.
            assert [file.name for file in read] == ["first", "wrong", "behind"]
        else:
            assert same(read, good)
        assert records_of(signed(b'{"journal":1,"files":' + encoded + b"}")) is None


# --- a receipt --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """An output folder; the test fails if it leaves a descriptor open."""
    folder = Folder(os.fspath(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    yield folder
    assert len(os.listdir("/proc/self/fd")) == before
    folder.close()


def put(folder: Folder, content: bytes, name: str = RECEIPT) -> Path:
    path = Path(folder.path, name)
    path.write_bytes(content)
    return path


def refusal(folder: Folder) -> str:
    with pytest.raises(DumpError) as refused:
        read_receipt(folder)
    return str(refused.value)


def as_receipt(*records: bytes) -> bytes:
    return b'{"receipt":1,"files":[' + b",".join(records) + b"]}"


@hostile
def test_a_receipt_with_a_hostile_record_is_none(changes, folder: Folder) -> None:
    path = put(folder, as_receipt(as_json({}), as_json(changes)))
    assert str(path) in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"{",
            b"[]",
            b"null",
            b"{}",
            b'{"receipt":1}',
            b'{"receipt":"1","files":[]}',
        ),
        *(b'{"receipt":1,"files":{}}', b'{"receipt":1,"files":[1]}', b"\xff" * 100, b"\0" * 100, b"PK\x03\x04"),
        *(b'{"receipt":' + b"1" * 5000 + b',"files":[]}', b'{"receipt":1,"files":["\xff"]}'),
        *DEEP_JSON.values(),
        *map(as_receipt, DEEP_JSON.values()),
        *(b'{"receipt":1,"files":[],"more":' + deep + b"}" for deep in DEEP_JSON.values()),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_what_is_no_receipt(content, folder: Folder) -> None:
    path = put(folder, content)
    assert str(path) in refusal(folder)


def test_a_name_that_stands_twice_in_a_receipt(folder: Folder) -> None:
    path = put(folder, as_receipt(as_json({"name": "a"}), as_json({"name_base64": "YQ=="})))
    assert str(path) in refusal(folder)
    put(folder, as_receipt(as_json({"name": "a"}), as_json({"name_base64": "Yg=="})))
    receipt = read_receipt(folder)
    assert receipt is not None
    assert [file.name for file in receipt.files] == ["a", "b"]


@given(several)
def test_a_receipt_comes_back(files: list[FileReport]) -> None:
    with new_folder() as folder:
        put(folder, as_receipt(*(msgspec.json.encode(file_record(file)) for file in files)))
        read = read_receipt(folder)
        assert read is not None
        found = [msgspec.structs.replace(file, path=os.path.join(FOLDER, file.name)) for file in read.files]
        assert same(found, files)
        assert list(read.known) == [file.name for file in files]


def plant(folder: Folder, kind: str, name: str) -> Callable[[], object]:
    """Put something that is no file where a receipt would be; return what takes it away."""
    path = Path(folder.path, name)
    match kind:
        case "symlink":
            whole = Path(folder.path, "elsewhere")
            whole.write_bytes(as_receipt(as_json({})) if name == RECEIPT else b"".join(lines_of(Head(), [])))
            path.symlink_to(whole)
        case "dangling symlink":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(name)
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "fifo that is written to":
            os.mkfifo(path)
            fd = os.open(path, os.O_RDWR)
            return lambda: os.close(fd)
        case "fifo with something in it":
            os.mkfifo(path)
            fd = os.open(path, os.O_RDWR)
            os.write(fd, b"[" * 100)
            return lambda: os.close(fd)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"/proc/self/fd/{folder.fd}/{name}")
        case "2 GiB of nothing":
            path.touch()
            os.truncate(path, 2 * GiB)
        case "zeros for ever":
            try:
                os.mknod(path, 0o20600, os.makedev(1, 5))
                os.close(os.open(path, os.O_RDONLY))
            except PermissionError:
                pytest.skip("a device takes root, and a filesystem that has devices")
    return lambda: None


KINDS = [
    "symlink",
    "dangling symlink",
    "loop",
    "folder",
    "fifo",
    "fifo that is written to",
    "fifo with something in it",
]
KINDS += ["socket", "2 GiB of nothing", "zeros for ever"]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", [RECEIPT, JOURNAL])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_for_a_receipt_and_is_no_file(kind, name, folder: Folder) -> None:
    take_away = plant(folder, kind, name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with pytest.raises(DumpError, match=name):
            read_receipt(folder)
    finally:
        take_away()
    # Nor is it read into memory first.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * MiB // 1024


def test_without_either_there_is_nothing(folder: Folder) -> None:
    assert read_receipt(folder) is None


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"00000000 {}\n", signed(b'{"journal":1}')[:-1], signed(b"[]")])
def test_a_journal_without_a_head_leaves_the_word_to_the_receipt(content, folder: Folder) -> None:
    put(folder, content, JOURNAL)
    assert read_receipt(folder) is None
    put(folder, as_receipt(as_json({})))
    read = read_receipt(folder)
    assert read is not None
    assert (read.path, [file.name for file in read.files]) == (f"{folder.path}/{RECEIPT}", ["wrong"])


# --- a journal on a disk ----------------------------------------------------------------------------------------------


@contextmanager
def new_folder() -> Iterator[Folder]:
    path = tempfile.mkdtemp(prefix="asyncdump-tests-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    folder = Folder(path)
    try:
        yield folder
    finally:
        folder.close()
        shutil.rmtree(path)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to make a file larger: it writes what fits, and then EFBIG (setrlimit(2))."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def told(folder: Folder) -> Receipt:
    read = read_receipt(folder)
    assert read is not None
    assert read.path == os.path.join(folder.path, JOURNAL)
    return read


def holds(folder: Folder, files: dict[str, FileReport]) -> bool:
    expected = [msgspec.structs.replace(file, path=os.path.join(folder.path, name)) for name, file in files.items()]
    by_name = attrgetter("name")
    return same(sorted(told(folder).known.values(), key=by_name), sorted(expected, key=by_name))


@pytest.mark.slow
@given(st.lists(reports, max_size=3), st.lists(st.tuples(st.lists(reports, max_size=4), st.none() | st.floats(0, 1))))
def test_what_could_not_be_appended_was_never_there(
    earlier: list[FileReport], groups: list[tuple[list[FileReport], float | None]]
) -> None:
    """A full disk cuts an append at any byte; what was written of it is gone, and the next one takes its place."""
    with new_folder() as folder:
        journal = Journal(folder, Head(files=99), earlier)
        path = Path(folder.path, JOURNAL)
        expected = {file.name: file for file in earlier}
        appended: set[str] = set()
        try:
            assert holds(folder, expected)
            for files, cut in groups:
                size = len(b"".join(lines_of(Head(), files)[1:]))
                if cut is None or not files:
                    journal.append(files)
                    expected |= {file.name: file for file in files}
                    appended |= {file.name for file in files}
                else:
                    room = os.stat(path).st_size + int(cut * (size - 1))
                    with largest_file(room), pytest.raises(DumpError, match=r"write of .*EFBIG"):
                        journal.append(files)
                assert holds(folder, expected)
                assert told(folder).missing == 99 - len(appended)
                assert journal.sync() is None
        finally:
            journal.close()


def test_of_an_append_that_failed_no_whole_line_comes_back(folder: Folder) -> None:
    """Lines of one length: what takes the place of the first must not bring the second back."""
    journal = Journal(folder, Head(files=4))
    lost = [report(name=f"lost-{number}") for number in range(3)]
    length = len(line(file_record(lost[0])))
    with largest_file(os.stat(journal.path).st_size + 2 * length + 5), pytest.raises(DumpError, match="EFBIG"):
        journal.append(lost)
    journal.append([report(name="kept-0")])
    journal.close()
    assert [file.name for file in told(folder).files] == ["kept-0"]
    Path(folder.path, JOURNAL).unlink()


@pytest.mark.parametrize("room", [0, 10, 500])
def test_a_journal_that_cannot_be_begun_leaves_the_one_before(room, folder: Folder) -> None:
    before = {f"dump-{number}": report(name=f"dump-{number}") for number in range(9)}
    with largest_file(room), pytest.raises(DumpError, match="EFBIG"):
        Journal(folder, Head(), before.values())
    assert os.listdir(folder.path) == []
    Journal(folder, Head(), before.values()).close()
    with largest_file(room), pytest.raises(DumpError, match="EFBIG"):
        Journal(folder, Head(), [report(name="new", marks="00000000" * 99)])
    assert holds(folder, before)
    assert os.listdir(folder.path) == [JOURNAL]


def test_a_journal_begins_with_what_was_done_before(folder: Folder) -> None:
    earlier = {name: report(name=name) for name in ("a", os.fsdecode(b"\xff"))}
    for _ in range(2):  # Where there is none, and where one stands already.
        journal = Journal(folder, Head(files=3), earlier.values())
        assert holds(folder, earlier)
        assert os.stat(journal.path).st_mode & 0o777 == 0o600
        journal.close()
    journal.remove()
    assert read_receipt(folder) is None


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "fifo", "socket", "fifo that is written to"])
def test_what_stands_where_the_journal_will_be_is_replaced_and_not_followed(kind, folder: Folder) -> None:
    take_away = plant(folder, kind, JOURNAL)
    elsewhere = Path(folder.path, "elsewhere")
    before = elsewhere.read_bytes() if elsewhere.exists() else None
    journal = Journal(folder, Head(), [report()])
    journal.append([report(name="b")])
    journal.close()
    take_away()
    assert sorted(told(folder).known) == ["a", "b"]
    assert before == (elsewhere.read_bytes() if elsewhere.exists() else None)
    assert not Path(folder.path, "nowhere").exists()
