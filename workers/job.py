"""What goes into a worker and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fitness.generation import Generation
from fitness.responses import Response
from workers.recipe import Recipe

Split = Literal["search", "validation"]


@dataclass(frozen=True, slots=True)
class Job:
    """One recipe to be merged and asked.

    Attributes:
        key: unique within a run and a file name, such as ``search-0003-007`` or ``parent-00-validation``.
        recipe: what to merge.
        split: which prompts to answer.
        repeats: answers to each prompt, every one sampled with a seed of its own.
        seed: decoding seed, the same for every candidate of a run.
        attempt: 1 for the first try; a retry on another worker counts up.
        generation: how to decode, in place of the pool's settings.
    """

    key: str
    recipe: Recipe
    split: Split
    repeats: int = 1
    seed: int = 0
    attempt: int = 1
    generation: Generation | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker did of a job: all of it, or some of its prompts.

    Attributes:
        worker: its index in the pool.
        answers: how many answers it gave.
        started: when it began, in Unix seconds of the driver's clock.
        seconds: how long it was busy.
        peak_bytes: largest resident memory that its process has had so far, without other ranks; 0: unknown.
    """

    worker: int
    answers: int
    started: float
    seconds: float
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt that came to nothing; the job was tried again.

    Attributes:
        worker: which one was replaced, its index in the pool.
        stage: as in :class:`JobFailed`.
        reason: one line for people.
    """

    worker: int
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """The answers to one job.

    Attributes:
        job: the job that was done.
        responses: (repeats x prompts of the split) in the order of the prompts, repeat after repeat.
        seconds: wall seconds by stage: ``merge``, ``generate``.
        shares: who did it; more than one where its prompts were split over workers.
        lost: the attempts before.
    """

    job: Job
    responses: tuple[Response, ...]
    seconds: Mapping[str, float]
    shares: tuple[Share, ...] = ()
    lost: tuple[Lost, ...] = ()


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job that could not be done, after every attempt.

    Attributes:
        job: the job, with the last attempt's number.
        stage: ``merge``, ``generate`` or ``worker`` (the process died).
        reason: one line for people.
        seconds: wall seconds spent.
        shares: who worked on it.
        lost: the attempts before the last.
    """

    job: Job
    stage: str
    reason: str
    seconds: Mapping[str, float]
    shares: tuple[Share, ...] = ()
    lost: tuple[Lost, ...] = ()
