"""The judge against a real server on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from fitness.errors import JudgeRefused, JudgeStopped, ScoringSetupError
from fitness.judge import LlmJudge
from fitness.judge_config import JudgeConfig
from fitness.judges import build_judge
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.rubric import Rubric, load_rubric
from fitness.scores import Unscored, Verdict

RUBRIC = Rubric.model_validate(
    {
        "name": "plain",
        "instructions": "You grade replies.",
        "criteria": [
            {"name": "right", "question": "Is it right?", "anchors": {1: "No.", 7: "Yes."}},
            {"name": "short", "question": "Is it short?", "anchors": {1: "No.", 7: "Yes."}},
        ],
    }
)
PROMPT = Prompt("p", (Message("user", "空は？"),), ("青",), "search")
ANSWER = Response("p", "青ですわ", 4, "stop")
T = TypeVar("T")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def with_judge(use: Callable[[LlmJudge], Awaitable[T]], url: str, **config: Any) -> T:
    async def run() -> T:
        judge = build_judge(JudgeConfig(base_url=url, model="judge", **{"max_retries": 0, **config}), RUBRIC)
        try:
            return await use(judge)
        finally:
            await judge.close()

    return asyncio.run(run())


def judged(url: str, **config: Any) -> Verdict | Unscored:
    return with_judge(lambda judge: judge.judge(PROMPT, ANSWER), url, **config)


def test_a_good_reply_becomes_a_verdict(judge_server: Any, verdict: Any) -> None:
    judge_server.script(verdict("because", right=7, short=4))
    result = judged(judge_server.url)
    assert isinstance(result, Verdict)
    assert {name: one.score for name, one in result.criteria.items()} == {"right": 7, "short": 4}
    assert result.criteria["right"].reason == "because"
    assert (result.rubric, result.rubric_version, result.model) == ("plain", RUBRIC.version, "judge-2026")
    assert Verdict.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_one_request_carries_all_criteria_and_a_strict_schema(judge_server: Any, verdict: Any) -> None:
    judge_server.script(verdict(right=7, short=4))
    judged(judge_server.url)
    (request,) = judge_server.requests
    assert request["response_format"]["json_schema"]["strict"] is True
    assert request["temperature"] == 0
    assert json.loads(request["messages"][1]["content"])["answer"] == "青ですわ"
    assert judge_server.keys == ["Bearer none"]


def test_a_null_temperature_is_not_sent(judge_server: Any, verdict: Any) -> None:
    judge_server.script(verdict(right=7, short=4))
    judged(judge_server.url, temperature=None)
    assert "temperature" not in judge_server.requests[0]


@pytest.mark.parametrize("wrong", ["right: 7", '{"right": {"reason": "r", "score": 9}}', ""])
def test_a_reply_outside_the_protocol_is_shown_to_the_judge_and_retried(
    judge_server: Any, reply: Any, verdict: Any, wrong: str
) -> None:
    judge_server.script(reply(wrong), verdict(right=7, short=4))
    assert isinstance(judged(judge_server.url), Verdict)
    first, second = (request["messages"] for request in judge_server.requests)
    assert second[: len(first)] == first
    previous, correction = second[len(first) :]
    assert previous == {"role": "assistant", "content": wrong or "(no usable reply)"}
    assert correction["role"] == "user"
    assert "did not keep to the protocol" in correction["content"]


def test_a_score_out_of_range_names_the_scale_to_the_judge(judge_server: Any, verdict: Any) -> None:
    judge_server.script(verdict(right=11, short=4), verdict(right=7, short=4))
    assert isinstance(judged(judge_server.url), Verdict)
    assert "right.score: 11 is outside the scale 1 to 7" in judge_server.requests[1]["messages"][-1]["content"]


def test_a_judge_that_never_keeps_to_the_protocol_leaves_the_answer_unscored(judge_server: Any, reply: Any) -> None:
    judge_server.script(reply("I like it!"))
    result = judged(judge_server.url, max_reply_retries=2)
    assert isinstance(result, Unscored)
    assert "broke the protocol 3 times" in result.reason
    assert result.reply == "I like it!"
    assert len(judge_server.requests) == 3


def test_a_refusal_is_unscored_at_once(judge_server: Any, reply: Any) -> None:
    judge_server.script(reply(refusal="I cannot grade this."))
    assert judged(judge_server.url) == Unscored("the judge refused", "I cannot grade this.")
    assert len(judge_server.requests) == 1


def test_a_rate_limit_is_waited_out(judge_server: Any, reply: Any, verdict: Any) -> None:
    judge_server.script(reply(status=429, headers={"Retry-After": "0.2"}), verdict(right=7, short=4))
    assert isinstance(judged(judge_server.url, max_retries=1), Verdict)
    assert len(judge_server.requests) == 2


def test_endless_server_errors_leave_the_answer_unscored(judge_server: Any, reply: Any) -> None:
    judge_server.script(reply(status=500, headers={"retry-after-ms": "10"}))
    result = judged(judge_server.url, max_retries=2)
    assert result == Unscored("the judge's server answered 500: scripted failure")
    assert len(judge_server.requests) == 3


def test_a_wrong_key_stops_the_judge_without_retries(judge_server: Any, reply: Any) -> None:
    judge_server.script(reply(status=401))
    with pytest.raises(JudgeRefused, match=r"fitness\.judge: the judge's server answered 401.*is the key right\?"):
        judged(judge_server.url, max_retries=5)
    assert len(judge_server.requests) == 1


def test_a_slow_server_is_not_waited_for_longer_than_the_timeout(judge_server: Any, reply: Any) -> None:
    judge_server.script(reply("late", delay_seconds=1.0))
    assert judged(judge_server.url, timeout_seconds=0.1) == Unscored("the judge's server did not answer in time")


def test_a_server_that_trickles_reaches_the_deadline(judge_server: Any, reply: Any) -> None:
    judge_server.script(reply("late", trickle_seconds=2.0))
    assert judged(judge_server.url, timeout_seconds=0.4) == Unscored("the judge's server did not answer in time")


@pytest.mark.parametrize(
    "body", [b"<html>gateway</html>", b'{"choices": []}', b'{"choices": null}', b"[]", b'{"choices": [{"x": 1}]}', b"{"]
)
def test_a_body_that_is_no_completion_is_unscored(judge_server: Any, reply: Any, body: bytes) -> None:
    judge_server.script(reply(body=body))
    result = judged(judge_server.url)
    assert result == Unscored("the judge's server answered outside the API", body.decode())


def test_an_unreachable_server_is_unscored() -> None:
    result = judged("http://127.0.0.1:9/v1")
    assert isinstance(result, Unscored)
    assert "could not be reached" in result.reason


def test_samples_are_averaged_and_all_kept(judge_server: Any, verdict: Any) -> None:
    judge_server.script(
        verdict("low", right=2, short=4), verdict("high", right=6, short=4), verdict("high", right=7, short=4)
    )
    result = judged(judge_server.url, samples=3, temperature=0.7, max_concurrency=1)
    assert isinstance(result, Verdict)
    assert result.criteria["right"].score == 5
    assert result.criteria["right"].reason == "high"
    assert sorted(sample["right"].score for sample in result.samples) == [2, 6, 7]


def test_samples_outside_the_protocol_are_left_out(judge_server: Any, reply: Any, verdict: Any) -> None:
    judge_server.script(reply("nonsense"), verdict(right=6, short=4))
    result = judged(judge_server.url, samples=2, temperature=0.7, max_reply_retries=0, max_concurrency=1)
    assert isinstance(result, Verdict)
    assert len(result.samples) == 1


def test_no_more_requests_are_under_way_than_allowed(judge_server: Any, verdict: Any, reply: Any) -> None:
    judge_server.script(reply(verdict(right=7, short=4).text, delay_seconds=0.05))

    async def many(judge: LlmJudge) -> list[Verdict | Unscored]:
        return await asyncio.gather(*(judge.judge(PROMPT, replace(ANSWER, text=f"answer {i}")) for i in range(9)))

    results = with_judge(many, judge_server.url, max_concurrency=3)
    assert all(isinstance(result, Verdict) for result in results)
    assert 2 <= judge_server.most_at_once <= 3


@pytest.mark.parametrize("url", [None, "https://api.example.com/v1", "http://8.8.8.8/v1"])
def test_a_missing_key_names_its_variable(url: str | None) -> None:
    with pytest.raises(ScoringSetupError, match="environment variable JUDGE_KEY is not set"):
        build_judge(JudgeConfig(base_url=url, model="m", api_key_env="JUDGE_KEY"), RUBRIC)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "http://127.0.0.1/v1",
        "http://10.0.0.7:8000/v1",
        "http://[::1]/v1",
        "http://node3:80",
    ],
)
def test_a_local_server_needs_no_key(url: str) -> None:
    assert isinstance(build_judge(JudgeConfig(base_url=url, model="m"), RUBRIC), LlmJudge)


def test_the_key_comes_from_the_environment(judge_server: Any, verdict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret\n")
    judge_server.script(verdict(right=7, short=4))
    judged(judge_server.url, api_key_env="JUDGE_KEY")
    assert judge_server.keys == ["Bearer secret"]


def test_several_samples_at_temperature_zero_are_refused() -> None:
    with pytest.raises(ValidationError, match="3 samples at temperature 0 are one and the same"):
        JudgeConfig(model="m", samples=3)


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://[bad", "http://a b/", "http://host:port/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="base_url"):
        JudgeConfig(model="m", base_url=url)


def test_rubric_files_and_judge_meet(judge_server: Any, verdict: Any, configs: Path) -> None:
    rubric = load_rubric("role-play", root=Path(), shipped=configs / "rubrics", setting="x").asked_in("Japanese")
    judge_server.script(verdict(**{one.name: 7 for one in rubric.criteria}))

    async def run() -> Verdict | Unscored:
        judge = build_judge(JudgeConfig(base_url=judge_server.url, model="judge"), rubric)
        try:
            return await judge.judge(PROMPT, ANSWER)
        finally:
            await judge.close()

    assert isinstance(asyncio.run(run()), Verdict)


def test_a_refusal_of_one_answer_by_the_server_does_not_stop_the_judge(
    judge_server: Any, verdict: Any, reply: Any
) -> None:
    """Gateways answer 403 where their moderation flags a text."""

    def decide(request: dict[str, Any]) -> Any:
        flagged = "flagged" in request["messages"][1]["content"]
        return reply(status=403) if flagged else verdict(right=7, short=4)

    async def three(judge: LlmJudge) -> list[Verdict | Unscored]:
        return [await judge.judge(PROMPT, replace(ANSWER, text=text)) for text in ("fine", "flagged", "good")]

    judge_server.script_each(decide)
    first, flagged, last = with_judge(three, judge_server.url)
    assert isinstance(first, Verdict)
    assert isinstance(flagged, Unscored)
    assert "answered 403" in flagged.reason
    assert isinstance(last, Verdict)


def test_an_empty_account_stops_the_judge_and_is_no_mistake_in_the_config(judge_server: Any, reply: Any) -> None:
    judge_server.script(reply(status=402))
    with pytest.raises(JudgeStopped, match="is the account in credit") as stopped:
        judged(judge_server.url, max_retries=5)
    assert not isinstance(stopped.value, JudgeRefused)


@pytest.mark.parametrize("usage", [{}, {"total_tokens": 3}, {"prompt_tokens": 5, "completion_tokens": None}, "many"])
def test_a_good_reply_counts_although_its_bookkeeping_is_broken(
    judge_server: Any, reply: Any, verdict: Any, usage: Any
) -> None:
    body = {"choices": [{"message": {"content": verdict(right=7, short=4).text}}], "usage": usage}
    judge_server.script(reply(body=json.dumps(body).encode()))

    async def priced(judge: LlmJudge) -> tuple[Verdict | Unscored, float]:
        return await judge.judge(PROMPT, ANSWER), judge.spent.usd

    result, usd = with_judge(priced, judge_server.url, price_per_million={"input": 1, "output": 2})
    assert isinstance(result, Verdict)
    assert usd >= 2000 * 2 / 1e6  # the longest reply, since nobody says how long it was


def test_two_servers_with_models_of_one_name_share_no_verdicts(judge_server: Any, verdict: Any, tmp_path: Path) -> None:
    judge_server.script(verdict(right=7, short=4))

    async def scored(url: str) -> Verdict | Unscored:
        judge = build_judge(JudgeConfig(base_url=url, model="judge"), RUBRIC, cache=tmp_path / "verdicts.db")
        try:
            return await judge.judge(PROMPT, ANSWER)
        finally:
            await judge.close()

    for url in (judge_server.url, judge_server.url, judge_server.url.replace("127.0.0.1", "localhost")):
        assert isinstance(asyncio.run(scored(url)), Verdict)
    assert len(judge_server.requests) == 2


def test_the_key_for_openai_is_sent_to_no_other_server(
    judge_server: Any, verdict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge_server.script(verdict(right=7, short=4))
    judged(judge_server.url)
    assert judge_server.keys == ["Bearer none"]
    with pytest.raises(ScoringSetupError, match=r"fitness\.judge\.api_key_env: missing; name the environment variable"):
        build_judge(JudgeConfig(base_url="https://api.example.com/v1", model="m"), RUBRIC)


def test_what_waits_for_room_under_a_cap_still_keeps_to_the_rate(judge_server: Any, reply: Any, verdict: Any) -> None:
    """Room for one call at a time, a first one that takes long, and ten requests a second."""
    text = verdict(right=7, short=4).text
    judge_server.script(reply(text, delay_seconds=1.0), reply(text))

    async def many(judge: LlmJudge) -> list[Verdict | Unscored]:
        return await asyncio.gather(*(judge.judge(PROMPT, replace(ANSWER, text=f"answer {i}")) for i in range(6)))

    begun = time.monotonic()
    results = with_judge(
        many,
        judge_server.url,
        requests_per_minute=600,
        price_per_million={"input": 0, "output": 1},
        max_usd=0.0125,  # six calls at the most of 0.002 each would fit, not all at once with what they cost
    )
    assert all(isinstance(result, Verdict) for result in results)
    assert time.monotonic() - begun >= 0.5
    assert judge_server.books.most_within(0.25) <= 4
