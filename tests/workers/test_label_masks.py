from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fitness.findings import Finding, worst
from workers.chat_file import ChatExample, read_chat_file
from workers.ends import end_token_ids
from workers.label_findings import check_labels
from workers.label_masks import Labels, mask_labels, survival

TURN = "{% for m in messages %}<|{{ m['role'] }}|>"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
BLOCKS = (
    TURN + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}INSIDE{% endgeneration %}OUTSIDE"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}" + ASK
)
END_IN_BLOCK = BLOCKS.replace("INSIDE", "<|end|>").replace("OUTSIDE", "")
END_BEHIND_BLOCK = BLOCKS.replace("INSIDE", "").replace("OUTSIDE", "<|end|>")
ENDLESS = TURN + "{{ m['content'] }}{% endfor %}" + ASK
WRONG_END = TURN + "{{ m['content'] }}<s>{% endfor %}" + ASK
COUNTING = "{{ messages | length }}" + TURN + "{{ m['content'] }}<|end|>{% endfor %}" + ASK
STRICT = "{% if messages | length > 2 %}{{ raise_exception('two turns at most') }}{% endif %}" + END_IN_BLOCK

Variant = Callable[..., Path]


@pytest.fixture
def variant(llama: Any, tmp_path: Path) -> Variant:
    """The Llama base's tokenizer and configs with changes, without weights."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "model"
        tokenizer = AutoTokenizer.from_pretrained(llama.base)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(folder)
        for name in ("config.json", "generation_config.json"):
            shutil.copy(Path(llama.base) / name, folder / name)
        return folder

    return make


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*lines: str | list[dict[str, str]]) -> Path:
        path = tmp_path / "data.jsonl"
        text = [line if isinstance(line, str) else json.dumps({"messages": line}, ensure_ascii=False) for line in lines]
        path.write_text("\n".join(text), encoding="utf-8")
        return path

    return make


@pytest.fixture
def data(write: Callable[..., Path]) -> Path:
    return write(turns("hello", "The river runs."), turns("空の色は何ですか。", "空の色は青です。", "one", "two three"))


def shares(labels: Labels | None) -> tuple[float, float]:
    assert labels is not None
    share = survival(labels.examples)
    return share["language-modelling"], share["assistant-only"]


def found(findings: list[Finding], check: str) -> Finding:
    return next(one for one in findings if one.check == check)


def test_a_padding_token_of_its_own_keeps_every_end(variant: Variant, data: Path) -> None:
    labels, findings = check_labels(variant(chat_template=END_IN_BLOCK), data)
    assert shares(labels) == (1, 1)
    assert [one.level for one in findings] == ["ok", "ok"]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_by_the_end_of_text_masks_every_end(variant: Variant, data: Path, padding_side: str) -> None:
    model = variant(pad_token="<|end|>", chat_template=END_IN_BLOCK, padding_side=padding_side)
    labels, findings = check_labels(model, data)
    assert shares(labels) == (0, 1)
    finding = found(findings, "labels-language-modelling")
    assert finding.level == "error"
    assert finding.where == f"{data}:1"
    assert "0% of the examples" in finding.message
    assert "add_special_tokens" in finding.remedy
    assert labels is not None
    first = labels.examples[0]
    assert [first.tokens[i] for i, kept in enumerate(first.kept["language-modelling"]) if not kept] == ["<|end|>"] * 2


def test_the_unknown_token_is_offered_only_where_there_is_one(variant: Variant, data: Path) -> None:
    _, findings = check_labels(variant(pad_token="<|end|>"), data)
    assert "unk_token" not in found(findings, "labels-language-modelling").remedy
    _, findings = check_labels(variant(pad_token="<|end|>", unk_token="<s>"), data)
    assert "unk_token" in found(findings, "labels-language-modelling").remedy


def test_no_padding_token_warns_of_what_scripts_do_then(variant: Variant, data: Path) -> None:
    labels, findings = check_labels(variant(pad_token=None), data)
    assert shares(labels) == (0, 1)
    finding = found(findings, "labels-language-modelling")
    assert finding.level == "warning"
    assert "has no padding token" in finding.message


def test_an_end_behind_the_generation_block_is_not_learnt_by_trl(variant: Variant, data: Path) -> None:
    labels, findings = check_labels(variant(chat_template=END_BEHIND_BLOCK), data)
    assert shares(labels) == (1, 0)
    finding = found(findings, "labels-assistant-only")
    assert finding.level == "error"
    assert "endgeneration" in finding.remedy


def test_a_template_without_blocks_is_noted_and_only_the_last_answer_is_learnt(variant: Variant, data: Path) -> None:
    labels, findings = check_labels(variant(), data)
    assert shares(labels) == (1, 1)
    assert found(findings, "labels-generation-blocks").level == worst(findings) == "note"
    assert labels is not None
    example = labels.examples[1]
    learnt = [token for token, kept in zip(example.tokens, example.kept["assistant-only"], strict=True) if kept]
    assert "".join(learnt) == "two three<|end|>"
    assert len(example.ends) == 4


def test_blocks_learn_every_answer(variant: Variant, data: Path) -> None:
    labels, _ = check_labels(variant(chat_template=END_IN_BLOCK), data)
    assert labels is not None
    example = labels.examples[1]
    learnt = [token for token, kept in zip(example.tokens, example.kept["assistant-only"], strict=True) if kept]
    assert "".join(learnt) == "空の色は青です。<|end|>two three<|end|>"


@pytest.mark.parametrize(
    ("template", "message"), [(ENDLESS, "writes nothing after an answer"), (WRONG_END, "closes an answer with '<s>'")]
)
def test_a_template_that_ends_no_answer_is_named(variant: Variant, data: Path, template: str, message: str) -> None:
    labels, findings = check_labels(variant(chat_template=template), data)
    assert shares(labels) == (0, 0)
    for check in ("labels-language-modelling", "labels-assistant-only"):
        finding = found(findings, check)
        assert finding.level == "error"
        assert message in finding.message
        assert "eos_token" in finding.remedy


def test_an_end_that_the_generation_config_names_counts(variant: Variant, data: Path) -> None:
    model = variant(chat_template=WRONG_END)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert shares(check_labels(model, data)[0]) == (1, 1)


def test_an_answer_is_found_where_its_conversation_is_no_prefix(variant: Variant, data: Path) -> None:
    labels, _ = check_labels(variant(chat_template=COUNTING), data)
    assert shares(labels) == (1, 1)


def test_what_follows_the_last_answer_is_left_out(write: Callable[..., Path]) -> None:
    examples, findings = read_chat_file(write(turns("one", "two", "three")))
    assert findings == []
    assert [message["content"] for message in examples[0].messages] == ["one", "two"]


def test_some_lost_ends_are_a_warning(variant: Variant, write: Callable[..., Path]) -> None:
    template = END_BEHIND_BLOCK.replace("<|end|>{% else", "{% if m['content'] == 'b' %}<|end|>{% endif %}{% else")
    labels, findings = check_labels(variant(chat_template=template), write(turns("a", "b"), turns("a", "c")))
    assert shares(labels) == (0.5, 0)
    finding = found(findings, "labels-language-modelling")
    assert (finding.level, finding.where[-2:]) == ("warning", ":2")


def test_a_conversation_that_the_template_refuses_is_a_finding(variant: Variant, data: Path) -> None:
    labels, findings = check_labels(variant(chat_template=STRICT), data)
    assert labels is not None
    assert len(labels.examples) == 1
    finding = found(findings, "labels-template")
    assert (finding.level, finding.where) == ("error", f"{data}:2")
    assert "two turns at most" in finding.message


def test_a_long_file_is_looked_at_evenly(variant: Variant, write: Callable[..., Path]) -> None:
    labels, findings = check_labels(variant(), write(*[turns("hello", str(i)) for i in range(95)]), limit=10)
    assert labels is not None
    assert [one.where.rsplit(":")[-1] for one in labels.examples] == [str(i) for i in range(1, 96, 10)]
    assert "10 of 95 looked at" in found(findings, "labels-language-modelling").message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object with messages, found list"),
        ('{"text": "hello"}', "messages: Field required"),
        ('{"messages": []}', "messages"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "messages[0].role"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "messages[0].content"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "nothing to learn"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "nothing to learn"),
    ],
)
def test_a_wrong_line_is_a_finding_with_its_place(write: Callable[..., Path], line: str, message: str) -> None:
    path = write(turns("one", "two"), "", line)
    examples, findings = read_chat_file(path)
    assert len(examples) == 1
    assert [(one.level, one.where) for one in findings] == [("error", f"{path}:3")]
    assert message in findings[0].message


def test_many_wrong_lines_are_counted(write: Callable[..., Path]) -> None:
    _, findings = read_chat_file(write(*["{"] * 50))
    assert len(findings) == 6
    assert "50 lines" in findings[-1].message


def test_files_that_cannot_be_read_are_findings(tmp_path: Path, write: Callable[..., Path], variant: Variant) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}')
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing.jsonl", write(""), tmp_path / "latin.jsonl"):
        labels, findings = check_labels(variant(), path)
        assert labels is None
        assert [one.level for one in findings] == ["error"]
    labels, findings = check_labels(tmp_path / "empty", write(turns("one", "two")))
    assert labels is None
    assert [one.check for one in findings] == ["labels-tokenizer"]


@pytest.mark.parametrize(
    ("changes", "check"), [({"chat_template": None}, "labels-template"), ({"eos_token": None}, "labels-tokenizer")]
)
def test_a_tokenizer_that_cannot_do_it_says_why(
    variant: Variant, data: Path, changes: dict[str, Any], check: str
) -> None:
    labels, findings = check_labels(variant(**changes), data)
    assert labels is None
    assert [(one.check, one.level) for one in findings] == [(check, "error")]


@given(question=st.text(max_size=20), answer=st.text(max_size=20))
def test_tokens_show_the_whole_text_and_the_answer_is_what_is_learnt(llama: Any, question: str, answer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama.base)
    messages = turns(question, answer)
    labelled, refused = mask_labels(tokenizer, [ChatExample("here", messages)], end_token_ids(Path(llama.base)))
    assert refused == []
    (example,) = labelled
    assert "".join(example.tokens) == tokenizer.apply_chat_template(messages, tokenize=False)
    learnt = [token for token, kept in zip(example.tokens, example.kept["assistant-only"], strict=True) if kept]
    assert "".join(learnt) == f"{answer}<|end|>"
    assert example.survives("language-modelling")
    assert example.survives("assistant-only")
