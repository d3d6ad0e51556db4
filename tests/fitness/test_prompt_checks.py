from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitness import near_texts
from fitness.findings import Finding
from fitness.metrics import AllOf, Contains, Ended, build_term
from fitness.near_texts import fold, near_pairs
from fitness.prompt_checks import length_finding, prompt_findings, truncation_findings, written_finding
from fitness.prompts import Message, Prompt, PromptsConfig, load_prompts
from fitness.responses import Response
from fitness.writing import writing

SUBJECTS = ["river", "bridge", "lantern", "orchard", "harbour", "violin", "glacier", "teapot"]
FEW_TEXTS = st.lists(st.text(alphabet="ab c", min_size=1, max_size=30), unique=True, max_size=5)
VERBS = ["describe", "draw", "remember", "repair", "sell", "inherit", "avoid", "photograph"]


def written(tmp_path: Path, rows: list[dict[str, Any]]) -> tuple[Prompt, ...]:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"id": str(index), **row}) for index, row in enumerate(rows)))
    return load_prompts(PromptsConfig(files=(file,)), root=tmp_path)


def sound_rows() -> list[dict[str, Any]]:
    return [
        {"prompt": f"How would you {verb} a {subject}?", "split": split, "category": subject, "reference": subject}
        for subject in SUBJECTS
        for verb, split in zip(VERBS, ["search", "validation"] * 4, strict=True)
    ]


def found(prompts: tuple[Prompt, ...], check: str, **settings: Any) -> Finding:
    (finding,) = [one for one in prompt_findings(prompts, **settings) if one.check == check]
    return finding


def test_sound_prompts_give_no_finding(tmp_path: Path) -> None:
    terms = [build_term(Contains(metric="contains"), "fitness.terms[0]")]
    findings = prompt_findings(written(tmp_path, sound_rows()), terms=terms)
    assert {one.level for one in findings} == {"ok"}
    assert len({one.check for one in findings}) == 6


@pytest.mark.parametrize("files", [["demo/prompts.jsonl"], ["prompts/role-play-ja.yaml", "prompts/role-play-en.yaml"]])
def test_shipped_prompts_are_sound(configs: Path, files: list[str]) -> None:
    prompts = load_prompts(PromptsConfig(files=tuple(map(Path, files))), root=configs)
    assert [one for one in prompt_findings(prompts) if one.level != "ok"] == []


def test_a_leak_is_found_through_case_width_and_a_changed_word(tmp_path: Path) -> None:
    question = "Please tell me in three sentences how the old lighthouse keeper found his way home in the fog"
    rows = [
        {"prompt": f"{question}.", "split": "search"},
        {"prompt": f"{question.upper()} !", "split": "validation"},
        {"prompt": f"{question.replace('fog', 'mist')}.", "split": "validation"},
        {"prompt": "昔々あるところに住んでいた灯台守の老人について、三つの文で教えてください。", "split": "search"},
        {"prompt": "昔々あるところに住んでいた灯台守の老人について、３つの文で教えてください", "split": "validation"},
    ]
    leak = found(written(tmp_path, sound_rows() + rows), "prompts-leak")
    assert leak.level == "warning"
    assert leak.evidence["validation_prompts"] == 3
    assert {tuple(one["ids"]) for one in leak.evidence["pairs"]} == {("64", "65"), ("64", "66"), ("67", "68")}


def test_copies_within_a_split_are_found(tmp_path: Path) -> None:
    rows = [*sound_rows(), {"prompt": "how would you describe a  river", "split": "search"}]
    copy = found(written(tmp_path, rows), "duplicate-prompts")
    assert copy.level == "warning"
    assert copy.evidence["pairs"] == [{"ids": ["0", "64"], "similarity": 1.0, "exact": False}]


def test_one_question_to_two_personas_is_no_copy(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [{"role": "system", "content": who}, {"role": "user", "content": "Who are you?"}],
            "split": "search",
        }
        for who in ("You are a pirate.", "You are a queen.")
    ]
    assert found(written(tmp_path, sound_rows() + rows), "duplicate-prompts").level == "ok"


def test_a_template_with_different_questions_is_no_copy(tmp_path: Path) -> None:
    frame = "Read the question, think about it step by step, and answer with one letter only. What is {} plus {}?"
    rows = [
        {"prompt": frame.format(a, b), "split": "search" if a % 2 else "validation"}
        for a in range(20, 30)
        for b in range(70, 80)
    ]
    findings = prompt_findings(written(tmp_path, rows))
    assert [one for one in findings if one.level != "ok"] == []


def test_few_prompts_are_warned_of_per_split(tmp_path: Path) -> None:
    rows = sound_rows()[:1] + [row for row in sound_rows() if row["split"] == "validation"]
    few = [one for one in prompt_findings(written(tmp_path, rows)) if one.check == "few-prompts"]
    assert [(one.level, one.evidence["prompts"]) for one in few] == [("warning", 1), ("ok", 32)]


