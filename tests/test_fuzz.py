"""Whatever a manifest holds, whatever a file is made of: errors are of one kind, and no byte is lost.

Some seconds by default. ASYNCDUMP_FUZZ=100 draws a hundred times as many examples (with ``--timeout=0``; how many each
property ran is told by ``--hypothesis-show-statistics``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from itertools import cycle, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from files import MiB, noise, planned_dump
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import KEYS, broken_yaml, documents, scalars, strange_documents, templates, values, yaml_texts

from asyncdump.codecs.zstd import ZstdOptions
from asyncdump.engines import ENGINES, FEEDS, Route
from asyncdump.errors import ManifestError
from asyncdump.manifest import yaml as yamlfile
from asyncdump.manifest.options import Overrides
from asyncdump.manifest.yaml import parse_manifest
from asyncdump.plan.planner import make_plan
from asyncdump.sources.file import FileSource, open_now
from asyncdump.transfer import reader
from asyncdump.transfer.packed import Packed
from asyncdump.transfer.piped import Piped
from asyncdump.transfer.resources import resources
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary import marks
from asyncdump.vocabulary.blocks import BLOCK
from asyncdump.vocabulary.digest import bare_digest
from asyncdump.vocabulary.marks import Marked, first_difference
from asyncdump.vocabulary.names import name_complaint
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import Source, Span

PAGE = 4096

# --- manifests --------------------------------------------------------------------------------------------------------

FILES = ["rtemap_1", "rtemap_2", "ring.bin", "größe", "a b", "{brace}", "line\nend", "*star", "receipt.json", "-"]
PROGRAMS = [["cat"], ["no-such-program"], ["sh", "-c", "touch ran"], ["\0"], [""], []]

LOADERS = [yamlfile.core_loader(base) for base in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None)) if base]
"""PyYAML's own parser takes some texts that libyaml doesn't, and is what there is where libyaml isn't."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some sources in it, and an output folder that holds something already."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in FILES:
        (folder / name).write_bytes(noise(100))
    os.mkfifo(folder / "rtemap_fifo")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("nowhere")
    (folder / "used").mkdir()
    for name in ("rtemap_1", "receipt.json", ".asyncdump-journal"):
        (folder / "used" / name).write_text("{}")
    return folder


odd_texts = st.text(st.characters() | st.sampled_from("/.~*?[]{}!\\\0\n\x1b\x85\u2028\ud800\udc80"), max_size=12)
sources = (
    st.sampled_from(
        [*FILES, "rtemap_*", "*", "missing", "rtemap_fifo", "folder", "link", "/dev/zero", "~", "~no\0body/x"]
    )
    | st.sampled_from(
        ["[", "[!", "[z-a]*", "?" * 300, "x" * 5000, "/dev/tty", "rtemap_[0-", ".", "..", "/", "ring.bin/"]
    )
    | odd_texts.map(lambda text: text.replace("**", "*"))  # Not through the whole of /proc.
)
near_valid = st.fixed_dictionaries(
    {
        "version": st.sampled_from([1, 1, 1, 1, "1", 2]),
        "output": st.sampled_from(["out", "used", "folder/../out", "ring.bin", "ring.bin/x", "-", "/proc", "x" * 300])
        | odd_texts,
        "dumps": st.lists(
            st.fixed_dictionaries(
                {"source": sources},
                optional={
                    "name": templates | odd_texts,
                    "offset": st.sampled_from([0, 50, 100, 101, "1KiB", "16EiB", -1]) | scalars,
                    "length": st.sampled_from([0, 1, "1TiB", None]) | scalars,
                    "compress": st.sampled_from(["zstd", "none", {"zstd": {"level": 3}}]) | values,
                    "filter": st.lists(st.sampled_from(PROGRAMS), max_size=2) | values,
                    "method": st.sampled_from(["auto", "read", "splice", "direct"]) | scalars,
                    "timeout": st.sampled_from([1, 0.5]) | scalars,
                    "first": st.sampled_from(["compress", "filter"]),
                },
            ),
            max_size=4,
        ),
    },
    optional={
        "retries": st.sampled_from([0, 1, {"times": 2}, {"errors": ["ENOSPC"]}, {"errors": "EIO"}]) | values,
        "defaults": st.fixed_dictionaries(
            {},
            optional={"filter": st.lists(st.sampled_from(PROGRAMS)), "compress": st.just("zstd"), "timeout": scalars},
        ),
        "concurrency": st.integers(-1, 300) | scalars,
        "on_error": st.sampled_from(["continue", "abort"]),
    },
)


