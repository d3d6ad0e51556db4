"""What became of a job, and the file that proves it.

Every finished evaluation is one JSONL file, written whole or not at all: a head line with the job, the result and
the seconds by stage, then a line per prompt with the answer and its score.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fitness.aggregate import Fitness
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.scores import Score
from workers.disk import sync
from workers.job import Job, Lost, Share
from workers.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Failed:
    """An evaluation that came to nothing: recorded, told to the search as the worst of its generation.

    Attributes:
        stage: ``merge``, ``generate``, ``judge`` or ``worker``.
        reason: one line for people.
    """

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        result: its fitness, or how it failed.
        transcript: the file with the answers, ``None`` where there are none.
        seconds: wall seconds by stage: ``merge``, ``generate``, ``judge``.
        shares: which workers did it, and when; empty where an evaluator has none.
        lost: attempts before, whose worker was replaced.
    """

    job: Job
    result: Fitness | Failed
    transcript: Path | None
    seconds: Mapping[str, float]
    shares: tuple[Share, ...] = ()
    lost: tuple[Lost, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of a transcript file: what was asked, answered, and scored."""

    prompt_id: str
    prompt: str
    text: str
    finish: str
    tokens: int
    score: Score


def transcript_path(folder: Path, key: str) -> Path:
    """Where the transcript of a job lies."""
    return folder / f"{key}.jsonl"


def write_transcript(
    folder: Path,
    job: Job,
    result: Fitness | Failed,
    seconds: Mapping[str, float],
    answers: Sequence[tuple[Prompt, Response, Score]] = (),
    *,
    shares: Sequence[Share] = (),
    lost: Sequence[Lost] = (),
) -> Path:
    """Write the evaluation durably: a temporary file, synced, then renamed."""
    head = {
        "job": job.key,
        "split": job.split,
        "repeats": job.repeats,
        "seed": job.seed,
        "attempt": job.attempt,
        "recipe": job.recipe.to_dict(),
        "recipe_hash": job.recipe.hash,
        "result": result_to_dict(result),
        "seconds": dict(seconds),
        "shares": [asdict(share) for share in shares],
        "lost": [asdict(one) for one in lost],
    }
    lines = [head] + [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.messages[-1].content,
            "text": response.text,
            "finish": response.finish,
            "tokens": response.tokens,
            "score": score.to_dict(),
        }
        for prompt, response, score in answers
    ]
    path = transcript_path(folder, job.key)
    write_durably(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))
    return path


def read_outcome(path: Path, job: Job) -> Outcome | None:
    """The outcome that a complete transcript file records, if it is of this very job (recipe, split, repeats)."""
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline())
    except FileNotFoundError:
        return None
    if (head["recipe_hash"], head["split"], head["repeats"]) != (job.recipe.hash, job.split, job.repeats):
        return None
    done = Job(job.key, Recipe.from_dict(head["recipe"]), job.split, job.repeats, head["seed"], head["attempt"])
    return Outcome(
        done,
        result_from_dict(head["result"]),
        path,
        head["seconds"],
        tuple(Share(**share) for share in head["shares"]),
        tuple(Lost(**one) for one in head["lost"]),
    )


def read_answers(path: Path) -> list[Answer]:
    """The answers of a transcript file, in the order of the prompts."""
    with path.open(encoding="utf-8") as file:
        next(file)
        rows = [json.loads(line) for line in file]
    return [Answer(**{**row, "score": Score.from_dict(row["score"])}) for row in rows]


def result_to_dict(result: Fitness | Failed) -> dict[str, Any]:
    """Plain data, the inverse of :func:`result_from_dict`."""
    if isinstance(result, Failed):
        return {"failed": {"stage": result.stage, "reason": result.reason}}
    return {"fitness": result.to_dict()}


def result_from_dict(data: Mapping[str, Any]) -> Fitness | Failed:
    """Plain data back into a result."""
    if "failed" in data:
        return Failed(**data["failed"])
    return Fitness.from_dict(data["fitness"])


def write_durably(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, even after a crash; leaves nothing half-written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        # A judge's reply may hold half of a surrogate pair; backslashreplace writes it as JSON's own escape.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The name is in the folder, and a power cut may lose that where the folder is not synced too.
    sync(path.parent)
