"""The threads of a run: as many lanes as there is work for, and the committer, which outlives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from threading import Thread
from typing import Final

from asyncdump.errors import DumpError
from asyncdump.log import logger
from asyncdump.run.threads import start
from asyncdump.vocabulary.stop import Stop

TICK: Final = 0.1
"""Seconds between two ticks of a run."""


class Crew:
    """Starts the threads of a run and waits for them. An exception in any of them stops the run, and is raised."""

    def __init__(
        self, stop: Stop, *, lane: Callable[[], None], commit: Callable[[], None], lanes_ended: Callable[[], None]
    ) -> None:
        """``lane`` runs in each lane, ``commit`` in the committer. ``lanes_ended`` is called when no lane is left."""
        self._stop: Final = stop
        self._lane: Final = lane
        self._commit: Final = commit
        self._lanes_ended: Final = lanes_ended
        # The turn guards everything below. `lanes_ended` is called while it is held, so that it is called once.
        self._turn = threading.Lock()
        self._over = threading.Condition(self._turn)  # Notified when a thread ends.
        self._lanes = 0
        self._committing = False
        self._broken: BaseException | None = None

    def work(self, lanes: int, tick: Callable[[], None], begun: Callable[[], None]) -> None:
        """Run the threads until all have ended; call ``tick`` ten times a second meanwhile.

        ``begun`` is called once all that can be started have been started, also if that is none.

        Raises:
            DumpError: no thread can be started. If only some lanes can't be started, the run continues with the others.
        """
        self._lanes, self._committing = lanes, True
        threads: list[Thread] = []
        try:
            try:
                self._start(lanes, threads)
            finally:
                begun()
            self._watch(tick)
        except BaseException:
            self._stop.requested = True
            self._lanes_ended()  # Lanes that were not started can't report it.
            raise
        finally:
            # No thread outlives this call, even after an error: the caller closes what the threads use.
            for thread in threads:
                thread.join()
        if self._broken is not None:
            raise self._broken

    def _start(self, lanes: int, threads: list[Thread]) -> None:
        """Start the committer and the lanes, and list those that were started."""
        threads.append(self._started(self._commit, self._committer_ended))
        for number in range(lanes):
            try:
                threads.append(self._started(self._lane, self._one_lane_ended))
            except DumpError as error:
                if not number:  # Without any lane there is no run; with some, it only takes longer.
                    raise
                self._count_off(lanes - number)
                logger().warning("fewer_threads", started=number, wanted=lanes, error=str(error))
                break

    def _started(self, task: Callable[[], None], ended: Callable[[], None]) -> Thread:
        def carry_out() -> None:
            try:
                task()
            except BaseException as error:  # noqa: BLE001 (it stops the run, which raises it)
                self._broken = self._broken or error
                self._stop.requested = True
            finally:  # Also after an error, because `_watch` waits for the counts.
                ended()

        return start(carry_out)

    def _one_lane_ended(self) -> None:
        self._count_off(1)

    def _count_off(self, lanes: int) -> None:
        with self._turn:
            self._lanes -= lanes
            if self._lanes == 0:
                self._lanes_ended()
            self._over.notify_all()

    def _committer_ended(self) -> None:
        with self._turn:
            self._committing = False
            self._over.notify_all()

    def _watch(self, tick: Callable[[], None]) -> None:
        due = time.monotonic() + TICK
        while True:
            with self._turn:
                if self._lanes or self._committing:
                    self._over.wait(max(0.0, due - time.monotonic()))
                if not self._lanes and not self._committing:
                    return
            if time.monotonic() >= due:
                due += TICK
                tick()
