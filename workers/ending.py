"""Whether a model can stop: its special tokens, its padding, and the token that closes a turn of its chat template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fitness.findings import Finding, Level
from workers.ends import token_ids
from workers.errors import ModelError
from workers.model_facts import ModelFacts
from workers.tokenizer_facts import ROLES, Role, TokenizerFacts

_CONFIG, _GENERATION, _TOKENIZER = "config.json", "generation_config.json", "tokenizer"
_QUESTION, _ANSWER, _NEXT = "What is the capital of France?", "Paris-is-the-answer.", "And the capital of Japan?"

Named = Mapping[str, tuple[int, ...]]


def end_tokens(facts: ModelFacts) -> frozenset[str]:
    """The tokens that any file of a model names as its end of text: a run stops at those of all its models."""
    tokenizer = facts.tokenizer
    if tokenizer is None:
        return frozenset()
    ends = {i for ids in _named(facts, tokenizer, "eos").values() for i in ids}
    return frozenset(token for token, i in tokenizer.vocabulary.items() if i in ends)


def ending(
    facts: ModelFacts, *, chat_template: str | None = None, stop: Sequence[str] = (), others: Collection[str] = ()
) -> list[Finding]:
    """Checks the end-of-text of one model.

    Args:
        facts: the model; nothing is found without a tokenizer, whose absence is a problem of ``facts``.
        chat_template: Jinja text that the run writes conversations with; ``None`` takes the model's own.
        stop: the run's ``generation.stop``.
        others: tokens that end the answers of the run's other models, and so this one's too.

    Returns:
        A finding or more per check: ``special-ids-exist``, ``special-ids-agree``, ``eos-agrees``,
        ``answer-begins``, ``turn-ends``, ``pad-is-eos``.
    """
    tokenizer = facts.tokenizer
    if tokenizer is None:
        return []
    named = {role: _named(facts, tokenizer, role) for role in ROLES}
    own = {i for ids in named["eos"].values() for i in ids}
    ends = own | {i for token, i in tokenizer.vocabulary.items() if token in others}  # as workers.skeleton has it
    text = _after_answer(tokenizer, chat_template)
    closing = _special_ids(tokenizer, text) if text else []
    return [
        *_exist(facts, tokenizer, named),
        *_agree(facts, tokenizer, named),
        _eos_agrees(facts, tokenizer, named["eos"], ends, closing),
        _answer_begins(facts, tokenizer, chat_template),
        _turn_ends(facts, tokenizer, own, ends, text, closing, chat_template, stop),
        _pad_is_eos(facts, tokenizer, ends, closing),
    ]


def _named(facts: ModelFacts, tokenizer: TokenizerFacts, role: Role) -> dict[str, tuple[int, ...]]:
    """The ids that each file names for a role; files that name none are left out."""
    key = f"{role}_token_id"
    sources = {
        _TOKENIZER: tokenizer.roles[role][1],
        _CONFIG: facts.settings.get(key),
        _GENERATION: (facts.generation or {}).get(key),
    }
    token = tokenizer.roles[role][0]
    if facts.rows is not None and tokenizer.vocabulary.get(str(token), 0) >= facts.rows and token not in facts.homeless:
        sources[_TOKENIZER] = None  # transformers' default for the class, which no file names
    # Old conversions write -1 for none.
    found = {source: tuple(i for i in token_ids(value) if i >= 0) for source, value in sources.items()}
    return {source: ids for source, ids in found.items() if ids}


def _exist(facts: ModelFacts, tokenizer: TokenizerFacts, named: Mapping[Role, Named]) -> list[Finding]:
    rows = facts.rows or len(tokenizer.vocabulary)
    missing = {
        f"{role} in {source}": list(ids)
        for role, sources in named.items()
        for source, ids in sources.items()
        if max(ids) >= rows
    }
    if not missing:
        message = f"All special tokens have one of the {rows} rows of the embedding."
        return [Finding("special-ids-exist", "ok", facts.name, message)]
    producible = any(i < rows for ids in named["eos"].values() for i in ids)
    what = ", ".join(f"{where} is {ids}" for where, ids in missing.items())
    message = f"The embedding has {rows} rows (ids 0 to {rows - 1}), and {what}."
    if named["eos"] and not producible:
        message += " The model cannot produce an end-of-text token: every answer runs to the limit."
    level: Level = "error"
    if producible or not named["eos"]:  # padding is not seen while answering
        level = "warning" if any(where.startswith(("bos", "eos")) for where in missing) else "note"
    remedy = "Correct the ids, or resize the embeddings and train the new rows (resize_token_embeddings)."
    return [Finding("special-ids-exist", level, facts.name, message, remedy, missing)]


def _agree(facts: ModelFacts, tokenizer: TokenizerFacts, named: Mapping[Role, Named]) -> list[Finding]:
    """Begin, padding and unknown: generation can live with a disagreement, training with other tools may not."""
    differing = {role: named[role] for role in ROLES if role != "eos" and len(set(named[role].values())) > 1}
    if not differing:
        return [Finding("special-ids-agree", "ok", facts.name, "Tokenizer and configs agree in bos, pad and unk.")]
    what = "; ".join(f"{role}: {_sources(tokenizer, sources)}" for role, sources in differing.items())
    evidence: dict[str, object] = {
        role: {source: list(ids) for source, ids in sources.items()} for role, sources in differing.items()
    }
    return [Finding("special-ids-agree", "note", facts.name, f"Files disagree: {what}.", evidence=evidence)]


def _eos_agrees(
    facts: ModelFacts, tokenizer: TokenizerFacts, named: Named, ends: set[int], closing: Sequence[int]
) -> Finding:
    """transformers' generate stops at generation_config.json alone, or at config.json where that names nothing.

    A run stops at whatever any of the files names, and its export says so: where that is what the chat template closes
    an answer with, a disagreement concerns other tools only.
    """
    level: Level = "note" if closing and closing[0] in ends else "warning"
    evidence = {source: list(ids) for source, ids in named.items()}
    if not named:
        message = "Neither tokenizer nor configs name an end-of-text token: every answer runs to the limit."
        remedy = 'Set eos_token in tokenizer_config.json and "eos_token_id" in generation_config.json.'
        return Finding("eos-agrees", "warning" if ends else "error", facts.name, message, remedy)
    source = next((s for s in (_GENERATION, _CONFIG) if s in named), None)
    if source is None:
        message = f"Only the tokenizer names an end-of-text token, {_tokens(tokenizer, named[_TOKENIZER])}; "
        message += "transformers' generate, which reads the configs alone, does not stop at it."
        remedy = f'Set "eos_token_id": {sorted(named[_TOKENIZER])} in generation_config.json.'
        return Finding("eos-agrees", level, facts.name, message, remedy, evidence)
    stops, own = named[source], named.get(_TOKENIZER, ())
    if own and set(own) <= set(stops):
        message = f"{_tokens(tokenizer, own)} ends texts, and generation stops at it ({source})."
        return Finding("eos-agrees", "ok", facts.name, message, evidence=evidence)
    what = f"Files disagree about eos: {_sources(tokenizer, named)}."
    if closing and closing[0] in stops:
        message = f"{what} The chat template's {_tokens(tokenizer, closing[:1])} is one that generation stops at."
        return Finding("eos-agrees", "note", facts.name, message, evidence=evidence)
    if not own:
        message = "The tokenizer has no end-of-text token, so training with it teaches none."
        remedy = f"Set eos_token in tokenizer_config.json to {_tokens(tokenizer, stops)}."
        return Finding("eos-agrees", "warning", facts.name, message, remedy, evidence)
    message = f"{what} Training ends texts with the tokenizer's; tools that follow {source} do not stop at it."
    remedy = f'Set "eos_token_id": {sorted({*own, *stops})} in generation_config.json.'
    return Finding("eos-agrees", level, facts.name, message, remedy, evidence)


def _answer_begins(facts: ModelFacts, tokenizer: TokenizerFacts, template: str | None) -> Finding:
    """Whether a question is written up to where its answer begins, as in the conversations trained on."""
    check, name = "answer-begins", facts.name
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        asked = tokenizer.render(turns[:1], template=template, prompt=True)
        # Followed by another question: before a last answer, templates of thinking models write an empty thought.
        answered = tokenizer.render([*turns, {"role": "user", "content": _NEXT}], template=template)
    except ModelError:  # workers.template_checks says so
        return Finding(check, "note", name, "No chat template that writes an answer: where one begins cannot be told.")
    before, found, _ = answered.rpartition(_ANSWER)
    header = before.removeprefix(asked).strip() if found and before.startswith(asked) else ""
    if not header:  # also where a prompt goes on otherwise than a conversation, as templates of thinking models do
        return Finding(check, "ok", name, "A question is written up to where its answer begins.")
    message = f"A question is written without {header!r}, which comes before the answer in a whole conversation: the "
    message += "model must write it itself, or goes on with the question."
    remedy = "Let the template end with {% if add_generation_prompt %}{{ " + repr(header) + " }}{% endif %}."
    return Finding(check, "warning", name, message, remedy, {"question": asked, "conversation": answered})


def _turn_ends(
    facts: ModelFacts,
    tokenizer: TokenizerFacts,
    own: set[int],
    ends: set[int],
    text: str | None,
    closing: Sequence[int],
    template: str | None,
    stop: Sequence[str],
) -> Finding:
    check, name = "turn-ends", facts.name
    if text is None:
        return Finding(check, "note", name, "No chat template that writes an answer: what closes one cannot be told.")
    evidence = {"after_answer": text, "closing": list(closing), "ends": sorted(ends)}
    if closing and closing[0] in own:
        message = f"The chat template closes an answer with {_tokens(tokenizer, closing[:1])}, which ends generation."
        return Finding(check, "ok", name, message, evidence=evidence)
    if closing and closing[0] in ends:
        message = (
            f"The chat template closes an answer with {_tokens(tokenizer, closing[:1])}, which only another model "
        )
        message += "of the run names as an end: the run stops at it, this model by itself does not."
        return Finding(check, "note", name, message, evidence=evidence)
    if ends.intersection(closing):
        late = next(i for i in closing if i in ends)
        message = f"The chat template writes {text!r} after an answer; generation ends only at its "
        return Finding(check, "note", name, f"{message}{_tokens(tokenizer, [late])}.", evidence=evidence)
    if closing:
        message = (
            f"The chat template closes an answer with {_tokens(tokenizer, closing[:1])}; generation stops only at "
        )
        message += f"{_tokens(tokenizer, sorted(ends)) or 'nothing'}, so answers run on into further turns."
        remedy = f'Set "eos_token_id": {sorted({closing[0], *ends})} in generation_config.json.'
        return Finding(check, "error", name, message, remedy, evidence)
    between = _between_turns(tokenizer, template) or text
    if any(one in between for one in stop):
        return Finding(check, "ok", name, "generation.stop holds the text that follows an answer.", evidence=evidence)
    between = between.strip()
    if between:
        message = f"No special token closes an answer, only text: {between!r}. The model learns to write on."
        remedy = f"Set generation.stop: [{between.splitlines()[0]!r}], or write eos_token after each answer."
    else:
        message = "The chat template writes nothing after an answer, so nothing teaches the model to stop."
        remedy = "Write {{ eos_token }} after each assistant turn of the template the parents are trained with."
    return Finding(check, "warning", name, message, remedy, evidence)


def _pad_is_eos(facts: ModelFacts, tokenizer: TokenizerFacts, ends: set[int], closing: Sequence[int]) -> Finding:
    check = "pad-is-eos"
    (eos, eos_id), (pad, pad_id) = tokenizer.roles["eos"], tokenizer.roles["pad"]
    if pad_id is not None and pad_id != eos_id:
        return Finding(check, "ok", facts.name, f"Padding has a token of its own ({pad}), end-of-text is {eos}.")
    evidence = {"pad": [pad, pad_id], "eos": [eos, eos_id]}
    what = f"Padding and end-of-text are one token ({eos})." if pad else "There is no padding token."
    if closing and closing[0] != eos_id and closing[0] in ends:
        message = f"{what} Answers are closed by {_tokens(tokenizer, closing[:1])}, whose labels padding leaves alone."
        return Finding(check, "note", facts.name, message, evidence=evidence)
    message = (
        f"{what} {'' if pad else 'Fine-tuning scripts then pad with end-of-text. '}The usual collator (transformers' "
        "DataCollatorForLanguageModeling) masks the label of every padding token, the end-of-text of each example "
        "included: a model fine-tuned so never learns to stop."
    )
    remedy = (
        "Ask how this parent was trained: `evolve check labels` tells from its data. For a training of your own, add a "
        'token: tokenizer.add_special_tokens({"pad_token": "<pad>"}) and resize_token_embeddings.'
    )
    # Half of all models come without a padding token; the probe tells those that cannot stop from the others.
    return Finding(check, "warning" if pad else "note", facts.name, message, remedy, evidence)


def _after_answer(tokenizer: TokenizerFacts, template: str | None) -> str | None:
    """What the template writes after a last answer; ``None`` where it writes no answer."""
    return _after(tokenizer, template, [])


def _between_turns(tokenizer: TokenizerFacts, template: str | None) -> str | None:
    """What the template writes between an answer and the next question."""
    text = _after(tokenizer, template, [{"role": "user", "content": _NEXT}])
    return text.partition(_NEXT)[0] if text is not None else None


def _after(tokenizer: TokenizerFacts, template: str | None, more: list[dict[str, str]]) -> str | None:
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}, *more]
    try:
        text = tokenizer.render(turns, template=template)
    except ModelError:  # workers.template_checks says so
        return None
    _, found, after = text.rpartition(_ANSWER)
    return after if found else None


def _special_ids(tokenizer: TokenizerFacts, text: str) -> list[int]:
    special = {*tokenizer.added.values(), *(i for _, i in tokenizer.roles.values() if i is not None)}
    ids: list[int] = tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [i for i in ids if i in special]


def _sources(tokenizer: TokenizerFacts, sources: Named) -> str:
    return ", ".join(f"{source} says {_tokens(tokenizer, ids)}" for source, ids in sources.items())


def _tokens(tokenizer: TokenizerFacts, ids: Sequence[int]) -> str:
    by_id = {i: token for token, i in tokenizer.vocabulary.items()}
    return ", ".join(f"{by_id.get(i, 'no token')} ({i})" for i in ids)
