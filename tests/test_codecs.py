"""What every codec does: one table of contents, damages and foreign files, through frames, dumps and commands."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from files import KiB, MiB, content, noise, unavailable

import asyncdump
from asyncdump.cli.dd.operands import parse as parse_operands
from asyncdump.codecs.codec import BUDGET, Codec, Compression, FrameError
from asyncdump.codecs.compressors import Compressors
from asyncdump.codecs.registry import CODECS, codec_by_suffix, codec_of_stage, detect, parse_compression, stored_by
from asyncdump.errors import DamagedError, DumpError, ManifestError
from asyncdump.kernel.lane import Buffer
from asyncdump.manifest.compression import MODELS

FRAME = 64 * KiB
SIZES = {
    "nothing": 0,
    "one byte": 1,
    "a frame less one": FRAME - 1,
    "a frame": FRAME,
    "a frame and one": FRAME + 1,
    "several": 5 * FRAME + 777,
}
KINDS: dict[str, Callable[[int], bytes]] = {
    "zeros": bytes,
    "noise": noise,
    "mixed": lambda length: content(length + 200)[200 - min(length, 100) :][:length],
    "text": lambda length: b"".join(b"%07d words\n" % n for n in range(length // 14 + 1))[:length],
}
TOOL: dict[str, list[list[str]]] = {
    "zstd": [["-1"], ["-19", "--long=24"], ["--no-check"], ["-3", "--rsyncable"]],
    "lz4": [["-1"], ["-9", "-B4"], ["-BD"], ["--no-frame-crc"], ["--content-size", "-BX"], ["-12", "-B7", "-BD"]],
}


@pytest.fixture(params=CODECS)
def codec(request) -> Codec:
    if missing := CODECS[request.param].missing():
        unavailable(f"{request.param} is not installed: {missing}")
    return CODECS[request.param]


@pytest.fixture(params=KINDS)
def kind(request) -> Callable[[int], bytes]:
    return KINDS[request.param]


def frames_of(codec: Codec, data: bytes, **options: Any) -> tuple[Compression, bytes]:
    compression = MODELS[codec.name](frame=FRAME, **options).options
    return compression, compression.new_compressor()(memoryview(data))


def taken(codec: Codec, frame: bytes, length: int) -> bytes:
    target = bytearray(length)
    codec.decompress(memoryview(frame), memoryview(target))
    return bytes(target)


def tool(codec: Codec, *arguments: str | Path, data: bytes | None = None) -> bytes:
    command = [codec.name, *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=60, check=True).stdout


def command(*arguments: str | Path, cwd: Path, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "asyncdump", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, input=data, capture_output=True, timeout=60, check=False)


async def dump(folder: Path, data: bytes, codec: Codec, **options: Any) -> Path:
    """Dump a file of ``data`` in frames of 64 KiB; return the path of its dump."""
    (folder / "ring").write_bytes(data)
    model = MODELS[codec.name](frame=options.pop("frame", FRAME), **options)
    entry = asyncdump.Dump(source=str(folder / "ring"), compress=model)
    report = await asyncdump.dump_all([entry], output=folder / "out")
    report.raise_for_failures()
    assert report.files[0].stages == (str(model.options),)
    return folder / "out" / f"ring{codec.suffix}"


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_codec_is_found_by_all_that_names_it(codec: Codec) -> None:
    _, frame = frames_of(codec, b"x")
    assert detect(frame[:4]) is codec
    assert codec_by_suffix(f"/x/ring{codec.suffix}") is codec
    assert codec_by_suffix(f"/x/ring{codec.suffix}x") is None
    assert codec_of_stage(f"{codec.name}:3") is codec
    assert codec_of_stage(codec.name) is None  # A program of that name.
    assert stored_by(["gzip", f"{codec.name}:-7"]) is codec
    assert stored_by([f"{codec.name}:3", "gzip"]) is None
    assert stored_by([]) is None


def test_a_text_asks_for_a_codec_and_a_level(codec: Codec) -> None:
    lowest, highest = codec.levels
    assert parse_compression(codec.name) == codec.compression() == MODELS[codec.name]().options
    assert parse_compression("none") is None
    for level in (lowest, -1, 1, highest):
        found = parse_compression(f"{codec.name}:{level}")
        assert found == codec.compression(level) == MODELS[codec.name](level=level).options
        assert str(found) == f"{codec.name}:{level}"
    for wrong in (f"{codec.name}:{highest + 1}", f"{codec.name}:{lowest - 1}", f"{codec.name}:", f"{codec.name}:x", ""):
        with pytest.raises(ValueError, match=r"level|known"):
            parse_compression(wrong)
    with pytest.raises(ManifestError):
        MODELS[codec.name](level=highest + 1)


def test_what_costs_more_than_the_budget_is_refused(codec: Codec) -> None:
    level = codec.levels[1]
    with pytest.raises(ManifestError) as caught:
        MODELS[codec.name](level=level, frame="128MiB")
    assert caught.value.problems[0].key == "frame"
    assert codec.compression(level).cost < BUDGET


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_frame_is_what_went_in(size, kind, checksum, codec: Codec) -> None:
    data = kind(SIZES[size])
    _, frame = frames_of(codec, data, checksum=checksum)
    assert taken(codec, frame, len(data)) == data
    assert tool(codec, "-dc", data=frame) == data
    assert codec.length_of(frame[: codec.header]) in {len(data), None if not data else len(data)}
    assert codec.unsupported(frame[: codec.header]) is None
    assert len(data) <= codec.best_ratio * len(frame)
    assert len(frame) <= len(data) + 64
    if checksum:
        assert codec.checksum_of(memoryview(frame), memoryview(data)) == int.from_bytes(frame[-4:], "little")
        assert codec.checksum_of(memoryview(frames_of(codec, data, checksum=False)[1]), memoryview(data)) == (
            int.from_bytes(frame[-4:], "little")
        )


@pytest.mark.parametrize("end", [0, 1])
def test_a_level_at_either_end(end, kind, codec: Codec) -> None:
    data = kind(3 * FRAME + 5)
    compression, frame = frames_of(codec, data, level=codec.levels[end])
    assert taken(codec, frame, len(data)) == data
    assert compression.level == codec.levels[end]


def test_a_higher_level_is_smaller(codec: Codec) -> None:
    data = KINDS["text"](4 * FRAME)
    sizes = [len(frames_of(codec, data, level=level)[1]) for level in (codec.levels[0], 1, codec.levels[1])]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("bite", [1, 7, 4096, 1 << 20])
def test_a_frame_is_decompressed_piece_by_piece(bite, kind, codec: Codec) -> None:
    data = kind(2 * FRAME + 77)
    _, frame = frames_of(codec, data)
    stored, found, place = frame + b"what follows", b"", 0
    decompressor = codec.decompressor()
    while not decompressor.eof:
        piece = stored[place : place + bite]
        found += decompressor.decompress(memoryview(piece))
        place += len(piece)
    assert found == data
    assert place - decompressor.unused == len(frame)


def test_a_wrong_length_is_an_error(kind, codec: Codec) -> None:
    data = kind(FRAME)
    _, frame = frames_of(codec, data)
    for length in (0, FRAME - 1, FRAME + 1, 10 * FRAME):
        with pytest.raises(FrameError):
            taken(codec, frame, length)
    for cut in (5, len(frame) // 2, len(frame) - 1):
        with pytest.raises(FrameError):
            taken(codec, frame[:-cut], FRAME)
    assert taken(codec, frame, FRAME) == data  # What failed has left nothing behind.


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_a_damaged_byte_never_gives_other_content(bit, kind, codec: Codec) -> None:
    data = kind(FRAME)
    _, frame = frames_of(codec, data)
    places = {*range(min(24, len(frame))), *range(max(0, len(frame) - 8), len(frame)), *range(24, len(frame), 997)}
    refused = 0
    for place in places:
        spoilt = bytearray(frame)
        spoilt[place] ^= 1 << bit
        try:
            assert taken(codec, bytes(spoilt), FRAME) == data
        except FrameError:
            refused += 1
    assert refused >= len(places) - 3  # Some bits of a header mean nothing.


def test_frames_of_zeros_are_compressed_once(codec: Codec) -> None:
    compressors, buffer = Compressors(), Buffer()
    compression = MODELS[codec.name](frame=FRAME).options
    with compressors.press(compression) as press:
        first = compressors.frame(press, buffer, FRAME)
        assert compressors.frame(press, buffer, FRAME) is first
        buffer.view[FRAME - 1] = 1
        assert compressors.frame(press, buffer, FRAME) != first
    assert taken(codec, first, FRAME) == bytes(FRAME)


def test_the_interpreter_is_not_held(codec: Codec) -> None:
    """Another thread's clock goes on in the middle of a frame."""
    compression = MODELS[codec.name](level=codec.levels[1], frame=8 * MiB).options
    compressor = compression.new_compressor()
    data = memoryview(KINDS["text"](8 * MiB))
    begun, ended = threading.Event(), threading.Event()

    def compress() -> None:
        begun.set()
        compressor(data)
        ended.set()

    thread = threading.Thread(target=compress)
    thread.start()
    begun.wait()
    turns = 0
    while not ended.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 10


