from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fitness.errors import ScoringSetupError
from fitness.rubric import Criterion, Rubric, load_rubric

PLAIN: dict[str, Any] = {
    "name": "plain",
    "instructions": "You grade replies.",
    "criteria": [
        {"name": "right", "question": "Is it right?", "anchors": {1: "No.", 7: "Yes."}, "weight": 3},
        {"name": "short", "question": "Is it short?", "anchors": {1: "No.", 7: "Yes."}},
    ],
}


def load(folder: Path, content: Any) -> Rubric:
    (folder / "r.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_rubric("r.yaml", root=folder, shipped=folder / "none", setting="fitness.terms[0].rubric")


def shipped(configs: Path, name: str) -> Rubric:
    return load_rubric(name, root=Path(), shipped=configs / "rubrics", setting="x")


@pytest.mark.parametrize("name", ["role-play", "chat-quality"])
def test_a_shipped_rubric_asks_for_naturalness_and_anchors_1_4_and_7(configs: Path, name: str) -> None:
    rubric = shipped(configs, name)
    assert rubric.name == name
    assert "naturalness" in {criterion.name for criterion in rubric.criteria}
    assert all(set(criterion.anchors) == {1, 4, 7} for criterion in rubric.criteria)


@pytest.mark.parametrize("name", ["role-play", "chat-quality"])
def test_a_shipped_rubric_asks_for_the_language_only_where_one_is_required(configs: Path, name: str) -> None:
    rubric = shipped(configs, name)
    free, japanese = rubric.asked_in(None), rubric.asked_in("Japanese")
    assert "answer_language" not in {criterion.name for criterion in free.criteria}
    assert japanese.criteria[-1].name == "answer_language"
    assert japanese.criteria[-1].question == "Is the reply in Japanese?"
    assert japanese.criteria[:-1] == free.criteria


def test_role_play_has_the_dimensions_of_character_llm_in_few_words(configs: Path) -> None:
    rubric = shipped(configs, "role-play").asked_in("Japanese")
    names = [criterion.name for criterion in rubric.criteria]
    assert names == [
        *("memorisation", "values", "personality", "avoiding_hallucination", "stability"),
        *("naturalness", "answer_language"),
    ]
    texts = [rubric.instructions, *names]
    for criterion in rubric.criteria:
        texts += [criterion.question, *criterion.anchors.values()]
    assert sum(len(text.split()) for text in texts) < 700


def test_role_play_shows_reference_and_profile_to_the_criteria_that_need_them(configs: Path) -> None:
    rubric = shipped(configs, "role-play")
    alone = {criterion.name: rubric.only(criterion) for criterion in rubric.criteria}
    assert {name for name, one in alone.items() if one.shows("reference")} == {"memorisation", "avoiding_hallucination"}
    assert {name for name, one in alone.items() if not one.shows("profile")} == {"naturalness", "answer_language"}


def test_the_value_is_the_weighted_mean(tmp_path: Path) -> None:
    rubric = load(tmp_path, PLAIN)
    assert rubric.value({"right": 1, "short": 0}) == pytest.approx(0.75)
    assert rubric.value({"right": 0, "short": 0}) == 0
    assert rubric.value({"right": 1, "short": 1}) == 1


@given(st.lists(st.tuples(st.floats(1e-3, 1000), st.floats(0, 1)), min_size=1, max_size=6))
def test_the_value_never_leaves_the_unit_interval(drawn: list[tuple[float, float]]) -> None:
    criteria = [
        {"name": f"c{index}", "question": "?", "anchors": {1: "x"}, "weight": weight}
        for index, (weight, _) in enumerate(drawn)
    ]
    rubric = Rubric.model_validate({**PLAIN, "criteria": criteria})
    assert 0 <= rubric.value({f"c{index}": unit for index, (_, unit) in enumerate(drawn)}) <= 1


def test_the_version_follows_the_content_alone(tmp_path: Path) -> None:
    version = load(tmp_path, PLAIN).version
    assert load(tmp_path, "# a comment\n" + yaml.safe_dump(PLAIN, sort_keys=True)).version == version
    assert load(tmp_path, {**PLAIN, "instructions": "You grade."}).version != version


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"criteria": []}, "criteria: Tuple should have at least 1 item"),
        ({"criteria": PLAIN["criteria"] * 2}, "names must differ"),
        (
            {"criteria": [{**PLAIN["criteria"][0], "anchors": {9: "x"}}]},
            "anchor 9 of right is outside the scale 1 to 7",
        ),
        ({"criteria": [{**PLAIN["criteria"][0], "weight": 0}]}, "criteria[0].weight"),
        ({"criteria": [{**PLAIN["criteria"][0], "name": "Is it?"}]}, "criteria[0].name"),
        ({"scale": {"min": 7, "max": 1}}, "scale: max 1 must be 1 to 100 above min 7"),
        ({"instuctions": "x"}, "instuctions: unknown key, did you mean 'instructions'?"),
    ],
)
def test_a_malformed_rubric_is_explained_with_its_file(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ScoringSetupError) as caught:
        load(tmp_path, {**PLAIN, **change})
    assert str(caught.value).startswith(str(tmp_path / "r.yaml"))
    assert said in str(caught.value)


