"""Threads of our own and the tasks that wait for them."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextvars import ContextVar
from functools import partial

import anyio
import pytest
import seccomp

from asyncdump.errors import DumpError
from asyncdump.run.threads import Host, Signal, in_thread, start

PATIENCE = 20.0
BACKENDS = ["asyncio", "trio"]


class Gate:
    """Something that a thread makes when it is let, and what becomes of it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()
        self.dropped: list[object] = []
        self.thread: threading.Thread | None = None

    def make(self) -> str:
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.open.wait(PATIENCE)
        return "made"

    async def reached(self) -> None:
        while not self.begun.is_set():
            await anyio.sleep(0.001)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_thread_returns_or_raises(backend) -> None:
    async def main() -> None:
        assert await in_thread(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)
        with pytest.raises(SystemExit):
            await in_thread(lambda: sys.exit(3))

    anyio.run(main, backend=backend)


async def test_cancelling_a_task_waits_for_its_thread() -> None:
    gate = Gate()
    task = asyncio.ensure_future(in_thread(gate.make, gate.dropped.append, gate.open.set))
    await gate.reached()
    for _ in range(5):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.dropped == ["made"]
    assert gate.thread is not None
    assert not gate.thread.is_alive()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scope_that_is_cancelled_waits_too(backend) -> None:
    gate = Gate()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_thread, gate.make, gate.dropped.append, gate.open.set)
            await gate.reached()
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert gate.dropped == ["made"]
    assert gate.thread is not None
    assert not gate.thread.is_alive()


async def test_a_cancellation_of_asyncio_is_not_lost_behind_that_of_a_scope() -> None:
    gate = Gate()

    async def work() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await in_thread(gate.make, gate.dropped.append)
        raise AssertionError("whoever cancels a task wants it to end")

    scopes: list[anyio.CancelScope] = []
    task = asyncio.ensure_future(work())
    await gate.reached()
    scopes[0].cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_is_destroyed_leaves_all_to_its_thread() -> None:
    gate = Gate()
    coroutine = in_thread(gate.make, gate.dropped.append, gate.open.set)
    coroutine.send(None)
    coroutine.close()
    assert gate.begun.wait(PATIENCE)
    assert gate.thread is not None
    gate.thread.join(PATIENCE)
    assert gate.dropped == ["made"]


def test_a_loop_that_was_closed_is_gone() -> None:
    hosts: list[Host] = []

    async def main() -> None:
        hosts.append(Host())
        assert not hosts[-1].gone

    for backend in BACKENDS:
        anyio.run(main, backend=backend)
        assert hosts[-1].gone
        assert not hosts[-1].call(bool)


async def test_a_loop_that_was_left_by_its_thread_is_gone() -> None:
    hosts: list[Host] = []

    def leave() -> None:
        async def main() -> None:
            hosts.append(Host())

        loops.append(asyncio.new_event_loop())
        loops[0].run_until_complete(main())

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert hosts[0].gone
    loops[0].close()


async def test_a_signal_wakes_all_that_wait_and_all_that_come_later() -> None:
    signal = Signal()
    woken = []

    async def wait() -> None:
        await signal.wait()
        woken.append(True)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not woken
        thread = start(signal.give)
    thread.join()
    with anyio.fail_after(PATIENCE):
        await signal.wait()
    assert len(woken) == 3


async def test_context_variables_are_those_of_the_task() -> None:
    name: ContextVar[str] = ContextVar("name")
    name.set("a request of the service")
    assert await in_thread(name.get) == "a request of the service"


def test_no_more_threads() -> None:
    with pytest.raises(DumpError) as refused:
        seccomp.without(["clone3=ENOSYS", "clone=EAGAIN"], partial(start, os.getpid))
    assert refused.value.operation == "clone"
    assert refused.value.hint
