"""The command on a terminal: a bar while it lasts, nothing too wide or too high, and the summary alone at the end."""

from __future__ import annotations

import io
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import write_manifest
from files import GiB, MiB, leftovers, mentions, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from terminal import COLOURS, Shown, on_terminal

import asyncdump
from asyncdump.cli.bar import Bar
from asyncdump.run.tally import Tally
from asyncdump.vocabulary.tables import cut, seconds, table

SIZES = [(40, 10), (80, 24), (200, 50)]
LONG = "a-name-that-goes-on-and-on-" * 8 + "and-ends"


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


@pytest.fixture
def busy(endless: Path, shm: Path, tmp_path: Path) -> Path:
    """A manifest of hundreds of files: twenty of them won't end, some of those with long names."""
    for number in range(300):
        (shm / f"small{number}").write_bytes(noise(100, number))
    forever = [{"source": str(endless), "name": f"{LONG if number % 2 else 'short'}-{number}"} for number in range(20)]
    write_manifest(tmp_path, *forever, f"{shm}/small*", concurrency=24)
    return tmp_path


def bar_is_drawn(shown: Shown) -> bool:
    """Tell whether the total, and at least two files below it, are on the screen."""
    return re.search(r" of 320 .+\n  .+\n  .+", shown.screen.text) is not None


# --- on a pty ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_bar_keeps_to_the_terminal_and_goes(size, busy: Path) -> None:
    widths = []
    drawn = []

    def until(shown: Shown) -> bool:
        if not bar_is_drawn(shown):
            return False
        widths.append(shown.screen.widest)
        drawn.append(shown.screen.text)
        return len(drawn) >= 3 and "…" in drawn[-1]

    shown = on_terminal("m.yaml", cwd=busy, size=size, until=until, then=interrupt)
    assert shown.code == 130
    assert max(widths) <= size[0]
    assert not shown.screen.clamped
    assert 4 <= shown.screen.tallest <= size[1]
    assert re.search(r"%.* [\d.]+ [MG]iB/s \d+:\d\d", drawn[-1])
    end = shown.screen.text
    assert "%" not in end
    assert re.match(r"\d+ of 320 files |asyncdump: ", end)
    assert "SIGINT" in end
    assert re.search(r"^total +\d+ ", end, re.MULTILINE)
    assert shown.raw.rindex("\x1b[?25h") > shown.raw.rindex("\x1b[?25l"), "the cursor is left hidden"
    assert leftovers(busy / "out") == []


def test_the_bar_goes_forward(endless: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, endless)
    seen: list[str] = []

    def until(shown: Shown) -> bool:
        found = re.findall(r"([\d.]+ [KMG]iB) of 4\.0 TiB", shown.screen.text)
        seen.extend(moved for moved in found if moved not in seen)
        return len(seen) >= 3

    shown = on_terminal("m.yaml", cwd=tmp_path, until=until, then=interrupt)
    assert shown.code == 130
    assert "  endless " in shown.raw
    assert "0 of 1 " in shown.raw


def test_a_file_that_fails_is_told_above_the_bar(sources: list[Path], endless: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, {"source": str(sources[0]), "method": "reflink"}, endless, concurrency=2)
    shown = on_terminal(
        *("m.yaml", "--log-format", "json"),
        cwd=tmp_path,
        size=(200, 50),
        until=lambda shown: "dump_failed" in shown.screen.text and "%" in shown.screen.text,
        then=interrupt,
    )
    text = shown.screen.text
    assert "%" not in text
    [warning] = [line for line in text.splitlines() if "dump_failed" in line]
    assert text.index(warning) < text.index("0 of 2 files ")
    assert re.search("^asyncdump: .*ring0.*reflink", text, re.MULTILINE)


