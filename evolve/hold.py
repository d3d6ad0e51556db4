"""One driver per run.

The lock is the kernel's, on an open file: that of a dead process does not exist any more, so none can be stale.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from evolve.errors import StoreError
from evolve.outcome import write_durably

_SECONDS = 1.0  # longer than anybody who only looks holds the lock


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only driver of the run in a folder.

    Raises:
        StoreError: another process is, with its number, host and time.
    """
    lock, note = FileLock(folder / "driver.lock"), folder / "driver.json"
    try:
        lock.acquire(timeout=_SECONDS)
    except Timeout:
        raise StoreError(
            f"run {folder.name} is being driven by {_holder(note)}. Watch it with: evolve show {folder.name}"
        ) from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_durably(note, json.dumps({"host": platform.node(), "pid": os.getpid(), "since": since}))
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a living process drives the run in a folder."""
    lock = FileLock(folder / "driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _holder(note: Path) -> str:
    try:
        holder = json.loads(note.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
