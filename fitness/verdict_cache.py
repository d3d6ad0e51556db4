"""Verdicts that were paid for, kept for all runs.

The key is a digest of everything that decides a verdict: the judge's model, how it is asked, every word that it is
shown (the rubric, the prompt, the answer), and the index of the sample.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitness.errors import JudgeStopped, ScoringSetupError


class VerdictCache:
    """An SQLite file; several processes may share it.

    Args:
        path: the file; its folder is made.

    Raises:
        ScoringSetupError: it cannot be opened, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit, so that a verdict is safe when `put` returns. The rollback journal also works on network
            # disks, which the write-ahead log does not.
            self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise ScoringSetupError(self._unusable(error)) from error

    async def get(self, key: str) -> Any | None:
        """The verdict of a key, as plain data.

        Raises:
            JudgeStopped: the file cannot be read any more.
        """
        row = await asyncio.to_thread(self._execute, "SELECT verdict FROM verdicts WHERE key = ?", (key,))
        return None if row is None else json.loads(row[0])

    async def put(self, key: str, verdict: Mapping[str, Any]) -> None:
        """Keeps a verdict; durable when this returns.

        Raises:
            JudgeStopped: the file cannot be written any more, and what is not kept would be paid for again.
        """
        values = (key, json.dumps(verdict, ensure_ascii=True))
        await asyncio.to_thread(self._execute, "INSERT OR REPLACE INTO verdicts VALUES (?, ?)", values)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _execute(self, statement: str, values: tuple[str, ...]) -> Any:
        try:
            with self._lock:
                return self._file.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise JudgeStopped(self._unusable(error)) from error

    def _unusable(self, error: Exception) -> str:
        return (
            f"the judge's cache {self._path} cannot be used: {error}. Make room on the disk, move it away, point "
            "EVOLVE_CACHE at a folder that can be written, or set cache: false for the judge."
        )


def key_of(content: Any) -> str:
    """The SHA-256 of plain data, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
