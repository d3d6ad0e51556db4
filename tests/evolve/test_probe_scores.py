"""What the fitness makes of the parents' answers in a probe: real metrics, no judge, no engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evolve.config import RunConfig, parse_config
from evolve.judging import judging
from evolve.prepare import Prepared, prepare
from evolve.probe import RUN, Asked
from evolve.probe_scores import Marks, Scored, largest_noise, score_answers, score_findings, still_terms
from fitness.metrics import Term
from fitness.power import paired_noise
from fitness.responses import Response
from fitness.scores import Score, Unscored

MakeConfig = Callable[..., RunConfig]
RUBRIC = {
    "name": "plain",
    "instructions": "You grade replies.",
    "criteria": [{"name": "right", "question": "Is it right?", "anchors": {1: "No.", 7: "Yes."}}],
}
VALUES = st.floats(-1, 1).map(lambda value: round(value, 3))
ANSWERS = st.dictionaries(st.sampled_from("abcdef"), st.none() | VALUES, min_size=1)


def score(prompt_id: str, value: float | None) -> Score:
    return Score(prompt_id, Unscored("the judge was silent") if value is None else value, {}, {})


def marks(model: str, **values: float | None) -> Marks:
    """A model's scores by prompt; ``None`` is an answer that could not be scored."""
    return Marks(model, [score(prompt_id, value) for prompt_id, value in values.items()], None)


# --- noise ------------------------------------------------------------------------------------------------------


def test_the_noise_is_that_of_the_pair_that_differs_most_unevenly() -> None:
    level = marks("level", a=0.1, b=0.2, c=0.3, d=0.4)
    near = marks("near", a=0.1, b=0.2, c=0.3, d=0.5)
    far = marks("far", a=0.9, b=0.0, c=0.9, d=0.0)
    found = largest_noise([level, near, far])
    pairs = [([0.1, 0.2, 0.3, 0.4], [0.9, 0.0, 0.9, 0.0]), ([0.1, 0.2, 0.3, 0.5], [0.9, 0.0, 0.9, 0.0])]
    assert found == max((paired_noise(*pair) for pair in pairs), key=lambda one: one.deviation if one else 0)


def test_only_prompts_that_both_models_have_a_score_for_are_compared() -> None:
    one = marks("one", a=0.0, b=0.5, c=None, d=1.0)
    two = marks("two", a=0.1, b=None, c=0.3, d=0.4)
    assert largest_noise([one, two]) == paired_noise([0.0, 1.0], [0.1, 0.4])


def test_several_answers_to_a_prompt_count_as_their_mean() -> None:
    one = Marks("one", [score("a", 0.0), score("a", 1.0), score("b", 0.2), score("b", None)], None)
    two = marks("two", a=0.1, b=0.9)
    assert largest_noise([one, two]) == paired_noise([0.5, 0.2], [0.1, 0.9])


@pytest.mark.parametrize(
    "several",
    [
        [],
        [marks("one", a=0.1, b=0.9)],
        [marks("one", a=0.1, b=0.9), marks("two", a=None, b=None)],
        [marks("one", a=0.1), marks("two", a=0.9)],
        [marks("one", a=0.1, b=0.2), marks("two", a=0.3, b=0.4)],  # apart by the same on every prompt
        [marks("one", a=0.1, b=0.2), Marks("two", [], None, "it did not answer")],
    ],
)
def test_where_no_two_models_can_be_compared_nothing_is_known(several: list[Marks]) -> None:
    assert largest_noise(several) is None


@given(st.lists(ANSWERS, max_size=4))
def test_another_model_never_makes_less_noise(several: list[dict[str, float | None]]) -> None:
    known = [marks(str(number), **values) for number, values in enumerate(several)]
    whole, fewer = largest_noise(known), largest_noise(known[1:])
    assert fewer is None or (whole is not None and whole.deviation >= fewer.deviation)
    assert largest_noise(known[::-1]) == whole or whole is None or len(known) > 2


# --- findings ---------------------------------------------------------------------------------------------------


def test_a_parent_that_cannot_be_scored_is_an_error_and_the_others_still_show_the_noise() -> None:
    failed = Marks("mute", [score("a", None)], None, "0 of 1 answers are scored")
    several = [failed, marks("one", a=0.1, b=0.9), marks("two", a=0.4, b=0.3)]
    *parents, power = score_findings(Scored(several, 1.0, {}), (), validation_prompts=8, wanted=0.05)
    assert (parents[0].where, parents[0].level) == ("mute", "error")
    assert "0 of 1 answers are scored" in parents[0].message
    assert power.check == "power"
    noise = largest_noise(several)
    assert noise is not None
    assert power.evidence["deviation"] == noise.deviation
    assert power.evidence["prompts_at_hand"] == 8


# --- scoring ----------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(make_config: MakeConfig, tmp_path: Path) -> Prepared:
    return prepare(make_config(), tmp_path)


def answers(prepared: Prepared, model: str, *texts: str, settings: str = RUN) -> Asked:
    prompts = prepared.prompts["search"][: len(texts)]
    responses = [Response(one.id, text, 3, "stop") for one, text in zip(prompts, texts, strict=True)]
    return Asked(model, settings, prepared.generation, prompts, responses, 1.0)


