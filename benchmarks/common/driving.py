"""Starts `evolve` commands, kills them, and watches until the last process that they started is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

COMMAND = [sys.executable, "-c", "from evolve.cli import main; main()"]
MARK = "EVOLVE_CHAOS_SITTING"
OURS = f"{os.getpid()}/"  # another campaign may run beside this one
_POLL_SECONDS = 0.25


class TimedOut(Exception):
    """A command took longer than it may."""


class Sitting:
    """One `evolve` command, in a session of its own; everything that it starts inherits a mark in its environment.

    Args:
        arguments: of `evolve`.
        mark: told apart by.
        log: takes stdout and stderr.
        folder: in which it runs.
    """

    def __init__(self, arguments: Iterable[str], *, mark: str, log: Path, folder: Path) -> None:
        self.mark, self.log = mark, log
        self.begun = time.monotonic()
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=folder,
                env={**os.environ, MARK: OURS + mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.begun

    def kill(self) -> bool:
        """kill -9 of the driver alone; False where it had ended by itself."""
        self._process.kill()
        return self._process.wait() == -signal.SIGKILL

    def wait(self, seconds: float) -> int:
        """Its exit code.

        Raises:
            TimedOut: after that long; its session is killed.
        """
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise TimedOut(f"{self.mark} did not end within {seconds:.0f} s; see {self.log}") from None

    def tail(self, lines: int = 5) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def evolve(*arguments: str, mark: str, folder: Path, seconds: float) -> str:
    """Stdout of a command that must succeed.

    Raises:
        RuntimeError: it did not.
        subprocess.TimeoutExpired: after that long.
    """
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, MARK: OURS + mark},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"evolve {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def marked() -> dict[str, list[int]]:
    """Living processes that this one has started, however indirectly, by their mark."""
    found: dict[str, list[int]] = {}
    start = f"{MARK}={OURS}".encode()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            entries = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended, or is somebody else's
            continue
        for entry in entries:
            if entry.startswith(start):
                found.setdefault(entry.removeprefix(start).decode(), []).append(int(process.name))
    return found


def end_all() -> dict[str, list[str]]:
    """Ends all that are left, and names them."""
    left: dict[str, list[str]] = {}
    for mark, pids in marked().items():
        for pid in pids:
            left.setdefault(mark, []).append(f"{pid} {_name(pid)}")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return left


class Departures:
    """Measures how long after its driver's end the last process of a sitting is gone."""

    def __init__(self) -> None:
        self._waiting: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True, name="departures").start()

    def expect(self, mark: str) -> None:
        """The driver with this mark has just ended."""
        with self._lock:
            self._waiting[mark] = time.monotonic()

    def settle(self, seconds: float) -> dict[str, list[str]]:
        """Waits, at most so long, until all are gone; names and ends those that are not."""
        end = time.monotonic() + seconds
        while self._waiting and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return end_all()

    def _watch(self) -> None:
        while True:
            living = marked()
            with self._lock:
                for mark in self._waiting.keys() - living.keys():
                    self.seconds[mark] = time.monotonic() - self._waiting.pop(mark)
            time.sleep(_POLL_SECONDS)


def _name(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
    except OSError:
        return "gone"
