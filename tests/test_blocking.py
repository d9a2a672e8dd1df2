"""The verbs for scripts: they block, and end as scripts expect."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import anyio.to_thread
import pytest
import trio
from files import leftovers, noise

import asyncdump

ENDLESS = """
import sys, signal
import asyncdump

signal.signal(signal.SIGINT, signal.default_int_handler)

def show(event):
    if isinstance(event, asyncdump.Progress):
        print(event.name, flush=True)

try:
    asyncdump.dump_sync([sys.argv[1]], output=sys.argv[2], on_event=show)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "ring"
    path.write_bytes(noise(100_000))
    return path


def test_a_dump_is_made_verified_and_restored(source, tmp_path: Path) -> None:
    heard: list[asyncdump.Event] = []
    report = asyncdump.dump_sync([source], output=tmp_path / "dumps", on_event=heard.append)
    report.raise_for_failures()
    assert isinstance(heard[-1], asyncdump.RunFinished)
    assert asyncdump.verify_sync(tmp_path / "dumps", concurrency=1).ok
    assert asyncdump.restore_sync(tmp_path / "dumps", tmp_path / "back").ok
    assert (tmp_path / "back" / "ring").read_bytes() == source.read_bytes()


def test_from_a_thread(source, tmp_path: Path) -> None:
    reports = []
    thread = threading.Thread(target=lambda: reports.append(asyncdump.dump_sync([source], output=tmp_path / "dumps")))
    thread.start()
    thread.join(60)
    assert [report.ok for report in reports] == [True]


async def test_from_a_thread_of_a_program_with_a_loop(source, tmp_path: Path) -> None:
    report = await anyio.to_thread.run_sync(partial(asyncdump.dump_sync, [source], output=tmp_path / "dumps"))
    assert report.ok


def test_it_refuses_to_block_a_loop(source, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="await dump_all instead"):
            asyncdump.dump_sync([source], output=tmp_path / "dumps")

    asyncio.run(main())
    trio.run(main)
    assert not (tmp_path / "dumps").exists()


def test_so_in_a_callback_of_a_loop(source, tmp_path: Path) -> None:
    raised = []

    def call() -> None:
        try:
            asyncdump.dump_sync([source], output=tmp_path / "dumps")
        except RuntimeError as error:
            raised.append(error)
        loop.stop()

    loop = asyncio.new_event_loop()
    loop.call_soon(call)
    loop.run_forever()
    loop.close()
    assert len(raised) == 1


def test_errors_come_through(tmp_path: Path) -> None:
    with pytest.raises(asyncdump.ManifestError):
        asyncdump.dump_sync([tmp_path / "nothing"], output=tmp_path / "dumps")
    with pytest.raises(asyncdump.ReceiptError):
        asyncdump.verify_sync(tmp_path)


def test_ctrl_c_ends_the_run_first(tmp_path: Path) -> None:
    source, output = tmp_path / "endless", tmp_path / "dumps"
    with source.open("wb") as file:
        file.write(noise(1 << 20))
        file.truncate(1 << 42)  # As good as endless to read.
    script = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, source, output], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert script.stdout is not None
    assert script.stderr is not None
    with script:
        assert script.stdout.readline() == "endless\n"
        script.send_signal(signal.SIGINT)
        assert script.stdout.read().splitlines()[-1] == "interrupted"
        assert script.stderr.read() == ""
        assert script.wait(30) == 0
    assert leftovers(output) == []
    assert "receipt.json" in os.listdir(output)