def scored(prepared: Prepared, *asked: Asked, least: float = 0.9) -> Scored:
    with judging(prepared.config, prepared.scoring, prepared.rivals, spending=None) as stage:
        return score_answers(asked, stage, min_scored_share=least)


def test_answers_under_the_runs_own_settings_get_the_fitness_of_the_run(prepared: Prepared) -> None:
    good = answers(prepared, "good", "river", "river", "river")
    poor = answers(prepared, "poor", "no no no no no no no no", "x", "y")
    found = scored(prepared, good, poor, answers(prepared, "good", "river", settings="greedy-short"))
    assert [one.model for one in found.marks] == ["good", "poor"]
    fitness = [one.fitness for one in found.marks]
    assert fitness[0] is not None
    assert fitness[1] is not None
    assert fitness[0].value > 0.4 > fitness[1].value
    assert [len(one.scores) for one in found.marks] == [3, 3]
    assert [one.prompt_id for one in found.marks[0].scores] == [one.id for one in good.prompts]
    assert found.seconds >= 0
    assert found.spent == {}  # there is no judge


def test_a_model_without_answers_has_no_marks(prepared: Prepared) -> None:
    mute = Asked("mute", RUN, prepared.generation, prepared.prompts["search"][:2], (), 0.0, "merge: refused")
    assert [one.model for one in scored(prepared, mute, answers(prepared, "one", "a", "b")).marks] == ["one"]
    assert scored(prepared, mute).marks == []


def test_sound_marks_give_ok_with_the_fitness_and_what_the_prompts_can_show(prepared: Prepared) -> None:
    found = scored(prepared, answers(prepared, "one", "river", "a"), answers(prepared, "two", "b", "river"))
    findings = score_findings(found, (), validation_prompts=4, wanted=0.05)
    assert [(one.check, one.where, one.level) for one in findings[:2]] == [
        ("answers-scored", "one", "ok"),
        ("answers-scored", "two", "ok"),
    ]
    assert findings[0].evidence["scored"] == findings[0].evidence["total"] == 2
    assert findings[2].check == "power"
    assert json.dumps([one.to_dict() for one in findings], allow_nan=False)


@pytest.fixture
def judged(
    judge_module: ModuleType, config_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Prepared]]:
    """A judge's server, and a run whose fitness it gives."""
    monkeypatch.setenv("EVOLVE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(RUBRIC))
    server = judge_module.JudgeServer()
    fitness = {
        "terms": [{"metric": "judge", "rubric": "plain.yaml"}],
        "judge": {"base_url": server.url, "model": "judge", "max_reply_retries": 0},
    }
    config = parse_config({**config_data, "fitness": fitness}, source=str(tmp_path / "run.yaml"))
    yield server, prepare(config, tmp_path)
    server.stop()


def test_what_the_judge_was_asked_about_these_answers_is_counted_without_its_first_question(
    judged: tuple[Any, Prepared],
) -> None:
    server, prepared = judged
    found = scored(prepared, answers(prepared, "one", "a", "b", "c"))
    assert len(server.requests) == 4
    spent = found.spent["fitness.judge"]
    assert (spent.calls, spent.cached) == (3, 0)
    assert spent.prompt_tokens > 0
    again = scored(prepared, answers(prepared, "one", "a", "b", "c")).spent["fitness.judge"]
    assert (again.calls, again.cached) == (0, 3)


def test_too_few_scored_answers_leave_a_model_without_fitness(judged: tuple[Any, Prepared]) -> None:
    server, prepared = judged
    server.behave("honest", "honest", "prose")
    (found,) = scored(prepared, answers(prepared, "one", "a", "b", "c"), least=0.5).marks
    assert found.fitness is None
    assert "1 of 3" in found.failure
    finding, power = score_findings(Scored([found], 1.0, {}), (), validation_prompts=4, wanted=0.05)
    assert (finding.level, power.level) == ("error", "note")
    assert "evolve judge ask" in finding.remedy


def test_a_few_unscored_answers_are_told_and_no_error(judged: tuple[Any, Prepared]) -> None:
    server, prepared = judged
    server.behave("honest", "prose", "honest")
    found = scored(prepared, answers(prepared, "one", "a", "b", "c"), least=0.5)
    finding, _ = score_findings(found, (), validation_prompts=4, wanted=0.05)
    assert finding.level == "ok"
    assert "2 of 3 answers" in finding.message
    assert "unscored" in finding.message


def test_terms_that_no_models_answers_varied_in_are_told() -> None:
    terms = [Term("all_of", "fitness.terms[0]", weight=3.0), Term("ends", "fitness.terms[1]", weight=-1.0)]
    parts = ({"all_of": 0.0, "ends": 0.0}, {"all_of": 0.0, "ends": 1.0})
    one = Marks("one", [Score(str(i), 0.0, dict(part), {}) for i, part in enumerate(parts)], None)
    two = Marks("two", [Score(str(i), 0.0, {"all_of": 1.0, "ends": 1.0}, {}) for i in range(2)], None)
    assert still_terms([one, two], terms) == {"all_of": 0.75}  # apart by the same on every prompt says nothing either
    assert still_terms([], terms) == {}
