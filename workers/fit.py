"""Whether the parents of a run can be averaged at all: what their folders say, compared without their weights.

Everything is compared with one reference, the base model or else the first parent, whose configuration and tokenizer
a merge inherits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fitness.findings import Finding
from workers.checkpoint import Checkpoint
from workers.comparison import ALIGN, WHERE, Compare, excerpt, listed
from workers.errors import ModelError
from workers.folder_checks import folder_is_whole, safe_to_load
from workers.model_facts import ModelFacts
from workers.models import IGNORABLE
from workers.template_checks import chat_templates
from workers.token_checks import added_tokens, same_vocabulary, special_tokens
from workers.tokenizer_facts import ROLES

_SAME_FAMILY = "Choose fine-tunes of one base model."
# Equal shapes hide these: 2 heads of 32 are as wide as 4 of 16.
_HEADS = ("num_attention_heads", "num_key_value_heads")
_FRAME = ("model_type", "num_hidden_layers", "hidden_size", *_HEADS)
_DETAILS = ("max_position_embeddings", "sliding_window", "hidden_act", "rms_norm_eps", "layer_norm_eps")


def parents_fit(
    facts: Sequence[ModelFacts],
    base: ModelFacts | None,
    *,
    tokenizer_source: str | None,
    allow_remote_code: Collection[str] = (),
    chat_template: str | None = None,
) -> list[Finding]:
    """Compares the parents of a run with their base, or with the first of them.

    Args:
        facts: the parents.
        base: the base model; ``None`` for methods without.
        tokenizer_source: the run's setting; where given, mergekit aligns vocabularies.
        allow_remote_code: names of models that may bring code of their own. It is never run here.
        chat_template: Jinja text that the run writes conversations with; ``None`` takes the parents' own.

    Returns:
        What could not be read, and per check what is wrong or one ``ok``.
    """
    members = list({one.folder: one for one in (*([base] if base else []), *facts)}.values())
    findings = [problem for one in members for problem in one.problems]
    findings += safe_to_load(members, allow_remote_code=allow_remote_code)
    findings += folder_is_whole(members)
    readable = [one for one in members if one.settings and (one.native or one.remote_code)]
    family = _compared("same-architecture", readable, _architecture, "architecture, model type and layers", findings)
    stored = [one for one in family if one.tensors]
    _compared("same-shapes", stored, _shapes(tokenizer_source), "name and shape of every tensor", findings)
    findings += _dtypes([one for one in members if one.tensors])
    _compared("tied-embeddings", family, _tied, "whether input and output embeddings are one", findings)
    _compared("same-positions", family, _positions, "rope theta and scaling", findings)
    _compared("same-details", family, _details, ", ".join(_DETAILS), findings)
    spoken = [one for one in members if one.tokenizer]
    _compared("same-vocabulary", spoken, same_vocabulary(tokenizer_source), "the token of every id", findings)
    _compared("added-tokens", spoken, added_tokens(tokenizer_source), "which tokens there are", findings)
    _compared("special-tokens", spoken, special_tokens, ", ".join(ROLES), findings)
    return [*findings, *chat_templates(facts, base, chat_template)]


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


def _architecture(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    ours, theirs = ({"architectures": list(one.architectures), **_pick(one, _FRAME)} for one in (first, other))
    differing = {key: [ours[key], theirs[key]] for key in ours if ours[key] != theirs[key]}
    if differing:
        message = f"Differs from {first.name} in {listed(differing)}."
        yield Finding("same-architecture", "error", other.name, message, _SAME_FAMILY, differing)


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
            shown = excerpt(differing)
            message = f"{len(differing)} tensors differ from {first.name}: {listed(shown)}."
            remedy = ALIGN if only_vocabulary else _SAME_FAMILY
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
        message = f"Rotary positions differ from {first.name}, whose settings a merge gets: {listed(differing)}."
        remedy = "Choose parents with equal rope settings: this one's attention was trained for other angles."
        yield Finding("same-positions", "warning", other.name, message, remedy, differing)


def _details(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    ours, theirs = _pick(first, _DETAILS), _pick(other, _DETAILS)
    differing = {key: [ours[key], theirs[key]] for key in _DETAILS if ours[key] != theirs[key]}
    if differing:
        message = f"Differs from {first.name}, whose settings a merge gets, in {listed(differing)}."
        if "hidden_act" in differing:
            yield Finding("same-details", "warning", other.name, message, _SAME_FAMILY, differing)
        else:
            yield Finding("same-details", "note", other.name, message, evidence=differing)


def _pick(one: ModelFacts, keys: Sequence[str]) -> dict[str, Any]:
    return {key: one.settings.get(key) for key in keys}
