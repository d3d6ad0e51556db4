"""The errors of this package.

UserMistake (fitness.errors)
└── ModelError           a parent that is missing, unsafe, or does not fit the others
└── EngineSetupError     an engine or worker setting that this machine cannot serve
CandidateFailed          one candidate could not be merged or answered; the run goes on
WorkersLost              no worker can be started any more; the run stops and can be resumed
"""

from __future__ import annotations

from fitness.errors import UserMistake


class ModelError(UserMistake):
    """A parent model is missing, stored unsafely, or does not fit the others."""


class EngineSetupError(UserMistake):
    """An engine or worker setting that this machine cannot serve."""


class CandidateFailed(Exception):
    """One candidate could not be merged or answered.

    Attributes:
        stage: ``merge`` or ``generate``.
        fatal: the engine is unusable now (a weight reload failed half-way), replace the worker.
    """

    def __init__(self, stage: str, reason: str, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.stage = stage
        self.reason = reason
        self.fatal = fatal


class WorkersLost(Exception):
    """Workers died and could not be started again; the run stops and can be resumed."""


def last_line(error: BaseException) -> str:
    """The last line of an error's text, where libraries put what happened; its type where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