@pytest.mark.parametrize("content", ["- a list", "a: [", '!!int ""', "", "text"])
def test_a_file_that_is_no_rubric_is_explained(tmp_path: Path, content: str) -> None:
    with pytest.raises(ScoringSetupError, match=r"r\.yaml"):
        load(tmp_path, content)


def test_a_misspelt_name_is_answered_with_the_nearest(configs: Path) -> None:
    with pytest.raises(ScoringSetupError, match="did you mean 'role-play'"):
        load_rubric("roleplay", root=Path(), shipped=configs / "rubrics", setting="fitness.terms[0].rubric")


ORDINARY = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1, max_size=20)
LANGUAGES = st.sampled_from(["Japanese", "{answer_language}", "日本語", "{", "\\1"])


@st.composite
def criteria(draw: st.DrawFn) -> Criterion:
    shown = st.none() | st.booleans()
    placeholder = st.sampled_from(["", "{answer_language}", "{other}"])
    return Criterion(
        name="c",
        question=draw(ORDINARY) + draw(placeholder),
        anchors={1: draw(ORDINARY), 7: draw(placeholder) + draw(ORDINARY)},
        show_reference=draw(shown),
        show_profile=draw(shown),
    )


@st.composite
def rubrics(draw: st.DrawFn) -> Rubric:
    drawn = draw(st.lists(criteria(), min_size=1, max_size=5))
    return Rubric(
        name="drawn",
        instructions=draw(ORDINARY),
        criteria=tuple(one.model_copy(update={"name": f"c{index}"}) for index, one in enumerate(drawn)),
        show_reference=draw(st.booleans()),
        show_profile=draw(st.booleans()),
        answer_language=draw(st.none() | LANGUAGES),
    )


@given(rubrics(), LANGUAGES)
def test_a_required_language_stands_in_all_texts_and_drops_no_criterion(rubric: Rubric, language: str) -> None:
    asked = rubric.asked_in(language)
    assert asked.answer_language == language
    for before, after in zip(rubric.criteria, asked.criteria, strict=True):
        assert after.name == before.name
        assert after.question == before.question.replace("{answer_language}", language)
        assert list(after.anchors) == list(before.anchors)
        assert language in "".join((after.question, *after.anchors.values())) or not before.needs_language


@given(rubrics())
def test_without_a_language_exactly_the_criteria_that_need_one_are_left_out(rubric: Rubric) -> None:
    rubric = rubric.model_copy(update={"answer_language": None})
    free = tuple(one for one in rubric.criteria if not one.needs_language)
    if free:
        assert rubric.asked_in(None).criteria == free
    else:
        with pytest.raises(ValueError, match="all of them ask for a language, and none is required"):
            rubric.asked_in(None)


@given(rubrics(), LANGUAGES)
def test_a_language_of_the_terms_own_goes_before_that_of_the_rubric(rubric: Rubric, language: str) -> None:
    own = rubric.model_copy(update={"answer_language": "French"})
    assert own.asked_in(None) == own.asked_in("French")
    assert own.asked_in(language).answer_language == language


def test_the_version_tells_the_required_languages_apart(tmp_path: Path) -> None:
    rubric = load(tmp_path, PLAIN)
    assert len({rubric.asked_in(language).version for language in (None, "Japanese", "French")}) == 3


@given(rubrics(), st.sampled_from(["reference", "profile"]))
def test_a_rubric_shows_what_any_of_its_criteria_needs(rubric: Rubric, what: Literal["reference", "profile"]) -> None:
    alone = [rubric.only(criterion) for criterion in rubric.criteria]
    assert all(one.criteria == (criterion,) for one, criterion in zip(alone, rubric.criteria, strict=True))
    assert rubric.shows(what) == any(one.shows(what) for one in alone)
    for one in alone:
        wished = getattr(one.criteria[0], f"show_{what}")
        assert one.shows(what) == (getattr(rubric, f"show_{what}") if wished is None else wished)
