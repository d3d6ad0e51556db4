"""The shipped prompts: one set of questions under two wordings of the same character."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fitness.prompts import Prompt, PromptsConfig, load_prompts

LANGUAGES = ("ja", "en")


@pytest.fixture
def prompts(configs: Path) -> dict[str, tuple[Prompt, ...]]:
    def read(language: str) -> tuple[Prompt, ...]:
        return load_prompts(PromptsConfig(files=(Path(f"role-play-{language}.yaml"),)), root=configs / "prompts")

    return {language: read(language) for language in LANGUAGES}


def test_both_files_ask_the_same_but_for_the_system_message(prompts: dict[str, tuple[Prompt, ...]]) -> None:
    def asked(one: Prompt) -> tuple[object, ...]:
        return one.id.partition("-")[2], one.messages[1:], one.references, one.split, one.category

    assert [asked(one) for one in prompts["ja"]] == [asked(one) for one in prompts["en"]]
    for language, ones in prompts.items():
        assert all(one.id.startswith(f"{language}-") for one in ones)


def test_both_files_can_be_in_one_run(configs: Path) -> None:
    files = tuple(Path(f"role-play-{language}.yaml") for language in LANGUAGES)
    assert len(load_prompts(PromptsConfig(files=files), root=configs / "prompts")) == 80


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_character_is_asked_in_japanese_in_all_of_a_file(
    prompts: dict[str, tuple[Prompt, ...]], language: str
) -> None:
    ones = prompts[language]
    assert len({one.messages[0] for one in ones}) == 1
    assert ones[0].messages[0].role == "system"
    assert ("Always answer in Japanese." in ones[0].messages[0].content) == (language == "en")
    for one in ones:
        assert any("\u3040" <= letter <= "\u30ff" for letter in one.messages[-1].content)


def test_every_category_is_in_both_splits_in_about_equal_parts(prompts: dict[str, tuple[Prompt, ...]]) -> None:
    counts = Counter((one.category, one.split) for one in prompts["ja"])
    assert Counter(one.split for one in prompts["ja"]) == {"search": 20, "validation": 20}
    assert {category for category, _ in counts} == {
        "self",
        "facts",
        "values",
        "small talk",
        "provocation",
        "unknowable",
    }
    for category, _ in counts:
        assert abs(counts[category, "search"] - counts[category, "validation"]) <= 1


def test_a_reference_stands_where_there_is_a_right_answer(prompts: dict[str, tuple[Prompt, ...]]) -> None:
    for one in prompts["ja"]:
        assert bool(one.references) == (one.category in {"self", "facts", "unknowable"}), one.id
