from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from fitness.errors import ScoringSetupError
from fitness.explain import explain
from fitness.judge_config import AnyJudgeConfig, JudgeConfig, LocalJudgeConfig, Price
from fitness.scorer import FitnessConfig, LengthControl, check_scoring
from tests.fitness.judge_client import RUBRIC

JUDGED = {"metric": "judge", "rubric": "chat-quality"}


class Holder(BaseModel):
    model_config = ConfigDict(extra="forbid")

    judge: AnyJudgeConfig


def test_a_judge_with_a_folder_is_a_local_one() -> None:
    assert isinstance(Holder.model_validate({"judge": {"model": "m"}}).judge, JudgeConfig)
    local = Holder.model_validate({"judge": {"folder": "models/judge"}}).judge
    assert isinstance(local, LocalJudgeConfig)
    assert local.name == "judge"


@pytest.mark.parametrize(
    "judge",
    [
        {"model": "m", "base_url": "http://localhost:8000/v1", "price_per_million": {"input": 0.15, "output": 0.6}},
        {"model": "m", "against": ["a.jsonl"], "temperature": None},
        {"folder": "models/judge", "engine": "transformers"},
    ],
)
def test_a_judge_that_was_stored_is_read_again(judge: dict[str, Any]) -> None:
    held = Holder.model_validate({"judge": judge})
    assert Holder.model_validate_json(held.model_dump_json()) == held
    assert Holder(judge=held.judge) == held


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({}, "judge.model: Field required"),
        ({"model": ""}, "judge.model: String should have at least 1 character"),
        ({"model": "m", "sample": 3}, "judge.sample: unknown key, did you mean 'samples'?"),
        ({"folder": "f", "model": "m"}, "judge: give either folder"),
        ({"folder": "f", "engin": "vllm"}, "judge.engin: unknown key, did you mean 'engine'?"),
        ({"model": "m", "max_usd": 1}, "judge: max_usd: needs price_per_million"),
        (
            {"model": "m", "against": ["a.jsonl"], "expected_score": True},
            "judge: expected_score: a comparison (against) has no scale",
        ),
        ({"model": "m", "price_per_million": {"input": -1, "output": 0}}, "judge.price_per_million.input: "),
        ({"model": "m", "price_per_million": {"input": math.inf, "output": 0}}, "judge.price_per_million.input: "),
        ({"model": "m", "price_per_million": {"input": 1}}, "judge.price_per_million.output: Field required"),
        ({"model": "m", "requests_per_minute": 0}, "judge.requests_per_minute: "),
        ({"model": "m", "tokens_per_minute": math.nan}, "judge.tokens_per_minute: "),
        ({"model": "m", "max_calls": 0}, "judge.max_calls: "),
        ({"model": "m", "calls": "one"}, "judge.calls: Input should be 'together' or 'per_criterion'"),
    ],
)
def test_a_judge_that_cannot_work_is_explained_in_one_message(judge: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"judge": judge})
    message = explain(caught.value, Holder)
    assert message.startswith(said)
    assert ";" not in message or len(caught.value.errors()) == 1


COUNTS = st.integers(0, 10**9)
PRICES = st.floats(0, 1000)


@given(PRICES, PRICES, COUNTS, COUNTS)
def test_a_price_is_per_million_tokens(price_in: float, price_out: float, sent: int, received: int) -> None:
    usd = Price(input=price_in, output=price_out).usd(sent, received)
    assert usd == pytest.approx(sent / 1e6 * price_in + received / 1e6 * price_out)


@given(COUNTS, st.data())
def test_what_the_provider_had_cached_costs_its_own_price(sent: int, data: st.DataObject) -> None:
    cached = data.draw(st.integers(0, sent))
    own = Price(input=2.0, output=8.0, cached_input=0.5)
    assert own.usd(sent, 0, cached) == pytest.approx(((sent - cached) * 2.0 + cached * 0.5) / 1e6)
    assert Price(input=2.0, output=8.0).usd(sent, 0, cached) == pytest.approx(sent * 2.0 / 1e6)


@pytest.mark.parametrize("judge", [{"model": "m", "expected_score": True}, {"folder": "f"}])
@pytest.mark.parametrize("name", ["judge", "final_judge"])
def test_scores_that_are_read_from_tokens_need_a_scale_of_digits(
    tmp_path: Path, name: str, judge: dict[str, Any]
) -> None:
    rubric = {**RUBRIC.model_dump(), "name": "wide", "scale": {"min": 1, "max": 10}}
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(rubric | {"criteria": list(rubric["criteria"])}))
    config = FitnessConfig.model_validate(
        {"terms": [{**JUDGED, "rubric": "wide.yaml"}], "judge": {"model": "m"}, name: judge}
    )
    with pytest.raises(ScoringSetupError, match=rf"^fitness\.{name}: .*rubric wide is 1 to 10; take a rubric with"):
        check_scoring(config, prompts=[], root=tmp_path, rubrics_dir=tmp_path)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"final_judge": {"model": "m"}}, "final_judge: has no effect without a judge"),
        ({"length_control": {"centre_chars": 9, "per_doubling": 0.1}}, "length_control: has no effect without a judge"),
    ],
)
def test_what_has_no_effect_without_a_judge_is_refused(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FitnessConfig.model_validate({"terms": [{"metric": "ended"}], **extra})


# Length control ----------------------------------------------------------------------------------------------------

controls = st.builds(LengthControl, centre_chars=st.integers(1, 5000), per_doubling=st.floats(1e-6, 1))


@pytest.mark.parametrize(
    ("chars", "value"), [(0, 0.8), (99, 0.8), (100, 0.8), (200, 0.7), (400, 0.6), (800, 0.5), (100 * 2**9, 0)]
)
def test_every_doubling_beyond_a_usual_length_costs_the_same(chars: int, value: float) -> None:
    assert LengthControl(centre_chars=100, per_doubling=0.1).controlled(0.8, chars) == pytest.approx(value)


@given(controls, st.floats(0, 1), st.integers(0, 10**6), st.integers(0, 10**6))
def test_more_length_never_gains_and_nothing_rises_above_the_judges_value(
    control: LengthControl, value: float, one: int, other: int
) -> None:
    short, long = sorted((one, other))
    assert 0 <= control.controlled(value, long) <= control.controlled(value, short) <= value
    if short <= control.centre_chars:
        assert control.controlled(value, short) == value


@given(controls, st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_answers_of_one_length_keep_their_order(control: LengthControl, one: float, other: float, chars: int) -> None:
    low, high = sorted((one, other))
    assert control.controlled(low, chars) <= control.controlled(high, chars)
