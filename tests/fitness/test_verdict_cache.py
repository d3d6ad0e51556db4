"""Verdicts that are kept, and when the judge is asked all the same."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.errors import JudgeStopped, ScoringSetupError
from fitness.judge import LlmJudge
from fitness.judge_config import JudgeConfig
from fitness.judges import build_judge
from fitness.responses import Response
from fitness.scores import Unscored, Verdict
from fitness.spending import read_spending
from fitness.verdict_cache import VerdictCache, key_of
from tests.fitness.judge_client import PROMPT, RUBRIC, made_up_answers, outcomes
from tests.fitness.judge_server import JudgeServer, Reply, Request, honest, misbehave, read_question, verdict

VERDICT = {"model": "m", "scores": {"right": ["青 \ud800 \x00", 6.5]}}
ANSWER = Response("p", "青ですわ", 4, "stop")

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(plain, plain)
def test_a_key_tells_contents_apart_as_json_does(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key_of(one) == key_of(other)) == same
    assert key_of(json.loads(json.dumps(one))) == key_of(one)


def test_a_verdict_comes_back_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "made" / "for it" / "verdicts.db"
    cache = VerdictCache(path)
    assert asyncio.run(cache.get("k")) is None
    asyncio.run(cache.put("k", VERDICT))
    assert asyncio.run(cache.get("k")) == VERDICT
    asyncio.run(cache.put("k", {**VERDICT, "model": "n"}))
    read = "import asyncio, json, sys; from pathlib import Path; from fitness.verdict_cache import VerdictCache\n"
    read += "print(json.dumps(asyncio.run(VerdictCache(Path(sys.argv[1])).get('k'))))"
    done = subprocess.run([sys.executable, "-c", read, str(path)], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {**VERDICT, "model": "n"}  # although the first process has it open


@pytest.mark.parametrize("shared", [True, False])
def test_eight_threads_at_once_lose_nothing(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "verdicts.db"
    common = VerdictCache(path)

    def work(thread: int) -> None:
        cache = common if shared else VerdictCache(path)

        async def keep() -> None:
            for index in range(5):
                await asyncio.gather(cache.put(f"{thread}-{index}", {"of": thread}), cache.put("all", {"of": "all"}))
                assert await cache.get(f"{thread}-{index}") == {"of": thread}

        asyncio.run(keep())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    keys = [f"{thread}-{index}" for thread in range(8) for index in range(5)]
    assert [asyncio.run(common.get(key))["of"] for key in [*keys, "all"]] == [int(key[0]) for key in keys] + ["all"]


@pytest.mark.parametrize("place", ["file/verdicts.db", "folder", "file"])
def test_a_place_that_cannot_be_used_is_named_with_the_remedies(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"this is no database" * 100)
    with pytest.raises(ScoringSetupError) as caught:
        VerdictCache(tmp_path / place)
    assert str(caught.value).startswith(f"the judge's cache {tmp_path / place} cannot be used: ")
    assert "EVOLVE_CACHE" in str(caught.value)
    assert "cache: false" in str(caught.value)


def test_a_cache_that_is_damaged_while_in_use_stops_the_judge(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.db")
    (tmp_path / "verdicts.db").write_bytes(b"this is no database" * 1000)
    for use in (cache.get("k"), cache.put("k", VERDICT)):
        with pytest.raises(JudgeStopped, match="cannot be used"):
            asyncio.run(use)


# The judge and its cache -------------------------------------------------------------------------------------------


def judge_of(server: JudgeServer, folder: Path | None, **config: Any) -> LlmJudge:
    return build_judge(
        JudgeConfig(base_url=server.url, model="judge", **config),
        RUBRIC,
        cache=folder and folder / "verdicts.db",
        spending=folder and folder / "spending.db",
    )


@pytest.mark.parametrize("kept", [True, False])
def test_identical_answers_judged_at_once_make_one_call(judge_server: JudgeServer, tmp_path: Path, kept: bool) -> None:
    judge_server.delay_seconds = 0.1
    found = outcomes(judge_server.url, ["same"] * 20, tmp_path, cache=kept)
    assert all(one == found[0] and isinstance(one, Verdict) for one in found)
    assert len(judge_server.requests) == 1
    (spent,) = read_spending(tmp_path / "spending.db").values()
    assert (spent.calls, spent.cached) == (1, 19)


def test_the_samples_of_an_answer_are_asked_for_and_kept_one_by_one(judge_server: JudgeServer, tmp_path: Path) -> None:
    judge_server.script(*(verdict(right=score, short=1) for score in (2, 3, 7)), Reply("asked too often"))
    for _ in range(2):
        (found,) = outcomes(judge_server.url, ["a"], tmp_path, samples=3, temperature=0.7, max_concurrency=1)
        assert isinstance(found, Verdict)
        assert sorted(sample["right"].score for sample in found.samples) == [2, 3, 7]
    assert len(judge_server.requests) == 3
    outcomes(judge_server.url, ["a"], tmp_path, samples=2, temperature=0.7)  # the first two of them
    assert len(judge_server.requests) == 3


def test_judging_again_goes_past_what_is_known(judge_server: JudgeServer, tmp_path: Path) -> None:
    async def run() -> None:
        judge = judge_of(judge_server, tmp_path)
        for again in (0, 1, 0, 1):
            assert isinstance(await judge.judge(PROMPT, ANSWER, again), Verdict)
        await judge.close()

    asyncio.run(run())
    assert len(judge_server.requests) == 2


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"temperature": None}, {"expected_score": True}, {"calls": "per_criterion"}],
)
def test_a_verdict_that_was_asked_for_in_another_way_is_not_taken(
    judge_server: JudgeServer, tmp_path: Path, change: Mapping[str, Any]
) -> None:
    outcomes(judge_server.url, ["a"], tmp_path)
    outcomes(judge_server.url, ["a"], tmp_path, **change)
    asked = len(judge_server.requests)
    assert asked == 3 if change == {"calls": "per_criterion"} else 2
    outcomes(judge_server.url, ["a"], tmp_path)
    assert len(judge_server.requests) == asked


def test_a_verdict_of_the_weights_that_had_the_name_before_is_not_taken(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    outcomes(judge_server.url, ["a"], tmp_path)  # answers as judge-2026

    def renamed(request: Request) -> Reply:
        body = {"model": "judge-2027", "choices": [{"message": {"content": honest(request).text}}]}
        return Reply(body=json.dumps(body).encode())

    judge_server.script_each(renamed)
    for _ in range(2):
        (found,) = outcomes(judge_server.url, ["a"], tmp_path, probe=True)
        assert isinstance(found, Verdict)
        assert found.model == "judge-2027"
    assert len(judge_server.requests) == 1 + 2 + 1  # the first, two probes, and once for the new weights


def test_what_could_not_be_scored_is_asked_again(judge_server: JudgeServer, tmp_path: Path) -> None:
    judge_server.behave("refusal", "honest")
    first, second = (outcomes(judge_server.url, ["a"], tmp_path)[0] for _ in range(2))
    assert isinstance(first, Unscored)
    assert isinstance(second, Verdict)


def test_one_criterion_without_a_score_leaves_the_answer_unscored_and_is_asked_again_alone(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    def answer(request: Request) -> Reply:
        short = read_question(request)["criteria"] == ["short"]
        return misbehave("refusal", request) if short else honest(request)

    judge_server.script_each(answer)
    (found,) = outcomes(judge_server.url, ["a"], tmp_path, calls="per_criterion")
    assert found == Unscored("the judge refused", "I cannot grade this.")
    assert sorted(read_question(one)["criteria"] for one in judge_server.requests) == [["right"], ["short"]]
    judge_server.behave("honest")
    (found,) = outcomes(judge_server.url, ["a"], tmp_path, calls="per_criterion")
    assert isinstance(found, Verdict)
    assert list(found.samples[0]) == ["right", "short"]
    assert read_question(judge_server.requests[2])["criteria"] == ["short"]
    assert len(judge_server.requests) == 3


def test_closing_waits_for_a_call_under_way_and_keeps_its_verdict(judge_server: JudgeServer, tmp_path: Path) -> None:
    judge_server.delay_seconds = 0.3

    async def run() -> None:
        judge = judge_of(judge_server, tmp_path, max_concurrency=1)
        asked = [asyncio.create_task(judge.judge(PROMPT, replace(ANSWER, text=text))) for text in ("first", "second")]
        while not judge_server.requests:
            await asyncio.sleep(0.01)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await judge.close()

    asyncio.run(run())
    assert [read_question(request)["answer"] for request in judge_server.requests] == ["first"]
    (spent,) = read_spending(tmp_path / "spending.db").values()
    assert spent.calls == 1
    assert spent.completion_tokens == judge_server.books.entries[0].completion_tokens
    assert isinstance(outcomes(judge_server.url, ["first"], tmp_path)[0], Verdict)
    assert len(judge_server.requests) == 1


def test_who_gives_up_waiting_does_not_take_the_verdict_from_others(judge_server: JudgeServer) -> None:
    judge_server.delay_seconds = 0.2

    async def run() -> Verdict | Unscored:
        judge = judge_of(judge_server, None)
        first, second = (asyncio.create_task(judge.judge(PROMPT, ANSWER)) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        found = await second
        await judge.close()
        return found

    assert isinstance(asyncio.run(run()), Verdict)
    assert len(judge_server.requests) == 1


def test_a_closed_judge_asks_nothing_new(judge_server: JudgeServer) -> None:
    async def run() -> None:
        judge = judge_of(judge_server, None)
        await judge.close()
        with pytest.raises(JudgeStopped, match="the judge was closed"):
            await judge.judge(PROMPT, ANSWER)

    begun = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - begun < 5
    assert judge_server.requests == []


def test_answers_that_differ_are_judged_apart(judge_server: JudgeServer, tmp_path: Path) -> None:
    answers = [*made_up_answers(3), "空は青いですわ。0 ", "空は青いですわ。０"]
    outcomes(judge_server.url, answers, tmp_path)
    assert len(judge_server.requests) == 5
