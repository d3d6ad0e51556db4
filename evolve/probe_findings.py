"""What a probe's answers say about the parents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from evolve.probe import RUN, Asked, Probe
from fitness import measures
from fitness.answer_language import language_findings
from fitness.findings import Finding
from fitness.prompt_checks import truncation_findings
from fitness.prompts import Prompt
from fitness.writing import writing

ENDED_LEAST = 0.5  # share of answers that end by themselves; below it a parent runs on
_LOOPING = 0.5  # repetition of an answer that loops (plain prose: 0 to 0.15)
_LOOPING_MOST = 0.2  # share of answers that may loop
# Findings that explain why a model does not end its answers.
_CAUSES = (
    "pad-is-eos",
    "eos-agrees",
    "turn-ends",
    "answer-begins",
    "chat-template",
    "special-ids-agree",
    "special-ids-exist",
)


def probe_findings(
    probe: Probe, known: Sequence[Finding], *, prompts: Sequence[Prompt], language: str | None
) -> list[Finding]:
    """Judges what the parents answered.

    Args:
        probe: what they answered.
        known: what was found before, which may explain it.
        prompts: what the run asks.
        language: that the run wants answers in; ``None``: that of the prompts.
    """
    own = [one for one in probe.asked if one.of_run]
    answers = {one.model: one.responses for one in own}
    limit = own[0].generation.max_new_tokens if own else 0
    return [
        *ending_findings(probe.asked, known),
        *truncation_findings(answers, max_new_tokens=limit),
        *language_findings(answers, prompts, wanted=language),
    ]


def answer_facts(asked: Asked) -> dict[str, Any]:
    """What can be counted in a model's answers, at least one: shares, mean length, speed."""
    ended = _mean([measures.ended(one) for one in asked.responses])
    return {
        "settings": asked.settings,
        "answers": len(asked.responses),
        "ended": ended,
        "truncated": 1 - ended,
        "looping": _mean([float(measures.repetition(one.text) > _LOOPING) for one in asked.responses]),
        "mean_chars": _mean([float(len(one.text)) for one in asked.responses]),
        "writings": dict(Counter(writing(one.text) or "no letters" for one in asked.responses)),
        "tokens_per_second": asked.tokens_per_second,
        "first_answer": asked.responses[0].text[:200],
    }


def ending_findings(asked: Sequence[Asked], known: Sequence[Finding]) -> list[Finding]:
    """Whether models end their answers, and do not loop; per model and setting.

    Args:
        asked: what they answered.
        known: what was found before, which may explain it.
    """
    return [finding for one in asked for finding in _ending(one, asked, known)]


def _ending(asked: Asked, all_asked: Sequence[Asked], known: Sequence[Finding]) -> list[Finding]:
    where = asked.model
    if asked.failure is not None or not asked.responses:
        text = f"It does not answer under {asked.settings}: {asked.failure}."
        if asked.settings != RUN:
            return [Finding("parents-answer", "note", where, text)]
        return [Finding("parents-answer", "error", where, text, "Leave this parent out, or mend its weights.")]
    evidence = answer_facts(asked)
    text = (
        f"Under {asked.settings} ({asked.generation.max_new_tokens} tokens at most) {evidence['ended']:.0%} of "
        f"{len(asked.responses)} answers end by themselves, {evidence['looping']:.0%} loop; "
        f"{evidence['mean_chars']:.0f} characters on average, {asked.tokens_per_second:.0f} tokens per second."
    )
    if evidence["ended"] >= ENDED_LEAST and evidence["looping"] <= _LOOPING_MOST:
        return [Finding("answers-end", "ok", where, text, evidence=evidence)]
    if asked.settings != RUN:
        return [Finding("answers-end", "note", where, text, evidence=evidence)]
    limit = asked.generation.max_new_tokens
    longer = [
        one for one in all_asked if one.model == where and one.generation.max_new_tokens > limit and one.responses
    ]
    remedy = "Look at its fine-tuning data (evolve check labels), or replace this parent: its merges inherit this."
    if any(answer_facts(one)["ended"] >= ENDED_LEAST for one in longer):
        remedy = "Raise generation.max_new_tokens: with more room its answers end."
    return [Finding("answers-end", "warning", where, f"{text} {_cause(asked, known)}", remedy, evidence)]


def _cause(asked: Asked, known: Sequence[Finding]) -> str:
    causes = [one.check for one in known if one.check in _CAUSES and one.where == asked.model and one.level != "ok"]
    if causes:
        return f"Explained by: {', '.join(dict.fromkeys(causes))}."
    return "Nothing in its files explains it."


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
