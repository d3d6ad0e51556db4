from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.answer_language import language_findings
from fitness.findings import Finding
from fitness.prompts import Message, Prompt
from fitness.responses import Response

JAPANESE, HAN, LATIN, CYRILLIC = "お茶はいかがですか。", "東京都", "The river runs.", "Река течёт."
GREETINGS = {
    "Japanese": "こんにちは。",
    "Chinese": "你好，世界。",
    "Korean": "안녕하세요.",
    "Thai": "สวัสดี",
    "Hindi": "नमस्ते",
    "Greek": "Γειά σου",
    "Hebrew": "שלום",
    "Arabic": "مرحبا",
    "Persian": "سلام",
    "Russian": "Привет",
    "English": "Hello there.",
    "Vietnamese": "Xin chào các bạn.",
}


def asked(*texts: str, system: str | None = None) -> list[Prompt]:
    before = (Message("system", system),) if system else ()
    return [Prompt(f"q{i}", (*before, Message("user", text)), (), "search") for i, text in enumerate(texts)]


def found(texts: list[str], prompts: list[Prompt], wanted: str | None) -> Finding:
    (one,) = language_findings({"m": [Response("q", text, 3, "stop") for text in texts]}, prompts, wanted=wanted)
    json.dumps(one.to_dict(), allow_nan=False)
    assert (one.check, one.where) == ("answers-language", "m")
    return one


@pytest.mark.parametrize("wanted", GREETINGS)
def test_an_answer_in_the_wanted_language_is_ok_and_another_writing_is_a_warning(wanted: str) -> None:
    assert found([GREETINGS[wanted]], asked(LATIN), wanted).level == "ok"
    other = JAPANESE if wanted != "Japanese" else LATIN
    warning = found([other], asked(LATIN), wanted)
    assert warning.level == "warning"
    assert f"where {wanted} is expected" in warning.message
    assert "prompts.system" in warning.remedy


def test_a_short_japanese_answer_may_do_without_kana_and_a_chinese_one_has_none() -> None:
    assert found([HAN], asked(JAPANESE), "Japanese").level == "ok"
    assert found([JAPANESE], asked(JAPANESE), "Chinese").level == "warning"


def test_more_words_of_the_language_do_not_hide_it() -> None:
    assert found([JAPANESE], asked(LATIN), "Japanese (polite)").level == "ok"
    assert found([LATIN], asked(LATIN), "japanese").level == "warning"


def test_half_of_the_answers_are_enough_and_fewer_are_not() -> None:
    assert found([JAPANESE, LATIN], asked(JAPANESE), "Japanese").level == "ok"
    assert found([JAPANESE, LATIN, LATIN], asked(JAPANESE), "Japanese").level == "warning"


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_the_share_decides_and_every_answer_is_counted(right: int, wrong: int, mute: int) -> None:
    texts = [JAPANESE] * right + [LATIN] * wrong + ["123 !?"] * mute
    if not texts:
        return
    one = found(texts, asked(JAPANESE), "Japanese")
    assert (one.level == "ok") == (2 * right >= len(texts))
    assert sum(one.evidence["writings"].values()) == len(texts)
    assert one.evidence["writings"].get("no letters", 0) == mute


def test_without_a_wanted_language_that_of_the_prompts_is_expected_and_another_is_a_note() -> None:
    assert found([LATIN], asked(LATIN, LATIN, JAPANESE), None).level == "ok"
    note = found([LATIN], asked(JAPANESE, JAPANESE, LATIN), None)
    assert note.level == "note"
    assert "the prompts' Japanese is expected" in note.message
    assert found([HAN], asked(JAPANESE), None).level == "ok"
    assert found([CYRILLIC], asked(LATIN), None).level == "note"


def test_what_the_system_message_is_written_in_does_not_count() -> None:
    assert found([LATIN], asked(LATIN, system=JAPANESE * 9), None).level == "ok"


def test_a_language_without_a_writing_of_its_own_is_not_judged() -> None:
    one = found([LATIN], asked(LATIN), "Quenya")
    assert one.level == "ok"
    assert "whether that is Quenya the letters do not tell" in one.message


def test_prompts_without_letters_expect_nothing() -> None:
    one = found([LATIN], asked("1 + 1 = ?"), None)
    assert one.level == "ok"
    assert "the letters do not tell" in one.message
    assert found([LATIN], [], None).level == "ok"


def test_every_model_has_a_finding_and_one_without_answers_has_none() -> None:
    answers = {"a": [Response("q", JAPANESE, 3, "stop")], "b": [Response("q", LATIN, 3, "stop")], "c": []}
    findings = language_findings(answers, asked(JAPANESE), wanted="Japanese")
    assert [(one.where, one.level) for one in findings] == [("a", "ok"), ("b", "warning")]