plannable = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "output": st.sampled_from(["out", "out", "used", "folder/../out", "ring.bin/x", "x" * 300])
        | odd_texts.filter(bool),
        "dumps": st.lists(
            st.fixed_dictionaries(
                {"source": st.sampled_from(["rtemap_*", "ring.bin", "größe"]) | sources.filter(bool)},
                optional={
                    "name": (templates | odd_texts | st.sampled_from(["\ud800", "a\udc80", "{index}\n"])).filter(bool),
                    "offset": st.sampled_from([0, 50, 100, 101, "1KiB", "7EiB"]),
                    "length": st.sampled_from([0, 1, "1TiB", None]),
                    "compress": st.sampled_from(["zstd", "none", {"zstd": {"level": 3}}]),
                    "filter": st.lists(st.sampled_from(PROGRAMS).filter(bool), max_size=2),
                    "method": st.sampled_from(["auto", "read", "splice", "direct"]),
                    "first": st.sampled_from(["compress", "filter"]),
                },
            ),
            min_size=1,
            max_size=3,
        ),
    }
)
"""Manifests that are right in form, of which something stands in the way."""


@st.composite
def spoilt(draw: st.DrawFn, documents: st.SearchStrategy[Any]) -> Any:
    """Draw a document in which something, anywhere, is something else."""
    document = deepcopy(draw(documents))  # Parts of it may be the strategies' own.
    place = document
    while isinstance(place, dict | list) and place:
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            match draw(st.sampled_from(["replace", "remove", "rename"])):
                case "replace":
                    place[key] = draw(values | odd_texts)
                case "remove":
                    del place[key]
                case "rename" if isinstance(place, dict):
                    place[draw(st.sampled_from(KEYS) | odd_texts)] = place.pop(key)
            break
        place = inner
    return document


def json_like(document: Any) -> bytes:
    """Write a document as JSON, which is YAML too: here half a surrogate pair can be written."""
    return json.dumps(document, indent=1, default=str).encode()


options = st.builds(Overrides, overwrite=st.booleans(), allow_filters=st.booleans(), resume=st.booleans())


def check(content: bytes, folder: Path, options: Overrides, loader: Any) -> None:
    """Whatever the content is: a plan, or an error that says for each problem where it stands, in one line."""
    before = sorted(os.listdir(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yamlfile, "_Loader", loader)
        try:
            manifest, marks = parse_manifest(content, "m.yaml")
            plan = make_plan(manifest, marks, os.fspath(folder), options)
        except ManifestError as error:
            check_problems(content, error)
        else:
            assert all(not name_complaint(dump.name) for dump in plan.dumps)
            assert len({dump.name for dump in plan.dumps}) == len(plan.dumps)
            assert all(0 <= dump.offset <= dump.offset + dump.length <= dump.source.size for dump in plan.dumps)
            assert options["allow_filters"] or not any(dump.filters for dump in plan.dumps)
    assert sorted(os.listdir(folder)) == before


def check_problems(content: bytes, error: ManifestError) -> None:
    last = len(content.decode(errors="replace").splitlines()) + 1
    assert error.problems
    for problem in error.problems:
        assert problem.file == "m.yaml"
        assert 1 <= problem.line <= last or not content.isascii()
        assert problem.message
        assert len(problem.message.splitlines()) == 1
        assert len(str(problem).splitlines()) == 1
        str(problem).encode()  # It can be shown.
    assert str(error).splitlines() == [str(problem) for problem in error.problems]
    lines = [problem.line for problem in error.problems]
    assert lines == sorted(lines)


loaders = pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)


@loaders
@given(content=st.binary(max_size=100) | broken_yaml | odd_texts.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_a_manifest_or_an_error(place: Path, loader: Any, content: bytes) -> None:
    check(content, place, Overrides(), loader)


@loaders
@given(content=yaml_texts(strange_documents).map(lambda drawn: drawn[0]), options=options)
def test_any_yaml_is_a_manifest_or_an_error(place: Path, loader: Any, content: bytes, options: Overrides) -> None:
    check(content, place, options, loader)


@loaders
@given(document=plannable | near_valid | spoilt(plannable) | spoilt(documents), options=options)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_what_is_nearly_a_manifest_is_a_plan_or_an_error(
    place: Path, loader: Any, document: Any, options: Overrides
) -> None:
    check(json_like(document), place, options, loader)


@pytest.mark.sample(1)
@loaders
@given(document=near_valid, data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_manifest_with_any_byte_changed(place: Path, loader: Any, document: Any, data: st.DataObject) -> None:
    content = bytearray(json_like(document))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255) | st.sampled_from(b"&*!{[\"'\\\n")
        )
    check(bytes(content), place, Overrides(), loader)


