from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evolve.outcome import (
    Failed,
    Outcome,
    read_answers,
    read_outcome,
    result_from_dict,
    result_to_dict,
    transcript_path,
    write_durably,
    write_transcript,
)
from fitness.aggregate import Fitness
from fitness.prompts import Message, Prompt
from fitness.responses import Response
from fitness.scores import CriterionScore, Score, Unscored, Verdict
from workers.job import Job, Lost, Share
from workers.recipe import Recipe

RECIPE = Recipe({"merge_method": "linear", "models": [{"model": "a"}, {"model": "日本/語"}]}, mask_seed=3)
FITNESS = Fitness(0.5, 0.1, 3, 4, {"ended": 0.75, "observed.chars": 12.0})

# Half of a surrogate pair too: a judge's JSON can hold one.
hostile = st.text(max_size=60) | st.sampled_from(
    [
        "お茶はいかがですか。ですわ\n",
        "🍵👩‍🚀",
        "a\nb\r\nc\rd",
        "\u2028\u2029\x85\x0b\x0c\x1c",
        '{"job": 1}\n',
        "\x00",
        "\ud83d",
        "",
    ]
)
shares = st.floats(0, 1)
scored = shares | st.builds(Unscored, hostile, st.none() | hostile)
verdicts = st.none() | st.builds(
    Verdict,
    rubric=hostile,
    rubric_version=st.just("v"),
    model=hostile,
    scale=st.just((1.0, 7.0)),
    samples=st.tuples(st.dictionaries(hostile, st.builds(CriterionScore, hostile, shares), min_size=1, max_size=2)),
)


@st.composite
def answers(draw: st.DrawFn) -> list[tuple[Prompt, Response, Score]]:
    found = []
    for index in range(draw(st.integers(0, 4))):
        prompt_id = f"{index}{draw(hostile)}"
        messages = (Message("system", draw(hostile)), Message("user", draw(hostile)))
        response = Response(
            prompt_id, draw(hostile), draw(st.integers(0, 999)), draw(st.sampled_from(["stop", "length"]))
        )
        score = Score(prompt_id, draw(scored), {"part": draw(scored)}, {"chars": draw(shares)}, draw(verdicts))
        found.append((Prompt(prompt_id, messages, (), "search"), response, score))
    return found


def job(key: str = "search-0000-01", **changes: Any) -> Job:
    return Job(**{"key": key, "recipe": RECIPE, "split": "search", "repeats": 2, "seed": 7, "attempt": 2} | changes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(answers(), st.just(FITNESS) | st.builds(Failed, st.just("judge"), hostile))
def test_a_transcript_is_read_back_as_it_was_written(tmp_path: Path, given_answers: Any, result: Any) -> None:
    seconds = {"merge": 0.1, "generate": 2.0, "judge": 0.0}
    shares, lost = (Share(1, 3, 1e9, 2.5), Share(0, 1, 1e9 + 1, 0.5)), (Lost(0, "worker", "死んだ"),)
    path = write_transcript(tmp_path, job(), result, seconds, given_answers, shares=shares, lost=lost)
    assert path == transcript_path(tmp_path, "search-0000-01")
    outcome = read_outcome(path, job(attempt=1))
    assert outcome is not None
    assert outcome == Outcome(job(), result, path, seconds, shares, lost)
    read = read_answers(path)
    assert [(a.prompt_id, a.prompt, a.text, a.tokens, a.finish, a.score) for a in read] == [
        (p.id, p.messages[-1].content, r.text, r.tokens, r.finish, s) for p, r, s in given_answers
    ]
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == len(given_answers) + 2  # the head, and what follows the last line break
    assert all(json.loads(line) is not None for line in lines[:-1])


def test_japanese_is_readable_in_the_file(tmp_path: Path) -> None:
    prompt = Prompt("q", (Message("user", "空の色は何ですか。"),), (), "search")
    answer = (prompt, Response("q", "青ですわ", 3, "stop"), Score("q", 1.0, {}, {}))
    path = write_transcript(tmp_path, job(), FITNESS, {}, [answer])
    assert "青ですわ" in path.read_text(encoding="utf-8")


def test_nothing_but_the_whole_file_is_left_behind(tmp_path: Path) -> None:
    for _ in range(2):
        write_transcript(tmp_path, job(), FITNESS, {})
    assert [p.name for p in tmp_path.iterdir()] == ["search-0000-01.jsonl"]


def test_a_write_that_fails_leaves_the_older_file_whole(tmp_path: Path) -> None:
    path = write_transcript(tmp_path, job(), FITNESS, {"merge": 1.0})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_transcript(tmp_path, job(), FITNESS, {"merge": math.nan})
    assert path.read_bytes() == before


def test_a_torn_temporary_file_is_no_transcript(tmp_path: Path) -> None:
    whole = write_transcript(tmp_path, job(), FITNESS, {})
    torn = whole.with_name(whole.name + ".tmp")
    whole.rename(torn)
    torn.write_bytes(torn.read_bytes()[:40])
    assert read_outcome(whole, job()) is None
    assert write_transcript(tmp_path, job(), FITNESS, {}) == whole  # and does not stand in the way
    assert read_outcome(whole, job()) is not None


def test_a_transcript_of_another_recipe_is_not_adopted(tmp_path: Path) -> None:
    path = write_transcript(tmp_path, job(), FITNESS, {})
    other = Recipe({**RECIPE.config, "dtype": "float32"}, mask_seed=3)
    assert read_outcome(path, job(recipe=other)) is None
    assert read_outcome(path, job(recipe=Recipe(RECIPE.config, mask_seed=4))) is None
    assert read_outcome(path, job(split="validation")) is None
    assert read_outcome(path, job(repeats=1)) is None


def test_an_absent_transcript_is_none(tmp_path: Path) -> None:
    assert read_outcome(tmp_path / "nowhere.jsonl", job()) is None


@pytest.mark.parametrize("result", [FITNESS, Failed("merge", "tensor x: NaN")])
def test_results_survive_json(result: Any) -> None:
    assert result_from_dict(json.loads(json.dumps(result_to_dict(result)))) == result


def test_durable_writing_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("first", "二番目\n"):
        write_durably(path, text)
        assert path.read_text(encoding="utf-8") == text
