from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitness.findings import Finding, worst
from workers.ending import end_tokens, ending
from workers.ends import end_token_ids
from workers.model_facts import read_facts

MakeModel = Callable[..., Path]
TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}CLOSE{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def edit(path: Path, *drop: str, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    for key in drop:
        data.pop(key)
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


def check(folder: Path, **options: Any) -> dict[str, Finding]:
    findings = ending(read_facts(folder.name, folder), **options)
    json.dumps([one.to_dict() for one in findings])
    assert len({one.check for one in findings}) == len(findings)
    return {one.check: one for one in findings}


def above_note(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: one.level for name, one in findings.items() if one.level in ("warning", "error")}


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def close_turns_with(folder: Path, text: str) -> None:
    (folder / "chat_template.jinja").write_text(TURNS.replace("CLOSE", text), encoding="utf-8")


def test_sound_models_give_nothing_above_ok(family: Any) -> None:
    for folder in family.folders.values():
        findings = check(folder)
        assert worst(findings.values()) == "ok", findings
        assert set(findings) == {
            "special-ids-exist",
            "special-ids-agree",
            "eos-agrees",
            "answer-begins",
            "turn-ends",
            "pad-is-eos",
        }


def test_the_ends_are_those_that_the_engines_stop_at(model: Path) -> None:
    edit(model / "config.json", eos_token_id=2)
    edit(model / "generation_config.json", eos_token_id=[3, 1])
    assert check(model)["turn-ends"].level == "ok"
    close_turns_with(model, "<|system|>")
    assert set(check(model)["turn-ends"].evidence["ends"]) == end_token_ids(model) == {1, 2, 3}


def test_a_chat_model_with_two_ends_is_sound(model: Path) -> None:
    """As Qwen's: texts end with one token, turns with another, and generation stops at both."""
    edit(model / "tokenizer_config.json", eos_token="<|system|>", pad_token="<|system|>")
    edit(model / "generation_config.json", eos_token_id=[1, 5], pad_token_id=5)
    edit(model / "config.json", eos_token_id=5, pad_token_id=5)
    findings = check(model)
    assert above_note(findings) == {}
    assert findings["pad-is-eos"].level == "note"
    assert findings["turn-ends"].level == "ok"


def test_padding_by_the_end_token_is_explained(model: Path) -> None:
    edit(model / "tokenizer_config.json", pad_token="<|end|>")
    findings = check(model)
    assert above_note(findings) == {"pad-is-eos": "warning"}
    assert "never learns to stop" in findings["pad-is-eos"].message
    assert findings["pad-is-eos"].evidence == {"pad": ["<|end|>", 1], "eos": ["<|end|>", 1]}


def test_no_padding_token_is_explained(model: Path) -> None:
    edit(model / "tokenizer_config.json", "pad_token")
    findings = check(model)
    assert above_note(findings) == {}  # half of all models have none
    assert findings["pad-is-eos"].level == "note"
    assert "no padding token" in findings["pad-is-eos"].message
    assert "never learns to stop" in findings["pad-is-eos"].message


def test_a_generation_config_that_forgot_the_tokenizers_end_is_a_note_where_turns_are_closed_with_it(
    model: Path,
) -> None:
    edit(model / "generation_config.json", eos_token_id=5)
    findings = check(model)
    assert above_note(findings) == {}  # a run stops at what any file names
    assert findings["eos-agrees"].level == "note"
    assert "[1, 5]" in findings["eos-agrees"].remedy
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    assert above_note(check(model))["eos-agrees"] == "warning"


def test_config_counts_where_there_is_no_generation_config(model: Path) -> None:
    (model / "generation_config.json").unlink()
    assert worst(check(model).values()) == "ok"
    edit(model / "config.json", eos_token_id=5)
    assert check(model)["eos-agrees"].level == "note"
    assert "config.json" in check(model)["eos-agrees"].message


def test_an_end_that_only_the_tokenizer_names_is_a_note(model: Path) -> None:
    edit(model / "generation_config.json", "eos_token_id")
    edit(model / "config.json", eos_token_id=None)
    findings = check(model)
    assert above_note(findings) == {}
    assert findings["eos-agrees"].level == "note"
    assert '"eos_token_id": [1]' in findings["eos-agrees"].remedy


def test_a_tokenizer_that_ends_texts_otherwise_than_turns_is_a_note(model: Path) -> None:
    edit(model / "tokenizer_config.json", eos_token="<|system|>")
    findings = check(model)
    assert above_note(findings) == {}
    assert findings["eos-agrees"].level == "note"


def test_a_model_without_any_end_is_an_error(model: Path) -> None:
    edit(model / "tokenizer_config.json", "eos_token")
    edit(model / "generation_config.json", "eos_token_id")
    edit(model / "config.json", eos_token_id=None)
    findings = check(model)
    assert above_note(findings)["eos-agrees"] == "error"
    assert above_note(findings)["turn-ends"] == "error"


def test_a_tokenizer_without_an_end_is_noticed(model: Path) -> None:
    edit(model / "tokenizer_config.json", "eos_token")
    assert check(model)["eos-agrees"].level == "note"  # the template's own closing token is an end
    close_turns_with(model, "<|system|>")
    assert check(model)["eos-agrees"].level == "warning"


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_other_padding_and_begin_ids_are_a_note(model: Path, file: str) -> None:
    edit(model / file, bos_token_id=3, pad_token_id=5)
    findings = check(model)
    assert above_note(findings) == {}
    assert set(findings["special-ids-agree"].evidence) == {"bos", "pad"}


@pytest.mark.parametrize(("ids", "level"), [(400, "error"), ([1, 400], "warning")])
def test_ids_beyond_the_embedding_are_found(model: Path, ids: Any, level: str) -> None:
    edit(model / "tokenizer_config.json", eos_token="<|none|>" if level == "error" else "<|end|>")
    edit(model / "generation_config.json", eos_token_id=ids)
    edit(model / "config.json", eos_token_id=ids)
    findings = check(model)
    assert findings["special-ids-exist"].level == level
    assert "400 rows" in findings["special-ids-exist"].message


def test_a_negative_padding_id_means_none(model: Path) -> None:
    edit(model / "config.json", pad_token_id=-1)
    assert worst(check(model).values()) == "ok"


def test_padding_without_a_row_is_a_note_and_an_end_without_one_a_warning(model: Path) -> None:
    edit(model / "config.json", pad_token_id=9999)
    assert check(model)["special-ids-exist"].level == "note"
    edit(model / "generation_config.json", eos_token_id=[1, 9999])
    assert check(model)["special-ids-exist"].level == "warning"


def test_a_token_that_another_model_ends_with_ends_this_ones_answers_too(model: Path) -> None:
    close_turns_with(model, "<|system|>")
    assert check(model)["turn-ends"].level == "error"
    (facts,) = [read_facts("model", model)]
    findings = {one.check: one for one in ending(facts, others={"<|system|>"})}
    assert findings["turn-ends"].level == "note"
    assert "only another model of the run names" in findings["turn-ends"].message
    assert end_tokens(facts) == {"<|end|>"}


def test_an_empty_thought_before_a_last_answer_is_no_header_that_is_missing(model: Path) -> None:
    """As Qwen3's template has it: written before the last answer of a conversation, and not into a prompt."""
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>"
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (model / "chat_template.jinja").write_text(template)
    assert check(model)["answer-begins"].level == "ok"


def test_a_turn_closed_by_a_token_that_ends_nothing_is_an_error(model: Path) -> None:
    close_turns_with(model, "<|system|>\\n")
    findings = check(model)
    assert above_note(findings) == {"turn-ends": "error"}
    assert '"eos_token_id": [1, 5]' in findings["turn-ends"].remedy
    edit(model / "generation_config.json", eos_token_id=[1, 5])
    assert above_note(check(model)) == {}


def test_an_end_after_the_closing_token_is_a_note(model: Path) -> None:
    close_turns_with(model, "<|system|>{{ eos_token }}")
    assert check(model)["turn-ends"].level == "note"


def test_a_turn_closed_by_text_needs_a_stop_text(model: Path) -> None:
    template = "{% for m in messages %}\n### {{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    template += "{% if add_generation_prompt %}\n### assistant:{% endif %}"
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    findings = check(model)
    assert above_note(findings) == {"turn-ends": "warning"}
    assert "generation.stop: ['### user:']" in findings["turn-ends"].remedy
    assert above_note(check(model, stop=("### user:",))) == {}


def test_a_turn_closed_by_nothing_is_a_warning(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    findings = check(model)
    assert above_note(findings) == {"turn-ends": "warning"}
    assert "writes nothing after an answer" in findings["turn-ends"].message


def test_a_question_that_stops_before_the_answers_header_is_a_warning(model: Path) -> None:
    template = TURNS.replace("CLOSE", "<|end|>").partition("{% if")[0]
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    findings = check(model)
    assert above_note(findings) == {"answer-begins": "warning"}
    assert "without '<|assistant|>'" in findings["answer-begins"].message
    assert "{{ '<|assistant|>' }}" in findings["answer-begins"].remedy


def test_a_prompt_that_opens_a_thought_is_no_missing_header(model: Path) -> None:
    template = TURNS.replace("CLOSE", "<|end|>").replace("<|assistant|>{% endif", "<|assistant|><think>{% endif")
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert above_note(check(model)) == {}


def test_the_runs_template_counts_before_the_models(model: Path) -> None:
    assert above_note(check(model, chat_template=TURNS.replace("CLOSE", "<|user|>"))) == {"turn-ends": "error"}


@pytest.mark.parametrize("template", [None, "{% if %}", "{{ messages[0]['content'] }}"])
def test_without_a_template_that_answers_nothing_is_claimed(model: Path, template: str | None) -> None:
    (model / "chat_template.jinja").unlink()
    if template:
        (model / "chat_template.jinja").write_text(template)
    findings = check(model)
    assert above_note(findings) == {}
    assert findings["turn-ends"].level == "note"


def test_a_broken_generation_config_does_not_hide_the_rest(model: Path) -> None:
    (model / "generation_config.json").write_text("{")
    edit(model / "tokenizer_config.json", pad_token="<|end|>")
    assert above_note(check(model)) == {"pad-is-eos": "warning"}


def test_nothing_is_said_without_a_tokenizer(model: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*")))
    assert check(bare) == {}


def test_a_skeleton_without_weights_can_be_checked(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert worst(check(model).values()) == "ok"
