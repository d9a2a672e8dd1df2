"""What reports, verifications, runs and plans look like: in one line, as text, in a notebook, as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from files import noise

import asyncdump
from asyncdump.vocabulary.tables import Summary, listed, seconds

HOSTILE = "<b>&\x1b[31m\n"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"ring_{number}" for number in range(3)] + [tmp_path / HOSTILE.replace("\n", "")]
    for number, path in enumerate(paths):
        path.write_bytes(noise(5000 + number, number))
    return paths


@pytest.fixture
async def shown(sources, tmp_path: Path) -> dict[str, Any]:
    """One value of each kind."""
    dumps = [asyncdump.Dump(source) for source in sources[:3]]
    dumps.append(asyncdump.Dump(sources[3], name="ring_3", filter=[["sh", "-c", "cat > /dev/null; exit 3"]]))
    options: dict[str, Any] = {"output": tmp_path / "dumps", "allow_filters": True}
    plan = await asyncdump.plan_all(dumps, **options)
    async with asyncdump.open_run(dumps, **options) as run:
        running = repr(run), str(run), run._repr_html_(), run.to_dict()
    verification = await asyncdump.verify_all(tmp_path / "dumps")
    restored = await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back")
    values = {"plan": plan, "run": run, "report": run.report, "verification": verification, "restored": restored}
    assert running[0].startswith("<Run, running: 4 files")
    assert running[1] == str(plan)
    assert running[2] == plan._repr_html_()
    assert (running[3]["state"], running[3]["report"]) == ("running", None)
    return values


class Checker(HTMLParser):
    """Fails for anything but the elements of a summary; collects what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.data: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "pre"}
        assert dict(attrs).get("align", "left") in {"left", "right"}
        assert set(dict(attrs)) <= {"align"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append(data)


async def test_each_is_one_line_a_text_a_page_and_json(shown) -> None:
    for value in shown.values():
        assert re.fullmatch(r"<(Plan|Run|Report|Verification).*4 (files|dumps).*>?", repr(value))
        assert repr(value).isprintable()
        assert all(line.isprintable() for line in str(value).splitlines())
        checker = Checker()
        checker.feed(value._repr_html_())
        assert checker.open == []
        words = " ".join(checker.data)
        assert all(
            cell in words for line in str(value).splitlines() for cell in re.split(r" {2,}", line.strip()) if cell
        )
        assert json.loads(value.to_json()) == value.to_dict()


async def test_a_report_is_its_receipt(shown, tmp_path: Path) -> None:
    receipt = json.loads((tmp_path / "dumps" / "receipt.json").read_text())
    assert shown["report"].to_dict() == receipt
    assert shown["run"].to_dict() == {"state": "ended", "plan": shown["run"].plan.to_dict(), "report": receipt}


async def test_a_plan_lists_its_dumps_and_tells_no_arguments(shown) -> None:
    record = shown["plan"].to_dict()
    assert [dump["name"] for dump in record["dumps"]] == ["ring_0", "ring_1", "ring_2", "ring_3"]
    assert record["dumps"][3]["stages"] == ["sh"]
    assert "exit 3" not in shown["plan"].to_json()


async def test_text_is_what_the_command_line_prints(shown, sources, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asyncdump", "verify", str(tmp_path / "dumps"), "--progress", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = str(shown["verification"]).replace("resume=True", "--resume").splitlines()
    theirs = [*done.stdout.splitlines(), "", *(line.removeprefix("asyncdump: ") for line in done.stderr.splitlines())]
    seconds = re.compile(r"[\d.]+ (s|[KMG]?i?B/s)")
    assert [seconds.sub("", line) for line in ours] == [seconds.sub("", line) for line in theirs]


async def test_a_report_of_each_kind_says_what_was_done(shown) -> None:
    assert str(shown["report"]).startswith("3 of 4 files dumped to ")
    assert str(shown["restored"]).startswith("3 of 4 files restored to ")
    assert "failed: ring_3" in str(shown["report"])


def test_equal_failures_are_one(make, tmp_path: Path) -> None:
    dumps = [asyncdump.Dump(make("tmpfs", noise(100)), name=f"ring_{number}") for number in range(11)]
    report = asyncdump.dump_sync(dumps, output=tmp_path / "dumps", method="reflink")
    assert len(report.failures) == 11
    failed = [line for line in str(report).splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert re.match(r"failed: 11 files \(move\): E[A-Z]+ \(.*\): ring_0, ring_1, ring_2 and 8 more$", failed[0])


def test_names_are_listed_up_to_some() -> None:
    assert listed([]) == ""
    assert listed("abc") == "a, b, c"
    assert listed("abcde") == "a, b, c and 2 more"
    assert listed(["a\n"]) == "a\\n"


def test_everything_is_escaped() -> None:
    summary = Summary(
        title=HOSTILE, rows=((HOSTILE, "b"), ("c", HOSTILE)), notes=(HOSTILE,), complaints=(HOSTILE,), right=(1,)
    )
    checker = Checker()
    checker.feed(summary.html())
    assert checker.open == []
    assert "<b>" not in summary.html()
    assert "\x1b" not in summary.html() + str(summary)


def test_a_notebook_keeps_no_endless_table() -> None:
    rows = (("name",), *((str(number),) for number in range(10_000)))
    assert len(Summary(title="x", rows=rows).html()) < 50_000
    assert len(str(Summary(title="x", rows=rows)).splitlines()) > 10_000


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.0, "0.00 s"), (59.99, "59.99 s"), (59.996, "1 min 0 s"), (119.7, "2 min 0 s"), (3725.0, "62 min 5 s")],
)
def test_no_time_has_sixty_seconds(number: float, shown: str) -> None:
    assert seconds(number) == shown