@pytest.mark.parametrize(
    "changes", [{"source": "\ud800"}, {"source": "*\ud800"}, {"name": "\ud800"}, {"name": "{index}\ud800"}]
)
def test_half_a_surrogate_pair_is_no_path(place: Path, changes: dict[str, str]) -> None:
    (key,) = changes
    content = json_like({"version": 1, "output": "out", "dumps": [{"source": "ring.bin", **changes}]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yamlfile, "_Loader", LOADERS[0])
        manifest, marks = parse_manifest(content, "m.yaml")
    with pytest.raises(ManifestError) as refused:
        make_plan(manifest, marks, os.fspath(place), Overrides())
    (problem,) = refused.value.problems
    assert problem.key == f"dumps[0].{key}"
    with pytest.raises(ManifestError) as refused:
        make_plan(manifest, marks, os.fspath(place), Overrides(output="\ud800"))
    assert "output" in {problem.key for problem in refused.value.problems}


@pytest.mark.parametrize("source", ["a\0b", "~a\0b/x", "*\0"])
def test_a_nul_is_in_no_path(place: Path, source: str) -> None:
    manifest, marks = parse_manifest(
        json_like({"version": 1, "output": "out", "dumps": [{"source": source}]}), "m.yaml"
    )
    with pytest.raises(ManifestError, match=r"dumps\[0\].source: .*NUL"):
        make_plan(manifest, marks, os.fspath(place), Overrides())


@st.composite
def anchored(draw: st.DrawFn) -> str:
    """Draw YAML with anchors, and aliases of what has been written, or is being."""
    names: list[str] = []

    def node(depth: int) -> str:
        kind = draw(st.sampled_from(["text", "alias", "alias", "list", "list", "mapping"][: 3 if depth == 0 else None]))
        if kind == "alias" and names:
            return f"*{draw(st.sampled_from(names))} "
        anchor = draw(st.sampled_from(["", "", f"a{len(names)}"]))
        early = kind != "text" and draw(st.integers(0, 9)) == 0  # What is in it may stand for the whole.
        if anchor and early:
            names.append(anchor)
        items = [node(depth - 1) for _ in range(draw(st.integers(0, 4)))] if kind in {"list", "mapping"} else []
        if anchor and not early:
            anchor = f"a{len(names)}"
            names.append(anchor)
        written = f"&{anchor} " if anchor else ""
        if kind == "list":
            return f"{written}[{', '.join(items)}]"
        if kind == "mapping":
            return f"{written}{{{', '.join(f'? {item} : x' for item in items)}}}"
        return f"{written}x"

    return f"[{node(4)}, {node(2)}]"


@loaders
@given(text=anchored(), more=st.integers(-2, 2) | st.integers(-60, 60))
def test_what_aliases_stand_for_is_counted_as_it_is_when_it_is_written_out(loader: Any, text: str, more: int) -> None:
    content = f"{text}\n".encode()
    node = yaml.compose(content, Loader=loader)
    assert node is not None
    recursive = _recursive(node, ())
    count = 50 if recursive else _count(node)
    message = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yamlfile, "_Loader", loader)
        patch.setattr(yamlfile, "_MOST", count + more)
        try:
            yamlfile._compose(content, "m.yaml")
        except ManifestError as error:
            check_problems(content, error)
            message = error.problems[0].message
    if recursive:
        assert message
    else:
        assert (f"{count + more:,}" in message) == bool(message) == (more < 0)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _recursive(node: yaml.Node, above: tuple[yaml.Node, ...]) -> bool:
    return any(node is each for each in above) or any(_recursive(each, (*above, node)) for each in _inner(node))


def _count(node: yaml.Node) -> int:
    return 1 + sum(map(_count, _inner(node)))


# --- spans ------------------------------------------------------------------------------------------------------------

Layout = list[tuple[int, bool]]
"""Runs of a file: how many pages, and whether they are a hole."""

