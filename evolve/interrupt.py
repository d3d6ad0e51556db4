"""Ctrl-C and SIGTERM: the first lets what is in flight finish, the second does not, the third does not even tidy up."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from evolve.errors import EXIT_INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A user's wish to stop.

    Args:
        patient: the first signal lets evaluations in flight finish; else it stops at once.
        say: tells the user what was understood.
    """

    def __init__(self, *, patient: bool = True, say: Callable[[str], None] = lambda _: None) -> None:
        self._patient = patient
        self._say = say
        self._finishing = False
        self._at_once = False
        self._wished = False

    @property
    def wished(self) -> bool:
        """Whether nothing new should be begun."""
        return self._wished

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Within it a first signal only sets ``wished``; KeyboardInterrupt follows at its end.

        Raises:
            KeyboardInterrupt: there was one.
        """
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False
        if self._wished:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals of this process, and gives them back. Main thread only."""
        before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if self._at_once:
            # Tidying up was interrupted too. What is recorded is durable, and Ray's processes end with this one.
            os._exit(EXIT_INTERRUPTED)
        if self._finishing and self._patient and not self._wished:
            self._wished = True
            self._say("Stopping after the evaluations in flight; interrupt again to stop at once.")
            return
        self._wished = self._at_once = True
        self._say("Stopping.")
        raise KeyboardInterrupt
