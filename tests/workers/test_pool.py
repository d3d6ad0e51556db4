from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from fitness.generation import PRESETS
from workers.engine import EngineSpec
from workers.job import Job, JobFailed, Transcript
from workers.pool import Pool
from workers.transformers_engine import TransformersEngine

GREEDY = replace(PRESETS["greedy-short"], max_new_tokens=16)
LONG = replace(GREEDY, max_new_tokens=120)


@pytest.fixture(scope="module")
def pool(spec: EngineSpec, pool_prompts: Any) -> Iterator[Pool]:
    with Pool(spec, pool_prompts, LONG, count=2, cpus_per_worker=1) as pool:
        yield pool


def jobs(llama: Any, count: int) -> list[Job]:
    return [Job(f"job-{i}", llama.recipe("linear", weight=i / count), "search") for i in range(count)]


def worker_pids() -> set[int]:
    """Processes of Ray actors below this one."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "ray::Worker" in " ".join(child.cmdline())}


def test_transcripts_are_the_answers_of_a_single_engine(
    pool: Pool, spec: EngineSpec, pool_prompts: Any, llama: Any
) -> None:
    before = time.time()
    results = {result.job.key: result for result in pool.run(jobs(llama, 6))}
    assert len(results) == 6
    engine = TransformersEngine(spec)
    answers = set()
    for job in jobs(llama, 6):
        result = results[job.key]
        assert isinstance(result, Transcript)
        assert set(result.seconds) == {"merge", "generate"}
        engine.swap(job.recipe)
        assert result.responses == engine.generate(pool_prompts["search"], LONG, [0] * 5)
        answers.add(result.responses)
        (share,) = result.shares
        assert share.answers == 5
        assert share.seconds >= sum(result.seconds.values())
        assert before - 1 < share.started < time.time()
        assert result.lost == ()
    assert len(answers) == 6
    assert {s.worker for r in results.values() if isinstance(r, Transcript) for s in r.shares} == {0, 1}


def test_each_split_has_its_prompts(pool: Pool, llama: Any) -> None:
    (result,) = pool.run([replace(jobs(llama, 1)[0], split="validation")])
    assert isinstance(result, Transcript)
    assert [response.prompt_id for response in result.responses] == ["p0", "p1"]


def test_a_recipe_that_cannot_be_merged_fails_alone(pool: Pool, llama: Any) -> None:
    bad = Job("bad", llama.recipe("linear", weight=float("nan")), "search")
    stranger = Job("stranger", replace(bad.recipe, config={"merge_method": "nothing"}), "search")
    before = worker_pids()
    results = {result.job.key: result for result in pool.run([bad, *jobs(llama, 3), stranger])}
    for key in ("bad", "stranger"):
        failed = results[key]
        assert isinstance(failed, JobFailed)
        assert (failed.stage, failed.job.attempt) == ("merge", 1)
    assert sum(isinstance(result, Transcript) for result in results.values()) == 3
    assert worker_pids() == before  # no worker was replaced for it


def test_a_killed_worker_is_replaced_and_its_job_done(pool: Pool, llama: Any) -> None:
    before = worker_pids()
    assert len(before) == 2
    results = []
    for result in pool.run(jobs(llama, 12)):
        if not results:
            os.kill(min(before), signal.SIGKILL)
        results.append(result)
    assert len(worker_pids() & before) == 1  # the run did not wait for the new engine
    assert sorted(result.job.key for result in results) == sorted(job.key for job in jobs(llama, 12))
    assert all(isinstance(result, Transcript) for result in results)
    (lost,) = [lost for result in results for lost in result.lost]
    assert lost.stage == "worker"
    assert "the worker's process died" in lost.reason
    (retried,) = [result for result in results if result.lost]
    assert retried.job.attempt == 2
    assert [share.worker for share in retried.shares] == [1 - lost.worker]
    workers: set[int] = set()
    deadline = time.monotonic() + 60
    while workers != {0, 1} and time.monotonic() < deadline:
        workers = {share.worker for result in pool.run(jobs(llama, 6)) for share in result.shares}
    assert workers == {0, 1}
    assert len(worker_pids()) == 2


def test_the_workers_go_on_while_a_result_is_looked_at(pool: Pool, llama: Any) -> None:
    running = pool.run(jobs(llama, 6))
    next(running)
    time.sleep(3)
    started = time.monotonic()
    assert len(list(running)) == 5
    assert time.monotonic() - started < 1


def test_cancel_ends_the_run_soon_and_the_pool_is_usable_after(pool: Pool, llama: Any) -> None:
    results = []
    for result in pool.run(jobs(llama, 200)):
        results.append(result)
        pool.cancel()
    assert len(results) == 1
    assert len(list(pool.run(jobs(llama, 2)))) == 2


def test_a_stream_that_ends_ends_the_run_after_what_is_in_flight(pool: Pool, llama: Any) -> None:
    stop = threading.Event()
    given = []

    def stream() -> Iterator[Job]:
        for job in jobs(llama, 100):
            if stop.is_set():
                return
            given.append(job.key)
            yield job

    done = []
    for result in pool.run(stream()):
        stop.set()
        done.append(result.job.key)
    assert sorted(done) == sorted(given)
    assert len(done) < 10
