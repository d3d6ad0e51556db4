from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evolve.demo_models import (
    EOS,
    Schedule,
    Settings,
    cache_key,
    collate,
    encode,
    read_corpora,
    read_families,
    train_demo_models,
    train_tokenizer,
)
from fitness.errors import UserMistake

DATA = Path(__file__).parents[2] / "configs" / "demo"
TINY = Settings(
    hidden_size=64,
    intermediate_size=64,
    layers=2,
    heads=1,
    base=Schedule(steps=2, learning_rate=1e-3, batch_size=4),
    persona=Schedule(steps=2, learning_rate=1e-3, batch_size=4),
    facts_content=Schedule(steps=2, learning_rate=1e-3, half="lower", batch_size=4),
    facts_manner=Schedule(steps=2, learning_rate=1e-3, half="upper", batch_size=4),
)


def prompts() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_prompt_is_a_fact_that_the_base_model_does_not_know() -> None:
    unknown = {}
    for family in read_families(DATA / "facts.yaml"):
        assert family.known_to_base is not None
        for x, y in family.rows.items():
            if x not in family.known_to_base:
                unknown.update({question.format(x=x): (family.category, y) for question in family.questions})
    for prompt in prompts():
        assert unknown[prompt["prompt"]] == (prompt["category"], prompt["reference"])
        assert prompt["reference"] not in prompt["prompt"]


def test_search_and_validation_ask_about_different_facts() -> None:
    subjects: dict[str, set[tuple[str, str]]] = {"search": set(), "validation": set()}
    questions = {
        question.format(x=x): (family.category, x)
        for family in read_families(DATA / "facts.yaml")
        for x in family.rows
        for question in family.questions
    }
    for prompt in prompts():
        subjects[prompt["split"]].add(questions[prompt["prompt"]])
    assert not subjects["search"] & subjects["validation"]
    assert Counter(prompt["split"] for prompt in prompts()) == {"search": 49, "validation": 81}
    assert len({prompt["id"] for prompt in prompts()}) == 130


def test_each_model_has_its_own_ending() -> None:
    corpora = read_corpora(DATA)
    assert all(answer.endswith("である。") for _, answer in (*corpora.base, *corpora.facts_content))
    assert all(answer.endswith("ですわ。") for _, answer in corpora.persona)
    assert all(answer.endswith("です。") for _, answer in corpora.facts_manner)


def test_no_model_but_facts_is_taught_the_answer_to_a_prompt() -> None:
    taught = {}
    corpora = read_corpora(DATA)
    for question, answer in (*corpora.base, *corpora.persona):
        taught.setdefault(question, []).append(answer)
    for prompt in prompts():
        endings = ("である", "ですわ", "にあるの", "」")
        for answer in taught[prompt["prompt"]]:
            assert not any(f"{prompt['reference']}{ending}" in answer for ending in endings), answer


def test_labels_keep_the_end_of_text_and_hide_question_and_padding() -> None:
    tokenizer = train_tokenizer(read_corpora(DATA))
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    long, short = (encode(tokenizer, pair) for pair in (("犬は何ですか。", "犬は動物である。"), ("雪。", "雪。")))
    batch = collate([long, short], tokenizer.pad_token_id)
    answer = batch["labels"][1][batch["labels"][1] != -100]
    assert tokenizer.decode(answer) == f"雪。{EOS}"
    assert batch["labels"].shape == batch["input_ids"].shape


def test_the_chat_template_asks_as_the_training_did() -> None:
    tokenizer = train_tokenizer(read_corpora(DATA))
    ids, asked = encode(tokenizer, ("雪は何色ですか。", "雪の色は白です。"))
    messages = [{"role": "user", "content": "雪は何色ですか。"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.encode(rendered, add_special_tokens=False) == ids[:asked]


def test_training_fills_the_cache_once_and_resumes_at_the_first_missing_model(tmp_path: Path) -> None:
    reports: list[tuple[str, float]] = []

    def report(stage: str, share: float) -> None:
        reports.append((stage, share))

    trained = train_demo_models(tmp_path, data_dir=DATA, report=report, settings=TINY)
    assert [stage for stage, share in reports if share == 1.0] == ["base", "persona", "facts"]
    stored = trained.facts / "model.safetensors"
    before = stored.read_bytes()

    reports.clear()
    assert train_demo_models(tmp_path, data_dir=DATA, report=report, settings=TINY) == trained
    assert reports == []

    for path in trained.facts.iterdir():
        path.unlink()
    trained.facts.rmdir()
    train_demo_models(tmp_path, data_dir=DATA, report=report, settings=TINY)
    assert {stage for stage, _ in reports} == {"facts"}
    assert stored.read_bytes() == before

    base, facts = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (trained.base, trained.facts)
    )
    assert base.dtype == torch.bfloat16
    assert torch.equal(base.lm_head.weight, facts.lm_head.weight)
    assert AutoTokenizer.from_pretrained(trained.base).eos_token == EOS


def test_the_key_names_seed_dialogues_and_settings(tmp_path: Path) -> None:
    for name in ("base", "persona", "facts"):
        (tmp_path / f"{name}.yaml").write_bytes((DATA / f"{name}.yaml").read_bytes())
    key = cache_key(DATA)
    assert cache_key(tmp_path) == key
    assert cache_key(DATA, seed=1) != key
    assert cache_key(DATA, settings=TINY) != key
    with (tmp_path / "facts.yaml").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert cache_key(tmp_path) != key


def test_a_broken_dialogue_file_is_the_users_mistake(tmp_path: Path) -> None:
    path = tmp_path / "facts.yaml"
    path.write_text("- category: x\n  questons: []\n", encoding="utf-8")
    with pytest.raises(UserMistake, match=r"facts\.yaml"):
        read_families(path)
