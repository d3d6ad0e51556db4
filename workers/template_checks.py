"""Whether chat templates can write a conversation, and whether all parents read it alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fitness.findings import Finding, Level
from workers.comparison import WHERE, some
from workers.errors import ModelError
from workers.model_facts import ModelFacts
from workers.tokenizer_facts import TokenizerFacts

_SYSTEM = {"role": "system", "content": "You are brief."}
_USER = {"role": "user", "content": "What is the capital of France?"}
_ASSISTANT = {"role": "assistant", "content": "Paris."}


def chat_templates(members: Sequence[ModelFacts], base: ModelFacts | None, chosen: str | None) -> Iterator[Finding]:
    """Conversations as each parent was trained to read them, side by side.

    Args:
        members: the parents, in the order of the config; those without a tokenizer are passed over.
        base: their base, which answers nothing: its template counts where no parent has one.
        chosen: Jinja text that the run writes conversations with; ``None`` takes the parents' own.
    """
    spoken = [(one.name, one.tokenizer) for one in members if one.tokenizer]
    if base is not None and base.tokenizer and not any(tokenizer.chat_template for _, tokenizer in spoken):
        spoken.append((base.name, base.tokenizer))
    remedy = "Set chat.template to llama-2, vicuna, or the path of the .jinja file that the parents were trained with."
    if chosen is None and spoken and not any(tokenizer.chat_template for _, tokenizer in spoken):
        message = "No model carries a chat template, so nobody can say how a conversation is written."
        yield Finding("chat-template", "error", "chat.template", message, remedy)
        return
    written: dict[str, str] = {}
    for name, tokenizer in spoken:
        if not tokenizer.chat_template:
            continue  # a plain base under chat children is the rule
        try:
            written[name] = _rendered(tokenizer)
        except ModelError as error:
            message = f"The chat template cannot write a question and its answer: {error}"
            yield Finding("chat-template", "error", name, message, "Correct it, or set chat.template.")
    if chosen is not None and spoken:
        try:
            written = {"chat.template": _rendered(spoken[0][1], chosen), **written}
        except ModelError as error:
            message = f"The chosen template cannot write a question and its answer: {error}"
            yield Finding("chat-template", "error", "chat.template", message, "Choose or correct another.")
    if not written:
        return
    first, *others = written
    differing = [name for name in others if written[name].split() != written[first].split()]
    # A template that was chosen and is that of one parent is meant; one that is nobody's looks like a mistake.
    level: Level = "note" if chosen is not None and len(differing) < len(others) else "warning"
    if chosen is not None:
        remedy = "Leave chat.template out, or choose the one that the parents were trained with."
    for name in differing:
        message = f"Writes a conversation otherwise than {first}, with whose template all are asked."
        yield Finding("chat-template", level, name, message, remedy, {first: written[first], name: written[name]})
    if not differing:
        spaces = [name for name in others if written[name] != written[first]]
        if spaces:
            message = f"Differs from {first} in white space."
            yield Finding(
                "chat-template", "note", spaces[0], message, evidence={n: written[n] for n in (first, *spaces)}
            )
        else:
            yield Finding("chat-template", "ok", WHERE, f"Conversations are written alike by {some(list(written))}.")


def tokens_written(tokenizer: TokenizerFacts) -> set[str]:
    """The tokens of a conversation; none where the template cannot write one."""
    try:
        text = _rendered(tokenizer)
    except ModelError:
        return set()
    return set(tokenizer.tokenizer.tokenize(text))


def _rendered(tokenizer: TokenizerFacts, template: str | None = None) -> str:
    """A finished conversation and an open one; some templates refuse a system turn."""
    try:
        turns = [_SYSTEM, _USER, _ASSISTANT]
        text = tokenizer.render(turns, template=template)
    except ModelError:
        turns = [_USER, _ASSISTANT]
        text = tokenizer.render(turns, template=template)
    return f"{text}\n\n{tokenizer.render(turns[:-1], template=template, prompt=True)}"
