from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sacrebleu.metrics import CHRF

from fitness import measures
from fitness.metrics import MetricConfig, build_term
from fitness.prompts import Message, Prompt
from fitness.responses import Finish, Response

CONFIG: TypeAdapter[Any] = TypeAdapter(MetricConfig)


def prompt(*references: str) -> Prompt:
    return Prompt("p", (Message("user", "q"),), references, "search")


def measured(metric: dict[str, Any], text: str, *references: str, finish: Finish = "stop") -> float:
    term = build_term(CONFIG.validate_python(metric), "fitness.terms[0]")
    assert term.measure is not None
    return term.measure(prompt(*references), Response("p", text, 1, finish))


@pytest.mark.parametrize(("finish", "ended", "truncated"), [("stop", 1, 0), ("length", 0, 1)])
def test_an_answer_has_either_ended_or_been_truncated(finish: Finish, ended: float, truncated: float) -> None:
    assert measured({"metric": "ended"}, "x", finish=finish) == ended
    assert measured({"metric": "truncated"}, "x", finish=finish) == truncated


def test_repetition_tells_a_loop_from_prose_also_without_spaces() -> None:
    prose = "お茶はいかがですか。今日はよいお天気ですから、お庭でいただくのもよろしいかと存じますわ。"
    assert measures.repetition(prose) == 0
    assert measures.repetition("申し訳ございませんわ。" * 8) > 0.8
    assert measures.repetition("\n" * 64) > 0.9
    assert measures.repetition("") == 0
    assert measures.repetition("short") == 0


def test_repetition_counts_occurrences_that_came_before() -> None:
    # abab has the 2-grams ab, ba, ab: one of three came before.
    assert measures.repetition("abab", ngram_chars=2) == pytest.approx(1 / 3)
    assert measured({"metric": "repetition", "ngram_chars": 2}, "abab") == pytest.approx(1 / 3)


def test_repetition_sees_full_width_and_half_width_as_one() -> None:
    assert measures.repetition("ＡＢＣＤＥＦＧＨABCDEFGH") == measures.repetition("ABCDEFGH" * 2) > 0


def test_exact_and_contains_ignore_width_case_and_white_space() -> None:
    assert measured({"metric": "exact"}, " ＰＡＲＩＳ\n", "Paris") == 1
    assert measured({"metric": "exact"}, "Paris.", "Paris") == 0
    assert measured({"metric": "contains"}, "It is  ｐａｒｉｓ!", "London", "is Paris") == 1
    assert measured({"metric": "contains"}, "首都は東京ですわ。", "東京") == 1
    assert measured({"metric": "contains"}, "Rome", "Paris") == 0
    assert measured({"metric": "contains"}, "", "Paris") == 0


def test_chrf_is_sacrebleus_for_the_best_reference() -> None:
    assert measured({"metric": "chrf"}, "the cat", "the cat") == 1
    assert measured({"metric": "chrf"}, "the cat", "dog", "the cat") == 1
    assert 0 < measured({"metric": "chrf"}, "the cap", "the cat") < 1
    assert measured({"metric": "chrf"}, "", "the cat") == 0
    expected = CHRF().sentence_score("空は青いです", ["空は青い"]).score / 100
    assert measured({"metric": "chrf"}, "空は青いです", "空は青い") == pytest.approx(expected)


def test_an_ending_may_be_followed_by_white_space_only() -> None:
    metric = {"metric": "ends_with", "endings": ["ですわ", "ですわ。"]}
    assert measured(metric, "青ですわ。\n") == 1
    assert measured(metric, "青ですわ") == 1
    assert measured(metric, "青です") == 0
    assert measured({"metric": "ends_with", "endings": ["!"]}, "Yes！") == 1


def test_a_pattern_is_searched_in_the_normalised_text() -> None:
    assert measured({"metric": "matches", "pattern": r"^\d+!$"}, "１２３！") == 1
    assert measured({"metric": "matches", "pattern": "yes"}, "YES") == 0
    assert measured({"metric": "matches", "pattern": "(?i)yes"}, "oh YES") == 1


