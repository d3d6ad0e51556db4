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
_POLL_SECONDS = 0.25


class TimedOut(Exception):
    """A command took longer than it may."""


class Sitting:
    """One `evolve` command, in a session and a working folder of its own.

    Everything that it starts works in that folder too, and is told by it: a mark in the environment would not do,
    since processes that write themselves a title (Ray's agents) write it over their environment.

    Args:
        arguments: of `evolve`, with absolute paths.
        folder: its working folder, made here; takes stdout and stderr as `said.log`.
    """

    def __init__(self, arguments: Iterable[str], folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.log = folder, folder / "said.log"
        self.begun = time.monotonic()
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=folder,
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
            raise TimedOut(f"{self.folder.name} did not end within {seconds:.0f} s; see {self.log}") from None

    def tail(self, lines: int = 5) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def evolve(*arguments: str, seconds: float) -> str:
    """Stdout of a command that must succeed; it starts no engine.

    Raises:
        RuntimeError: it did not.
        subprocess.TimeoutExpired: after that long.
    """
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"evolve {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def living() -> dict[Path, list[int]]:
    """Living processes by their working folder."""
    found: dict[Path, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):  # it ended, or is somebody else's
                found.setdefault((process / "cwd").readlink(), []).append(int(process.name))
    return found


class Departures:
    """Measures how long after its driver's end the last process of a sitting is gone."""

    def __init__(self) -> None:
        self._waiting: dict[Path, float] = {}
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True, name="departures").start()

    def expect(self, sitting: Sitting) -> None:
        """Its driver has just ended."""
        with self._lock:
            self._waiting[sitting.folder] = time.monotonic()

    def settle(self, seconds: float) -> dict[str, list[str]]:
        """Waits, at most so long, until all are gone; names and ends those that are not."""
        end = time.monotonic() + seconds
        while self._waiting and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        left: dict[str, list[str]] = {}
        for folder, pids in living().items():
            for pid in pids if folder in self._waiting else ():
                left.setdefault(folder.name, []).append(f"{pid} {name_of(pid)}")
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return left

    def _watch(self) -> None:
        while True:
            present = living()
            with self._lock:
                for folder in self._waiting.keys() - present.keys():
                    self.seconds[folder.name] = time.monotonic() - self._waiting.pop(folder)
            time.sleep(_POLL_SECONDS)


def end_all(folder: Path) -> None:
    """Ends every process that works below a folder."""
    for place, pids in living().items():
        for pid in pids if folder in place.parents else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def name_of(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
    except OSError:
        return "gone"
