"""The pieces of a job, and their answers gathered into one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fitness.responses import Response
from workers.job import Job, JobFailed, Lost, Share, Transcript


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """Some of a job's answers, given by one worker in one go.

    Attributes:
        gathering: the job that it belongs to.
        start: index of its first answer among the job's.
        stop: index after its last answer.
        attempt: 1 for the first try.
        failed_on: the worker that it was last lost on.
    """

    gathering: Gathering
    start: int
    stop: int
    attempt: int
    failed_on: int | None = None

    @property
    def job(self) -> Job:
        """The job that it belongs to."""
        return self.gathering.job


@dataclass(eq=False, slots=True)
class Gathering:
    """A job in work: what was handed out of it, and what came back.

    Attributes:
        job: the job.
        answers: how many answers it has, (repeats x prompts).
        begun: whether a piece of it was handed out.
        waiting: how many answers were not handed out yet.
    """

    job: Job
    answers: int
    begun: bool = False
    waiting: int = field(init=False)
    _outstanding: int = 0
    _attempt: int = 1
    _responses: dict[int, Response] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _shares: list[Share] = field(default_factory=list)
    _lost: list[Lost] = field(default_factory=list)
    _failure: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        """Nothing is handed out yet."""
        self.waiting = self.answers
        self._attempt = self.job.attempt

    @property
    def failed(self) -> bool:
        """Whether it cannot be done any more."""
        return self._failure is not None

    @property
    def finished(self) -> bool:
        """Whether nothing is handed out or will be."""
        return self.begun and self.waiting == 0 and self._outstanding == 0

    def hand_out(self, size: int) -> Piece:
        """The next ``size`` answers as a piece."""
        start = self.answers - self.waiting
        self.begun = True
        self.waiting -= size
        self._outstanding += 1
        return Piece(self, start, start + size, self.job.attempt)

    def done(self, piece: Piece, responses: Sequence[Response], seconds: Mapping[str, float], share: Share) -> None:
        """A piece came back with its answers.

        Raises:
            ValueError: they are more or fewer than the piece has.
        """
        places = range(piece.start, piece.stop)
        self._responses.update(zip(places, responses, strict=True))
        self._came_back(piece, seconds, share)

    def lost(self, piece: Piece, lost: Lost) -> Piece:
        """A piece was lost with its worker; the same piece for another try."""
        self._lost.append(lost)
        return replace(piece, attempt=piece.attempt + 1, failed_on=lost.worker)

    def fail(self, piece: Piece, stage: str, reason: str, seconds: Mapping[str, float], share: Share) -> None:
        """A piece failed for good, and the job with it."""
        if self._failure is None:
            self._failure, self._attempt, self.waiting = (stage, reason), piece.attempt, 0
        self._came_back(piece, seconds, share)

    def drop(self) -> None:
        """A piece that was lost is not tried again, because the job has failed meanwhile."""
        self._outstanding -= 1

    def result(self) -> Transcript | JobFailed:
        """What became of the job, once it is finished."""
        job = replace(self.job, attempt=self._attempt)
        seconds, shares, lost = dict(self._seconds), tuple(self._shares), tuple(self._lost)
        if self._failure is not None:
            stage, reason = self._failure
            return JobFailed(job, stage, reason, seconds, shares, lost)
        return Transcript(job, tuple(self._responses[i] for i in range(self.answers)), seconds, shares, lost)

    def _came_back(self, piece: Piece, seconds: Mapping[str, float], share: Share) -> None:
        self._outstanding -= 1
        self._attempt = max(self._attempt, piece.attempt)
        for stage, value in seconds.items():
            self._seconds[stage] = self._seconds.get(stage, 0.0) + value
        self._shares.append(share)
