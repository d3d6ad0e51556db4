"""What a probe's answers say about the parents."""

from __future__ import annotations

from collections.abc import Sequence

from evolve.probe import RUN, Asked, Probe
from fitness import measures
from fitness.findings import Finding, Level

_ENDED_LEAST = 0.5  # share of answers that end by themselves; below it a parent runs on
_LOOPING = 0.5  # repetition of an answer that loops (plain prose: 0 to 0.15)
_LOOPING_MOST = 0.2  # share of answers that may loop
# Findings that explain why a model does not end its answers.
_CAUSES = ("pad-is-eos", "eos-agrees", "turn-ends", "special-ids-agree", "special-ids-exist")


def probe_findings(probe: Probe, known: Sequence[Finding]) -> list[Finding]:
    """Judges what the parents answered.

    Args:
        probe: what they answered.
        known: what was found before, which may explain it.
    """
    return [finding for one in probe.asked for finding in _of(one, known)]


def _of(asked: Asked, known: Sequence[Finding]) -> list[Finding]:
    where = asked.model
    if asked.failure is not None or not asked.responses:
        text = f"It does not answer under {asked.settings}: {asked.failure}."
        return [Finding("parents-answer", "error", where, text, "Leave this parent out, or mend its weights.")]
    ended = _mean([measures.ended(one) for one in asked.responses])
    loops = _mean([float(measures.repetition(one.text) > _LOOPING) for one in asked.responses])
    evidence = {
        "settings": asked.settings,
        "ended": ended,
        "truncated": 1 - ended,
        "looping": loops,
        "mean_chars": _mean([float(len(one.text)) for one in asked.responses]),
        "tokens_per_second": asked.tokens_per_second,
        "first_answer": asked.responses[0].text[:200],
    }
    text = (
        f"Under {asked.settings} ({asked.generation.max_new_tokens} tokens at most) {ended:.0%} of "
        f"{len(asked.responses)} answers end by themselves, {loops:.0%} loop; "
        f"{evidence['mean_chars']:.0f} characters on average, "
        f"{asked.tokens_per_second:.0f} tokens per second."
    )
    if ended < _ENDED_LEAST or loops > _LOOPING_MOST:
        level: Level = "warning" if asked.settings == RUN else "note"
        return [Finding("answers-end", level, where, f"{text} {_cause(asked, known)}", _REMEDY, evidence)]
    return [Finding("answers-end", "ok", where, text, evidence=evidence)]


_REMEDY = (
    "Look at its fine-tuning data (evolve check labels), raise generation.max_new_tokens if answers are long but end "
    "under the longer preset, or replace this parent: its merges inherit this."
)


def _cause(asked: Asked, known: Sequence[Finding]) -> str:
    causes = [one.check for one in known if one.check in _CAUSES and one.where == asked.model and one.level != "ok"]
    if causes:
        return f"Explained by: {', '.join(dict.fromkeys(causes))}."
    return "Nothing in its files explains it."


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