def test_length_counts_characters_without_outer_white_space() -> None:
    metric = {"metric": "length", "min_chars": 2, "max_chars": 4}
    assert [measured(metric, text) for text in ("", "a ", "ab", " abcd\n", "abcde")] == [0, 0, 1, 1, 0]
    assert measured({"metric": "length", "max_chars": 1}, "") == 1
    assert measured({"metric": "length", "min_chars": 1}, "x" * 999) == 1


ANY_METRIC = st.sampled_from(
    [
        {"metric": "ended"},
        {"metric": "truncated"},
        {"metric": "repetition", "ngram_chars": 1},
        {"metric": "repetition"},
        {"metric": "exact"},
        {"metric": "contains"},
        {"metric": "chrf"},
        {"metric": "ends_with", "endings": ["ですわ", "a"]},
        {"metric": "matches", "pattern": r"\w+$"},
        {"metric": "length", "min_chars": 1, "max_chars": 9},
    ]
)
ANY_TEXT = st.text(max_size=60) | st.text("あア１1aA\u3099 \n", max_size=60)


@settings(deadline=None, max_examples=300)
@given(ANY_METRIC, ANY_TEXT, st.lists(ANY_TEXT, min_size=1, max_size=3), st.sampled_from(["stop", "length"]))
def test_every_metric_is_in_the_unit_interval_for_any_text(
    metric: dict[str, Any], text: str, references: list[str], finish: Finish
) -> None:
    assert 0 <= measured(metric, text, *references, finish=finish) <= 1


@given(ANY_TEXT)
def test_every_text_is_its_own_exact_answer(text: str) -> None:
    assert measured({"metric": "exact"}, text, text) == 1


@given(st.text())
def test_comparing_is_idempotent(text: str) -> None:
    assert measures.comparable(measures.comparable(text)) == measures.comparable(text)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ({"metric": "contians"}, "contians"),
        ({"metric": "ended", "weigth": 1}, "weigth"),
        ({"metric": "ended", "weight": float("inf")}, "finite"),
        ({"metric": "ended", "name": "a.b"}, "pattern"),
        ({"metric": "ended", "name": "observed"}, "take another name"),
        ({"metric": "ends_with", "endings": []}, "at least 1"),
        ({"metric": "ends_with", "endings": [" "]}, "a blank ending would fit every answer"),
        ({"metric": "matches", "pattern": "("}, "is not a regular expression"),
        ({"metric": "matches", "pattern": "わ！$"}, "write '!' for '！'"),
        ({"metric": "matches", "pattern": "か\u3099"}, "composed characters"),
        ({"metric": "length"}, "every answer fits"),
        ({"metric": "length", "min_chars": 5, "max_chars": 4}, "no answer fits"),
        ({"metric": "all_of", "of": [{"metric": "ended"}]}, "at least 2"),
        ({"metric": "all_of", "of": [{"metric": "ended", "weight": 2}, {"metric": "exact"}]}, "has a weight"),
        ({"metric": "all_of", "of": [{"metric": "ended"}, {"metric": "ended"}]}, "2 are called 'ended'"),
    ],
)
def test_a_metric_that_cannot_work_is_explained(metric: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CONFIG.validate_python(metric)
    assert said in str(caught.value)


def test_a_term_knows_its_place_and_what_it_needs() -> None:
    config = {"metric": "all_of", "name": "good", "of": [{"metric": "ended"}, {"metric": "contains", "name": "right"}]}
    term = build_term(CONFIG.validate_python(config), "fitness.terms[2]")
    assert [(one.label, one.path, one.needs_reference) for one in term.walk()] == [
        ("good", "fitness.terms[2]", False),
        ("ended", "fitness.terms[2].of[0]", False),
        ("right", "fitness.terms[2].of[1]", True),
    ]
