"""Keeps requests within rates per minute, spread evenly.

Providers may enforce a rate per minute over shorter times (OpenAI: 60,000 requests per minute as 1,000 per second,
https://platform.openai.com/docs/guides/rate-limits), so nothing is saved up for a burst: each request keeps the next
one waiting for its own share of a minute.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC

_LONGEST_BACKOFF_SECONDS = 30.0


class Pacer:
    """Lets requests through one after the other; belongs to one event loop.

    Args:
        requests_per_minute: most requests; none: no limit.
        tokens_per_minute: most tokens; none: no limit.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        # When the next one may go, on the monotonic clock: by requests, by tokens, by the server's wish. Apart, because
        # tokens that were estimated too high are given back, and that must not make requests faster.
        self._request_at = self._tokens_at = self._held_until = -math.inf
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def wait(self, tokens: int) -> None:
        """Returns when a request of so many tokens may be sent."""
        async with self._turn:
            while (pause := max(self._request_at, self._tokens_at, self._held_until) - time.monotonic()) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), pause)
            now = time.monotonic()
            self._request_at = now + self._seconds_per_request
            self._tokens_at = now + tokens * self._seconds_per_token

    def correct(self, tokens: int) -> None:
        """Says that a request took so many tokens more (or fewer, negative) than it was let through with."""
        self._tokens_at += tokens * self._seconds_per_token
        self._changed.set()

    def hold(self, seconds: float) -> None:
        """Lets nothing through for so long: the server has asked for it."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)


def asked_pause_seconds(headers: Mapping[str, str]) -> float | None:
    """The pause that a server asks for: RFC 9110, section 10.2.3, and the milliseconds that OpenAI sends beside it."""
    for name, unit_seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit_seconds
            if 0 <= seconds < math.inf:  # not NaN either
                return seconds
    with suppress(KeyError, ValueError):
        until = email.utils.parsedate_to_datetime(headers["retry-after"])
        # Two of the three forms of a date name no zone and are in UTC (RFC 9110, section 5.6.7).
        return max(0.0, (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - time.time())
    return None


def pause_seconds(attempt: int, asked_seconds: float | None = None) -> float:
    """The pause after a failed attempt, with jitter, so that those who failed together do not come back together.

    Args:
        attempt: 0 is the first.
        asked_seconds: what the server asked for; none: it grows twofold.
    """
    if asked_seconds is not None:
        return asked_seconds + random.uniform(0.0, 0.1 * asked_seconds + 0.1)
    return min(_LONGEST_BACKOFF_SECONDS, 0.5 * 2.0**attempt) * random.uniform(0.5, 1.0)