@pytest.mark.parametrize("size", SIZES)
def test_a_short_run_leaves_its_summary(size, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    shown = on_terminal("m.yaml", cwd=tmp_path, size=size)
    assert shown.code == 0
    lines = shown.screen.text.splitlines()
    assert mentions(lines[0], "3 of 3 files ", tmp_path / "out")
    assert [line.split()[0] for line in lines[2:5]] == ["method", "read", "total"]
    assert ("written" in lines[2]) == (size[0] > 40)
    assert max(map(len, lines[2:])) <= size[0]
    assert " ".join(lines[6:]).endswith(": receipt.json, XXH128SUMS")


def test_colours_where_they_are_wanted(busy: Path) -> None:
    shown = on_terminal("m.yaml", cwd=busy, until=bar_is_drawn, then=interrupt)
    assert COLOURS.search(shown.raw)


def test_no_colours_where_they_are_not(busy: Path) -> None:
    shown = on_terminal("m.yaml", cwd=busy, until=bar_is_drawn, then=interrupt, NO_COLOR="1")
    assert not COLOURS.search(shown.raw)


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_of_warnings(variables, coloured, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, sources[0])
    shown = on_terminal("m.yaml", "--method", "reflink", "--progress", "json", cwd=tmp_path, **variables)
    assert shown.code == 1
    assert "dump_failed" in shown.raw
    assert bool(COLOURS.search(shown.raw)) == coloured


def test_a_dumb_terminal_gets_plain_lines(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    shown = on_terminal("m.yaml", cwd=tmp_path, TERM="dumb")
    assert shown.code == 0
    assert "\x1b" not in shown.raw
    lines = shown.screen.text.splitlines()
    assert mentions(lines[0], "3 files", "4.0 MiB", tmp_path / "out")
    assert mentions(lines[1], "3 of 3 files ", tmp_path / "out")


@pytest.mark.parametrize(("how", "first"), [("plain", "3 files"), ("none", "3 of 3 files"), ("json", "{")])
def test_no_bar_where_another_way_is_asked_for(how, first, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    shown = on_terminal("m.yaml", "--progress", how, cwd=tmp_path)
    assert shown.code == 0
    assert "\x1b" not in shown.raw
    assert first in shown.screen.text.splitlines()[0]


def test_quiet_shows_nothing(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    assert on_terminal("m.yaml", "--quiet", cwd=tmp_path).raw == ""


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_the_plan_fits(size, shm: Path, tmp_path: Path) -> None:
    (shm / LONG).write_bytes(noise(5000))
    write_manifest(tmp_path, {"source": f"{shm}/{LONG}", "name": "short"})
    shown = on_terminal("m.yaml", "--dry-run", cwd=tmp_path, size=size)
    assert shown.code == 0
    lines = shown.screen.text.splitlines()
    assert max(map(len, lines[:2])) == size[0]
    assert "…" in lines[1]
    assert lines[1].endswith("-and-ends  tmpfs  4.9 KiB  read    xxh128")


@pytest.mark.parametrize("options", [[], ["--method", "reflink"]])
def test_the_plan_fits_a_narrow_terminal(options, shm: Path, tmp_path: Path) -> None:
    (shm / LONG).write_bytes(noise(5000))
    write_manifest(tmp_path, f"{shm}/{LONG}")
    shown = on_terminal("m.yaml", "--dry-run", *options, cwd=tmp_path, size=(40, 10))
    assert shown.code == 0
    head, row, *_ = shown.screen.text.splitlines()
    assert head.split() == ["name", "source", "size", "method"]
    assert max(len(head), len(row)) <= 40
    assert "  4.9 KiB  re" in row


@pytest.mark.parametrize("size", [(40, 10), (80, 24)])
def test_the_findings_of_a_probe_fit(size, sources: list[Path], tmp_path: Path) -> None:
    shown = on_terminal("probe", sources[1], str(tmp_path), cwd=tmp_path, size=size)
    assert shown.code == 0
    assert shown.screen.widest <= size[0]


# --- tables of text ---------------------------------------------------------------------------------------------------


@settings(database=None)
@given(st.text(max_size=60), st.integers(1, 80))
def test_what_is_cut_fits(text: str, size: int) -> None:
    shown = cut(text, size)
    assert len(shown) == min(len(text), size)
    if len(text) <= size:
        assert shown == text
        return
    head, _, tail = (
        shown.partition("…") if "…" not in text else (shown[: (size - 1) // 3], "", shown[(size - 1) // 3 + 1 :])
    )
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(tail) >= len(head)


def test_the_end_of_a_path_stays() -> None:
    assert cut("/dev/hugepages/rtemap_17", 16) == "/dev/…/rtemap_17"


def test_a_table_is_aligned() -> None:
    rows = [("name", "size", "method"), ("a", "8.0 MiB", "read"), ("longer", "1 B", "sendfile")]
    assert table(rows, right=(1,)) == [
        "name       size  method",
        "a       8.0 MiB  read",
        "longer      1 B  sendfile",
    ]


def test_a_column_without_text_is_left_out() -> None:
    rows = [("name", "", "size"), ("a", "", "8.0 MiB"), ("b", "", "1 B")]
    assert table(rows, right=(2,)) == ["name     size", "a     8.0 MiB", "b         1 B"]


def test_a_table_escapes_what_is_not_utf_8() -> None:
    assert table([("name", "x"), ("caf\udce9", "y")]) == ["name     x", "caf\\xe9  y"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_shrinks_in_one_column(width) -> None:
    rows = [
        ("name", "source", "kind"),
        ("short", f"/dev/shm/{LONG}", "tmpfs"),
        ("other", "/dev/shm/b", "hugetlbfs 2 MiB"),
    ]
    lines = table(rows, width=width, shrink=(1,))
    assert max(map(len, lines)) == width
    assert lines[1].startswith("short  /dev/shm/")
    assert lines[1].endswith("and-ends  tmpfs")
    assert "/dev/shm/b  " in lines[2]


def test_a_table_shrinks_in_one_column_after_the_other() -> None:
    lines = table([("name", "source", "kind"), ("n" * 30, "s" * 30, "tmpfs")], width=30, shrink=(1, 0))
    assert lines[1] == f"{'n' * 4}…{'n' * 8}  {'s' * 2}…{'s' * 5}  tmpfs"


def test_a_table_shrinks_in_the_column_that_was_meant() -> None:
    """Whatever was left out before it."""
    lines = table([("name", "", "source"), ("n" * 8, "", "s" * 30)], width=20, shrink=(2,))
    assert lines == ["name      source", f"{'n' * 8}  sss…ssssss"]


@pytest.mark.parametrize(
    ("count", "said"), [(0.0, "0.00 s"), (0.814, "0.81 s"), (59.99, "59.99 s"), (60, "1 0 s"), (200, "3 20 s")]
)
def test_seconds_for_people(count, said) -> None:
    assert re.sub(r" [a-z]{2,}", "", seconds(count)) == said


# --- the bar ----------------------------------------------------------------------------------------------------------


def started(files: int, size: int) -> asyncdump.RunStarted:
    return asyncdump.RunStarted(at=0, output="/out", files=files, bytes=size, concurrency=4)


def opened(name: str, size: int, method: Any = "read") -> asyncdump.FileStarted:
    return asyncdump.FileStarted(at=0, name=name, source=f"/dev/shm/{name}", kind="tmpfs", bytes=size, method=method)


def moved(name: str, done: int, total: int) -> asyncdump.Progress:
    return asyncdump.Progress(at=0, name=name, done=done, total=total, phase="move")


def finished(name: str, size: int) -> asyncdump.FileFinished:
    source = f"/dev/shm/{name}"
    return asyncdump.FileFinished(
        at=0, name=name, source=source, bytes=size, stored=size, seconds=1, method="read", digest=None
    )


def failed(name: str) -> asyncdump.FileFailed:
    return asyncdump.FileFailed(at=0, name=name, source="x", error=asyncdump.DumpError("no"), phase="move")


def drawing(*events: asyncdump.Event, size: tuple[int, int] = (80, 24)) -> list[str]:
    """Return the lines of a bar that has heard of ``events``."""
    bar = Bar()
    bar._console = Console(file=io.StringIO(), width=size[0], height=size[1])
    for event in events:
        bar.tell(event)
    with bar._console.capture() as capture:
        bar._console.print(bar._draw())
    return capture.get().splitlines()


def in_flight(count: int) -> list[asyncdump.Event]:
    events: list[asyncdump.Event] = [started(300, 300 * GiB)]
    for number in range(count):
        name = f"{number:03}-{LONG}" if number % 2 else f"{number:03}"
        events += [opened(name, GiB), moved(name, 256 * MiB, GiB)]
    return events


@pytest.mark.parametrize("size", [(20, 5), *SIZES])
@pytest.mark.parametrize("count", [0, 1, 9, 300])
def test_a_bar_fits(count, size) -> None:
    lines = drawing(*in_flight(count), size=size)
    assert max(map(len, lines)) <= size[0]
    assert len(lines) == 2 + min(count, 8, size[1] - 4)


def test_a_bar_tells_how_far_it_is() -> None:
    total = 4 * GiB
    lines = drawing(
        started(4, total),
        opened("a", GiB),
        finished("a", GiB),
        opened("b", GiB, "sendfile"),
        moved("b", 256 * MiB, GiB),
        moved("b", 512 * MiB, GiB),
        opened("c", GiB),
        moved("c", 512 * MiB, GiB),
        failed("c"),
    )
    assert len(lines) == 3
    assert re.search(r" +38% 1\.5 GiB of 4\.0 GiB [\d.]+ [GT]iB/s 0:00", lines[0])
    assert re.fullmatch(r"1 of 4 .*, 1 .*", lines[1])
    assert re.fullmatch(r"  b +50%     1\.0 GiB  sendfile *", lines[2])


def test_a_narrow_bar_leaves_the_sizes_out() -> None:
    lines = drawing(started(1, GiB), opened("a", GiB), moved("a", 512 * MiB, GiB), size=(40, 10))
    assert " of " not in lines[0]
    assert " 50% " in lines[0]
    assert re.fullmatch(r"  a +50%  read *", lines[2])


def test_a_bar_of_nothing() -> None:
    lines = drawing(started(1, 0), opened("empty", 0), moved("empty", 0, 0))
    assert "100% 0 B of 0 B" in lines[0]
    assert "-:--" in lines[0]


def test_a_bar_escapes_what_is_not_utf_8() -> None:
    lines = drawing(started(1, GiB), opened("caf\udce9", GiB), moved("caf\udce9", MiB, GiB))
    assert lines[2].startswith("  caf\\xe9 ")


def test_nothing_is_kept_of_what_has_ended() -> None:
    tally = Tally()
    for event in (started(2, GiB), opened("a", MiB), moved("a", MiB, MiB), opened("b", MiB), moved("b", 5, MiB)):
        tally.tell(event)
    assert tally.moved == MiB + 5
    tally.tell(finished("a", MiB))
    tally.tell(failed("b"))
    assert (tally.moved, tally.durable, tally.finished, tally.failed) == (MiB, MiB, 1, 1)
    assert (tally.in_flight, tally.methods) == ({}, {})