def test_missing_references_are_counted_where_a_metric_needs_them(tmp_path: Path) -> None:
    rows = sound_rows()
    for row in rows[:5]:
        del row["reference"]
    prompts = written(tmp_path, rows)
    product = AllOf(metric="all_of", of=(Ended(metric="ended"), Contains(metric="contains")))
    finding = found(prompts, "references", terms=[build_term(product, "fitness.terms[0]")])
    assert (finding.level, finding.where, finding.evidence["lacking"]) == ("error", "fitness.terms[0].of[1]", 5)
    assert not any(one.check == "references" for one in prompt_findings(prompts))


def test_a_category_in_one_split_and_another_language_are_noted(tmp_path: Path) -> None:
    rows = [{"prompt": f"{text}はどこにありますか。", "split": "search", "category": "places"} for text in ("駅", "海")]
    prompts = written(tmp_path, sound_rows() + rows)
    category, language = found(prompts, "categories"), found(prompts, "prompt-language")
    assert category.level == language.level == "note"
    assert category.evidence["in_one_split"] == {"places": {"search": 2}}
    assert language.evidence["ids"] == ["64", "65"]


def test_prompts_that_leave_no_room_for_an_answer_are_an_error() -> None:
    counts = {"a": 100, "b": 190, "c": 201}
    finding = length_finding(counts, max_new_tokens=50, context_tokens=240)
    assert finding.level == "error"
    assert finding.evidence["too_long"] == {"c": 201}
    assert "lower generation.max_new_tokens to 39" in finding.remedy
    assert length_finding(counts, max_new_tokens=39, context_tokens=240).level == "ok"


def test_what_a_chat_template_leaves_out_is_found() -> None:
    turns = (("system", "Be  brief."), ("user", "One?"), ("assistant", "<think>no</think>Two."), ("user", "Three?"))
    prompt = Prompt("p", tuple(Message(role, text) for role, text in turns), (), "search")
    sound = written_finding([prompt], {"p": "<s>Be brief.\n<u>One?</u>Two.<u>Three?</u>"})
    assert sound.level == "ok"
    deaf = written_finding([prompt], {"p": "<u>Three?</u>"})
    assert deaf.level == "warning"
    assert deaf.evidence == {"system": ["p"], "user": ["p"]}
    assert "the system message of 1 prompts (p)" in deaf.message
    lost = written_finding([prompt], {"p": "Be brief. One?"})
    assert lost.level == "error"
    assert lost.evidence == {"question": ["p"]}


@pytest.mark.parametrize(("cut", "level"), [(0, "ok"), (1, "note"), (5, "warning"), (10, "warning")])
def test_answers_that_are_cut_are_reported_per_parent(cut: int, level: str) -> None:
    answers = [Response(str(i), "text", 64, "length" if i < cut else "stop") for i in range(10)]
    findings = truncation_findings({"parent": answers, "silent": []}, max_new_tokens=64)
    assert [(one.level, one.evidence["truncated"]) for one in findings] == [(level, cut)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is it?", "Latin"),
        ("iPhoneの使い方は？", "Japanese"),
        ("ｱﾘｶﾞﾄｳ", "Japanese"),
        ("天气好吗", "Han"),
        ("안녕하세요", "Hangul"),
        ("12 + 3 = ?", None),
        ("Что это?", "Cyrillic"),
        ("What does ありがとう mean in English?", "Latin"),
    ],
)
def test_the_writing_of_a_text(text: str, expected: str | None) -> None:
    assert writing(text) == expected


def test_folding_keeps_what_tells_questions_apart() -> None:
    assert fold("Ｗｈａｔ  is\nit ?!") == fold("what is it")
    assert fold("お茶 は、 いかが。") == fold("お茶はいかが")
    assert len({fold(text) for text in ("12 - 34", "12 / 34", "1234", "12 34", "C#", "C", "C++")}) == 7


def brute_force(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    sets = [set(near_texts._ngrams(text).tolist()) for text in texts]
    pairs = [(a, b) for b in range(len(texts)) for a in range(b)]
    return sorted((a, b) for a, b in pairs if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b]) - 1e-12)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(alphabet="ab c", min_size=1, max_size=30), unique=True, max_size=5),
    st.sampled_from([0.3, 0.5, 0.8]),
)
def test_near_pairs_are_those_of_comparing_all(texts: list[str], threshold: float) -> None:
    # With five texts or fewer nothing counts as a template.
    assert [(a, b) for a, b, _ in near_pairs(texts, threshold=threshold)] == brute_force(texts, threshold)


def test_five_thousand_prompts_take_seconds() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrst", k=rng.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, [1 / (i + 1) for i in range(3000)], k=60)) for _ in range(5000)]
    texts[4321] = texts[1234] + " indeed"
    begun = time.monotonic()
    pairs = near_pairs([fold(text) for text in texts])
    assert [(a, b) for a, b, _ in pairs] == [(1234, 4321)]
    assert time.monotonic() - begun < 15
