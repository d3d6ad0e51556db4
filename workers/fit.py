"""Whether the parents of a run can be averaged at all: what their folders say, compared without their weights.

Everything is compared with one reference, the base model or else the first parent, whose configuration and tokenizer
a merge inherits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fitness.findings import Finding, Level
from workers.checkpoint import Checkpoint
from workers.errors import ModelError
from workers.model_facts import ROLES, ModelFacts, TokenizerFacts
from workers.models import IGNORABLE

WHERE = "genome.models"
_SAME_FAMILY = "Choose fine-tunes of one base model."
_ALIGN = "Set genome.tokenizer_source to base, union or a model, so that mergekit aligns the vocabularies."
_LAYER = re.compile(r"\.(\d+)\.")
# Equal shapes hide these: 2 heads of 32 are as wide as 4 of 16.
_HEADS = ("num_attention_heads", "num_key_value_heads")
_DETAILS = ("max_position_embeddings", "sliding_window", "hidden_act", "rms_norm_eps", "layer_norm_eps")
_SHOWN, _LISTED = 5, 50  # in a message, as evidence
_SYSTEM = {"role": "system", "content": "You are brief."}
_USER = {"role": "user", "content": "What is the capital of France?"}
_ASSISTANT = {"role": "assistant", "content": "Paris."}

Compare = Callable[[ModelFacts, ModelFacts], Iterator[Finding]]


def parents_fit(
    facts: Sequence[ModelFacts],
    base: ModelFacts | None,
    *,
    tokenizer_source: str | None,
    allow_remote_code: bool = False,
    chat_template: str | None = None,
) -> list[Finding]:
    """Compares the parents of a run with their base, or with the first of them.

    Args:
        facts: the parents.
        base: the base model; ``None`` for methods without.
        tokenizer_source: the run's setting; where given, mergekit aligns vocabularies.
        allow_remote_code: whether models that bring code of their own are accepted. It is never run here.
        chat_template: Jinja text that the run writes conversations with; ``None`` takes the parents' own.

    Returns:
        What could not be read, and per check what is wrong or one ``ok``.
    """
    members = list({one.folder: one for one in (*([base] if base else []), *facts)}.values())
    findings = [problem for one in members for problem in one.problems]
    findings += _safe(members, allow_remote_code=allow_remote_code)
    findings += _whole(members)
    readable = [one for one in members if one.settings and (one.native or one.remote_code)]
    family = _compared("same-architecture", readable, _architecture, "architecture, model type and layers", findings)
    stored = [one for one in family if one.tensors]
    _compared("same-shapes", stored, _shapes(tokenizer_source), "name and shape of every tensor", findings)
    findings += _dtypes([one for one in members if one.tensors])
    _compared("tied-embeddings", family, _tied, "whether input and output embeddings are one", findings)
    _compared("same-positions", family, _positions, "rope theta and scaling", findings)
    _compared("same-details", family, _details, ", ".join(_DETAILS), findings)
    spoken = [one for one in members if one.tokenizer]
    _compared("same-vocabulary", spoken, _vocabulary(tokenizer_source), "the token of every id", findings)
    _compared("added-tokens", spoken, _added(tokenizer_source), "tokens that only one of two has", findings)
    _compared("special-tokens", spoken, _special, ", ".join(ROLES), findings)
    return [*findings, *_templates(spoken, chat_template)]


def _compared(
    check: str, members: Sequence[ModelFacts], compare: Compare, what: str, findings: list[Finding]
) -> list[ModelFacts]:
    """Adds the findings of a check, or its ok; gives the members that can be compared further."""
    if len(members) < 2:
        return list(members)
    first, *others = members
    found = {other.name: list(compare(first, other)) for other in others}
    findings += [one for several in found.values() for one in several] or [
        Finding(check, "ok", WHERE, f"{len(members)} models agree in {what}.")
    ]
    return [first, *(o for o in others if not any(one.level == "error" for one in found[o.name]))]


def _safe(members: Sequence[ModelFacts], *, allow_remote_code: bool) -> Iterator[Finding]:
    """Neither pickles nor code."""
    unsafe = [one for one in members if one.pickles and not one.tensors]
    for one in unsafe:
        message = f"The weights are Python pickles ({one.pickles[0]}), and loading a pickle can run any code."
        remedy = f"Convert it once, safely: evolve convert {one.folder} --out {one.folder}-safetensors"
        yield Finding("pickle-weights", "error", one.name, message, remedy, {"files": list(one.pickles)})
    if not unsafe:
        yield Finding("pickle-weights", "ok", WHERE, "No model needs a pickle to be loaded.")
    coded = [one for one in members if one.remote_code]
    for one in coded:
        message = f"The folder asks to run its own code ({', '.join(one.remote_code)}), which evolve never does."
        if allow_remote_code:
            yield Finding("remote-code", "note", one.name, message + " It is accepted by name.")
            continue
        remedy = (
            "transformers knows this architecture itself: remove auto_map from config.json and tokenizer_config.json."
            if one.native
            else "Use a model of an architecture that transformers knows itself."
        )
        yield Finding("remote-code", "error", one.name, message, remedy, {"auto_map": list(one.remote_code)})
    if not coded:
        yield Finding("remote-code", "ok", WHERE, "No model brings code of its own.")


def _whole(members: Sequence[ModelFacts]) -> list[Finding]:
    """Configuration, weights and tokenizer of one model belong together."""
    findings = []
    for one in members:
        configured = one.settings.get("vocab_size")
        if one.tensors and configured and one.rows != configured:
            message = f"config.json says vocab_size {configured}, the stored embedding has {one.rows} rows."
            remedy = f"Set vocab_size to {one.rows} in config.json, or fetch the matching weights."
            findings.append(Finding("folder-is-whole", "error", one.name, message, remedy))
        layers = {int(found[1]) for found in map(_LAYER.search, one.tensors) if found}
        missing = sorted(set(range(one.settings.get("num_hidden_layers") or 0)) - layers) if one.tensors else []
        if missing:
            message = f"config.json says {one.settings['num_hidden_layers']} layers; no weights for {_some(missing)}."
            remedy = "Fetch the model again: loaders fill missing layers with random numbers."
            findings.append(Finding("folder-is-whole", "error", one.name, message, remedy))
        if one.tokenizer and one.homeless:
            shown = _some(one.homeless)
            message = f"{len(one.homeless)} tokens have no row in the embedding ({one.rows} rows): {shown}."
            used = sorted(_written(one.tokenizer).intersection(one.homeless))
            if used:
                message += f" The chat template writes {_some(used)}, which no engine can read."
            remedy = "Resize the embeddings (resize_token_embeddings), or use the tokenizer the weights came with."
            evidence = {"count": len(one.homeless), "tokens": list(one.homeless[:_LISTED]), "used": used}
            level: Level = "error" if used else "warning"
            findings.append(Finding("folder-is-whole", level, one.name, message, remedy, evidence))
    if not findings and members:
        findings.append(
            Finding("folder-is-whole", "ok", WHERE, "Layers, embeddings and tokenizers match their configs.")
        )
    return findings


def _architecture(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    ours, theirs = ({"architectures": list(one.architectures), **_pick(one, _FRAME)} for one in (first, other))
    differing = {key: [ours[key], theirs[key]] for key in ours if ours[key] != theirs[key]}
    if differing:
        message = f"Differs from {first.name} in {_listed(differing)}."
        yield Finding("same-architecture", "error", other.name, message, _SAME_FAMILY, differing)


_FRAME = ("model_type", "num_hidden_layers", "hidden_size", *_HEADS)


def _shapes(tokenizer_source: str | None) -> Compare:
    def compare(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
        differing: dict[str, list[Any]] = {}
        only_vocabulary = True
        for name in sorted(first.tensors.keys() | other.tensors.keys()):
            if name.endswith(IGNORABLE) or (first.tied and name.endswith("lm_head.weight")):
                continue  # a tied head may be stored or not: no loader reads it
            a, b = (one.tensors[name].shape if name in one.tensors else None for one in (first, other))
            if a == b:
                continue
            vocabulary = a is not None and b is not None and _without(a, first.rows) == _without(b, other.rows)
            if vocabulary and tokenizer_source is not None:
                continue
            only_vocabulary &= vocabulary
            differing[name] = [list(shape) if shape else None for shape in (a, b)]
        if differing:
            shown = {name: differing[name] for name in list(differing)[:_SHOWN]}
            message = f"{len(differing)} tensors differ from {first.name}: {_listed(shown)}."
            remedy = _ALIGN if only_vocabulary else _SAME_FAMILY
            yield Finding("same-shapes", "error", other.name, message, remedy, {"count": len(differing), **shown})

    return compare


def _without(shape: tuple[int, ...], rows: int | None) -> tuple[int | None, ...]:
    """The shape with its vocabulary axis blanked."""
    axis = shape.index(rows) if rows in shape else len(shape)
    return tuple(None if i == axis else size for i, size in enumerate(shape))


def _dtypes(members: Sequence[ModelFacts]) -> Iterator[Finding]:
    stored: dict[str, str] = {}
    for one in members:
        try:
            if one.config.get("quantization_config"):
                raise ModelError("The weights are quantised (quantization_config in config.json).")
            stored[one.name] = Checkpoint(one.name, one.folder).dtype
        except ModelError as error:
            yield Finding("same-dtype", "error", one.name, str(error), "Use the model's unquantised version.")
    kinds = sorted(set(stored.values()))
    if len(kinds) > 1:
        message = f"Weights are stored as {' and '.join(kinds)}; a merge is computed in float32 and rounded once."
        yield Finding("same-dtype", "note", WHERE, message, evidence=stored)
    elif len(stored) == len(members) > 0:
        yield Finding("same-dtype", "ok", WHERE, f"All weights are stored as {kinds[0]}.")


def _tied(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    if first.tied != other.tied:
        message = f"tie_word_embeddings is {other.tied}, in {first.name} it is {first.tied}."
        yield Finding("tied-embeddings", "error", other.name, message, _SAME_FAMILY)


def _positions(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    differing = {
        key: [first.rope.get(key), other.rope.get(key)]
        for key in sorted(first.rope.keys() | other.rope.keys())
        if first.rope.get(key) != other.rope.get(key)
    }
    if differing:
        message = f"Rotary positions differ from {first.name}, whose settings a merge gets: {_listed(differing)}."
        remedy = "Choose parents with equal rope settings: this one's attention was trained for other angles."
        yield Finding("same-positions", "warning", other.name, message, remedy, differing)


def _details(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    ours, theirs = _pick(first, _DETAILS), _pick(other, _DETAILS)
    differing = {key: [ours[key], theirs[key]] for key in _DETAILS if ours[key] != theirs[key]}
    if differing:
        message = f"Differs from {first.name}, whose settings a merge gets, in {_listed(differing)}."
        yield Finding("same-details", "note", other.name, message, evidence=differing)


def _pick(one: ModelFacts, keys: Sequence[str]) -> dict[str, Any]:
    return {key: one.settings.get(key) for key in keys}


def _vocabulary(tokenizer_source: str | None) -> Compare:
    def compare(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
        ours, theirs = _tokens(first), _tokens(other)
        moved = {t: [i, theirs.vocabulary[t]] for t, i in ours.vocabulary.items() if theirs.vocabulary.get(t, i) != i}
        by_id = {i: t for t, i in theirs.vocabulary.items() if t not in ours.vocabulary}
        renamed = {
            str(i): [token, by_id[i]]
            for token, i in ours.vocabulary.items()
            if token not in theirs.vocabulary and i in by_id
        }
        differing: dict[str, Any] = {**moved, **renamed}
        if not differing:
            return
        shown = {key: differing[key] for key in list(differing)[:_SHOWN]}
        evidence = {"moved": len(moved), "renamed": len(renamed), **shown}
        message = f"{len(moved)} tokens have other ids than in {first.name}, {len(renamed)} ids are other tokens: "
        message += f"{_listed(shown)}."
        special = all(a in ours.added and b in theirs.added for a, b in renamed.values())
        if tokenizer_source is not None:
            message += f" genome.tokenizer_source: {tokenizer_source} aligns them."
            yield Finding("same-vocabulary", "note", other.name, message, evidence=evidence)
        elif moved or not special:
            message += " Averaging row by row would mix unrelated tokens, without any error."
            yield Finding("same-vocabulary", "error", other.name, message, _ALIGN, evidence)
        else:
            message += " Only reserved tokens were renamed; a merge averages a token that one parent never saw."
            yield Finding("same-vocabulary", "warning", other.name, message, _ALIGN, evidence)

    return compare


def _added(tokenizer_source: str | None) -> Compare:
    def compare(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
        ours, theirs = _tokens(first), _tokens(other)
        extra = {
            has.name: sorted(_tokens(has).vocabulary.keys() - _tokens(lacks).vocabulary.keys())
            for has, lacks in ((first, other), (other, first))
        }
        extra = {name: tokens for name, tokens in extra.items() if tokens}
        taken = set(ours.vocabulary.values()) & set(theirs.vocabulary.values())
        ids = {**ours.vocabulary, **theirs.vocabulary}
        fresh = {token for tokens in extra.values() for token in tokens if ids[token] not in taken}
        if not fresh:
            return  # renamed tokens belong to same-vocabulary
        shown = "; ".join(f"only {name} has {_some(tokens)}" for name, tokens in extra.items())
        padding = {one.roles["pad"][0] for one in (ours, theirs)}
        # Where the rows differ in number, same-shapes is the error; a token for padding is never attended to.
        harmless = tokenizer_source is not None or first.rows != other.rows or fresh <= padding
        evidence = {name: tokens[:_LISTED] for name, tokens in extra.items()}
        if harmless:
            yield Finding("added-tokens", "note", other.name, f"Against {first.name}: {shown}.", evidence=evidence)
            return
        message = f"Against {first.name}: {shown}; a merge averages their rows with rows that were never trained."
        yield Finding("added-tokens", "warning", other.name, message, _ALIGN, evidence)

    return compare


def _special(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    ours, theirs = _tokens(first).roles, _tokens(other).roles
    differing: dict[str, Any] = {
        role: [list(ours[role]), list(theirs[role])] for role in ROLES if ours[role] != theirs[role]
    }
    if not differing:
        return
    what = "; ".join(f"{role} {b} ({j}) against {a} ({i})" for role, ((a, i), (b, j)) in differing.items())
    message = f"Differs from {first.name}: {what}."
    # A chat model that ends its turns with a token of its own is the rule: every parent's end token ends an answer.
    if ours["bos"][0] and theirs["bos"][0] and "bos" in differing:
        remedy = "Choose parents that begin texts alike; a merge gets the tokenizer of the first."
        yield Finding("special-tokens", "warning", other.name, message, remedy, differing)
    else:
        yield Finding("special-tokens", "note", other.name, message, evidence=differing)


def _templates(members: Sequence[ModelFacts], chosen: str | None) -> Iterator[Finding]:
    """Conversations as each parent was trained to read them, side by side."""
    remedy = "Set chat.template to llama-2, vicuna, or the path of the .jinja file that the parents were trained with."
    if chosen is None and members and not any(_tokens(one).chat_template for one in members):
        message = "No model carries a chat template, so nobody can say how a conversation is written."
        yield Finding("chat-template", "error", "chat.template", message, remedy)
        return
    written: dict[str, str] = {}
    for one in members:
        if not _tokens(one).chat_template:
            continue  # a plain base under chat children is the rule
        try:
            written[one.name] = _rendered(_tokens(one))
        except ModelError as error:
            message = f"The chat template cannot write a question and its answer: {error}"
            yield Finding("chat-template", "error", one.name, message, "Correct it, or set chat.template.")
    if chosen is not None and members:
        try:
            written = {"chat.template": _rendered(_tokens(members[0]), chosen), **written}
        except ModelError as error:
            message = f"The chosen template cannot write a question and its answer: {error}"
            yield Finding("chat-template", "error", "chat.template", message, "Choose or correct another.")
    if not written:
        return
    first, *others = written
    differing = [name for name in others if written[name].split() != written[first].split()]
    for name in differing:
        message = f"Writes a conversation otherwise than {first}, with whose template all are asked."
        yield Finding("chat-template", "warning", name, message, remedy, {first: written[first], name: written[name]})
    if not differing:
        spaces = [name for name in others if written[name] != written[first]]
        if spaces:
            message = f"Differs from {first} in white space."
            yield Finding(
                "chat-template", "note", spaces[0], message, evidence={n: written[n] for n in (first, *spaces)}
            )
        else:
            yield Finding("chat-template", "ok", WHERE, f"Conversations are written alike by {_some(list(written))}.")


def _rendered(tokenizer: TokenizerFacts, template: str | None = None) -> str:
    """A finished conversation and an open one; some templates refuse a system turn."""
    try:
        turns = [_SYSTEM, _USER, _ASSISTANT]
        text = tokenizer.render(turns, template=template)
    except ModelError:
        turns = [_USER, _ASSISTANT]
        text = tokenizer.render(turns, template=template)
    return f"{text}\n\n{tokenizer.render(turns[:-1], template=template, prompt=True)}"


def _written(tokenizer: TokenizerFacts) -> set[str]:
    """The tokens of a conversation."""
    try:
        text = _rendered(tokenizer)
    except ModelError:
        return set()
    return set(tokenizer.tokenizer.tokenize(text))


def _tokens(one: ModelFacts) -> TokenizerFacts:
    assert one.tokenizer is not None
    return one.tokenizer


def _some(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:_SHOWN]))
    return f"{shown} and {len(items) - _SHOWN} more" if len(items) > _SHOWN else shown


def _listed(differing: dict[str, Any]) -> str:
    return "; ".join(f"{key}: {_value(a)} against {_value(b)}" for key, (a, b) in differing.items())


def _value(value: object) -> str:
    return "none" if value is None else str(value)
