from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fitness.errors import ScoringSetupError
from fitness.judge_config import JudgeConfig
from fitness.judges import build_judge
from fitness.prompts import Message, Prompt
from fitness.responses import Finish, Response
from fitness.scorer import FitnessConfig, Score, Scorer, Unscored, Verdict, check_scoring

ENDED = {"metric": "ended"}
CHAT = {"metric": "judge", "rubric": "chat-quality"}
JUDGED = {"metric": "judge", "rubric": "role-play"}
RIGHT_IN_STYLE_AND_ENDED = {
    "metric": "all_of",
    "name": "headline",
    "of": [{"metric": "contains", "name": "right"}, {"metric": "ends_with", "endings": ["ですわ"]}, ENDED],
}


def prompt(name: str = "p", *references: str) -> Prompt:
    return Prompt(name, (Message("user", name),), references, "search")


def answer(text: str, finish: Finish = "stop", name: str = "p") -> Response:
    return Response(name, text, 3, finish)


def build(
    configs: Path, *terms: dict[str, Any], prompts: Sequence[Prompt], judge: Any = None, root: Path = Path()
) -> Scorer:
    config = FitnessConfig.model_validate({"terms": terms, "judge": judge})
    scoring = check_scoring(config, prompts=prompts, root=root, rubrics_dir=configs / "rubrics")
    if scoring.rubric is None:
        return scoring.scorer(None)
    assert isinstance(config.judge, JudgeConfig)
    return scoring.scorer(build_judge(config.judge, scoring.rubric))


def scored(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[Response]) -> tuple[Score, ...]:
    return asyncio.run(scorer.score(prompts, responses))


def one(configs: Path, response: Response, *terms: dict[str, Any], references: tuple[str, ...] = ("青",)) -> Score:
    asked = [prompt("p", *references)]
    return scored(build(configs, *terms, prompts=asked), asked, [response])[0]


def test_the_value_is_the_weighted_sum_over_the_absolute_weights(configs: Path) -> None:
    terms = [
        {**ENDED, "weight": 2},
        {"metric": "contains", "weight": -1, "name": "forbidden"},
        {"metric": "length", "min_chars": 99, "weight": 1},
    ]
    score = one(configs, answer("青"), *terms)
    assert score.value == pytest.approx((2 * 1 - 1 * 1 + 1 * 0) / 4)
    assert score.parts == {"ended": 1, "forbidden": 1, "length": 0}


def test_a_term_of_weight_zero_is_recorded_only(configs: Path) -> None:
    score = one(configs, answer("赤"), ENDED, {"metric": "contains", "weight": 0})
    assert score.value == 1
    assert score.parts["contains"] == 0


@pytest.mark.parametrize(
    ("text", "finish", "value"),
    [("青ですわ", "stop", 1), ("青です", "stop", 0), ("赤ですわ", "stop", 0), ("青ですわ", "length", 0)],
)
def test_all_of_is_a_conjunction_with_its_parts_recorded(configs: Path, text: str, finish: Finish, value: int) -> None:
    score = one(configs, answer(text, finish), RIGHT_IN_STYLE_AND_ENDED)
    assert score.value == score.parts["headline"] == value
    assert score.parts["headline.right"] == ("青" in text)
    assert score.parts["headline.ends_with"] == text.endswith("ですわ")
    assert score.parts["headline.ended"] == (finish == "stop")


def test_what_is_observed_is_recorded_whatever_the_terms(configs: Path) -> None:
    score = one(configs, Response("p", "ああああああああああ", 7, "length"), {"metric": "exact"})
    assert score.observed == {"ended": 0, "truncated": 1, "repetition": pytest.approx(2 / 3), "chars": 10, "tokens": 7}
    assert set(score.parts) == {"exact"}


def test_a_missing_reference_names_the_term_and_the_prompts(configs: Path) -> None:
    prompts = [prompt("good", "青"), *(prompt(f"bare{index}") for index in range(7))]
    with pytest.raises(ScoringSetupError) as caught:
        build(configs, ENDED, RIGHT_IN_STYLE_AND_ENDED, prompts=prompts)
    assert str(caught.value).startswith("fitness.terms[1].of[0]: right compares with a reference, which 7 of 8 prompts")
    assert "'bare0', 'bare1', 'bare2', 'bare3', 'bare4', ..." in str(caught.value)


def test_metrics_without_a_reference_take_prompts_without_one(configs: Path) -> None:
    assert one(configs, answer("x"), ENDED, references=()).value == 1


