"""Hands jobs to threads, takes back what must be tried again, and knows when everything is done."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from workers.job import Job


class Feed:
    """A stream of jobs shared by threads.

    A job that was taken is outstanding until ``done`` or ``again``. ``take`` blocks while it has nothing to give
    but an outstanding job may still come back.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = iter(jobs)
        self._returned: deque[Job] = deque()
        self._outstanding = 0
        self._exhausted = False
        self._cancelled = False
        self._changed = threading.Condition()

    @property
    def cancelled(self) -> bool:
        """Whether nothing is handed out any more."""
        return self._cancelled

    def take(self) -> Job | None:
        """The next job; ``None`` when all are done, or after ``cancel``."""
        with self._changed:
            while not self._cancelled:
                job = self._next()
                if job is not None:
                    self._outstanding += 1
                    return job
                if self._outstanding == 0:
                    return None
                self._changed.wait()
            return None

    def done(self) -> None:
        """One job that was taken is finished."""
        with self._changed:
            self._outstanding -= 1
            self._changed.notify_all()

    def again(self, job: Job) -> None:
        """A job that was taken comes back, before all others."""
        with self._changed:
            self._returned.appendleft(job)
            self._outstanding -= 1
            self._changed.notify_all()

    def cancel(self) -> None:
        """Hands out nothing more and wakes whoever waits."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def _next(self) -> Job | None:
        if self._returned:
            return self._returned.popleft()
        if not self._exhausted:
            for job in self._jobs:
                return job
            self._exhausted = True
        return None
