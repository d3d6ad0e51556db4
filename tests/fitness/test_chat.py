from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fitness.chat import ChatConfig, read_template
from fitness.errors import ScoringSetupError

SYSTEM = {"role": "system", "content": "You are a lady."}
FIRST = {"role": "user", "content": "Hi! "}
ANSWER = {"role": "assistant", "content": " Hello."}
SECOND = {"role": "user", "content": "空の色は？"}


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that, like Llama's, puts BOS before every text by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["hello"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(bos_token="<s>", eos_token="</s>")


LLAMA_2 = [
    ([FIRST], "<s>[INST] Hi! [/INST]"),
    ([SYSTEM, FIRST], "<s>[INST] <<SYS>>\nYou are a lady.\n<</SYS>>\n\nHi! [/INST]"),
    (
        [SYSTEM, FIRST, ANSWER, SECOND],
        "<s>[INST] <<SYS>>\nYou are a lady.\n<</SYS>>\n\nHi! [/INST] Hello. </s><s>[INST] 空の色は？ [/INST]",
    ),
    ([FIRST, ANSWER, SECOND], "<s>[INST] Hi! [/INST] Hello. </s><s>[INST] 空の色は？ [/INST]"),
]
VICUNA = [
    ([FIRST], "<s>USER: Hi! ASSISTANT:"),
    ([SYSTEM, FIRST], "<s>You are a lady. USER: Hi! ASSISTANT:"),
    (
        [SYSTEM, FIRST, ANSWER, SECOND],
        "<s>You are a lady. USER: Hi! ASSISTANT: Hello.</s>USER: 空の色は？ ASSISTANT:",
    ),
]
CASES = [("llama-2", *case) for case in LLAMA_2] + [("vicuna", *case) for case in VICUNA]


@pytest.mark.parametrize(("name", "messages", "expected"), CASES)
def test_a_shipped_template_writes_exactly_its_format(
    tokenizer: PreTrainedTokenizerFast, configs: Path, name: str, messages: list[dict[str, str]], expected: str
) -> None:
    template = read_template(name, root=Path(), shipped=configs / "templates")
    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    assert text == expected


@pytest.mark.parametrize(("name", "messages", "expected"), CASES)
def test_tokens_are_those_of_the_text_without_a_second_bos(
    tokenizer: PreTrainedTokenizerFast, configs: Path, name: str, messages: list[dict[str, str]], expected: str
) -> None:
    template = read_template(name, root=Path(), shipped=configs / "templates")
    ids = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert tokenizer.decode(ids) == expected
    assert ids.count(tokenizer.bos_token_id) == expected.count("<s>")
    assert ids[1] != tokenizer.bos_token_id


@pytest.mark.parametrize("name", ["llama-2", "vicuna"])
def test_a_tokenizer_without_bos_and_eos_leaves_them_out(configs: Path, name: str) -> None:
    template = read_template(name, root=Path(), shipped=configs / "templates")
    text = byte_tokenizer().apply_chat_template(
        [FIRST, ANSWER, SECOND], chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert "None" not in text
    assert "<s>" not in text
    assert "</s>" not in text


def test_llama_2_refuses_turns_out_of_order(tokenizer: PreTrainedTokenizerFast, configs: Path) -> None:
    template = read_template("llama-2", root=Path(), shipped=configs / "templates")
    with pytest.raises(jinja2.TemplateError, match="turns by turns, starting with user"):
        tokenizer.apply_chat_template([ANSWER, FIRST], chat_template=template, tokenize=False)


def test_parent_means_the_tokenizers_own(tmp_path: Path) -> None:
    assert ChatConfig().template == "parent"
    assert read_template("parent", root=tmp_path, shipped=tmp_path) is None


def test_a_file_of_the_users_own_is_read_against_the_root(tmp_path: Path) -> None:
    (tmp_path / "my.jinja").write_text("{{ messages }}")
    assert read_template("my.jinja", root=tmp_path, shipped=tmp_path / "none") == "{{ messages }}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lama-2", "did you mean 'llama-2'?"),
        ("gpt", "known: 'llama-2', 'vicuna'"),
        ("nowhere.jinja", "there is no file"),
        ("empty.jinja", "is empty"),
        ("latin.jinja", "cannot read"),
    ],
)
def test_a_template_that_cannot_be_had_is_explained(tmp_path: Path, configs: Path, name: str, said: str) -> None:
    (tmp_path / "empty.jinja").write_text(" \n")
    (tmp_path / "latin.jinja").write_bytes(b"\xe9\xff")
    with pytest.raises(ScoringSetupError) as caught:
        read_template(name, root=tmp_path, shipped=configs / "templates")
    assert str(caught.value).startswith("chat.template: ")
    assert said in str(caught.value)
