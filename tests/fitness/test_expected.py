from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.expected import NoDistribution, Token, expected_scores
from fitness.scores import CriterionScore

SCALE = (1.0, 7.0)
Piece = str | Mapping[str, float]


def tokens(*pieces: Piece) -> list[Token]:
    """Text as it was certain, and shares of what might have stood in a place, what stood there first."""
    found = []
    for piece in pieces:
        shares = {piece: 1.0} if isinstance(piece, str) else piece
        logprobs = {text: math.log(share) if share else -9999.0 for text, share in shares.items()}
        found.append(Token(next(iter(shares)), logprobs))
    return found


def means(*pieces: Piece, scale: tuple[float, float] = SCALE) -> dict[str, float]:
    """Reads a reply as the judge does, and gives the expected scores."""
    reply = tokens(*pieces)
    read = json.loads("".join(token.text for token in reply))
    scores = {name: CriterionScore(one["reason"], one["score"]) for name, one in read.items()}
    found = expected_scores(scores, reply, scale)
    assert {name: one.reason for name, one in found.items()} == {name: one.reason for name, one in scores.items()}
    return {name: one.score for name, one in found.items()}


HEAD = '{"right": {"reason": "r", "score": '


@pytest.mark.parametrize(
    ("place", "mean"),
    [
        ([{"5": 1.0}], 5),
        ([{"5": 0.5, "6": 0.5}], 5.5),
        ([{"7": 0.6, "6": 0.3, "1": 0.1}], 6.1),
        ([{"4": 0.2, "7": 0.2}], 5.5),  # the rest of the probability was not sent
        ([{"6": 0.5, "8": 0.3, "0": 0.1, "?": 0.1}], 6),
        ([{"6": 0.4, "7}": 0.3, "77": 0.2, "-6": 0.05, "６": 0.05}], 6),
        ([{"6": 0.0, "2": 0.5}], 2),  # what was written was not the likeliest, as at a high temperature
        ([{"6": 0.25, "6\n": 0.25, "4": 0.5}], 5),
    ],
)
def test_a_score_is_the_mean_over_the_scale_of_what_might_have_stood_there(place: list[Piece], mean: float) -> None:
    assert means(HEAD, *place, "}}") == {"right": pytest.approx(mean)}


@pytest.mark.parametrize(
    "place",
    [
        {" 5": 0.5, " 6": 0.5},
        {": 5": 0.4, ": 6": 0.4, '": 7': 0.1, "5": 0.1},
    ],
)
def test_what_a_token_brings_before_the_score_is_left_out_of_it(place: dict[str, float]) -> None:
    before = HEAD.removesuffix(" ").removesuffix(":" if ": 5" in place else "")
    assert means(before, place, "}}") == {"right": pytest.approx(5.5)}


@given(st.dictionaries(st.integers(0, 9), st.floats(1e-6, 1), min_size=1))
def test_a_mean_stays_on_the_scale_and_is_that_of_the_shares(shares: dict[int, float]) -> None:
    reply = [
        *tokens(HEAD),
        Token("5", {str(score): math.log(share) for score, share in {5: 1.0, **shares}.items()}),
        *tokens("}}"),
    ]
    found = expected_scores({"right": CriterionScore("r", 5)}, reply, SCALE)["right"].score
    on_scale = {score: share for score, share in {5: 1.0, **shares}.items() if 1 <= score <= 7}
    wanted = sum(score * share for score, share in on_scale.items()) / sum(on_scale.values())
    assert found == pytest.approx(wanted)
    assert 1 <= found <= 7


def test_a_score_that_is_quoted_in_a_reason_is_not_taken_for_the_score() -> None:
    reason = json.dumps('it says "score": 7, and {"right": {"score": 7}}')
    assert means(
        f'{{"right": {{"reason": {reason}, "score": ', {"2": 0.5, "3": 0.5}, '}, "short": {"reason": "score", "score":',
        {"7": 1.0}, "}}",
    ) == {"right": pytest.approx(2.5), "short": 7}  # fmt: skip


def test_criteria_are_told_apart_in_whatever_order_the_reply_has_them() -> None:
    assert means(
        '{"short": {"reason": "s", "score": ', {"1": 0.5, "2": 0.5}, '}, "right": {"score": ', {"6": 1.0},
        ', "reason": "r"}}',
    ) == {"short": pytest.approx(1.5), "right": 6}  # fmt: skip


def test_a_criterion_may_be_called_score() -> None:
    assert means('{"score": {"reason": "r", "score": ', {"3": 1.0}, "}}") == {"score": 3}


@pytest.mark.parametrize("place", [["1", "0}}"], [{"1": 0.5, "2": 0.5}, "0", "}}"], ["7}}"]])
def test_a_score_that_is_no_token_of_its_own_has_no_mean(place: list[Piece]) -> None:
    with pytest.raises(NoDistribution, match="not a token of its own; use a scale of single digits"):
        means(HEAD, *place, scale=(1, 10))


SCORES = {"right": CriterionScore("r", 5)}


@pytest.mark.parametrize(
    "reply",
    [
        [],
        tokens("no", "thing"),
        tokens(HEAD, "5", '}, "short": {"reason": "s", "score": ', "1", "}}"),
        [*tokens(HEAD), Token("5", {}), *tokens("}}")],
        [*tokens(HEAD), Token("5", {"5": -9999.0}), *tokens("}}")],
        [*tokens(HEAD), Token("5", {"5": math.nan}), *tokens("}}")],
        [*tokens(HEAD), Token("5", {"?": 0.0}), *tokens("}}")],
    ],
    ids=["none", "of another reply", "of too many scores", "empty", "no mass", "nan", "none on the scale"],
)
def test_without_probabilities_there_is_no_mean(reply: list[Token]) -> None:
    with pytest.raises(NoDistribution, match="sent no log-probabilities"):
        expected_scores(SCORES, reply, SCALE)


@pytest.mark.parametrize("logprob", [1e-7, 5.0, 1e6, math.inf])
def test_a_probability_above_1_counts_as_1(logprob: float) -> None:
    reply = [*tokens(HEAD), Token("5", {"5": logprob, "7": 0.0}), *tokens("}}")]
    assert expected_scores(SCORES, reply, SCALE)["right"].score == pytest.approx(6)
