"""Many answers, a server that fails at random, limits, and a client that is killed. Real client, real HTTP."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fitness.errors import JudgeStopped
from fitness.scores import Unscored, Verdict
from fitness.spending import read_spending
from tests.fitness.judge_client import Outcome, made_up_answers, outcomes
from tests.fitness.judge_server import Books, JudgeServer, honest_score, read_question

HERE = Path(__file__).parent
PRICE = {"input": 1.0, "output": 4.0}
# Everything that may pass; what never does is tested on its own.
PASSING = [
    *("429_ms", "429_bare", "500", "503_html", "timeout", "trickle", "half_reply", "no_reply", "content_type"),
    *("no_choices", "empty", "wrong_json", "prose", "two_verdicts", "cut", "huge", "out_of_scale", "nan_score"),
    *("missing_criterion", "duplicate_key", "refusal"),
]


def scored(found: Sequence[Outcome], answers: Sequence[str]) -> int:
    """How many answers were scored, all of them with what the honest judge says."""
    count = 0
    for outcome, answer in zip(found, answers, strict=True):
        if isinstance(outcome, Verdict):
            count += 1
            assert {name: one.score for name, one in outcome.criteria.items()} == {
                name: honest_score(answer, name) for name in ("right", "short")
            }
        elif isinstance(outcome, Unscored):
            assert outcome.reason
    return count


def billed_usd(books: Books) -> float:
    return books.billed_usd(PRICE["input"], PRICE["output"])


def asked(books: Books) -> list[str]:
    return [read_question(entry.request)["answer"] for entry in books.entries]


def test_a_thousand_answers_survive_a_server_that_fails_a_fifth_of_the_time(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    judge_server.delay_seconds = 0.02
    judge_server.fail_at_random(0.2, PASSING, seed=4)
    answers = made_up_answers(1000)
    limits: dict[str, Any] = {"max_concurrency": 12, "requests_per_minute": 9000, "max_usd": 5.0, "max_calls": 5000}
    found = outcomes(judge_server.url, answers, tmp_path, timeout_seconds=0.5, price_per_million=PRICE, **limits)
    books = judge_server.books
    count = scored(found, answers)
    refused = Counter(books.answers("refusal"))
    assert not any(isinstance(one, JudgeStopped) for one in found)
    assert 1000 - count >= len(refused)  # a refusal is final
    assert count >= 975
    assert len(books.entries) > 1150
    assert books.most_at_once <= 12
    # The requests leave evenly; those that a busy machine holds up arrive together, at most all that are under way.
    for seconds in (0.5, 2.0, 8.0):
        assert books.most_within(seconds) <= 1 + 9000 / 60 * seconds + 12
    (spent,) = read_spending(tmp_path / "spending.db").values()
    assert spent.calls == len(books.entries) <= 5000
    assert billed_usd(books) <= spent.usd <= 5.0
    # Again, with all verdicts in the cache: only what had none is asked.
    before = len(books.entries)
    again = outcomes(judge_server.url, answers, tmp_path, timeout_seconds=0.5, price_per_million=PRICE, **limits)
    assert scored(again, answers) >= count
    unscored = {answer for answer, one in zip(answers, found, strict=True) if isinstance(one, Unscored)}
    assert set(asked(Books(books.entries[before:]))) == unscored


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_rate_of_tokens_lends_nothing_to_the_rate_of_requests(judge_server: JudgeServer, concurrency: int) -> None:
    # Estimates are above what a call takes in the end; what is given back must not be spent on more requests.
    outcomes(
        judge_server.url,
        made_up_answers(60),
        requests_per_minute=1800,
        tokens_per_minute=2_500_000,
        max_concurrency=concurrency,
    )
    assert judge_server.books.most_within(1.0) <= 1 + 30 + concurrency


@pytest.mark.parametrize("concurrency", [1, 8])
def test_tokens_per_minute_are_kept_to_and_used(judge_server: JudgeServer, concurrency: int) -> None:
    outcomes(judge_server.url, made_up_answers(80), tokens_per_minute=600_000, max_concurrency=concurrency)
    entries = judge_server.books.entries
    seconds = entries[-1].arrived_seconds - entries[0].arrived_seconds
    tokens = sum(entry.prompt_tokens + entry.completion_tokens for entry in entries[:-1])
    assert 0.5 * 10_000 * seconds <= tokens <= 1.05 * 10_000 * seconds


def test_identical_answers_are_judged_once(judge_server: JudgeServer, tmp_path: Path) -> None:
    answers = made_up_answers(10) * 20
    assert scored(outcomes(judge_server.url, answers, tmp_path), answers) == 200
    assert sorted(asked(judge_server.books)) == sorted(made_up_answers(10))


@pytest.mark.parametrize("cache", [True, False])
def test_the_cap_on_calls_holds_with_retries_and_over_a_resume(
    judge_server: JudgeServer, tmp_path: Path, cache: bool
) -> None:
    judge_server.fail_at_random(0.3, ["500", "prose", "429_ms", "half_reply"], seed=1)
    answers = made_up_answers(200)
    for _ in range(2):
        found = outcomes(judge_server.url, answers, tmp_path, max_calls=100, cache=cache)
        assert len(judge_server.requests) == 100
    stopped = [one for one in found if isinstance(one, JudgeStopped)]
    assert all("fitness.judge.max_calls: the cap of 100 calls" in str(one) for one in stopped)
    assert stopped
    assert scored(found, answers) >= (30 if cache else 0)


def test_a_raised_cap_on_calls_lets_the_rest_be_judged(judge_server: JudgeServer, tmp_path: Path) -> None:
    answers = made_up_answers(60)
    assert scored(outcomes(judge_server.url, answers, tmp_path, max_calls=40), answers) == 40
    assert scored(outcomes(judge_server.url, answers, tmp_path, max_calls=60), answers) == 60
    assert len(asked(judge_server.books)) == 60


def test_the_cap_in_dollars_holds_although_replies_get_lost(judge_server: JudgeServer, tmp_path: Path) -> None:
    judge_server.fail_at_random(0.4, ["timeout", "half_reply", "trickle", "no_reply", "huge", "500"], seed=2)
    answers = made_up_answers(300)
    config: dict[str, Any] = {
        "max_usd": 0.2,
        "price_per_million": PRICE,
        "timeout_seconds": 0.2,
        "max_reply_tokens": 500,
    }
    found = outcomes(judge_server.url, answers, tmp_path, **config)
    assert any(isinstance(one, JudgeStopped) and "fitness.judge.max_usd: the cap of $0.2" in str(one) for one in found)
    count = scored(found, answers)
    assert 10 <= count < 300
    (spent,) = read_spending(tmp_path / "spending.db").values()
    assert billed_usd(judge_server.books) <= spent.usd <= 0.2
    before = len(judge_server.requests)
    assert scored(outcomes(judge_server.url, answers, tmp_path, **config), answers) >= count
    (spent,) = read_spending(tmp_path / "spending.db").values()
    assert billed_usd(judge_server.books) <= spent.usd <= 0.2
    assert len(judge_server.requests) - before <= 5  # what the last calls left of the cap


# A client that is killed ---------------------------------------------------------------------------------------------


class ServerProcess:
    """The judge's server in a process of its own, so that it outlives its clients."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, str(HERE / "judge_server.py"), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def books(self) -> Books:
        with urllib.request.urlopen(self.url.replace("/v1", "/books"), timeout=10) as reply:
            return Books.from_json(reply.read())

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    names = ["429_ms", "500", "half_reply", "empty", "wrong_json", "prose"]
    options = [word for name in names for word in ("--fail", name)]
    process = ServerProcess("--seed", "7", "--fail-share", "0.2", "--delay-seconds", "0.05", *options)
    yield process
    process.stop()


