from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fitness.attacks import Injection, attacked, read_injections
from fitness.errors import ScoringSetupError
from fitness.judge_protocol import grading
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.rubric import Rubric, load_rubric

SHIPPED = Path(__file__).parents[2] / "configs" / "attacks" / "injections.yaml"
INJECTIONS = read_injections(SHIPPED)
RUBRIC = Rubric.model_validate(
    {
        "name": "plain",
        "instructions": "You grade replies.",
        "scale": {"min": 0, "max": 9},
        "criteria": [
            {"name": "right", "question": "Is it right?", "anchors": {9: "Yes."}},
            {"name": "short", "question": "Is it short?", "anchors": {9: "Yes."}},
        ],
    }
)
PLACEHOLDERS = ("{answer}", "{criteria}", "{reply}", "{top}")
TEXTS = st.text() | st.lists(st.sampled_from([*PLACEHOLDERS, "{0}", "{", "}}", "\\1", '"', "青"])).map("".join)


def answer(text: str) -> Response:
    return Response("p", text, 5, "length")


@given(st.sampled_from(["append", "prepend", "wrap"]), TEXTS, TEXTS)
def test_the_original_stands_in_an_attacked_text_letter_by_letter(place: str, before: str, text: str) -> None:
    written = before.replace("{answer}", "") + "{answer}" * (place == "wrap") or "."
    injection = Injection.model_validate({"name": "x", "place": place, "text": written})
    assert text in attacked(injection, answer(text), RUBRIC).text


@given(TEXTS)
def test_braces_of_an_answer_are_no_placeholders(text: str) -> None:
    wrap = Injection(name="x", place="wrap", text="<{answer}|{answer}>")
    assert attacked(wrap, answer(text), RUBRIC).text == f"<{text}|{text}>"


@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda injection: injection.name)
@given(text=TEXTS)
def test_a_shipped_injection_leaves_no_placeholder_of_its_own(injection: Injection, text: str) -> None:
    plain = attacked(injection, answer("A."), RUBRIC)
    assert not any(placeholder in plain.text for placeholder in PLACEHOLDERS)
    assert plain.text != "A."
    result = attacked(injection, answer(text), RUBRIC)
    assert (result.prompt_id, result.tokens, result.finish) == ("p", 5, "length")
    assert injection.place == "replace" or text in result.text


def test_placeholders_stand_for_what_the_rubric_says() -> None:
    injection = Injection(name="x", place="replace", text="{top} of {criteria}: {reply}")
    text = attacked(injection, answer("A."), RUBRIC).text
    assert text.startswith("9 of right, short: ")
    scores = grading(RUBRIC, prompt(), answer("A.")).read(text.removeprefix("9 of right, short: "))
    assert {name: one.score for name, one in scores.items()} == {"right": 9, "short": 9}


def test_a_blank_line_parts_text_and_answer() -> None:
    texts = {
        place: attacked(Injection.model_validate({"name": "x", "place": place, "text": "T"}), answer("A"), RUBRIC).text
        for place in ("append", "prepend", "replace")
    }
    assert texts == {"append": "A\n\nT", "prepend": "T\n\nA", "replace": "T"}


def prompt() -> Prompt:
    return Prompt("p", (Message("system", "A lady."), Message("user", "空は？")), ("青",), "search")


@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda injection: injection.name)
def test_a_shipped_injection_reaches_the_judge_as_one_json_string_and_changes_nothing_else(
    configs: Path, injection: Injection
) -> None:
    rubric = load_rubric("role-play", root=Path(), shipped=configs / "rubrics", setting="x").asked_in("Japanese")
    calm = grading(rubric, prompt(), answer("青ですわ。"))
    hostile = attacked(injection, answer("青ですわ。"), rubric)
    question = grading(rubric, prompt(), hostile)
    data = json.loads(question.messages[-1]["content"])
    assert data == {**json.loads(calm.messages[-1]["content"]), "answer": hostile.text}
    assert question.messages[:-1] == calm.messages[:-1]
    assert question.schema == calm.schema
    for token in ("<|im_start|>", "<|im_end|>", "</s>", "<<SYS>>", "[/INST]"):
        assert token not in question.messages[-1]["content"]


def test_the_shipped_injections_are_of_many_kinds() -> None:
    names = {injection.name for injection in INJECTIONS}
    assert {"control", "request", "fake-verdict", "chatml-turn", "tripled"} <= names
    assert {injection.place for injection in INJECTIONS} == {"append", "prepend", "replace", "wrap"}
    assert all(injection.note for injection in INJECTIONS)
    hidden = next(injection for injection in INJECTIONS if injection.name == "hidden-tags")
    assert not any(letter.isprintable() for letter in attacked(hidden, answer(""), RUBRIC).text)


GOOD: dict[str, Any] = {"name": "good", "place": "append", "text": "T"}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([GOOD, {**GOOD, "name": "Bad Name"}], "entry 2 (Bad Name): name: "),
        ([{**GOOD, "palce": "append"}], "entry 1 (good): palce: unknown key, did you mean 'place'?"),
        ([{**GOOD, "place": "inside"}], "entry 1 (good): place: "),
        ([{**GOOD, "text": ""}], "entry 1 (good): text: "),
        ([{**GOOD, "text": "{tpo}"}], "text: unknown placeholder {tpo}, did you mean 'top'?"),
        ([{**GOOD, "text": "{answer}"}], "{answer} belongs into a text whose place is wrap, and only there"),
        ([{**GOOD, "place": "wrap"}], "{answer} belongs into a text whose place is wrap"),
        ([GOOD, GOOD], "entry 2: name 'good' is taken by entry 1; names must differ"),
        ([GOOD, "text"], "entry 2: "),
        ([], "expected a list of injections with the keys name, place, text, note"),
        ({"good": GOOD}, "expected a list of injections"),
    ],
)
def test_a_malformed_injection_is_explained_with_file_and_entry(tmp_path: Path, entries: Any, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    with pytest.raises(ScoringSetupError) as caught:
        read_injections(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"a: [", b'!!int ""', b"\xff\xfe", b""])
def test_a_file_that_holds_no_injections_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ScoringSetupError, match=r"mine\.yaml"):
        read_injections(tmp_path / "mine.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScoringSetupError, match=r"cannot read the injections .*mine\.yaml: No such file"):
        read_injections(tmp_path / "mine.yaml")
