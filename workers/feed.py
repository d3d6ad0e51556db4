"""A schedule shared by threads: workers' threads take pieces and bring answers, one thread takes the results."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from fitness.responses import Response
from workers.job import JobFailed, Share, Transcript
from workers.pieces import Piece
from workers.schedule import Schedule

_POLL_SECONDS = 0.5  # how soon a waiting worker notices that another has died


class Feed:
    """One run as the threads see it.

    Args:
        schedule: who does what.
        alive: tells which workers have a live engine.
        patience_seconds: how long a free worker leaves a piece that was lost on it to the others.
    """

    def __init__(
        self, schedule: Schedule, alive: Callable[[], Collection[int]], *, patience_seconds: float = 30.0
    ) -> None:
        self._schedule = schedule
        self._alive = alive
        self._patience_seconds = patience_seconds
        self._results: deque[Transcript | JobFailed] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def take(self, worker: int) -> Piece | None:
        """What a worker does next; waits while something may still come; ``None`` when the run has ended."""
        asked = time.monotonic()
        with self._changed:
            while not self._ended:
                patient = time.monotonic() - asked < self._patience_seconds
                try:
                    piece = self._schedule.take(worker, self._alive(), patient=patient)
                    if piece is None and self._schedule.over:
                        self._changed.notify_all()
                        return None
                except BaseException as error:  # the iterator of the jobs is its owner's code
                    self._end(error)
                    return None
                if piece is not None:
                    return piece
                self._changed.wait(_POLL_SECONDS)
            return None

    def done(self, piece: Piece, responses: Sequence[Response], seconds: Mapping[str, float], share: Share) -> None:
        """See :meth:`workers.schedule.Schedule.done`."""
        with self._changed:
            self._put(self._schedule.done(piece, responses, seconds, share))

    def failed(
        self, piece: Piece, stage: str, reason: str, seconds: Mapping[str, float], share: Share, *, worker_lost: bool
    ) -> None:
        """See :meth:`workers.schedule.Schedule.failed`."""
        with self._changed:
            self._put(self._schedule.failed(piece, stage, reason, seconds, share, worker_lost=worker_lost))

    def results(self) -> Iterator[Transcript | JobFailed]:
        """The results as they come, until every job has its own or the run is cancelled.

        Raises:
            BaseException: what ``fail`` was given, or what the iterator of the jobs raised.
        """
        while True:
            with self._changed:
                while not (self._results or self._ended or self._schedule.over):
                    self._changed.wait()
                if self._error is not None:
                    raise self._error
                if self._ended or not self._results:
                    return
                result = self._results.popleft()
            yield result

    def cancel(self) -> None:
        """Ends the run: nothing is handed out, no result comes any more, and whoever waits is woken."""
        with self._changed:
            self._end(None)

    def fail(self, error: BaseException) -> None:
        """Ends the run with an error, which ``results`` raises."""
        with self._changed:
            self._end(error)

    def _put(self, result: Transcript | JobFailed | None) -> None:
        if result is not None:
            self._results.append(result)
        self._changed.notify_all()

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
        self._changed.notify_all()
