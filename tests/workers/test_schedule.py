from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitness.responses import Response
from workers.job import Job, JobFailed, Share, Transcript
from workers.pieces import Piece
from workers.recipe import Recipe
from workers.schedule import Schedule

RECIPE = Recipe({})
PROMPTS = 12


def jobs(count: int, **changes: Any) -> list[Job]:
    return [Job(str(i), RECIPE, "search", **changes) for i in range(count)]


def schedule(given_jobs: Any, *, split: int | None = 1, attempts: int = 3, prompts: int = PROMPTS) -> Schedule:
    return Schedule(given_jobs, {"search": prompts}, max_attempts=attempts, split_prompts=split)


def answers(piece: Piece) -> list[Response]:
    return [Response(f"{piece.job.key}/{place}", "", 1, "stop") for place in range(piece.start, piece.stop)]


def finish(plan: Schedule, piece: Piece, worker: int) -> Transcript | JobFailed | None:
    share = Share(worker, piece.stop - piece.start, 0.0, 1.0)
    return plan.done(piece, answers(piece), {"generate": 1.0}, share)


def lose(plan: Schedule, piece: Piece, worker: int) -> Transcript | JobFailed | None:
    return plan.failed(piece, "worker", "died", {}, Share(worker, 0, 0.0, 1.0), worker_lost=True)


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    count=st.integers(0, 9),
    repeats=st.integers(1, 2),
    prompts=st.integers(0, 20),
    split=st.none() | st.integers(1, 9),
    workers=st.integers(1, 5),
    attempts=st.integers(1, 3),
)
def test_every_job_has_one_result_and_every_answer_its_place(
    data: st.DataObject, count: int, repeats: int, prompts: int, split: int | None, workers: int, attempts: int
) -> None:
    plan = schedule(jobs(count, repeats=repeats), split=split, attempts=attempts, prompts=prompts)
    alive, busy = set(range(workers)), {}
    results: list[Transcript | JobFailed] = []
    mishaps = 0
    for _ in range(10_000):
        if not busy and plan.over:
            break
        alive |= {data.draw(st.integers(0, workers - 1))}  # a worker that was replaced joins in
        for worker in sorted(alive - busy.keys()):
            piece = plan.take(worker, alive, patient=data.draw(st.booleans()))
            if piece is not None:
                busy[worker] = piece
                assert split is None or piece.stop - piece.start >= min(split, prompts * repeats)
        if not busy:
            continue
        worker = data.draw(st.sampled_from(sorted(busy)))
        piece = busy.pop(worker)
        fate = data.draw(st.sampled_from(["done", "done", "done", "lost", "failed"]))
        mishaps += fate != "done"
        if fate == "done":
            result = finish(plan, piece, worker)
        elif fate == "lost":
            alive.discard(worker)
            result = lose(plan, piece, worker)
        else:
            share = Share(worker, 0, 0.0, 1.0)
            result = plan.failed(piece, "merge", "NaN", {"merge": 1.0}, share, worker_lost=False)
        results += [result] if result is not None else []
    assert sorted(r.job.key for r in results) == [str(i) for i in range(count)]
    for result in results:
        assert 1 <= result.job.attempt <= attempts
        if isinstance(result, Transcript):
            expected = [f"{result.job.key}/{place}" for place in range(repeats * prompts)]
            assert [response.prompt_id for response in result.responses] == expected
            assert sum(share.answers for share in result.shares) == repeats * prompts
    if prompts:  # every attempt that came to nothing is recorded
        fruitless = [share for result in results for share in result.shares if share.answers == 0]
        assert mishaps == len(fruitless) + sum(len(result.lost) for result in results)


def test_jobs_are_done_whole_and_in_their_order_until_no_more_are_left_than_workers() -> None:
    plan = schedule(jobs(5))
    first, second = (plan.take(worker, range(2)) for worker in range(2))
    third = plan.take(0, range(2))
    assert first is not None
    assert second is not None
    assert third is not None
    sizes = [(piece.job.key, piece.stop - piece.start) for piece in (first, second, third)]
    assert sizes == [("0", 12), ("1", 12), ("2", 12)]
    fourth = plan.take(0, range(2))
    assert fourth is not None
    assert (fourth.job.key, fourth.stop - fourth.start) == ("3", 6)


def test_a_worker_prefers_the_job_that_it_holds_and_then_joins_the_one_with_most_left() -> None:
    plan = schedule(jobs(2), split=2)
    mine = [plan.take(0, range(3)) for _ in range(2)]
    assert {piece.job.key for piece in mine if piece is not None} == {"0"}
    assert [p.job.key for worker in (1, 2) if (p := plan.take(worker, range(3))) is not None] == ["1", "1"]


@pytest.mark.parametrize("given_jobs", [iter(jobs(1)), jobs(1)])
def test_the_last_job_is_shared_by_all(given_jobs: Any) -> None:
    plan = schedule(given_jobs, split=3)
    pieces = [piece for worker in (0, 1, 2, 0) if (piece := plan.take(worker, range(3))) is not None]
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 3), (3, 6), (6, 9), (9, 12)]


def test_jobs_of_an_iterator_without_a_length_are_not_split() -> None:
    plan = schedule(job for job in jobs(1))
    piece = plan.take(0, range(4))
    assert piece is not None
    assert (piece.start, piece.stop) == (0, 12)


def test_jobs_are_asked_for_when_a_worker_is_free_and_not_before() -> None:
    asked: list[str] = []

    def stream() -> Iterator[Job]:
        for job in jobs(9):
            asked.append(job.key)
            yield job

    plan = schedule(stream())
    plan.take(0, range(2))
    assert asked == ["0"]
    plan.take(1, range(2))
    assert asked == ["0", "1"]
    assert not plan.over
    assert asked == ["0", "1"]


def test_a_lost_piece_goes_to_another_worker_where_one_lives() -> None:
    plan = schedule(jobs(1), split=None)
    piece = plan.take(0, [0, 1])
    assert piece is not None
    assert lose(plan, piece, 0) is None
    assert plan.take(0, [0, 1]) is None
    again = plan.take(1, [0, 1])
    assert again is not None
    assert again.attempt == 2
    lose(plan, again, 1)
    assert plan.take(1, [1]) is not None


def test_a_worker_that_waited_long_enough_takes_what_was_lost_on_it() -> None:
    plan = schedule(jobs(1), split=None)
    piece = plan.take(0, [0, 1])
    assert piece is not None
    lose(plan, piece, 0)
    assert plan.take(0, [0, 1], patient=False) is not None


def test_what_was_lost_is_in_the_result() -> None:
    plan = schedule(jobs(1), split=None, attempts=2)
    piece = plan.take(0, [0, 1])
    assert piece is not None
    lose(plan, piece, 0)
    again = plan.take(1, [0, 1])
    assert again is not None
    result = lose(plan, again, 1)
    assert isinstance(result, JobFailed)
    assert (result.job.attempt, result.stage, result.reason) == (2, "worker", "died")
    assert [(lost.worker, lost.stage, lost.reason) for lost in result.lost] == [(0, "worker", "died")]


def test_a_piece_that_fails_for_good_fails_its_job_once_and_after_its_other_pieces() -> None:
    plan = schedule(jobs(1), split=3)
    one, other = plan.take(0, range(2)), plan.take(1, range(2))
    assert one is not None
    assert other is not None
    assert plan.failed(one, "generate", "NaN", {}, Share(0, 0, 0.0, 1.0), worker_lost=False) is None
    assert plan.take(0, range(2)) is None
    result = finish(plan, other, 1)
    assert isinstance(result, JobFailed)
    assert plan.over
