from __future__ import annotations

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.aggregate import Fitness, aggregate
from fitness.errors import ScoringFailed
from fitness.scores import Score, Unscored


def score(value: float | Unscored, prompt: str = "p", **parts: float | Unscored) -> Score:
    return Score(prompt, value, parts, {"tokens": 4})


def prompts(*values: float | Unscored) -> list[Score]:
    """One answer to each of as many prompts."""
    return [score(value, f"p{i}") for i, value in enumerate(values)]


LOST = Unscored("the judge's server did not answer in time")


def test_the_fitness_is_the_mean_with_its_standard_error() -> None:
    values = [0.1, 0.4, 0.4, 0.9]
    fitness = aggregate(prompts(*values), min_scored_share=1)
    assert fitness.value == pytest.approx(0.45)
    assert fitness.stderr == pytest.approx(statistics.stdev(values) / 2)
    assert (fitness.scored, fitness.total) == (4, 4)


def test_unscored_answers_are_left_out_not_counted_as_zero() -> None:
    scores = [score(1.0, "p0", a=1.0), score(LOST, "p1", a=0.0), score(0.5, "p2", a=LOST)]
    fitness = aggregate(scores, min_scored_share=0.6)
    assert fitness.value == 0.75
    assert (fitness.scored, fitness.total) == (2, 3)
    assert fitness.parts == {"a": 0.5, "observed.tokens": 4}


def test_too_few_scored_answers_fail_with_the_commonest_reason() -> None:
    scores = [score(1.0), score(LOST), score(LOST), score(Unscored("other"))]
    with pytest.raises(
        ScoringFailed, match=r"1 of 4 answers .*min_scored_share 0.5; most often: .* not answer in time"
    ):
        aggregate(scores, min_scored_share=0.5)


@pytest.mark.parametrize("scores", [[], [score(LOST)]])
def test_no_scored_answer_always_fails(scores: list[Score]) -> None:
    with pytest.raises(ScoringFailed):
        aggregate(scores, min_scored_share=0)


@pytest.mark.parametrize("answers", [1, 4])
def test_one_prompt_tells_nothing_of_the_spread_between_prompts(answers: int) -> None:
    assert aggregate([score(i / 4) for i in range(answers)], min_scored_share=1).stderr == 1


def test_a_prompt_answered_more_often_does_not_weigh_more() -> None:
    scores = [score(1.0, "often", a=1.0), score(1.0, "often", a=1.0), score(0.0, "often", a=0.0), score(0.0, "once")]
    scores.append(score(LOST, "once"))
    fitness = aggregate(scores, min_scored_share=0.5)
    assert fitness.value == pytest.approx((2 / 3 + 0) / 2)
    assert (fitness.scored, fitness.total) == (4, 5)
    assert fitness.parts["a"] == pytest.approx(2 / 3)


def test_repeated_answers_do_not_pass_for_more_prompts() -> None:
    values = [0.1, 0.4, 0.4, 0.9]
    once, often = (aggregate(prompts(*values) * repeats, min_scored_share=1) for repeats in (1, 5))
    assert (often.value, often.stderr) == pytest.approx((once.value, once.stderr))
    assert (often.scored, often.total) == (20, 20)


def test_the_share_of_scored_answers_counts_answers_not_prompts() -> None:
    scores = [score(1.0, "a"), score(LOST, "a"), score(LOST, "a"), score(1.0, "b"), score(LOST, "b"), score(LOST, "b")]
    assert aggregate(scores, min_scored_share=1 / 3).scored == 2
    with pytest.raises(ScoringFailed, match="2 of 6 answers"):
        aggregate(scores, min_scored_share=0.5)


def test_a_part_that_no_answer_has_is_left_out() -> None:
    assert "a" not in aggregate([score(0.5, a=LOST)], min_scored_share=1).parts


MAYBE = st.floats(-1, 1) | st.just(LOST)
IDS = st.sampled_from(["p", "q", "r", "s"])


@given(st.lists(st.tuples(MAYBE, IDS, MAYBE), max_size=30), st.floats(0, 1))
def test_a_fitness_is_finite_and_between_its_scores(
    drawn: list[tuple[float | Unscored, str, float | Unscored]], share: float
) -> None:
    numbers = [value for value, *_ in drawn if not isinstance(value, Unscored)]
    try:
        fitness = aggregate([score(value, prompt, a=part) for value, prompt, part in drawn], min_scored_share=share)
    except ScoringFailed:
        assert not numbers or len(numbers) < share * len(drawn)
        return
    assert min(numbers) <= fitness.value <= max(numbers)
    assert math.isfinite(fitness.stderr)
    assert fitness.stderr >= 0
    assert fitness.scored == len(numbers)
    assert Fitness.from_dict(json.loads(json.dumps(fitness.to_dict()))) == fitness


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.integers(1, 5))
def test_unscored_answers_never_move_the_value(values: list[float], lost: int) -> None:
    plain = aggregate(prompts(*values), min_scored_share=0)
    mixed = aggregate(prompts(*values, *[LOST] * lost), min_scored_share=0)
    assert (plain.value, plain.stderr, plain.scored) == (mixed.value, mixed.stderr, mixed.scored)


def test_a_fitness_is_never_nan() -> None:
    with pytest.raises(ValueError, match="value is nan"):
        Fitness(float("nan"), 0.1, 1, 1, {})
