"""What goes into a worker and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fitness.responses import Response
from workers.recipe import Recipe

Split = Literal["search", "validation"]


@dataclass(frozen=True, slots=True)
class Job:
    """One recipe to be merged and asked.

    Attributes:
        key: unique within a run and a file name, such as ``search-0003-07`` or ``parent-0-validation``.
        recipe: what to merge.
        split: which prompts to answer.
        repeat: 0 for the first evaluation of a recipe on a split, 1, 2, ... for repeats.
        seed: decoding seed, the same for every candidate of a run; a repeat adds to it.
        attempt: 1 for the first try; a retry on another worker counts up.
    """

    key: str
    recipe: Recipe
    split: Split
    repeat: int = 0
    seed: int = 0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Transcript:
    """The answers to one job.

    Attributes:
        job: the job that was done.
        responses: one per prompt of the split, in the order of the prompts.
        seconds: wall seconds by stage: ``merge``, ``generate``.
        worker: which worker did it (its index in the pool).
    """

    job: Job
    responses: tuple[Response, ...]
    seconds: Mapping[str, float]
    worker: int


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job that could not be done, after every attempt.

    Attributes:
        job: the job, with the last attempt's number.
        stage: ``merge``, ``generate`` or ``worker`` (the process died).
        reason: one line for people.
        seconds: wall seconds spent.
    """

    job: Job
    stage: str
    reason: str
    seconds: Mapping[str, float]