CONCURRENCY = 8
UNDER_WAY = CONCURRENCY  # a question keeps its place until its verdict is in the cache
CLIENT_CONFIG = {"max_concurrency": CONCURRENCY, "price_per_million": PRICE, "max_usd": 10.0, "max_reply_retries": 10}


def start_client(server: ServerProcess, folder: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "judge_client.py"), server.url, str(folder), str(count)]
    root = str(HERE.parents[1])
    return subprocess.Popen(
        [*command, json.dumps(CLIENT_CONFIG)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
    )


def finished(client: subprocess.Popen[str]) -> list[Outcome]:
    out, _ = client.communicate(timeout=120)
    assert client.returncode == 0
    return [Verdict.from_dict(one) if "samples" in one else Unscored.from_dict(one) for one in json.loads(out)]


def kill_after(client: subprocess.Popen[str], server: ServerProcess, requests: int) -> Books:
    """Kills a client when the server has had so many requests, and gives the books when all of them have ended."""
    deadline = time.monotonic() + 60
    while len(server.books().entries) < requests and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(client.pid, signal.SIGKILL)
    client.communicate()
    while any(entry.ended_seconds == math.inf for entry in server.books().entries):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return server.books()


def test_a_killed_client_repeats_at_most_the_calls_that_were_under_way(server: ServerProcess, tmp_path: Path) -> None:
    answers = made_up_answers(300)
    kills = 0
    for requests in (100, 220):
        client = start_client(server, tmp_path, 300)
        books = kill_after(client, server, requests)
        kills += client.returncode == -signal.SIGKILL
        (spent,) = read_spending(tmp_path / "spending.db").values()
        # Each call is written down before it is made: a kill can leave calls that were not made, never the reverse.
        assert len(books.entries) <= spent.calls <= len(books.entries) + kills * CONCURRENCY
        assert billed_usd(books) <= spent.usd
    assert kills == 2
    before = Counter(books.answers("honest"))
    found = finished(start_client(server, tmp_path, 300))
    books = server.books()
    assert scored(found, answers) == 300
    verdicts = books.answers("honest")
    assert len(verdicts) <= 300 + kills * UNDER_WAY
    assert len(books.billed) <= 300 + kills * UNDER_WAY + sum(entry.answered != "honest" for entry in books.billed)
    repeated = [answer for answer in verdicts if Counter(verdicts)[answer] > 1]
    assert len(set(repeated)) <= kills * UNDER_WAY
    assert len(before) >= 120  # the kills came in the middle
    # Another client with the same cache, and with its own count of calls, pays nothing.
    other = tmp_path / "other"
    other.mkdir()
    (other / "verdicts.db").symlink_to(tmp_path / "verdicts.db")
    again = finished(start_client(server, other, 300))
    assert again == found
    assert len(server.books().entries) == len(books.entries)
    (spent,) = read_spending(other / "spending.db").values()
    assert (spent.calls, spent.cached, spent.usd) == (0, 300, 0)


def test_two_clients_at_once_share_a_cache(server: ServerProcess, tmp_path: Path) -> None:
    answers = made_up_answers(120)
    clients = [start_client(server, tmp_path, 120) for _ in range(2)]
    for client in clients:
        assert scored(finished(client), answers) == 120
    (spent,) = read_spending(tmp_path / "spending.db").values()
    assert spent.calls == len(server.books().entries)
