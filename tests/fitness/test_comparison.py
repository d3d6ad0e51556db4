"""Answers that are compared with a fixed model's, in both orders."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evolve.outcome import write_transcript
from fitness.aggregate import Fitness
from fitness.errors import ScoringSetupError
from fitness.judge_protocol import ProtocolError, comparison
from fitness.judges import read_rivals
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.scores import Score, Verdict
from tests.fitness.judge_client import PROMPT, RUBRIC, outcomes
from tests.fitness.judge_server import JudgeServer, Reply, Request, read_question
from workers.job import Job
from workers.recipe import Recipe

ANSWER = Response("p", "青ですわ", 4, "stop")
RIVAL = Response("p", "空は緑です。", 4, "length")
SETTING = "fitness.judge"


def preferring(right: str, short: str) -> str:
    return json.dumps({"right": {"reason": "r", "better": right}, "short": {"reason": "s", "better": short}})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("better", "as_first", "as_second"), [("A", 1, 0), ("B", 0, 1), ("tie", 0.5, 0.5)])
def test_a_preference_is_read_from_where_the_answer_stood(
    better: str, as_first: float, as_second: float, first: bool
) -> None:
    question = comparison(RUBRIC, PROMPT, ANSWER, RIVAL, first=first)
    scores = question.read(preferring(better, "tie"))
    assert {name: one.score for name, one in scores.items()} == {
        "right": as_first if first else as_second,
        "short": 0.5,
    }
    assert question.scale == (0, 1)


@pytest.mark.parametrize("better", ["a", "C", "Tie", "", "A or B", "answer_a"])
def test_other_preferences_are_outside_the_protocol(better: str) -> None:
    with pytest.raises(ProtocolError, match=r"right\.better"):
        comparison(RUBRIC, PROMPT, ANSWER, RIVAL, first=True).read(preferring(better, "A"))


def test_the_two_orders_differ_in_the_order_alone() -> None:
    first, second = (comparison(RUBRIC, PROMPT, ANSWER, RIVAL, first=first) for first in (True, False))
    assert first.messages[0] == second.messages[0]
    assert first.schema == second.schema
    one, other = (json.loads(question.messages[1]["content"]) for question in (first, second))
    assert (one["answer_a"], one["answer_b"], one["answer_b_was_cut_off"]) == (ANSWER.text, RIVAL.text, True)
    assert (other["answer_a"], other["answer_b"], other["answer_a_was_cut_off"]) == (RIVAL.text, ANSWER.text, True)
    assert one["conversation"] == other["conversation"]
    assert not any(anchor in first.messages[0]["content"] for anchor in ("1 = No.", "7 = Yes."))


@pytest.mark.parametrize("calls", ["together", "per_criterion"])
@pytest.mark.parametrize("always", ["A", "B"])
def test_a_judge_with_an_eye_for_the_place_alone_gives_a_half_with_the_widest_spread(
    judge_server: JudgeServer, always: str, calls: str
) -> None:
    def answer(request: Request) -> Reply:
        asked = read_question(request)["criteria"]
        return Reply(json.dumps({name: {"reason": "r", "better": always} for name in asked}))

    judge_server.script_each(answer)
    found = outcomes(judge_server.url, ["one", "another"], rivals={"p": RIVAL}, calls=calls)
    for one in found:
        assert isinstance(one, Verdict)
        assert one.scale == (0, 1)
        assert {name: score.score for name, score in one.criteria.items()} == {"right": 0.5, "short": 0.5}
        assert one.spread == {name: pytest.approx(math.sqrt(0.5)) for name in ("right", "short")}
    assert len(judge_server.requests) == 4 * (2 if calls == "per_criterion" else 1)


def test_a_comparison_is_known_as_long_as_the_rival_is_the_same(judge_server: JudgeServer, tmp_path: Path) -> None:
    for rival, asked in ((RIVAL, 2), (RIVAL, 2), (replace(RIVAL, text="空は赤です。"), 4), (RIVAL, 4)):
        (found,) = outcomes(judge_server.url, [ANSWER.text], tmp_path, rivals={"p": rival})
        assert isinstance(found, Verdict)
        assert len(judge_server.requests) == asked
    outcomes(judge_server.url, [ANSWER.text], tmp_path)  # nor is a comparison a grade
    assert len(judge_server.requests) == 5


# Files of the fixed answers ----------------------------------------------------------------------------------------

PROMPTS = [replace(PROMPT, id=name) for name in ("p", "q")]


def read(folder: Path, *contents: str, prompts: list[Prompt] = PROMPTS) -> dict[str, Response] | None:
    files = [Path(f"{index}.jsonl") for index in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        (folder / file).write_text(content, encoding="utf-8")
    return read_rivals(files, prompts=prompts, root=folder, setting=SETTING)


def line(name: str, **fields: Any) -> str:
    return json.dumps({"prompt_id": name, "text": f"of {name}", **fields}) + "\n"


def test_without_files_answers_are_graded(tmp_path: Path) -> None:
    assert read(tmp_path) is None


def test_several_files_make_one_set_and_the_first_answer_counts(tmp_path: Path) -> None:
    first = "\ufeff" + line("p") + "\n" + line("p", text="again") + '{"note": "no answer"}\n'
    found = read(tmp_path, first, line("q", finish="length", tokens=9) + line("p", text="late") + line("other"))
    assert found is not None
    assert found["p"] == Response("p", "of p", 0, "stop")
    assert found["q"] == Response("q", "of q", 9, "length")


def test_an_answer_may_hold_what_splits_lines_elsewhere(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0cd\n\r"
    found = read(tmp_path, json.dumps({"prompt_id": "p", "text": text}, ensure_ascii=False), prompts=PROMPTS[:1])
    assert found is not None
    assert found["p"].text == text


def test_the_transcripts_of_a_run_can_be_compared_with(tmp_path: Path) -> None:
    score = Score("p", 1.0, {}, {})
    answers = [(prompt, Response(prompt.id, text, 4, "length"), score) for prompt in PROMPTS for text in ("1", "2")]
    job = Job("parent-00-search", Recipe({"merge_method": "linear"}), "search", repeats=2)
    path = write_transcript(tmp_path, job, Fitness(1, 0, 4, 4, {}), {}, answers)
    found = read_rivals([path], prompts=PROMPTS, root=Path("elsewhere"), setting=SETTING)
    assert found == {name: Response(name, "1", 4, "length") for name in ("p", "q")}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense\n", "0.jsonl:1: not a JSON object"),
        (line("p") + "{", "0.jsonl:2: not a JSON object"),
        ("7\n", "0.jsonl:1: not a JSON object"),
        ("null\n", "0.jsonl:1: not a JSON object"),
        ('["prompt_id", "text"]\n', "0.jsonl:1: not a JSON object"),
        ('["p", "text"]\n', "0.jsonl:1: not a JSON object"),
        ('"prompt_id"\n', "0.jsonl:1: not a JSON object"),
        ('\n{"prompt_id": "p"}\n', "0.jsonl:2: text: Field required"),
        (line("p", text=7), "0.jsonl:1: text: Input should be a valid string"),
        (line("p", finish="eos"), "0.jsonl:1: finish: Input should be 'stop' or 'length'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ScoringSetupError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path}/{said}")


def test_prompts_without_a_fixed_answer_are_named_with_the_remedy(tmp_path: Path) -> None:
    prompts = [replace(PROMPT, id=f"p{index}") for index in range(8)]
    with pytest.raises(ScoringSetupError) as caught:
        read(tmp_path, line("p0"), prompts=prompts)
    assert str(caught.value).startswith(
        "fitness.judge.against: 7 of 8 prompts have no answer to compare with: 'p1', 'p2', 'p3', 'p4', 'p5', ...; add a"
    )


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff")])
def test_a_file_that_cannot_be_read_is_named_with_its_setting(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "b.jsonl")
    (tmp_path / "a.jsonl").write_text(line("p"))
    with pytest.raises(ScoringSetupError, match=r"^fitness\.judge\.against\[1\]: cannot read .*b\.jsonl: "):
        read_rivals([Path("a.jsonl"), Path("b.jsonl")], prompts=PROMPTS, root=tmp_path, setting=SETTING)
