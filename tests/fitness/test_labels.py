from __future__ import annotations

import contextlib
import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitness.errors import ScoringSetupError
from fitness.labels import Labelled, read_labels

CRITERIA = ("personality", "naturalness")


def read(tmp_path: Path, text: str | bytes) -> list[Labelled]:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(path, criteria=CRITERIA, scale=(1, 7))


def test_answers_come_in_the_order_of_the_file_with_the_labels_of_all_raters(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "prompt_id,answer,rater,score\nb,Yes.,ann,6\na,No.,ann,2\nb,Yes.,ben,4.5\n",
    )
    assert [(one.prompt_id, one.answer) for one in found] == [("b", "Yes."), ("a", "No.")]
    assert found[0].labels == {"score": {"ann": 6.0, "ben": 4.5}}
    assert found[0].prompt is None
    assert found[0].where == f"{tmp_path / 'labels.csv'}:2"


def test_a_question_can_be_written_out(tmp_path: Path) -> None:
    (found,) = read(
        tmp_path,
        "prompt,system,reference,answer,finish,score\nWho?,You are a cat.,Tama,Tama!,length,7\n",
    )
    assert (found.prompt_id, found.prompt, found.system, found.references) == (
        None,
        "Who?",
        "You are a cat.",
        ("Tama",),
    )
    assert (found.answer, found.finish, found.labels) == ("Tama!", "length", {"score": {"": 7.0}})


def test_criteria_are_labels_and_may_be_left_empty(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "prompt,answer,naturalness,personality,score,rater\nq,a,3,,,x\nq,a,,5,2,y\n",
    )
    assert [one.labels for one in found] == [{"naturalness": {"x": 3.0}, "personality": {"y": 5.0}, "score": {"y": 2}}]
    assert (found[0].system, found[0].references, found[0].finish) == (None, (), "stop")


def test_texts_keep_their_lines_quotes_and_blanks_and_lines_are_counted_past_them(tmp_path: Path) -> None:
    with pytest.raises(ScoringSetupError, match=r"labels\.csv:6: score is 'six'"):
        read(tmp_path, 'prompt,answer,score\nq,"one\ntwo, ""three""\n",4\n\nq,b,six\n')
    (found,) = read(tmp_path, 'prompt,answer,score\nq," one\r\ntwo, ""three""\n",4\n')
    assert found.answer == ' one\r\ntwo, "three"\n'


def test_a_file_of_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (found,) = read(tmp_path, b"\xef\xbb\xbfprompt, answer ,score\r\n\xe7\x8c\xab\xe3\x81\xaf\xef\xbc\x9f,a,3\r\n")
    assert (found.prompt, found.labels) == ("猫は？", {"score": {"": 3.0}})


def test_a_criterion_that_is_called_like_a_column_leaves_the_column_alone(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt,answer,score\nq,a,3\n")
    (found,) = read_labels(path, criteria=("answer", "score"), scale=(1, 7))
    assert (found.answer, found.labels) == ("a", {"score": {"": 3.0}})


def test_the_same_answer_that_ended_otherwise_is_another_one(tmp_path: Path) -> None:
    found = read(tmp_path, "prompt,answer,finish,score\nq,a,stop,3\nq,a,length,1\nq,,,1\n")
    assert [(one.answer, one.finish) for one in found] == [("a", "stop"), ("a", "length"), ("", "stop")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels\.csv: is empty; .*prompt,answer,score"),
        ("prompt,answer,score\n", r"labels\.csv: no labels below"),
        ("prompt,answer,scor\nq,a,3\n", r":1: unknown column 'scor', did you mean 'score'\?"),
        ("prompt,answer,persnality\nq,a,3\n", r":1: unknown column 'persnality', did you mean 'personality'\?"),
        ("prompt,answer,score,\nq,a,3,\n", r":1: unknown column '', known: 'answer'"),
        ("prompt;answer;score\nq;a;3\n", r":1: the columns must be separated by commas"),
        ("prompt,answer,score,score\nq,a,3,3\n", r":1: column 'score' stands there 2 times; keep one"),
        ("prompt,score\nq,3\n", r":1: no column answer; add"),
        ("answer,score\na,3\n", r":1: no question; add a column prompt_id"),
        ("prompt,answer\nq,a\n", r":1: no label; add .* score, personality, naturalness"),
        ("prompt,answer,score\nq,a,3\n ,a,3\n", r":3: no question; fill"),
        ("prompt,answer,score,naturalness\nq,a,, \n", r":2: no label; give a number in score, naturalness, or"),
        ("prompt,answer,score\nq,a,nan\n", r":2: score is 'nan'; write a number"),
        ("prompt,answer,score\nq,a,inf\n", r":2: score is 'inf'; write a number"),
        ("prompt,answer,score\nq,hello, world,3\n", r":2: 4 cells under 3 columns; quote"),
        ("prompt,answer,score\nq,a\n", r":2: 2 cells under 3 columns"),
        ("prompt,answer,score,finish\nq,a,3,eos\n", r":2: finish is 'eos'; write stop or length"),
        ("prompt_id,prompt,answer,score\np,q,a,3\n", r":2: prompt_id and prompt are both filled"),
        ("prompt_id,answer,reference,score\np,a,r,3\n", r":2: prompt_id and reference are both filled"),
        ("prompt,answer,score\nq,a,3\nq,a,4\n", r":3: score of this answer by a rater without .* first in .*:2; drop"),
        ("prompt,answer,score,rater\nq,a,3,ann\nq,a,3,ann\n", r":3: score of this answer by rater 'ann' again"),
        ('prompt,answer,score\nq,"a,3\nq,b,4\n', r":2: not CSV: .*; quote"),
        (b"prompt,answer,score\nq,\xff,3\n", r"labels\.csv: is not UTF-8 at byte 22; save"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place_and_remedy(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ScoringSetupError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_a_mistake_of_the_option(tmp_path: Path) -> None:
    path = tmp_path / "no.csv"
    with pytest.raises(ScoringSetupError, match=rf"--labels: cannot read {re.escape(str(path))}: No such file"):
        read_labels(path, criteria=CRITERIA, scale=(1, 7))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@given(st.lists(st.tuples(TEXT.filter(str.strip), TEXT, st.floats(-1e9, 1e9)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_whatever_a_csv_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["prompt", "answer", "score", "rater"])
    writer.writerows((prompt, answer, score, f"rater {index}") for index, (prompt, answer, score) in enumerate(rows))
    path.write_bytes(text.getvalue().encode())
    read_back = [
        (one.prompt, one.answer, label)
        for one in read_labels(path, criteria=(), scale=(-1e9, 1e9))
        for label in one.labels["score"].values()
    ]
    assert sorted(read_back, key=str) == sorted(rows, key=str)


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=150)
def test_any_bytes_are_labels_or_a_mistake(tmp_path_factory: pytest.TempPathFactory, rows: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"prompt,answer,score\n" + rows)
    with contextlib.suppress(ScoringSetupError):
        assert read_labels(path, criteria=CRITERIA, scale=(1, 7))


def test_a_label_off_the_scale_of_the_rubric_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt,answer,score\nq,a,9\n", encoding="utf-8")
    with pytest.raises(ScoringSetupError, match=r"labels\.csv:2: score is 9, and the scale of the rubric is 1 to 7"):
        read_labels(path, criteria=CRITERIA, scale=(1, 7))