layouts = st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=10)
steps = st.integers(1, 20).map(lambda pages: pages * PAGE) | st.integers(100, 20 * PAGE)


class Laid(SimpleNamespace):
    """A file that is open, and its content."""

    origin: FileSource
    content: bytes

    @property
    def source(self) -> Source:
        return self.origin.described


@pytest.fixture(params=["tmpfs", "ext4"], scope="module")
def where(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def lay_out(folder: Path, layout: Layout, tail: int) -> Iterator[Laid]:
    path = folder / "laid-out"
    data = [not hole for count, hole in layout for _ in range(count)]
    with path.open("wb", buffering=0) as file:
        for page, whole in enumerate(data):
            if whole:
                os.pwrite(file.fileno(), noise(PAGE, page), page * PAGE)
        file.truncate(len(data) * PAGE + tail)
    origin = open_now(os.fspath(path))
    try:
        yield Laid(origin=origin, content=path.read_bytes())
    finally:
        origin.close()
        path.unlink()


def begun(kind: Any, laid: Laid, offset: int, end: int, engine: Any, **options: Any) -> Any:
    """Return a transfer that has come as far as to cut its source: nothing is written."""
    planned = planned_dump(laid.source, offset=offset, length=end - offset, **options)
    transfer = kind(planned, resources(Stop()))
    sink: Any = SimpleNamespace(pace=None)
    transfer._route = Route(origin=laid.origin, sink=sink, start=offset, sparse=planned.sparse)
    transfer._reader.start(transfer._route, [engine], transfer._spans(), None)
    return transfer


def check_cover(spans: list[Span], offset: int, end: int, content: bytes) -> None:
    """Say that spans are ``[offset, end)``, in order, each byte once, and that no data is in a hole."""
    assert all(span.length > 0 for span in spans)
    assert all(one.end == other.offset for one, other in pairwise(spans))
    assert ([spans[0].offset, spans[-1].end] if spans else [offset, offset]) == [offset, end]
    assert not any(any(content[span.offset : span.end]) for span in spans if span.hole)


def range_of(data: st.DataObject, laid: Laid) -> tuple[int, int]:
    size = laid.source.size
    offset = data.draw(st.integers(0, size) | st.integers(0, size // PAGE).map(lambda page: page * PAGE))
    return offset, data.draw(st.integers(offset, size) | st.just(size))


@given(
    layout=layouts,
    tail=st.integers(0, PAGE - 1),
    engines=st.lists(st.tuples(steps, st.booleans()), min_size=1, max_size=4),
    longest=steps,
    sparse=st.booleans(),
    data=st.data(),
)
def test_a_transfer_takes_each_byte_once(
    where: Path,
    layout: Layout,
    tail: int,
    engines: list[tuple[int, bool]],
    longest: int,
    sparse: bool,  # noqa: FBT001 (drawn)
    data: st.DataObject,
) -> None:
    """Also where the kernel refuses an engine, so that another one takes the rest in other steps."""
    for laid in lay_out(where, layout, tail):
        offset, end = range_of(data, laid)
        changes = cycle(
            [SimpleNamespace(span=span, sees_bytes=sees_bytes, refuses=lambda _: None) for span, sees_bytes in engines]
        )
        spans = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader, "_LONGEST_HOLE", longest)
            engine: Any = next(changes)
            moving = begun(Transfer, laid, offset, end, engine, sparse=sparse)
            for span in moving._spans():
                step = longest if span.hole and sparse else engine.span
                assert span.length <= step
                assert (span.end - offset) % step == 0 or span.length < step
                spans.append(span)
                # What was refused is cut again.
                engine = moving._reader.engine = next(changes)
                if not span.hole:
                    again = list(moving._reader.cut(span))
                    check_cover(again, span.offset, span.end, laid.content)
                    assert all(piece.length <= engine.span for piece in again)
        check_cover(spans, offset, end, laid.content)


@pytest.mark.sample(1)
@given(layout=layouts, tail=st.integers(0, PAGE - 1), frame=steps, data=st.data())
def test_frames_are_of_one_size_and_take_each_byte_once(
    where: Path, layout: Layout, tail: int, frame: int, data: st.DataObject
) -> None:
    for laid in lay_out(where, layout, tail):
        offset, end = range_of(data, laid)
        compression = ZstdOptions(frame=frame)
        spans = list(begun(Packed, laid, offset, end, FEEDS["read"], compression=compression)._spans())
        piped = begun(Piped, laid, offset, end, FEEDS["read"], compression=compression)
        for found in (spans, list(piped.next_spans())):
            check_cover(found, offset, end, laid.content)
            assert [span.offset for span in found] == list(range(offset, end, frame))
            assert all(span.length == frame for span in found[:-1])
        # What is in a hole as long as a frame is not read.
        holes = [each for each in laid.origin.spans(offset, end) if each.hole and each.length >= frame]
        for span in spans:
            assert span.hole == any(hole.offset <= span.offset and span.end <= hole.end for hole in holes)


@given(
    islands=st.lists(st.integers(0, 300 * MiB // PAGE), max_size=8),
    size=st.integers(0, 300 * MiB),
    method=st.sampled_from(sorted(ENGINES)),
    sparse=st.booleans(),
    data=st.data(),
)
def test_the_engines_own_steps_take_each_byte_once(
    where: Path,
    islands: list[int],
    size: int,
    method: Any,
    sparse: bool,  # noqa: FBT001 (drawn)
    data: st.DataObject,
) -> None:
    path = where / "islands"
    with path.open("wb", buffering=0) as file:
        for page in islands:
            os.pwrite(file.fileno(), b"x", page * PAGE + page % PAGE)
        file.truncate(size)
    written = [page * PAGE + page % PAGE for page in islands if page * PAGE + page % PAGE < size]
    origin = open_now(os.fspath(path))
    try:
        laid = Laid(origin=origin)
        offset, end = range_of(data, laid)
        engine = SimpleNamespace(
            span=ENGINES[method].span, sees_bytes=ENGINES[method].sees_bytes, refuses=lambda _: None
        )
        moving = begun(Transfer, laid, offset, end, engine, sparse=sparse)
        packed = begun(Packed, laid, offset, end, FEEDS["read"], sparse=sparse, compression=ZstdOptions())
        for spans in (list(moving._spans()), list(packed._spans())):
            check_cover(spans, offset, end, b"")
            assert not any(span.hole and span.offset <= place < span.end for place in written for span in spans)
    finally:
        origin.close()
        path.unlink()


# --- where the damage is ----------------------------------------------------------------------------------------------

SMALL_BLOCK = 64


def marks_of(data: bytes, checksum: Any, cuts: list[int]) -> str:
    bare = bare_digest(checksum)
    assert bare is not None
    marked = Marked(bare)
    for begin, end in pairwise([0, *sorted(cuts), len(data)]):
        marked.update(memoryview(data)[begin:end])
    return marked.marks.hex()


def flipped(data: bytes, place: int, mask: int) -> bytes:
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


@pytest.mark.parametrize("checksum", ["xxh128", "blake3", "sha256"])
@given(size=st.integers(1, 20 * SMALL_BLOCK), data=st.data())
def test_a_wrong_byte_is_placed_in_its_block(checksum: Any, size: int, data: st.DataObject) -> None:
    content = noise(size, size)
    place = data.draw(st.integers(0, size - 1))
    mask = data.draw(st.integers(1, 255))
    cuts = st.lists(st.integers(0, size), max_size=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks, "BLOCK", SMALL_BLOCK)
        right, other = (marks_of(content, checksum, data.draw(cuts)) for _ in range(2))
        wrong = marks_of(flipped(content, place, mask), checksum, data.draw(cuts))
        # One that was cut agrees as far as it goes.
        short = data.draw(st.integers(0, size))
        cut = marks_of(content[:short], checksum, [])
    assert right == other
    assert len(right) == size // SMALL_BLOCK * 8
    assert first_difference(right, wrong) == first_difference(wrong, right) == place // SMALL_BLOCK
    assert first_difference(right, right) == size // SMALL_BLOCK
    assert first_difference(right, cut) == short // SMALL_BLOCK


LARGE = noise(3 * BLOCK + 5)


@given(
    place=st.integers(0, len(LARGE) - 1) | st.sampled_from([0, BLOCK - 1, BLOCK, 3 * BLOCK - 1, 3 * BLOCK]),
    data=st.data(),
)
@settings(max_examples=settings().max_examples // 4)
def test_a_wrong_byte_is_placed_in_its_block_of_2_mib(place: int, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(LARGE)), max_size=3))
    wrong = marks_of(flipped(LARGE, place, data.draw(st.integers(1, 255))), "xxh128", cuts)
    assert first_difference(marks_of(LARGE, "xxh128", []), wrong) == place // BLOCK
