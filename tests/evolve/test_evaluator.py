"""The stage between workers and history, with a small scripted source of answers in place of engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from evolve.evaluator import EngineEvaluator
from evolve.judging import Judging
from evolve.outcome import Failed
from fitness.aggregate import Fitness
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.scorer import FitnessConfig, check_scoring
from workers.job import Job, JobFailed, Transcript
from workers.recipe import Recipe

PROMPTS = [Prompt(f"q{i}", (Message("user", f"question {i}"),), ("yes",), "search") for i in range(3)]


class Source:
    """Answers at once; afterwards it is busy for a while, as a pool is that replaces a worker."""

    def __init__(self, *, busy_seconds: float = 0.0, answers_only: int | None = None) -> None:
        self.busy_seconds = busy_seconds
        self.answers_only = answers_only
        self.running = 0
        self.cancelled = threading.Event()

    def run(self, jobs: Iterable[Job]) -> Iterator[Transcript | JobFailed]:
        assert self.running == 0, "one run at a time"
        self.running += 1
        try:
            for index, job in enumerate(jobs):
                if self.answers_only is not None and index >= self.answers_only:
                    self.cancelled.wait(10)
                    return
                if "broken" in job.key:
                    yield JobFailed(job, "merge", "NaN", {"merge": 0.1})
                else:
                    responses = tuple(Response(p.id, "yes", 2, "stop") for p in PROMPTS)
                    yield Transcript(job, responses * job.repeats, {"merge": 0.1, "generate": 0.2})
            time.sleep(self.busy_seconds)
        finally:
            self.running -= 1

    def cancel(self) -> None:
        self.cancelled.set()


def jobs(*keys: str) -> list[Job]:
    return [Job(key, Recipe({"merge_method": "linear", "models": [key]}), "search") for key in keys]


@pytest.fixture
def evaluator_of(tmp_path: Path):
    made = []

    def make(source: Source) -> EngineEvaluator:
        config = FitnessConfig.model_validate({"terms": [{"metric": "exact"}]})
        scoring = check_scoring(config, prompts=PROMPTS, root=tmp_path, rubrics_dir=tmp_path)
        made.append(Judging({"search": scoring.scorer(None)}, {}))
        return EngineEvaluator(
            source,
            made[-1],
            {"search": PROMPTS, "validation": []},
            transcripts=tmp_path,
            min_scored_share=1.0,
        )

    yield make
    for judging in made:
        judging.close()


def test_every_job_has_an_outcome_whose_transcript_is_on_the_disk(evaluator_of, tmp_path: Path) -> None:
    found = {o.job.key: o for o in evaluator_of(Source()).evaluate(jobs("one", "broken", "two"))}
    assert isinstance(found["one"].result, Fitness)
    assert found["one"].result.value == 1.0
    assert found["broken"].result == Failed("merge", "NaN")
    assert all(o.transcript is not None and o.transcript.exists() for o in found.values())
    assert set(found["one"].seconds) == {"merge", "generate", "judge"}


def test_an_evaluation_ends_when_the_pool_has_ended_its_run(evaluator_of) -> None:
    source = Source(busy_seconds=0.3)
    evaluator = evaluator_of(source)
    for _ in range(3):
        assert len(list(evaluator.evaluate(jobs("a", "b")))) == 2
        assert source.running == 0


def test_a_cancel_from_another_thread_ends_the_evaluation(evaluator_of) -> None:
    evaluator = evaluator_of(Source(answers_only=1))
    threading.Timer(0.3, evaluator.cancel).start()
    began = time.monotonic()
    assert [o.job.key for o in evaluator.evaluate(jobs("a", "b", "c"))] == ["a"]
    assert time.monotonic() - began < 5


def test_a_pool_that_breaks_ends_the_evaluation_loudly(evaluator_of) -> None:
    class Broken(Source):
        def run(self, jobs: Iterable[Job]) -> Iterator[Transcript | JobFailed]:
            raise OSError("the workers are gone")
            yield

    with pytest.raises(OSError, match="the workers are gone"):
        list(evaluator_of(Broken()).evaluate(jobs("a")))
