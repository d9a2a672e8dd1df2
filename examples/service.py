"""A web service that dumps on demand and streams the progress to every connected browser.

    ASYNCDUMP_MANIFEST=manifest.yaml ASYNCDUMP_OUTPUT=dumps uvicorn service:app

=======================  ==================================================================
``POST /dumps``          start a dump; 409 if one is in progress, 422 if the manifest is invalid
``GET /dumps/ID``        its progress, as JSON
``GET /dumps/ID/events`` its progress as it changes: Server-Sent Events
``DELETE /dumps/ID``     cancel it
=======================  ==================================================================

Clients can't choose what is dumped or where: the manifest does. The service has no authentication: keep it on
127.0.0.1, or put it behind the same proxy as your other services.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import asyncdump

PAGE = Path(__file__).with_name("service.html")
KEPT = 20
SHOWN_IN_FLIGHT = 12
BATCH = 200
PAUSE = 0.15
LONGEST = 9


class Board(asyncdump.Tally):
    """The state of one dump. Viewers read it when they are ready, and nothing is queued for them."""

    def __init__(self, name: str, run: asyncdump.Run) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.files, self.total = len(run.plan.dumps), run.plan.bytes
        self.ended: list[dict[str, Any]] = []
        self.state = "running"
        self.interrupted: str | None = None
        self.error: str | None = None
        self._seconds: float | None = None
        self._changed = anyio.Event()

    def tell(self, event: asyncdump.Event) -> None:
        match event:
            case asyncdump.FileFinished():
                self._end(event.name, bytes=event.bytes, seconds=event.seconds, digest=event.digest)
            case asyncdump.FileFailed():
                given_up = isinstance(event.error, asyncdump.InterruptedDumpError)
                self._end(event.name, error=str(event.error), hint=event.error.hint, given_up=given_up)
            case asyncdump.RunFinished():
                self.interrupted = event.interrupted
            case _:
                pass
        super().tell(event)
        self._wake()

    def close(self, error: Exception | None = None) -> None:
        self.error = str(error) if error else None
        self.in_flight.clear()
        self.state = "cancelled" if self.interrupted else "failed" if error or self.failed else "finished"
        self._seconds = self.seconds
        self._wake()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began if self._seconds is None else self._seconds

    def totals(self) -> dict[str, Any]:
        flying = self.flying
        return {
            "id": self.name,
            "state": self.state,
            "error": self.error,
            "output": self.run.plan.output,
            "files": self.files,
            "ended": len(self.ended),
            "failed": self.failed,
            "bytes": self.total,
            "done": self.moved,
            "seconds": round(self.seconds, 3),
            "bytes_per_second": round(self.moved / max(self.seconds, 1e-3)),
            "in_flight": [
                {
                    "name": progress.name,
                    "done": progress.done,
                    "total": progress.total,
                    "phase": progress.phase,
                    "method": self.methods.get(progress.name),
                }
                for progress in flying[:SHOWN_IN_FLIGHT]
            ],
            "hidden_in_flight": len(flying[SHOWN_IN_FLIGHT:]),
        }

    async def changed(self) -> None:
        await self._changed.wait()

    def _end(self, name: str, **outcome: Any) -> None:
        self.ended.append({"name": name, "method": self.methods.get(name), **outcome})

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


async def conduct(state: Any, *, task_status: TaskStatus[Board]) -> None:
    """Run one dump, regardless of its viewers."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{state.count}"
    output = Path(os.environ.get("ASYNCDUMP_OUTPUT", "dumps")) / name
    manifest = os.environ.get("ASYNCDUMP_MANIFEST", "manifest.yaml")
    board: Board | None = None
    try:
        async with asyncdump.open_run(manifest, output=output) as run:
            board = state.boards[name] = Board(name, run)
            task_status.started(board)
            async for event in run:
                board.tell(event)
        board.close()
    except Exception as error:
        if board is None:
            raise  # The request that started it reports the error.
        board.close(error)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Own the dumps: they belong to the service, not to the request that started them."""
    app.state.boards = {}
    app.state.count = 0
    app.state.starting = anyio.Lock()
    async with anyio.create_task_group() as tasks:
        app.state.tasks = tasks
        yield
        tasks.cancel_scope.cancel()  # Finished dumps stay, partial files are removed.


async def start(request: Request) -> Response:
    # A page on another site can make a browser send this request, but not without this header.
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise HTTPException(403, "cross-site request")
    state = request.app.state
    async with state.starting:
        for board in state.boards.values():
            if board.state == "running":
                return JSONResponse({"error": "a dump is in progress", "id": board.name}, 409)
        state.count += 1
        try:
            board = await state.tasks.start(conduct, state)
        except asyncdump.AsyncdumpError as error:
            return JSONResponse({"error": str(error)}, 422)
    for old in list(state.boards)[:-KEPT]:
        del state.boards[old]
    return JSONResponse(board.totals(), 202, headers={"Location": f"/dumps/{board.name}"})


def find(request: Request) -> Board:
    board: Board | None = request.app.state.boards.get(request.path_params["name"])
    if board is None:
        raise HTTPException(404, "no such dump")
    return board


async def index(request: Request) -> Response:
    return JSONResponse([board.totals() for board in reversed(request.app.state.boards.values())])


async def show(request: Request) -> Response:
    board = find(request)
    return JSONResponse({**board.totals(), "outcomes": board.ended})


async def cancel(request: Request) -> Response:
    board = find(request)
    board.run.cancel("cancelled in the browser")
    return JSONResponse(board.totals(), 202)


async def events(request: Request) -> Response:
    board, last = find(request), request.headers.get("last-event-id", "0")
    # A client may send any number. Ignore one that the service never sent.
    seen = int(last) if last.isdecimal() and len(last) <= LONGEST else 0
    stream = watch(board, seen if seen <= len(board.ended) else 0)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def watch(board: Board, seen: int) -> AsyncIterator[str]:
    """Yield the state of a dump whenever it has changed, with the outcomes that this viewer hasn't seen yet.

    A slow viewer gets fewer updates. A viewer that reconnects sends the number of outcomes that it has seen.
    """
    while True:
        outcomes = board.ended[seen : seen + BATCH]
        seen += len(outcomes)
        over = board.state != "running" and seen >= len(board.ended)
        data = json.dumps({**board.totals(), "outcomes": outcomes, "over": over})
        yield f"id: {seen}\ndata: {data}\n\n"
        if over:
            return
        if seen == len(board.ended) and board.state == "running":
            await board.changed()
            await anyio.sleep(PAUSE)


async def page(_request: Request) -> Response:
    return FileResponse(PAGE)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/dumps", index),
        Route("/dumps", start, methods=["POST"]),
        Route("/dumps/{name}", show),
        Route("/dumps/{name}", cancel, methods=["DELETE"]),
        Route("/dumps/{name}/events", events),
    ],
)