# --- dumps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_a_dump_is_read_by_its_own_program(size, kind, codec: Codec, tmp_path: Path) -> None:
    data = kind(SIZES[size])
    path = await dump(tmp_path, data, codec)
    tool(codec, "-t", path)
    assert tool(codec, "-dc", path) == data
    assert tool(codec, "-dc", data=path.read_bytes() * 2) == data * 2  # Joined, their tables are skipped.
    found = asyncdump.describe_dump(path)
    assert (found.kind, found.content, found.checksums, found.seekable) == (codec.name, len(data), True, True)
    assert found.frames == max(1, -(-len(data) // FRAME))
    assert (await asyncdump.verify_all(tmp_path / "out")).ok
    assert (await asyncdump.verify_all(tmp_path / "out", against_source=True)).ok


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("checksum", [True, False])
async def test_a_dump_by_threads(threads, checksum, codec: Codec, tmp_path: Path) -> None:
    data = content(9 * MiB + 1)
    path = await dump(tmp_path, data, codec, threads=threads, checksum=checksum)
    assert tool(codec, "-dc", path) == data
    assert asyncdump.describe_dump(path).checksums is checksum


async def test_any_part_of_a_dump(kind, codec: Codec, tmp_path: Path) -> None:
    data = kind(5 * FRAME + 9)
    path = await dump(tmp_path, data, codec)
    with asyncdump.open_dump(path) as opened:
        for offset in (0, 1, FRAME - 1, FRAME, 2 * FRAME + 7, 5 * FRAME, len(data) - 1, len(data), len(data) + 5):
            for length in (0, 1, FRAME, 3 * FRAME):
                opened.seek(offset)
                assert opened.read(length) == data[offset : offset + length]
        assert opened.seek(-3, 2) == len(data) - 3
        assert opened.read() == data[-3:]
    done = command("cat", path, "--offset", str(FRAME - 3), "--length", "9", cwd=tmp_path)
    assert done.stdout == data[FRAME - 3 : FRAME + 6]


async def test_a_dump_is_restored_and_resumed(codec: Codec, tmp_path: Path) -> None:
    data = content(3 * FRAME + 1)
    path = await dump(tmp_path, data, codec)
    (await asyncdump.restore_all(tmp_path / "out", tmp_path / "back")).raise_for_failures()
    assert (tmp_path / "back" / "ring").read_bytes() == data
    model = MODELS[codec.name](frame=FRAME)
    entries = [asyncdump.Dump(source=str(tmp_path / "ring"), compress=model)]
    report = await asyncdump.dump_all(entries, output=tmp_path / "out", resume=True)
    assert report.files[0].kept
    (tmp_path / "out" / "receipt.json").unlink()  # Nothing tells of it but its source.
    report = await asyncdump.dump_all(entries, output=tmp_path / "out", resume=True)
    assert report.files[0].kept
    assert path.exists()
    (tmp_path / "ring").write_bytes(noise(len(data)))
    assert not (await asyncdump.verify_all(tmp_path / "out", against_source=True)).ok


@pytest.mark.parametrize("first", ["compress", "filter"])
async def test_programs_and_a_codec_in_either_order(first, codec: Codec, tmp_path: Path) -> None:
    data = content(3 * FRAME + 1)
    (tmp_path / "ring").write_bytes(data)
    model = MODELS[codec.name](frame=FRAME)
    entry = asyncdump.Dump(source=str(tmp_path / "ring"), compress=model, filter=(("cat",),), first=first)
    report = await asyncdump.dump_all([entry], output=tmp_path / "out", allow_filters=True)
    report.raise_for_failures()
    [file] = report.files
    stages = [str(model.options), "cat"]
    assert list(file.stages) == (stages if first == "compress" else stages[::-1])
    assert Path(file.path).suffix == (codec.suffix if first == "filter" else "")
    assert tool(codec, "-dc", data=Path(file.path).read_bytes()) == data
    assert (await asyncdump.verify_all(tmp_path / "out")).ok


def test_in_every_interface(codec: Codec, tmp_path: Path) -> None:
    data = content(5 * MiB + 1)
    (tmp_path / "ring").write_bytes(data)
    for number, how in enumerate([codec.name, f"{{{codec.name}: {{level: 2, frame: 128KiB}}}}"]):
        (tmp_path / "m.yaml").write_text(
            f"version: 1\noutput: out{number}\ndumps: [{{source: ring, compress: {how}}}]\n"
        )
        assert command("m.yaml", "-q", cwd=tmp_path).returncode == 0
        assert tool(codec, "-dc", tmp_path / f"out{number}" / f"ring{codec.suffix}") == data
    [record] = json.loads((tmp_path / "out1" / "receipt.json").read_bytes())["files"]
    assert record["stages"] == [f"{codec.name}:2"]
    piped = command("m.yaml", "--output", "-", "--compress", f"{codec.name}:5", cwd=tmp_path)
    assert tool(codec, "-dc", data=piped.stdout) == data
    for compress in (codec.name, f"{codec.name}:-4"):
        done = command("dd", "if=ring", "of=copy", f"compress={compress}", cwd=tmp_path)
        assert done.returncode == 0
        assert tool(codec, "-dc", data=(tmp_path / "copy").read_bytes()) == data
        assert command("cat", f"--{codec.name}", "copy", cwd=tmp_path).stdout == data
        [told] = json.loads(command("info", f"--{codec.name}", "--json", "copy", cwd=tmp_path).stdout)
        assert (told["kind"], told["content"]) == (codec.name, len(data))
        with asyncdump.open_dump(tmp_path / "copy", compressed=True) as opened:  # With which, its first bytes tell.
            assert opened.read() == data
    piped = command("dd", f"compress={codec.name}", cwd=tmp_path, data=data)
    assert tool(codec, "-dc", data=piped.stdout) == data


def test_the_schema_has_it(codec: Codec) -> None:
    schema = asyncdump.json_schema()
    field = schema["$defs"]["Dump"]["properties"]["compress"]["anyOf"]
    assert any(codec.name in choice.get("enum", ()) for choice in field)
    [reference] = [
        choice["properties"][codec.name]["$ref"] for choice in field if codec.name in choice.get("properties", {})
    ]
    model = schema["$defs"][reference.rpartition("/")[2]]
    assert set(model["properties"]) == set(MODELS[codec.name].__struct_fields__)
    assert "required" not in model


# --- damage -----------------------------------------------------------------------------------------------------------


async def test_a_damaged_byte_is_placed(codec: Codec, tmp_path: Path) -> None:
    data = noise(8 * FRAME)
    path = await dump(tmp_path, data, codec)
    good = path.read_bytes()
    each = len(good) // 8  # Noise is stored as it is: all frames are of one length, and the table is short.
    frame = len(frames_of(codec, data[:FRAME])[1])
    for place in range(each // 2, 8 * each, each):
        spoilt = bytearray(good)
        spoilt[place] ^= 0x10
        path.write_bytes(spoilt)
        [file] = (await asyncdump.verify_all(tmp_path / "out")).files
        assert (file.verdict, file.frame, file.offset) == ("corrupt", place // each, place // each * frame)
        with asyncdump.open_dump(path) as opened:
            opened.seek(place // each * FRAME)
            with pytest.raises(DamagedError) as caught:
                opened.read(1)
        assert (caught.value.frame, caught.value.offset) == (place // each, place // each * frame)


async def test_frames_in_another_order(codec: Codec, tmp_path: Path) -> None:
    """Each frame is right by its own checksum: only the table shows that it is in the place of another one."""
    data = noise(4 * FRAME)
    path = await dump(tmp_path, data, codec)
    good, frame = path.read_bytes(), len(frames_of(codec, data[:FRAME])[1])
    path.write_bytes(good[:frame] + good[2 * frame : 3 * frame] + good[frame : 2 * frame] + good[3 * frame :])
    with asyncdump.open_dump(path) as opened:
        assert opened.read(FRAME) == data[:FRAME]
        with pytest.raises(DamagedError) as caught:
            opened.read(1)
    assert (caught.value.frame, caught.value.offset) == (1, frame)


async def test_a_truncated_dump(codec: Codec, tmp_path: Path) -> None:
    path = await dump(tmp_path, content(4 * FRAME), codec)
    good = path.read_bytes()
    for length in (len(good) - 1, len(good) - 9, len(good) // 2, 3, 0):
        path.write_bytes(good[:length])
        [file] = (await asyncdump.verify_all(tmp_path / "out")).files
        assert file.verdict == "short"


@pytest.mark.parametrize("size", [0, 1, 3 * MiB + 7])
def test_a_file_of_the_codecs_own_program(size, kind, codec: Codec, tmp_path: Path) -> None:
    data, path = kind(size), tmp_path / f"theirs{codec.suffix}"
    (tmp_path / "plain").write_bytes(data)
    for number, options in enumerate(TOOL[codec.name]):
        tool(
            codec,
            *options,
            "-q",
            "-f",
            tmp_path / "plain",
            "-o" if codec.name == "zstd" else path,
            *([path] if codec.name == "zstd" else []),
        )
        with asyncdump.open_dump(path) as opened:
            assert opened.read() == data, options
            for offset in (size, size // 2, 1, 0) if number == 0 else (size // 3,):
                opened.seek(offset)
                assert opened.read(1000) == data[offset : offset + 1000]
        assert not asyncdump.describe_dump(path).seekable


def test_a_damaged_file_of_its_own_program(codec: Codec, tmp_path: Path) -> None:
    data, path = noise(MiB), tmp_path / f"theirs{codec.suffix}"
    good = tool(codec, "-1", data=data)
    path.write_bytes(good[: len(good) // 2])
    done = command("cat", path, cwd=tmp_path)
    assert done.returncode == 2
    assert data.startswith(done.stdout)
    spoilt = bytearray(good)
    spoilt[len(good) // 2] ^= 1
    path.write_bytes(spoilt)
    with asyncdump.open_dump(path) as opened, pytest.raises(DamagedError) as caught:
        opened.read()
    assert caught.value.offset == 0


def test_skipped_and_empty_frames_between_others(codec: Codec, tmp_path: Path) -> None:
    def skipped(length: int) -> bytes:
        return b"\x53\x2a\x4d\x18" + length.to_bytes(4, "little") + bytes(length)

    data, path = content(300 * KiB), tmp_path / f"mixed{codec.suffix}"
    _, frame = frames_of(codec, data)
    _, nothing = frames_of(codec, b"")
    path.write_bytes(b"".join([skipped(0), skipped(3 * MiB), frame, skipped(5), nothing, nothing, frame, skipped(17)]))
    with asyncdump.open_dump(path) as opened:
        assert opened.read() == data + data


@pytest.mark.parametrize("stored", [b"", b"\x04", b"nothing of the kind", b"\x02\x21\x4c\x18" + bytes(40)])
def test_what_is_called_so_and_is_none(stored, codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / f"x{codec.suffix}"
    path.write_bytes(stored)
    for function in (asyncdump.open_dump, asyncdump.describe_dump):
        with pytest.raises(DumpError) as caught:
            function(path)
        assert "compressed=False" in caught.value.hint
        with pytest.raises(DumpError):
            function(path, compressed=True)
    with asyncdump.open_dump(path, compressed=False) as opened:
        assert opened.read() == stored


def test_nothing_tells_with_what_it_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"something")
    with pytest.raises(DumpError) as caught:
        asyncdump.open_dump(tmp_path / "x", compressed=True)
    assert "compressed=False" in caught.value.hint


# --- a codec that isn't installed -------------------------------------------------------------------------------------


async def test_without_its_package(tmp_path: Path, monkeypatch) -> None:
    path = await dump(tmp_path, content(2 * FRAME), CODECS["lz4"])
    monkeypatch.setattr("asyncdump.codecs.lz4._installed", lambda: False)
    with pytest.raises(ManifestError) as caught:
        await asyncdump.plan_all(
            [asyncdump.Dump(source=str(tmp_path / "ring"), compress="lz4")], output=tmp_path / "new"
        )
    [problem] = caught.value.problems
    assert problem.key == "dumps[0].compress"
    assert "pip install 'asyncdump[lz4]'" in problem.hint
    with pytest.raises(DumpError) as refused:
        asyncdump.open_dump(path)
    assert "asyncdump[lz4]" in refused.value.hint
    assert not isinstance(refused.value, DamagedError)
    [file] = (await asyncdump.verify_all(tmp_path / "out")).files
    assert file.verdict not in {"ok", "corrupt"}
    assert asyncdump.describe_dump(path).frames == 2
    assert "asyncdump[lz4]" in parse_operands(["compress=lz4"])[1][0]
    monkeypatch.undo()
    assert (await asyncdump.verify_all(tmp_path / "out")).ok
