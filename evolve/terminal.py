"""Progress of a run: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evolve.budget import Plan
from evolve.errors import RunStopped
from evolve.evaluation import Evaluation
from evolve.interrupt import Interrupt
from evolve.run import Run, resume_command
from evolve.stopping import Generation
from evolve.tables import line_of


def drive(run: Run, console: Console) -> None:
    """Execute a run with its progress shown; says how to go on where it is cut short.

    Raises:
        RunStopped: a failure stopped it.
        KeyboardInterrupt: passed on.
    """
    interrupt = Interrupt(
        patient=run.config.stop == "in_flight",
        say=lambda text: console.print(text, markup=False, highlight=False),
    )
    try:
        with interrupt.listening(), TerminalProgress(console) as progress:
            run.execute(progress=progress, interrupt=interrupt)
    except KeyboardInterrupt:
        console.print(
            f"\nEverything finished is recorded. Go on with: {resume_command(run)}", markup=False, highlight=False
        )
        raise
    except RunStopped as error:
        raise RunStopped(f"{error}\nGo on with: {resume_command(run)}") from error


class TerminalProgress:
    """Shows generation, evaluations of the budget, best and mean fitness, sigma, seconds per stage, time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._bar.add_task("evaluations", total=None)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._plan: Plan | None = None
        self._done = 0
        self._fresh = 0
        self._seconds: Counter[str] = Counter()
        self._begun = time.monotonic()
        self._best: float | None = None
        self._last: Generation | None = None
        self._searched = 0
        self._stage = ""

    def __enter__(self) -> Self:
        """Takes the terminal."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the terminal back."""
        if self._live:
            self._live.stop()

    def started(self, plan: Plan, done: int) -> None:
        """A run starts or goes on."""
        self._plan, self._done = plan, done
        if done:
            self._say(f"{done} evaluations are recorded already and are not made again")
        self._refresh()

    def evaluated(self, row: Evaluation) -> None:
        """An evaluation was recorded."""
        if not self._fresh:
            self._begun = time.monotonic() - sum(row.seconds.values())
        self._fresh += 1
        self._seconds.update(row.seconds)
        self._done += 1
        if row.candidate.kind == "search":
            self._searched += 1
            if row.value is not None and (self._best is None or row.value > self._best):
                self._best = row.value
        total = self._plan.total_evaluations if self._plan else 0
        self._say(f"[{self._done}/{total}] {line_of(row)}")
        self._refresh()

    def generation(self, summary: Generation, *, replayed: bool) -> None:
        """A generation was told."""
        self._last = summary
        if summary.best is not None and (self._best is None or summary.best > self._best):
            self._best = summary.best
        if replayed:
            return
        best, mean = (f"{v:.4f}" if v is not None else "-" for v in (summary.best, summary.mean))
        text = f"generation {summary.number}: best {best}, mean {mean}, sigma {summary.sigma:.3f}"
        if not summary.informative:
            text += "; all tied, which says nothing: the search goes on elsewhere with a wider step"
        self._say(f"{text}{self._left()}")
        self._refresh()

    def stage(self, text: str) -> None:
        """The run turns to something else."""
        self._stage = text
        self._say(text)
        self._refresh()

    def warn(self, text: str) -> None:
        """Something a user should know."""
        self._console.print(f"warning: {text}", style="yellow", markup=False, highlight=False)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        if not self._fresh or self._plan is None:
            return ""
        pace = (time.monotonic() - self._begun) / self._fresh
        left = max(self._plan.total_evaluations - self._done, 0) * pace
        return f"; about {left / 60:.0f} min left" if left >= 60 else f"; about {left:.0f} s left"

    def _refresh(self) -> None:
        if not self._live or self._plan is None:
            return
        self._bar.update(self._task, total=self._plan.total_evaluations, completed=self._done)
        facts = Table.grid(padding=(0, 2))
        last = self._last
        facts.add_row(
            self._stage,
            f"generation {last.number + 1 if last else 0} of {self._plan.generations}",
            f"best {self._best:.4f}" if self._best is not None else "",
            f"mean {last.mean:.4f}" if last and last.mean is not None else "",
            f"sigma {last.sigma:.3f}" if last else "",
            ", ".join(f"{stage} {total / self._fresh:.1f}s" for stage, total in self._seconds.items()),
            self._left().removeprefix("; "),
        )
        grid = Table.grid()
        grid.add_row(self._bar)
        grid.add_row(facts)
        self._live.update(grid)
