"""Which worker does what next: whole jobs in their order, and the last ones in pieces, so that nobody idles.

Pieces shrink with the work that is left (factoring: S. F. Hummel, E. Schonberg, L. E. Flynn, "Factoring: a method for
scheduling parallel loops", Communications of the ACM 35(8), 1992): half of it is handed out in equal parts to all
workers, then half of the rest, and so on.
"""

from __future__ import annotations

import math
import operator
import sys
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from fitness.responses import Response
from workers.job import Job, JobFailed, Lost, Share, Split, Transcript
from workers.pieces import Gathering, Piece


class Schedule:
    """The jobs of one run. Not thread-safe: ``workers.feed`` is.

    Args:
        jobs: asked for the next one when a worker is free; ``operator.length_hint`` of their iterator tells how many
            are left. An iterator that cannot tell has its jobs done whole.
        prompts: number of prompts per split.
        max_attempts: how often a piece is tried.
        split_prompts: least answers of a piece; ``None``: jobs are done whole.
    """

    def __init__(
        self, jobs: Iterable[Job], prompts: Mapping[Split, int], *, max_attempts: int, split_prompts: int | None = None
    ) -> None:
        self._jobs = iter(jobs)
        self._prompts = prompts
        self._max_attempts = max_attempts
        self._split_prompts = split_prompts
        self._exhausted = False
        self._in_work: list[Gathering] = []
        self._returned: deque[Piece] = deque()
        self._holds: dict[int, Gathering] = {}

    @property
    def over(self) -> bool:
        """Whether every job has its result. Asks for another job where nothing is in work."""
        return not self._in_work and self._draw() is None

    def take(self, worker: int, alive: Collection[int], *, patient: bool = True) -> Piece | None:
        """What a free worker does next, ``None`` where there is nothing for it now.

        A lost piece goes to a worker that it was not lost on. Then come pieces of the job that the worker's engine
        holds, another job, and a piece of a job that others are at.

        Args:
            worker: index of the worker.
            alive: indices of the workers with a live engine.
            patient: whether the worker should leave what was lost on it to others that are alive.
        """
        piece = next((p for p in self._returned if p.failed_on != worker), None)
        if piece is None and (gathering := self._choose(worker)) is not None:
            self._holds[worker] = gathering
            return gathering.hand_out(self._size(gathering, len(alive)))
        if piece is None and self._returned and not (patient and any(other != worker for other in alive)):
            piece = self._returned[0]
        if piece is not None:
            self._returned.remove(piece)
            self._holds[worker] = piece.gathering
        return piece

    def done(
        self, piece: Piece, responses: Sequence[Response], seconds: Mapping[str, float], share: Share
    ) -> Transcript | JobFailed | None:
        """Takes in a piece's answers; returns the job's result once it is complete."""
        piece.gathering.done(piece, responses, seconds, share)
        return self._finish(piece.gathering)

    def failed(
        self, piece: Piece, stage: str, reason: str, seconds: Mapping[str, float], share: Share, *, worker_lost: bool
    ) -> Transcript | JobFailed | None:
        """Takes in why a piece was not done.

        Args:
            piece: the piece.
            stage: as in ``JobFailed``.
            reason: one line.
            seconds: wall seconds by stage.
            share: who tried.
            worker_lost: whether the worker is to blame, so that another try is worth it.

        Returns:
            The job's result once it is complete.
        """
        gathering = piece.gathering
        if worker_lost:
            self._holds.pop(share.worker, None)
        if worker_lost and piece.attempt < self._max_attempts:
            again = gathering.lost(piece, Lost(share.worker, stage, reason))
            if gathering.failed:
                gathering.drop()
            else:
                self._returned.append(again)
        else:
            gathering.fail(piece, stage, reason, seconds, share)
            for other in [p for p in self._returned if p.gathering is gathering]:
                self._returned.remove(other)
                gathering.drop()
        return self._finish(gathering)

    def _finish(self, gathering: Gathering) -> Transcript | JobFailed | None:
        if not gathering.finished:
            return None
        self._in_work.remove(gathering)
        return gathering.result()

    def _choose(self, worker: int) -> Gathering | None:
        held = self._holds.get(worker)
        if held is not None and held.waiting:
            return held
        untouched = next((g for g in self._in_work if not g.begun), None) or self._draw()
        return untouched or max((g for g in self._in_work if g.waiting), key=lambda g: g.waiting, default=None)

    def _draw(self) -> Gathering | None:
        """The next job from the iterator, which joins those in work."""
        job = None if self._exhausted else next(self._jobs, None)
        if job is None:
            self._exhausted = True
            return None
        gathering = Gathering(job, self._prompts[job.split] * job.repeats)
        self._in_work.append(gathering)
        return gathering

    def _size(self, gathering: Gathering, workers: int) -> int:
        """How many answers the next piece of a job has."""
        least, rest = self._split_prompts, gathering.waiting
        if least is None or workers < 2:
            return rest
        left = 0 if self._exhausted else operator.length_hint(self._jobs, sys.maxsize)
        if left + sum(not g.begun for g in self._in_work) > workers:
            return rest
        work = left * gathering.answers + sum(g.waiting for g in self._in_work)
        size = max(least, math.ceil(work / (2 * workers)))
        return rest if rest - size < least else size
