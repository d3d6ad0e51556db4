"""Whether the tokenizers of two models mean the same: the token of every id, added tokens, special tokens.

Only models that have a tokenizer can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fitness.findings import Finding
from workers.comparison import ALIGN, LISTED, Compare, excerpt, listed, some
from workers.model_facts import ModelFacts
from workers.tokenizer_facts import ROLES, TokenizerFacts


def same_vocabulary(tokenizer_source: str | None) -> Compare:
    """Compares what each id of the vocabulary stands for.

    Args:
        tokenizer_source: the run's setting; where given, mergekit aligns vocabularies.
    """

    def compare(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
        ours, theirs = _tokens(first), _tokens(other)
        by_number = sorted(ours.vocabulary.items(), key=lambda pair: pair[1])
        moved = {t: [i, theirs.vocabulary[t]] for t, i in by_number if theirs.vocabulary.get(t, i) != i}
        by_id = {i: t for t, i in theirs.vocabulary.items() if t not in ours.vocabulary}
        renamed = {str(i): [token, by_id[i]] for token, i in by_number if token not in theirs.vocabulary and i in by_id}
        differing: dict[str, Any] = {**moved, **renamed}
        if not differing:
            return
        shown = excerpt(differing)
        evidence = {"moved": len(moved), "renamed": len(renamed), **shown}
        message = f"{len(moved)} tokens have other ids than in {first.name}, {len(renamed)} ids are other tokens: "
        message += f"{listed(shown)}."
        special = all(a in ours.added and b in theirs.added for a, b in renamed.values())
        if tokenizer_source is not None:
            message += f" genome.tokenizer_source: {tokenizer_source} aligns them."
            yield Finding("same-vocabulary", "note", other.name, message, evidence=evidence)
        elif moved or not special:
            message += " Averaging row by row would mix unrelated tokens, without any error."
            yield Finding("same-vocabulary", "error", other.name, message, ALIGN, evidence)
        else:
            message += " Only reserved tokens were renamed; a merge averages a token that one parent never saw."
            yield Finding("same-vocabulary", "warning", other.name, message, ALIGN, evidence)

    return compare


def added_tokens(tokenizer_source: str | None) -> Compare:
    """Looks for tokens that only one of two models has.

    Args:
        tokenizer_source: the run's setting; where given, mergekit aligns vocabularies.
    """

    def compare(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
        ours, theirs = _tokens(first), _tokens(other)
        extra = {
            has.name: sorted(_with_rows(has) - _tokens(lacks).vocabulary.keys())
            for has, lacks in ((first, other), (other, first))
        }
        extra = {name: tokens for name, tokens in extra.items() if tokens}
        taken = set(ours.vocabulary.values()) & set(theirs.vocabulary.values())
        ids = {**ours.vocabulary, **theirs.vocabulary}
        fresh = {token for tokens in extra.values() for token in tokens if ids[token] not in taken}
        if not fresh:
            return  # renamed tokens belong to same-vocabulary
        shown = "; ".join(f"only {name} has {some(tokens)}" for name, tokens in extra.items())
        padding = {one.roles["pad"][0] for one in (ours, theirs)}
        # Where the rows differ in number, same-shapes is the error; a token for padding is never attended to.
        harmless = tokenizer_source is not None or first.rows != other.rows or fresh <= padding
        evidence = {name: tokens[:LISTED] for name, tokens in extra.items()}
        if harmless:
            yield Finding("added-tokens", "note", other.name, f"Against {first.name}: {shown}.", evidence=evidence)
            return
        message = f"Against {first.name}: {shown}; a merge averages their rows with rows that were never trained."
        yield Finding("added-tokens", "warning", other.name, message, ALIGN, evidence)

    return compare


def _with_rows(one: ModelFacts) -> set[str]:
    """Others are told by ``folder-is-whole``, or made up by transformers for the class of the tokenizer."""
    return {token for token, i in _tokens(one).vocabulary.items() if one.rows is None or i < one.rows}


def special_tokens(first: ModelFacts, other: ModelFacts) -> Iterator[Finding]:
    """Compares the tokens for begin, end, padding and unknown."""
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


def _tokens(one: ModelFacts) -> TokenizerFacts:
    assert one.tokenizer is not None
    return one.tokenizer
