from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitness.responses import Response
from workers.feed import Feed
from workers.job import Job, JobFailed, Share, Transcript
from workers.pieces import Piece
from workers.recipe import Recipe
from workers.schedule import Schedule

RECIPE = Recipe({})
PROMPTS = 4


def jobs(count: int) -> list[Job]:
    return [Job(str(i), RECIPE, "search") for i in range(count)]


def feed_of(given_jobs: Iterable[Job], workers: int = 2, *, split: int | None = None) -> Feed:
    schedule = Schedule(given_jobs, {"search": PROMPTS}, max_attempts=3, split_prompts=split)
    return Feed(schedule, lambda: range(workers), patience_seconds=0.1)


def done(feed: Feed, piece: Piece, worker: int = 0) -> None:
    responses = [Response(str(place), "", 1, "stop") for place in range(piece.start, piece.stop)]
    feed.done(piece, responses, {}, Share(worker, len(responses), 0.0, 0.0))


def lose(feed: Feed, piece: Piece, worker: int = 0) -> None:
    feed.failed(piece, "worker", "died", {}, Share(worker, 0, 0.0, 0.0), worker_lost=True)


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(0, 12),
    threads=st.integers(1, 4),
    split=st.none() | st.just(1),
    failing=st.sets(st.integers(0, 11)),
)
def test_every_job_is_finished_exactly_once(count: int, threads: int, split: int | None, failing: set[int]) -> None:
    feed = feed_of(jobs(count), threads, split=split)

    def serve(worker: int) -> None:
        while (piece := feed.take(worker)) is not None:
            if int(piece.job.key) in failing and piece.attempt == 1:
                lose(feed, piece, worker)
            else:
                done(feed, piece, worker)

    running = [threading.Thread(target=serve, args=(worker,)) for worker in range(threads)]
    for thread in running:
        thread.start()
    results = list(feed.results())
    for thread in running:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in running)
    assert sorted((r.job.key for r in results), key=int) == [str(i) for i in range(count)]
    assert all(isinstance(r, Transcript) for r in results)


def test_a_run_ends_with_its_last_result_whatever_becomes_of_the_worker() -> None:
    feed = feed_of(iter(jobs(1)), 1)
    for _ in range(3):
        piece = feed.take(0)
        assert piece is not None
        lose(feed, piece)
    (result,) = feed.results()  # nobody asks for a piece any more: the only worker is being replaced
    assert isinstance(result, JobFailed)
    assert len(result.lost) == 2


def test_a_waiting_worker_gets_the_piece_that_comes_back() -> None:
    feed = feed_of(jobs(1))
    piece = feed.take(0)
    assert piece is not None
    got: list[Piece | None] = []
    waiting = threading.Thread(target=lambda: got.append(feed.take(1)))
    waiting.start()
    lose(feed, piece)
    waiting.join(timeout=5)
    assert [again.attempt for again in got if again is not None] == [2]


def test_a_worker_does_not_leave_what_was_lost_on_it_to_a_busy_one_for_ever() -> None:
    feed = feed_of(jobs(2))
    long, lost = feed.take(1), feed.take(0)
    assert long is not None
    assert lost is not None
    lose(feed, lost)
    again = feed.take(0)
    assert again is not None
    assert again.attempt == 2


def test_cancel_wakes_whoever_waits() -> None:
    feed = feed_of(jobs(1))
    piece = feed.take(0)
    assert piece is not None
    got: list[object] = []
    waiting = [
        threading.Thread(target=lambda: got.append(feed.take(1))),
        threading.Thread(target=lambda: got.append(list(feed.results()))),
    ]
    for thread in waiting:
        thread.start()
    feed.cancel()
    for thread in waiting:
        thread.join(timeout=5)
    assert sorted(got, key=str) == sorted([None, []], key=str)
    done(feed, piece)
    assert list(feed.results()) == []


def test_an_error_of_the_iterator_ends_the_run_loudly() -> None:
    def stream() -> Iterator[Job]:
        yield from jobs(1)
        raise OSError("the disk is full")

    feed = feed_of(stream())
    piece = feed.take(0)
    assert piece is not None
    assert feed.take(1) is None
    started = time.monotonic()
    with pytest.raises(OSError, match="the disk is full"):
        list(feed.results())
    assert time.monotonic() - started < 1
