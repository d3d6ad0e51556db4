"""From jobs to outcomes: engines answer, the scorer scores beside them, transcripts are written before anything else.

Scoring is an asynchronous stage of its own after the workers, so that a judge never holds an engine.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from evolve.judging import Judging
from evolve.outcome import Failed, Outcome, write_transcript
from fitness.aggregate import Fitness, aggregate
from fitness.errors import ScoringFailed
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.scores import Score
from workers.job import Job, JobFailed, Split, Transcript

_POLL_SECONDS = 0.5  # how soon a cancel from another thread is noticed


class Evaluator(Protocol):
    """Whatever can evaluate jobs."""

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Outcomes in the order they finish, one per job."""
        ...

    def cancel(self) -> None:
        """Drop what is in flight."""
        ...


class Answering(Protocol):
    """What turns jobs into answers: ``workers.pool.Pool``."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Transcript | JobFailed]:
        """Answers in the order they finish."""
        ...

    def cancel(self) -> None:
        """Drop what is in flight."""
        ...


class EngineEvaluator:
    """Engines and scorer put together.

    Args:
        pool: a started pool.
        judging: what scores answers, in the background.
        prompts: per split, in the order in which workers answer them.
        transcripts: folder for the transcript files.
        min_scored_share: fewest scored answers, as a share, for a fitness to mean something.
    """

    def __init__(
        self,
        pool: Answering,
        judging: Judging,
        prompts: Mapping[Split, Sequence[Prompt]],
        *,
        transcripts: Path,
        min_scored_share: float,
    ) -> None:
        self._pool = pool
        self._judging = judging
        self._prompts = prompts
        self._folder = transcripts
        self._min_scored_share = min_scored_share
        self._cancelled = threading.Event()

    @property
    def answers_as(self) -> Mapping[str, str]:
        """By the dotted path of each judge's settings the name under which it answers."""
        return self._judging.answers_as

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Outcomes in the order they finish; each transcript is on disk before its outcome is yielded.

        Jobs are taken from the iterable as workers become free, in the workers' threads.

        Raises:
            JudgeStopped: the judge cannot or may not be asked any more.
        """
        done: queue.Queue[Outcome | BaseException | int] = queue.Queue()

        def answer() -> None:
            answered = 0
            try:
                for result in self._pool.run(jobs):
                    answered += 1
                    scored = self._judging.submit(self._finish(result))
                    scored.add_done_callback(lambda f: done.put(f.exception() or f.result()))
                done.put(answered)
            except BaseException as error:  # a dead background task must end the run loudly
                done.put(error)

        answering = threading.Thread(target=answer, name="answering", daemon=True)
        answering.start()
        yielded, total = 0, math.inf  # the total is known when the last job was taken
        while yielded < total and not self._cancelled.is_set():
            try:
                outcome = done.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(outcome, int):
                total = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                yielded += 1
                yield outcome
        answering.join()

    def cancel(self) -> None:
        """Drop what is in flight; what was answered but not scored is dropped too. For good: no jobs follow."""
        self._cancelled.set()
        self._pool.cancel()

    async def _finish(self, answered: Transcript | JobFailed) -> Outcome:
        job = answered.job
        seconds = dict(answered.seconds)
        answers: list[tuple[Prompt, Response, Score]] = []
        result: Fitness | Failed
        if isinstance(answered, JobFailed):
            result = Failed(answered.stage, answered.reason)
        else:
            prompts = [*self._prompts[job.split]] * job.repeats
            started = time.monotonic()
            scores = await self._judging.scorers[job.split].score(prompts, answered.responses)
            seconds["judge"] = time.monotonic() - started
            answers = list(zip(prompts, answered.responses, scores, strict=True))
            try:
                result = aggregate(scores, min_scored_share=self._min_scored_share)
            except ScoringFailed as error:
                result = Failed("judge", str(error))
        path = write_transcript(self._folder, job, result, seconds, answers, shares=answered.shares, lost=answered.lost)
        return Outcome(job, result, path, seconds, answered.shares, answered.lost)
