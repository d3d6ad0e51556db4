"""What a judge has cost, and the cap that it must not exceed.

Every call is written down before it is made, with the most that it can cost, and again when it has been answered.
A call whose end is missing (the process was killed) counts with that most: it may have been billed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fitness.errors import JudgeStopped, ScoringSetupError


@dataclass(frozen=True)
class Spent:
    """What was asked of a judge.

    Attributes:
        calls: requests, retries included.
        cached: verdicts that were had from the cache, without a request.
        prompt_tokens: sent, as the server counted them.
        completion_tokens: received.
        usd: US dollars by the prices of the config; an upper bound where calls have no end.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def since(self, before: Spent) -> Spent:
        """What was asked after an earlier moment."""
        return Spent(**{name: value - getattr(before, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, as the server counted them.

    Attributes:
        prompt_tokens: sent.
        completion_tokens: received, reasoning included.
        cached_tokens: those sent that the provider had cached.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Purse:
    """Counts the calls to one judge, durably where it has a file, and refuses those above the caps.

    It may be used from one event loop at a time. Several processes may write to a file without losing a call, but each
    checks the caps against what it read when it was opened and its own calls: a run has one driver.

    Args:
        path: SQLite file; none: in memory.
        setting: dotted path of the judge's settings; tells the judges of a file apart, and stands in messages.
        max_usd: cap in US dollars; none: no cap.
        max_calls: cap on the calls; none: no cap.

    Raises:
        ScoringSetupError: the file cannot be opened, or is no such file.
    """

    def __init__(self, path: Path | None, setting: str, *, max_usd: float | None, max_calls: int | None) -> None:
        self._setting = setting
        self._max_usd = max_usd
        self._max_calls = max_calls
        self._file = _open(path)
        self._lock = threading.Lock()
        self._settled = asyncio.Condition()
        self._open_usd: dict[int, float] = {}
        self._spent = _totals(self._file).get(setting, Spent())

    @property
    def spent(self) -> Spent:
        """Everything so far, earlier processes included."""
        return self._spent

    async def reserve(self, most_usd: float) -> int:
        """Writes down a call that is about to be made.

        Args:
            most_usd: the most that it can cost.

        Returns:
            Its number.

        Raises:
            JudgeStopped: it could exceed a cap, or cannot be written down.
        """
        async with self._settled:
            # What is under way is booked with its most; when it is settled there may be room.
            while self._lacks(most_usd) and self._open_usd:
                await self._settled.wait()
            if why := self._lacks(most_usd):
                raise JudgeStopped(why)
            number = await asyncio.to_thread(self._begin, most_usd)
            self._open_usd[number] = most_usd
            self._add(calls=1, usd=most_usd)
            return number

    async def settle(self, number: int, usage: Usage, usd: float) -> None:
        """Writes down how a call ended.

        Args:
            number: from :meth:`reserve`.
            usage: what the server counted.
            usd: what it cost.

        Raises:
            JudgeStopped: it cannot be written down; the call keeps counting with its most.
        """
        async with self._settled:
            most_usd = self._open_usd.pop(number)
            try:
                await asyncio.to_thread(self._end, number, usage, usd)
                self._add(
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    usd=usd - most_usd,
                )
            finally:  # who waits for room must hear of it in any case
                self._settled.notify_all()

    async def withdraw(self, number: int) -> None:
        """Takes back a call that was not made after all.

        Args:
            number: from :meth:`reserve`.
        """
        async with self._settled:
            self._add(calls=-1, usd=-self._open_usd.pop(number))
            try:
                await asyncio.to_thread(self._write, "DELETE FROM calls WHERE number = ?", (number,))
            finally:
                self._settled.notify_all()

    def cached(self) -> None:
        """Counts a verdict that needed no call."""
        self._add(cached=1)

    def close(self) -> None:
        """Writes down how often the cache knew, and closes the file."""
        with self._lock, suppress(sqlite3.Error):
            self._file.execute("INSERT OR REPLACE INTO cached VALUES (?, ?)", (self._setting, self._spent.cached))
        self._file.close()

    def _lacks(self, most_usd: float) -> str | None:
        spent = self._spent
        if self._max_calls is not None and spent.calls >= self._max_calls:
            return (
                f"{self._setting}.max_calls: the cap of {self._max_calls} calls is reached. Raise it when you go on: "
                f"--set {self._setting}.max_calls={2 * self._max_calls}"
            )
        if self._max_usd is not None and spent.usd + most_usd > self._max_usd:
            more = 2 * (self._max_usd + most_usd)
            return (
                f"{self._setting}.max_usd: the cap of ${self._max_usd:g} leaves too little: ${spent.usd:.4f} are "
                f"spent, and the next call can cost ${most_usd:.4f}. Raise it when you go on: "
                f"--set {self._setting}.max_usd={more:.3g}"
            )
        return None

    def _add(self, **more: float) -> None:
        self._spent = Spent(**{name: value + more.get(name, 0) for name, value in asdict(self._spent).items()})

    def _begin(self, most_usd: float) -> int:
        row = self._write("INSERT INTO calls (setting, usd) VALUES (?, ?)", (self._setting, most_usd))
        assert row.lastrowid is not None
        return row.lastrowid

    def _end(self, number: int, usage: Usage, usd: float) -> None:
        self._write(
            "UPDATE calls SET usd = ?, prompt_tokens = ?, completion_tokens = ? WHERE number = ?",
            (usd, usage.prompt_tokens, usage.completion_tokens, number),
        )

    def _write(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            with self._lock:
                return self._file.execute(statement, values)
        except sqlite3.Error as error:
            raise JudgeStopped(
                f"{self._setting}: the cost of a call cannot be written down ({error}), so no more is asked. Make room "
                "on the disk, and the folder writable."
            ) from error


def read_spending(path: Path) -> Mapping[str, Spent]:
    """What was spent, by the setting of the judge; empty where no judge was asked.

    Args:
        path: file of a purse.
    """
    if not path.exists():
        return {}
    with _opened(path) as file:
        return _totals(file)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    file = _open(path)
    try:
        yield file
    finally:
        file.close()


def _open(path: Path | None) -> sqlite3.Connection:
    try:
        # Autocommit: every statement is durable when it returns. The rollback journal also works on network disks.
        file = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, timeout=60)
        file.execute(
            "CREATE TABLE IF NOT EXISTS calls (number INTEGER PRIMARY KEY, setting TEXT NOT NULL, usd REAL NOT NULL,"
            " prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0)"
        )
        file.execute("CREATE TABLE IF NOT EXISTS cached (setting TEXT PRIMARY KEY, count INTEGER NOT NULL)")
    except sqlite3.Error as error:
        raise ScoringSetupError(
            f"{path}, which counts what the judge has cost, cannot be used: {error}. Restore it and make its folder "
            "writable, or move it away to count from 0 again."
        ) from error
    return file


def _totals(file: sqlite3.Connection) -> dict[str, Spent]:
    cached = dict(file.execute("SELECT setting, count FROM cached"))
    rows = file.execute(
        "SELECT setting, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), SUM(usd) FROM calls GROUP BY setting"
    )
    called = {setting: Spent(calls, 0, sent, received, usd) for setting, calls, sent, received, usd in rows}
    return {
        setting: replace(called.get(setting, Spent()), cached=cached.get(setting, 0))
        for setting in sorted(called.keys() | cached.keys())
    }
