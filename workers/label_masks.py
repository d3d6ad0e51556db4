"""Which tokens of a conversation are learnt: the labels that the common collators make.

A model learns to stop from one label per answer: that of the end-of-text token after it. Two habits take it away.
transformers' ``DataCollatorForLanguageModeling`` masks every token that equals the padding token, which the end of
text does where a script sets ``tokenizer.pad_token = tokenizer.eos_token``
(https://github.com/huggingface/transformers/issues/23530); TRL's ``DataCollatorForCompletionOnlyLM``, removed in TRL
0.20, inherited that (https://github.com/huggingface/trl/issues/976). TRL's own collators mask by place, not by token,
and there a chat template whose ``{% generation %}`` block ends before the end-of-text token leaves it out
(``assistant_only_loss``, https://huggingface.co/docs/trl/sft_trainer).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jinja2
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from workers.chat_file import ChatExample
from workers.errors import last_line

Collator = Literal["language-modelling", "assistant-only"]
COLLATORS: tuple[Collator, ...] = ("language-modelling", "assistant-only")

_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
_BATCH = 32
_IGNORED = -100


@dataclass(frozen=True)
class LabelledExample:
    """One conversation up to its last answer, as tokens with their labels.

    Attributes:
        where: ``file:line``.
        tokens: the piece of the text that each token adds; together they are the whole text.
        ids: the token ids.
        kept: per collator, whether each token has a label.
        ends: places of the tokens that generation stops at.
        end: the place of the one that ends the last answer; ``None`` where the template writes none.
        closing: what the template writes after the last answer.
    """

    where: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    kept: Mapping[Collator, tuple[bool, ...]]
    ends: tuple[int, ...]
    end: int | None
    closing: str

    def survives(self, collator: Collator) -> bool:
        """Whether the end of the last answer has its label."""
        return self.end is not None and self.kept[collator][self.end]


@dataclass(frozen=True)
class Labels:
    """The labels of a file under a model's tokenizer.

    Attributes:
        model: folder of the tokenizer.
        data: the file.
        examples: those that were looked at.
        total: how many the file holds.
        pad_token: what fills rows.
        pad_assumed: the tokenizer has none, and the end of text stands in for it, as in most scripts.
        unk_token: the tokenizer's, where it has one.
        end_tokens: what generation stops at.
        blocks: the chat template marks answers with ``{% generation %}``; otherwise ``assistant-only`` stands for
            TRL's completion-only loss: all that follows the header of the last answer.
    """

    model: str
    data: str
    examples: tuple[LabelledExample, ...]
    total: int
    pad_token: str
    pad_assumed: bool
    unk_token: str | None
    end_tokens: tuple[str, ...]
    blocks: bool

    def to_dict(self, *, shown: int = 0) -> dict[str, Any]:
        """Plain data, with the tokens of one example."""
        own = {name: value for name, value in vars(self).items() if name != "examples"}
        counts = {"looked_at": len(self.examples), "survival": survival(self.examples)}
        return own | counts | {"example": asdict(self.examples[shown])}


def survival(examples: Sequence[LabelledExample]) -> dict[Collator, float]:
    """Per collator, the share of examples whose last answer keeps the label of its end of text."""
    return {name: sum(one.survives(name) for one in examples) / len(examples) for name in COLLATORS}


def marks_answers(tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None = None) -> bool:
    """Whether the chat template has ``{% generation %}`` blocks."""
    return _BLOCK.search(tokenizer.get_chat_template(tools=tools)) is not None


def mask_labels(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[ChatExample], end_ids: frozenset[int]
) -> tuple[list[LabelledExample], list[tuple[str, str]]]:
    """Labels conversations as the collators do.

    Args:
        tokenizer: fast, with a chat template and a padding token.
        examples: conversations that end with an answer.
        end_ids: the tokens that generation stops at.

    Returns:
        The labelled examples, and ``file:line`` and reason for those that the chat template refuses.
    """
    written, refused = [], []
    for example in examples:
        try:
            written.append(_write(tokenizer, example, end_ids))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            refused.append((example.where, last_line(error)))
    # The real class: what it will do after an update is what will be shown.
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    labelled = []
    for start in range(0, len(written), _BATCH):
        rows = written[start : start + _BATCH]
        batch = collate([{"input_ids": one.ids} for one in rows])
        for one, labels, mask in zip(rows, batch["labels"], batch["attention_mask"].bool(), strict=True):
            ends = tuple(place for place, token in enumerate(one.ids) if token in end_ids)
            kept: dict[Collator, tuple[bool, ...]] = {
                "language-modelling": tuple((labels[mask] != _IGNORED).tolist()),
                "assistant-only": one.answered,
            }
            labelled.append(LabelledExample(one.where, one.tokens, tuple(one.ids), kept, ends, one.end, one.closing))
    return labelled, refused


@dataclass(frozen=True)
class _Written:
    where: str
    ids: list[int]
    tokens: tuple[str, ...]
    answered: tuple[bool, ...]
    end: int | None
    closing: str


def _write(tokenizer: PreTrainedTokenizerBase, example: ChatExample, end_ids: frozenset[int]) -> _Written:
    messages, tools = example.messages, example.tools
    blocks = marks_answers(tokenizer, tools)
    text: str = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    asked: str = tokenizer.apply_chat_template(messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True)
    encoded = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        return_dict=True,
        return_assistant_tokens_mask=blocks,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    answer = (messages[-1].get("content") or "").strip()
    # Some templates write a turn differently once it is not the last one any more (thoughts are left out, say).
    start = len(asked) if text.startswith(asked) else max(0, text.rfind(answer))
    stop = start + max(0, text[start:].find(answer)) + len(answer)
    end = next((place for place, (begin, _) in enumerate(offsets) if begin >= stop and ids[place] in end_ids), None)
    answered = encoded["assistant_masks"] if blocks else [begin >= start for begin, _ in offsets]
    return _Written(example.where, ids, tuple(_pieces(text, offsets)), tuple(map(bool, answered)), end, text[stop:])


def _pieces(text: str, offsets: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Tokens that are bytes of one character all point at it; the first of them shows it."""
    done = 0
    for _, end in offsets:
        yield text[done:end]
        done = max(done, end)