def test_answers_to_other_prompts_are_refused(configs: Path) -> None:
    asked = [prompt("a"), prompt("b")]
    scorer = build(configs, ENDED, prompts=asked)
    with pytest.raises(ValueError, match="do not answer the prompts"):
        scored(scorer, asked, [answer("x", name="b"), answer("x", name="a")])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"terms": []}, "at least 1"),
        ({"terms": [{**ENDED, "weight": 0}]}, "all weights are 0"),
        ({"terms": [ENDED, ENDED]}, "2 are called 'ended'"),
        ({"terms": [JUDGED]}, "judge: missing, but fitness.terms[0] asks a judge"),
        ({"terms": [{"metric": "all_of", "of": [ENDED, JUDGED]}]}, "fitness.terms[0].of[1] asks a judge"),
        ({"terms": [ENDED], "judge": {"model": "m"}}, "judge: no term asks it"),
        ({"terms": [JUDGED, {**JUDGED, "name": "again"}], "judge": {"model": "m"}}, "one is the limit"),
        ({"terms": [ENDED], "min_scored_share": 1.1}, "less than or equal to 1"),
    ],
)
def test_a_fitness_that_cannot_work_is_explained(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FitnessConfig.model_validate(config)
    assert said in str(caught.value)


def test_a_config_that_was_stored_whole_is_read_again() -> None:
    terms = [RIGHT_IN_STYLE_AND_ENDED, {**JUDGED, "weight": 0.5}]
    config = FitnessConfig.model_validate({"terms": terms, "judge": {"model": "m", "base_url": "http://localhost/v1"}})
    assert FitnessConfig.model_validate(json.loads(config.model_dump_json())) == config
    assert FitnessConfig.model_json_schema()["properties"]["terms"]


def test_a_rubric_that_cannot_be_had_names_the_term(configs: Path, tmp_path: Path) -> None:
    for rubric, said in (("roleplay", "did you mean 'role-play'"), ("mine.yaml", "there is no file")):
        with pytest.raises(ScoringSetupError, match=rf"fitness\.terms\[1\]\.rubric: .*{said}"):
            build(configs, ENDED, {**JUDGED, "rubric": rubric}, prompts=[], judge={"model": "m"}, root=tmp_path)


def test_a_missing_key_is_found_before_anything_is_asked(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ScoringSetupError, match="OPENAI_API_KEY"):
        build(configs, JUDGED, prompts=[], judge={"model": "m"})


def test_the_judges_criteria_become_parts(configs: Path, judge_server: Any, verdict: Any) -> None:
    judge_server.script(verdict(helpful=7, right=4, naturalness=1))
    asked = [prompt()]
    terms = [CHAT, {**ENDED, "weight": 3}]
    scorer = build(configs, *terms, prompts=asked, judge={"model": "m", "base_url": judge_server.url})
    (score,) = scored(scorer, asked, [answer("x")])
    assert score.parts == {
        "judge": pytest.approx(0.5),
        "judge.helpful": 1,
        "judge.right": 0.5,
        "judge.naturalness": 0,
        "ended": 1,
    }
    assert score.value == pytest.approx((0.5 + 3) / 4)
    assert score.verdict is not None
    assert score.verdict.rubric == "chat-quality"


def by_answer(verdict: Any, reply: Any) -> Any:
    """A judge that cannot make sense of answers with "bad" in them."""

    def decide(request: dict[str, Any]) -> Any:
        text = json.loads(request["messages"][1]["content"])["answer"]
        return reply("??") if "bad" in text else verdict(helpful=7, right=7, naturalness=7)

    return decide


def test_an_answer_that_the_judge_could_not_score_is_no_number(
    configs: Path, judge_server: Any, verdict: Any, reply: Any
) -> None:
    judge_server.script_each(by_answer(verdict, reply))
    asked = [prompt("a"), prompt("b")]
    terms = [{"metric": "all_of", "of": [ENDED, CHAT]}, ENDED]
    judge = {"model": "m", "base_url": judge_server.url, "max_reply_retries": 0}
    scorer = build(configs, *terms, prompts=asked, judge=judge)
    bad, good = scored(scorer, asked, [answer("bad", name="a"), answer("fine", name="b")])
    assert good.value == 1
    assert isinstance(bad.value, Unscored)
    assert bad.value.reply == "??"
    assert isinstance(bad.parts["all_of"], Unscored)
    assert isinstance(bad.parts["all_of.judge"], Unscored)
    assert bad.parts["ended"] == 1
    assert bad.verdict is None
    for score in (good, bad):
        assert Score.from_dict(json.loads(json.dumps(score.to_dict()))) == score


def test_a_judge_that_weighs_nothing_leaves_the_value_alone(
    configs: Path, judge_server: Any, verdict: Any, reply: Any
) -> None:
    judge_server.script_each(by_answer(verdict, reply))
    asked = [prompt()]
    judge = {"model": "m", "base_url": judge_server.url, "max_reply_retries": 0}
    scorer = build(configs, {**JUDGED, "weight": 0}, ENDED, prompts=asked, judge=judge)
    (score,) = scored(scorer, asked, [answer("bad")])
    assert score.value == 1
    assert isinstance(score.parts["judge"], Unscored)


NUMBERS = st.floats(-1, 1) | st.builds(Unscored, st.text(), st.none() | st.text())
VERDICTS = st.none() | st.builds(
    lambda scores: Verdict.from_dict(
        {
            "rubric": "r",
            "rubric_version": "v",
            "model": "m",
            "scale": [1, 7],
            "samples": [{"c": {"reason": "x", "score": s}} for s in scores],
        }
    ),
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
)
SCORES = st.builds(
    Score,
    prompt_id=st.text(),
    value=NUMBERS,
    parts=st.dictionaries(st.text(), NUMBERS, max_size=4),
    observed=st.dictionaries(st.text(), st.floats(0, 1e6), max_size=4),
    verdict=VERDICTS,
)


@given(SCORES)
def test_every_score_survives_json(score: Score) -> None:
    assert Score.from_dict(json.loads(json.dumps(score.to_dict()))) == score


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_score_is_never_nan_or_infinite(number: float) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        Score("p", number, {}, {})
    with pytest.raises(ValueError, match="part is"):
        Score("p", 0.5, {"part": number}, {})


WEIGHTS = st.floats(-1000, 1000).filter(lambda weight: weight != 0)


@given(
    st.lists(
        st.tuples(WEIGHTS, st.sampled_from(["ended", "truncated", "repetition", "contains"])), min_size=1, max_size=6
    )
)
def test_the_value_stays_within_its_bounds(drawn: list[tuple[float, str]]) -> None:
    terms = [{"metric": metric, "weight": weight, "name": f"t{index}"} for index, (weight, metric) in enumerate(drawn)]
    configs = Path(__file__).parents[2] / "configs"
    value = one(configs, answer("青青青青青青青青青青"), *terms).value
    assert isinstance(value, float)
    assert (0 if all(weight > 0 for weight, _ in drawn) else -1) <= value <= 1
