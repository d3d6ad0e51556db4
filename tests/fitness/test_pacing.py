from __future__ import annotations

import asyncio
import email.utils
import math
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitness.pacing import Pacer, asked_pause_seconds, pause_seconds

LATE_SECONDS = 0.05  # by which a busy machine may note a moment too late


async def moments(pacer: Pacer, requests: Sequence[tuple[int, int]]) -> list[float]:
    """When each request, (estimated tokens, tokens in the end), was let through; all of them come at once."""

    async def ask(estimated: int, taken: int) -> float:
        await pacer.wait(estimated)
        now = time.monotonic()
        pacer.correct(taken - estimated)
        return now

    return sorted(await asyncio.gather(*(ask(*request) for request in requests)))


def keeps_to(rate_per_second: float, costs: Sequence[int], times: Sequence[float]) -> bool:
    """Whether in no window more goes through than the rate allows, beside the last request of the window."""
    paid = [0, *accumulate(costs)]
    return all(
        paid[last] - paid[first] <= rate_per_second * (times[last] - times[first] + LATE_SECONDS)
        for first in range(len(times))
        for last in range(first, len(times))
    )


REQUESTS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=15, max_size=30)


@settings(max_examples=8, deadline=None)
@given(REQUESTS)
def test_no_window_holds_more_requests_or_tokens_than_allowed(requests: list[tuple[int, int]]) -> None:
    times = asyncio.run(moments(Pacer(6000, 300_000), requests))
    assert keeps_to(100, [1] * len(times), times)
    assert keeps_to(5000, [taken for _, taken in requests], times)  # the first to come is the first to go


def test_tokens_that_are_given_back_make_requests_no_faster() -> None:
    times = asyncio.run(moments(Pacer(6000, 600_000), [(100, 1)] * 30))
    assert times[-1] - times[0] >= 0.29


def test_tokens_that_are_given_back_late_are_not_saved_up() -> None:
    async def run() -> list[float]:
        pacer = Pacer(None, 60_000)
        await moments(pacer, [(1, 1)] * 10)
        pacer.correct(-10_000)
        return await moments(pacer, [(50, 50)] * 5)

    times = asyncio.run(run())
    assert times[-1] - times[0] >= 4 * 0.05


def test_tokens_that_were_not_foreseen_are_waited_for() -> None:
    async def run() -> float:
        pacer, begun = Pacer(None, 60_000), time.monotonic()
        await pacer.wait(1)
        pacer.correct(200)
        await pacer.wait(1)
        return time.monotonic() - begun

    assert asyncio.run(run()) >= 0.2


def test_a_single_request_larger_than_a_minutes_tokens_goes_through() -> None:
    asyncio.run(asyncio.wait_for(Pacer(None, 10).wait(1_000_000), 1))


def test_the_longest_pause_that_the_server_asked_for_holds_everybody() -> None:
    async def run() -> list[float]:
        pacer, begun = Pacer(None, None), time.monotonic()
        pacer.hold(0.2)
        pacer.hold(0.01)
        return [one - begun for one in await moments(pacer, [(1, 1)] * 3)]

    assert min(asyncio.run(run())) >= 0.2


def test_without_rates_nobody_waits() -> None:
    begun = time.monotonic()
    asyncio.run(moments(Pacer(None, None), [(1000, 5000)] * 500))
    assert time.monotonic() - begun < 2


def test_who_gives_up_waiting_takes_no_turn() -> None:
    async def run() -> float:
        pacer, begun = Pacer(1200, None), time.monotonic()
        await pacer.wait(1)
        waiting = [asyncio.create_task(pacer.wait(1)) for _ in range(20)]
        await asyncio.sleep(0)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await pacer.wait(1)
        return time.monotonic() - begun

    assert 0.05 <= asyncio.run(run()) < 0.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after-ms": "-1", "retry-after": "9"}, 9),
        *(({"retry-after": garbage}, None) for garbage in ("", "soon", "nan", "inf", "-inf", "-3", "1e999", "\x00")),
        ({"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_a_pause_is_read_where_one_is_asked_for(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_pause_seconds(headers) == seconds


@pytest.mark.parametrize(
    "written",
    [
        lambda moment: email.utils.formatdate(moment, usegmt=True),
        lambda moment: time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(moment)),
        lambda moment: time.asctime(time.gmtime(moment)),
    ],
    ids=["imf", "rfc850", "asctime"],
)
def test_the_three_forms_of_a_date_are_in_utc_wherever_we_are(
    written: Callable[[float], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        pause = asked_pause_seconds({"retry-after": written(time.time() + 30)})
    time.tzset()
    assert pause is not None
    assert 25 < pause <= 30


@given(st.text() | st.floats().map(str))
def test_whatever_a_server_sends_a_pause_is_a_time_to_wait(value: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        pause = asked_pause_seconds({name: value})
        assert pause is None or 0 <= pause < math.inf


@given(st.integers(0, 100))
def test_a_backoff_doubles_up_to_half_a_minute_and_never_vanishes(attempt: int) -> None:
    longest = min(30.0, 0.5 * 2**attempt)
    assert longest / 2 <= pause_seconds(attempt) <= longest


def test_those_who_failed_together_do_not_come_back_together() -> None:
    assert len({pause_seconds(3) for _ in range(20)}) > 1
