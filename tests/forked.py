"""Run the command without its start-up time: a process that has imported everything forks for each command.

A command does the same as usual, in a separate process with the limits, the umask and the environment of the caller,
in a tenth of the time. Tests that depend on the start-up of Python use `subprocess` instead.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_MOST = 1 << 17
_DESCRIPTORS = 4


class Ended(NamedTuple):
    """The exit status and the output of a command."""

    returncode: int
    stdout: bytes
    stderr: bytes


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
    with theirs:
        theirs.set_inheritable(True)
        # It exits when this process does, which has the only other end. It isn't a child, because tests count children.
        os.waitpid(os.posix_spawn(sys.executable, [sys.executable, __file__, str(theirs.fileno())], os.environ), 0)
    return ours


def run(
    *arguments: str | Path | bytes, cwd: Path | str, env: Mapping[str, str], data: bytes | None = None, timeout: float
) -> Ended:
    """Run ``asyncdump ARGUMENT ...`` to its end; its standard input is a pipe with ``data``, or /dev/null.

    Raises:
        subprocess.TimeoutExpired: it didn't exit in time, and was killed.
    """
    request = {
        "arguments": [os.fsdecode(each) for each in arguments],
        "cwd": os.fspath(cwd),
        "env": dict(env),
        "limits": [resource.getrlimit(limit) for limit in LIMITS],
        "umask": _umask(),
    }
    with ExitStack() as stack:
        pipes = [os.pipe() for _ in range(_DESCRIPTORS)]
        stdin, stdout, stderr, status = (
            stack.enter_context(open(pipe[number == 0], "wb" if number == 0 else "rb"))
            for number, pipe in enumerate(pipes)
        )
        theirs = [pipe[number != 0] for number, pipe in enumerate(pipes)]
        if data is None:
            os.dup2(stack.enter_context(open(os.devnull, "rb")).fileno(), theirs[0], inheritable=False)
        try:
            socket.send_fds(_server(), [json.dumps(request).encode()], theirs)
        finally:
            for fd in theirs:
                os.close(fd)
        pid = int(status.readline())
        late = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        late.start()
        said: dict[IO[bytes], bytes] = {}
        threads = [threading.Thread(target=_hear, args=(pipe, said)) for pipe in (stdout, stderr)]
        threads.append(threading.Thread(target=_feed, args=(stdin, data or b"")))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        code = os.waitstatus_to_exitcode(int(status.readline()))
        late.cancel()
    if late.finished.is_set() and code == -signal.SIGKILL:
        raise subprocess.TimeoutExpired(["asyncdump", *map(str, arguments)], timeout)
    return Ended(code, said[stdout], said[stderr])


def _umask() -> int:
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with suppress(BrokenPipeError), pipe:
        pipe.write(data)


def _hear(pipe: IO[bytes], said: dict[IO[bytes], bytes]) -> None:
    said[pipe] = pipe.read()


# --- in the other process ------------------------------------------------------------------------------------------------


def _import_all() -> None:
    import asyncio  # noqa: F401
    import concurrent.futures.thread  # noqa: F401
    import gc
    import importlib
    import pkgutil

    import anyio._backends._asyncio

    import asyncdump

    for module in pkgutil.walk_packages(asyncdump.__path__, "asyncdump."):
        importlib.import_module(module.name)
    assert anyio
    gc.freeze()


def _serve(requests: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # No one waits for the processes that wait for a command.
    while True:
        message, fds, _, _ = socket.recv_fds(requests, _MOST, _DESCRIPTORS)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _wait_for(json.loads(message), fds)
        for fd in fds:
            os.close(fd)


def _wait_for(request: dict[str, Any], fds: list[int]) -> None:
    *streams, status = fds
    if (pid := os.fork()) == 0:
        os.close(status)
        _become(request, streams)
    for fd in streams:
        os.close(fd)
    os.write(status, b"%d\n" % pid)
    os.write(status, b"%d\n" % os.waitpid(pid, 0)[1])
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    for limit, values in zip(LIMITS, request["limits"], strict=True):
        resource.setrlimit(limit, values)
    sys.argv = ["asyncdump", *request["arguments"]]
    from asyncdump.__main__ import main

    main()


if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    del sys.path[0]  # The command must not import modules of the tests.
    os.chdir("/")
    _import_all()
    _serve(socket.socket(fileno=int(sys.argv[1])))
