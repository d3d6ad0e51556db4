"""What a run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

from evolve.budget import Plan
from evolve.evaluation import Evaluation
from evolve.stopping import Generation


class Progress(Protocol):
    """A watcher; every method returns at once."""

    def started(self, plan: Plan, done: int) -> None:
        """A run starts or goes on, ``done`` evaluations being recorded already."""

    def evaluated(self, row: Evaluation) -> None:
        """An evaluation was recorded."""

    def generation(self, summary: Generation, *, replayed: bool) -> None:
        """A generation was told to the search; ``replayed``: from the history."""

    def stage(self, text: str) -> None:
        """The run turns to something else, such as starting engines or re-scoring finalists."""

    def warn(self, text: str) -> None:
        """Something a user should know, which does not stop the run."""


class Silent:
    """Nobody watches."""

    def started(self, plan: Plan, done: int) -> None:
        """Nothing."""

    def evaluated(self, row: Evaluation) -> None:
        """Nothing."""

    def generation(self, summary: Generation, *, replayed: bool) -> None:
        """Nothing."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""
