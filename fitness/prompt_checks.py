"""Checks of the prompts: copies, leaks, too few, missing references, too long, and answers that are cut.

What makes prompts unreadable is refused where they are read (:mod:`fitness.prompts`); this is about prompts that can
be read and mislead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from fitness.findings import Finding, Level
from fitness.metrics import Term
from fitness.prompt_copies import copy_findings, said
from fitness.prompts import Prompt, Split
from fitness.responses import Response
from fitness.writing import writing

FEWEST_PROMPTS = 30
_WHERE = "prompts.files"
_SPLITS: tuple[Split, ...] = get_args(Split)
_SHOWN, _LISTED = 3, 50
_CUT_NOTE, _CUT_WARNING = 0.05, 0.25


def prompt_findings(prompts: Sequence[Prompt], *, terms: Sequence[Term] = ()) -> list[Finding]:
    """Everything that the prompts alone show.

    Args:
        prompts: of both splits.
        terms: of the fitness, to see which of them need references.
    """
    return [
        *_few(prompts),
        *copy_findings(prompts),
        *_references(prompts, terms),
        _categories(prompts),
        _writings(prompts),
    ]


def length_finding(
    prompt_tokens: Mapping[str, int], *, max_new_tokens: int, context_tokens: int, where: str = _WHERE
) -> Finding:
    """Whether each prompt and its answer fit into the context window.

    Args:
        prompt_tokens: tokens of each prompt by its id, chat template included.
        max_new_tokens: an answer is cut after so many.
        context_tokens: most tokens of prompt and answer together.
        where: for the finding.
    """
    limit = context_tokens - max_new_tokens
    long = {name: tokens for name, tokens in prompt_tokens.items() if tokens > limit}
    longest = max(prompt_tokens.values(), default=0)
    evidence = {
        "longest_prompt_tokens": longest,
        "max_new_tokens": max_new_tokens,
        "context_tokens": context_tokens,
        "too_long": dict(sorted(long.items(), key=lambda item: -item[1])[:_LISTED]),
    }
    room = f"{longest} tokens and an answer of {max_new_tokens}"
    if not long:
        message = f"the longest prompt has {room}, within the context of {context_tokens}"
        return Finding("prompt-length", "ok", where, message, evidence=evidence)
    return Finding(
        "prompt-length",
        "error",
        where,
        f"{len(long)} of {len(prompt_tokens)} prompts do not fit with their answers into {context_tokens} tokens; "
        f"the longest has {room}",
        f"shorten or drop {_named(long)}, or lower generation.max_new_tokens"
        + (f" to {context_tokens - longest}" if longest < context_tokens else ""),
        evidence,
    )


def written_finding(prompts: Sequence[Prompt], written: Mapping[str, str], *, where: str = "chat.template") -> Finding:
    """Whether the chat template leaves out what the prompts say: some write no system message, some one question.

    Args:
        prompts: of both splits.
        written: text of each prompt by its id, as the template writes it.
        where: for the finding.
    """
    lost: defaultdict[str, list[str]] = defaultdict(list)
    for prompt in prompts:
        text = "".join(written[prompt.id].split())
        question = prompt.messages[-1]
        for turn in prompt.messages:
            if turn.role == "assistant":  # a template may leave out its thoughts
                continue
            if "".join(turn.content.split()) not in text:
                lost["question" if turn is question else turn.role].append(prompt.id)
    if not lost:
        return Finding("prompts-written", "ok", where, "the chat template writes all that the prompts say")
    names = {"question": "question", "system": "system message", "user": "earlier question"}
    what = "; ".join(f"the {names[kind]} of {len(ids)} prompts ({_named(ids)})" for kind, ids in lost.items())
    return Finding(
        "prompts-written",
        "error" if "question" in lost else "warning",
        where,
        f"the chat template leaves out {what}",
        "correct the template, choose another with chat.template, or write a lost system message into the question",
        {kind: ids[:_LISTED] for kind, ids in lost.items()},
    )


def truncation_findings(
    answers: Mapping[str, Sequence[Response]], *, max_new_tokens: int, where: str = "generation.max_new_tokens"
) -> list[Finding]:
    """Per model, the share of its answers that was cut at ``max_new_tokens``.

    Args:
        answers: of each parent, under the run's settings; a parent without answers is left out.
        max_new_tokens: the limit they were cut at.
        where: for the findings.
    """
    findings = []
    for model, responses in answers.items():
        if not responses:
            continue
        cut = sum(one.finish == "length" for one in responses)
        share = cut / len(responses)
        evidence = {"model": model, "answers": len(responses), "truncated": cut, "max_new_tokens": max_new_tokens}
        message = f"{cut} of {len(responses)} answers of {model} are cut at {max_new_tokens} tokens"
        if share < _CUT_NOTE:
            findings.append(Finding("answers-truncated", "ok", where, message, evidence=evidence))
            continue
        remedy = (
            "raise generation.max_new_tokens, or ask for shorter answers in prompts.system; if the answers run on "
            "whatever the limit, see the findings on end-of-text"
        )
        level: Level = "warning" if share >= _CUT_WARNING else "note"
        findings.append(Finding("answers-truncated", level, where, message, remedy, evidence))
    return findings


def _few(prompts: Sequence[Prompt]) -> Iterable[Finding]:
    for split in _SPLITS:
        count = sum(one.split == split for one in prompts)
        evidence = {"split": split, "prompts": count}
        if count >= FEWEST_PROMPTS:
            yield Finding("few-prompts", "ok", _WHERE, f"{count} prompts for {split}", evidence=evidence)
            continue
        harm = "the search fits them by chance" if split == "search" else "small gains cannot be told from chance"
        yield Finding(
            "few-prompts",
            "warning",
            _WHERE,
            f"only {count} prompts for {split}: {harm}",
            f"add prompts, {FEWEST_PROMPTS} or more per split, or change prompts.validation_share",
            evidence,
        )


def _references(prompts: Sequence[Prompt], terms: Sequence[Term]) -> Iterable[Finding]:
    needing = [inner for outer in terms for inner in outer.walk() if inner.needs_reference]
    if not needing:
        return
    bare = [one.id for one in prompts if not one.references]
    names = ", ".join(dict.fromkeys(one.label for one in needing))
    evidence = {"terms": [one.path for one in needing], "lacking": len(bare), "ids": bare[:_LISTED]}
    if not bare:
        message = f"all {len(prompts)} prompts have the reference that {names} needs"
        yield Finding("references", "ok", _WHERE, message, evidence=evidence)
        return
    yield Finding(
        "references",
        "error",
        needing[0].path,
        f"{names} compares with a reference, which {len(bare)} of {len(prompts)} prompts lack: {_named(bare)}",
        'give these prompts a "reference", or take another metric',
        evidence,
    )


def _categories(prompts: Sequence[Prompt]) -> Finding:
    counts: defaultdict[str, Counter[Split]] = defaultdict(Counter)
    for prompt in prompts:
        if prompt.category is not None:
            counts[prompt.category][prompt.split] += 1
    # A category of one prompt cannot stand in two splits.
    alone = {name: dict(by) for name, by in counts.items() if len(by) == 1 and by.total() > 1}
    evidence = {"categories": len(counts), "in_one_split": alone}
    if not alone:
        message = f"{len(counts)} categories, each of several prompts in both splits" if counts else "no categories"
        return Finding("categories", "ok", _WHERE, message, evidence=evidence)
    named = [f"{name} ({by[next(iter(by))]} prompts, {next(iter(by))} only)" for name, by in alone.items()]
    return Finding(
        "categories",
        "note",
        _WHERE,
        f"{len(alone)} of {len(counts)} categories stand in one split only: {'; '.join(named[:_SHOWN])}. What is "
        "gained in them is not validated, or what is validated in them was not searched for",
        'give them a "split" by hand, or change prompts.seed',
        evidence,
    )


def _writings(prompts: Sequence[Prompt]) -> Finding:
    found = {one.id: writing(said(one)) for one in prompts}
    counts = Counter(name for name in found.values() if name is not None)
    evidence: dict[str, Any] = {"writings": dict(counts)}
    if not counts:
        return Finding("prompt-language", "ok", _WHERE, "no prompt has letters", evidence=evidence)
    usual = counts.most_common(1)[0][0]
    # A short Japanese text may do without kana.
    same = {usual, None} | ({"Han"} if usual == "Japanese" else set())
    others = [name for name, of in found.items() if of not in same]
    if not others:
        return Finding("prompt-language", "ok", _WHERE, f"all prompts are written in {usual}", evidence=evidence)
    kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return Finding(
        "prompt-language",
        "note",
        _WHERE,
        f"the prompts are in several writings ({kinds}); not in {usual}: {_named(others)}",
        "",
        {**evidence, "ids": others[:_LISTED]},
    )


def _named(ids: Iterable[str]) -> str:
    names = list(ids)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
