from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fitness.errors import JudgeStopped, UserMistake
from fitness.judge_protocol import Messages, grade_alone
from fitness.local_judge import LocalJudge
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.rubric import Rubric, Scale, load_rubric
from fitness.scores import Unscored, Verdict
from workers.grader import ActorGrader, start_grader

PROMPT = Prompt("p", (Message("user", "What is the capital of France?"),), ("Paris",), "search")


def answer(text: str) -> Response:
    return Response("p", text, 5, "stop")


class Watched:
    """A real grader, and how many questions each of its calls had."""

    def __init__(self, grader: ActorGrader) -> None:
        self.calls: list[int] = []
        self._grader = grader

    def grade(self, conversations: Sequence[Messages], grades: Sequence[str]) -> Sequence[list[float] | Unscored]:
        self.calls.append(len(conversations))
        return self._grader.grade(conversations, grades)

    def close(self) -> None:
        self._grader.close()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Iterator[ActorGrader]:
    grader = start_grader(
        make_model(tmp_path_factory.mktemp("judge") / "tiny", max_position_embeddings=8192),
        engine="transformers",
        gpus=0,
        cpus=1,
        gpu_memory_utilization=0.5,
        kv_cache_gib=1,
        max_model_len=None,
        start_timeout_seconds=300,
        timeout_seconds=300,
        ray_address=None,
    )
    yield grader
    grader.close()


@pytest.fixture
def grader(started: ActorGrader) -> Watched:
    return Watched(started)


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    rubrics = Path(__file__).parents[2] / "configs" / "rubrics"
    rubric = load_rubric("chat-quality", root=rubrics, shipped=rubrics, setting="rubric").asked_in(None)
    return rubric.model_copy(update={"criteria": rubric.criteria[:2]})


def test_a_score_is_the_expected_value_of_the_grades(grader: Watched, rubric: Rubric) -> None:
    judge = LocalJudge(grader, rubric, name="tiny-0123", batch=4)
    verdict = asyncio.run(judge.judge(PROMPT, answer("Paris.")))
    assert isinstance(verdict, Verdict)
    assert (verdict.model, verdict.rubric_version, verdict.scale) == ("tiny-0123", rubric.version, (1, 7))
    assert verdict.spread is None
    for criterion in rubric.criteria:
        asked = grade_alone(rubric.only(criterion), PROMPT, answer("Paris."))
        (shares,) = grader.grade([asked], list("1234567"))
        assert isinstance(shares, list)
        found = verdict.criteria[criterion.name]
        mean = sum(grade * share for grade, share in zip(range(1, 8), shares, strict=True))
        assert found.score == pytest.approx(mean)
        assert f"P({shares.index(max(shares)) + 1})={max(shares):.2f}" in found.reason


def test_answers_judged_together_are_graded_together(grader: Watched, rubric: Rubric) -> None:
    judge = LocalJudge(grader, rubric, name="tiny", batch=4)
    answers = [answer(f"Paris number {i}") for i in range(10)]

    async def together() -> list[Verdict | Unscored]:
        return await asyncio.gather(*(judge.judge(PROMPT, one) for one in answers))

    verdicts = asyncio.run(together())
    assert grader.calls == [8, 8, 4]
    alone = asyncio.run(judge.judge(PROMPT, answers[9]))
    assert isinstance(alone, Verdict)
    assert isinstance(verdicts[9], Verdict)
    for name, score in alone.criteria.items():
        assert verdicts[9].criteria[name].score == pytest.approx(score.score, abs=1e-4)
    assert len({verdict.criteria[name].score for verdict in verdicts if isinstance(verdict, Verdict)}) == 10


def test_an_answer_that_is_too_long_is_unscored_alone(grader: Watched, rubric: Rubric) -> None:
    judge = LocalJudge(grader, rubric, name="tiny", batch=4)

    async def together() -> list[Verdict | Unscored]:
        return await asyncio.gather(*(judge.judge(PROMPT, one) for one in (answer("Paris " * 9000), answer("Paris"))))

    long, short = asyncio.run(together())
    assert isinstance(long, Unscored)
    assert "it takes at most 8191" in long.reason
    assert isinstance(short, Verdict)


def test_who_gives_up_takes_nothing_from_the_others(grader: Watched, rubric: Rubric) -> None:
    judge = LocalJudge(grader, rubric, name="tiny", batch=1)

    async def together() -> Verdict | Unscored:
        tasks = [asyncio.create_task(judge.judge(PROMPT, answer(str(i)))) for i in range(3)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()  # in work
        tasks[1].cancel()  # waits
        return await tasks[2]

    assert isinstance(asyncio.run(together()), Verdict)
    assert grader.calls == [2, 2]


def test_a_scale_of_two_digits_is_the_users_mistake(grader: Watched, rubric: Rubric) -> None:
    wide = rubric.model_copy(update={"scale": Scale(min=1, max=10)})
    judge = LocalJudge(grader, wide, name="tiny", batch=4)
    with pytest.raises(UserMistake, match="not one token each, or share one: 10"):
        asyncio.run(judge.probe())


def test_the_probe_asks_and_says_who_answers(grader: Watched, rubric: Rubric) -> None:
    assert asyncio.run(LocalJudge(grader, rubric, name="tiny-0123", batch=4).probe()) == "tiny-0123"
    assert grader.calls == [2]


def test_a_probe_that_does_not_fit_stops_the_judge(grader: Watched, rubric: Rubric) -> None:
    endless = rubric.model_copy(update={"instructions": "Grade. " * 9000})
    with pytest.raises(JudgeStopped, match="it takes at most 8191"):
        asyncio.run(LocalJudge(grader, endless, name="tiny", batch=4).probe())


def test_closing_the_judge_ends_it_for_those_who_wait(grader: Watched, rubric: Rubric) -> None:
    judge = LocalJudge(grader, rubric, name="tiny", batch=4)

    async def close_meanwhile() -> list[Verdict | Unscored | BaseException]:
        waiting = [asyncio.create_task(judge.judge(PROMPT, answer(f"Paris {i}"))) for i in range(40)]
        await asyncio.sleep(0.01)
        await judge.close()
        return await asyncio.gather(*waiting, return_exceptions=True)

    ends = asyncio.run(close_meanwhile())
    assert any(isinstance(end, JudgeStopped) for end in ends)
    assert all(isinstance(end, JudgeStopped | Verdict) for end in ends)
    with pytest.raises(JudgeStopped, match="is closed"):
        asyncio.run(judge.judge(PROMPT, answer("Paris")))
