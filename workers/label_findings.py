"""Says whether a fine-tuning file teaches a model to stop, and what to do where it does not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fitness.findings import Finding, Level
from workers.chat_file import read_chat_file
from workers.ends import end_token_ids
from workers.errors import last_line
from workers.label_masks import Collator, LabelledExample, Labels, marks_answers, mask_labels, survival

BROKEN, WORRYING = 0.05, 0.95
"""Shares of surviving end-of-text labels below which a collator is an error, and a warning."""

_AGAIN = " Then fine-tune again: a merge cannot be relied on to bring the end back."


def check_labels(folder: Path, data: Path, *, limit: int = 2000) -> tuple[Labels | None, list[Finding]]:
    """Tokenises a fine-tuning file as the collators do, and says what becomes of the end-of-text labels.

    Args:
        folder: a model in Hugging Face's layout; only its tokenizer and configs are read.
        data: JSONL in OpenAI's chat format: ``{"messages": [...]}``, optionally ``"tools"``.
        limit: look at so many examples at most, evenly spread over the file.

    Returns:
        The labels, ``None`` where there are none to show, and the findings.
    """
    examples, findings = read_chat_file(data)
    if not examples:
        return None, findings
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        end_ids = end_token_ids(folder)
    except Exception as error:  # broken files make transformers and tokenizers raise all kinds
        message = f"tokenizer or config cannot be read: {last_line(error)}"
        remedy = "Name the folder of a whole model, with config.json and the tokenizer's files."
        return None, [*findings, Finding("labels-tokenizer", "error", str(folder), message, remedy)]
    if problem := _unusable(tokenizer, str(folder)):
        return None, [*findings, problem]
    assumed = tokenizer.pad_token_id is None
    if assumed:
        tokenizer.pad_token = tokenizer.eos_token
    sample = examples[:: math.ceil(len(examples) / limit)]
    labelled, refused = mask_labels(tokenizer, sample, end_ids)
    findings += _refusals(refused, len(sample))
    if not labelled:
        return None, findings
    labels = Labels(
        model=str(folder),
        data=str(data),
        examples=tuple(labelled),
        total=len(examples),
        pad_token=tokenizer.pad_token,
        pad_assumed=assumed,
        unk_token=tokenizer.unk_token,
        end_tokens=tuple(tokenizer.convert_ids_to_tokens(sorted(end_ids))),
        blocks=marks_answers(tokenizer),
    )
    return labels, [*findings, *label_findings(labels)]


def label_findings(labels: Labels) -> Iterator[Finding]:
    """One finding per collator, and a note where the template cannot mark its answers."""
    for collator, share in survival(labels.examples).items():
        yield _finding(labels, collator, share)
    if not labels.blocks:
        message = (
            "the chat template has no {% generation %} blocks: TRL refuses assistant_only_loss=True with it; "
            "assistant-only stands for completion_only_loss here, all that follows the header of the last answer"
        )
        yield Finding("labels-generation-blocks", "note", labels.model, message)


def _unusable(tokenizer: PreTrainedTokenizerBase, where: str) -> Finding | None:
    if tokenizer.chat_template is None:
        message = "the tokenizer has no chat template, so that conversations cannot be written for the model"
        remedy = "Put the template that the fine-tuning used beside the tokenizer as chat_template.jinja."
        return Finding("labels-template", "error", where, message, remedy)
    if tokenizer.eos_token_id is None:
        message = "the tokenizer names no end-of-text token: no answer can end"
        remedy = "Set eos_token in tokenizer_config.json, and eos_token_id in generation_config.json."
        return Finding("labels-tokenizer", "error", where, message, remedy)
    if not tokenizer.is_fast:
        message = "labels can only be followed through a fast tokenizer (tokenizer.json), and this model has none"
        return Finding("labels-tokenizer", "note", where, message)
    return None


def _refusals(refused: list[tuple[str, str]], looked_at: int) -> Iterator[Finding]:
    for reason, count in Counter(reason for _, reason in refused).most_common(5):
        first = next(where for where, why in refused if why == reason)
        message = f"the chat template refuses {count} of {looked_at} examples, this one first: {reason}"
        remedy = "Mend the conversations (order of roles, empty messages), or use the template they were made for."
        yield Finding("labels-template", "error", first, message, remedy)


def _finding(labels: Labels, collator: Collator, share: float) -> Finding:
    looked_at = len(labels.examples)
    seen = str(looked_at) if looked_at == labels.total else f"{looked_at} of {labels.total}"
    message = f"{collator}: the end-of-text label survives in {share:.0%} of the examples ({seen} looked at)"
    lost = [one for one in labels.examples if not one.survives(collator)]
    evidence = {
        "collator": collator,
        "share": share,
        "examples": looked_at,
        "lost": [one.where for one in lost[:5]],
        "pad_token": labels.pad_token,
        "end_tokens": list(labels.end_tokens),
    }
    if share >= WORRYING:
        return Finding(f"labels-{collator}", "ok", labels.data, message, evidence=evidence)
    cause, remedy, certain = _cause(labels, collator, lost)
    level: Level = "error" if share < BROKEN and certain else "warning"
    return Finding(f"labels-{collator}", level, lost[0].where, f"{message}. {cause}", remedy + _AGAIN, evidence)


def _cause(labels: Labels, collator: Collator, lost: list[LabelledExample]) -> tuple[str, str, bool]:
    """Why most labels are lost, what to do, and whether it is certain."""
    unwritten = Counter(one.closing.strip() for one in lost if one.end is None)
    if 2 * unwritten.total() > len(lost):
        closing = unwritten.most_common(1)[0][0]
        after = f"closes an answer with {closing!r}" if closing else "writes nothing after an answer"
        stops = ", ".join(map(repr, labels.end_tokens))
        cause = f"The chat template {after}, and generation stops at {stops} only."
        other = f", or name the id of {closing!r} in eos_token_id of generation_config.json" if closing else ""
        return cause, f"Write {{{{ eos_token }}}} after an answer in the chat template{other}.", True
    if collator == "assistant-only":
        cause = "The {% generation %} block of the chat template ends before the end-of-text token."
        return cause, "Move {% endgeneration %} behind the end-of-text token.", True
    pad = repr(labels.pad_token)
    masks = (
        f"transformers' DataCollatorForLanguageModeling (and TRL's for completions before 0.20) masks {pad} wherever "
        "it stands: no label says to stop."
    )
    if labels.pad_assumed:
        cause = f"The tokenizer has no padding token. With pad_token = eos_token, as most scripts set it, {masks}"
    else:
        cause = f"{pad} is padding and end of text at once, and {masks}"
    unknown = ", or tokenizer.pad_token = tokenizer.unk_token" if labels.unk_token else ""
    remedy = (
        'Give padding a token of its own: tokenizer.add_special_tokens({"pad_token": "<pad>"}) and '
        f"model.resize_token_embeddings(len(tokenizer)){unknown}, or a reserved token that is never written, which "
        "keeps the vocabulary as the other parents have it. Or set labels before padding (DataCollatorForSeq2Seq), or "
        "train without padding (DataCollatorWithFlattening)."
    )
    return cause, remedy, not labels.pad_assumed
