from __future__ import annotations

import threading
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from workers.feed import Feed
from workers.job import Job
from workers.recipe import Recipe

RECIPE = Recipe({})


@given(count=st.integers(0, 20), threads=st.integers(1, 4), failing=st.sets(st.integers(0, 19)))
def test_every_job_is_finished_exactly_once(count: int, threads: int, failing: set[int]) -> None:
    feed = Feed(Job(str(i), RECIPE, "search") for i in range(count))
    finished: list[str] = []

    def serve() -> None:
        while (job := feed.take()) is not None:
            if int(job.key) in failing and job.attempt == 1:
                feed.again(replace(job, attempt=2))
            else:
                finished.append(job.key)
                feed.done()

    running = [threading.Thread(target=serve) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in running)
    assert sorted(finished, key=int) == [str(i) for i in range(count)]


def test_a_waiting_thread_gets_the_job_that_comes_back() -> None:
    feed = Feed([Job("a", RECIPE, "search")])
    job = feed.take()
    assert job is not None
    got: list[Job | None] = []
    waiting = threading.Thread(target=lambda: got.append(feed.take()))
    waiting.start()
    feed.again(replace(job, attempt=2))
    waiting.join(timeout=5)
    assert [g.attempt for g in got if g is not None] == [2]


def test_cancel_wakes_whoever_waits() -> None:
    feed = Feed([Job("a", RECIPE, "search")])
    feed.take()
    got: list[Job | None] = []
    waiting = threading.Thread(target=lambda: got.append(feed.take()))
    waiting.start()
    feed.cancel()
    waiting.join(timeout=5)
    assert got == [None]
    assert feed.take() is None
