"""Whether answers are in the language that is wanted, as far as the writing tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fitness.findings import Finding
from fitness.prompt_copies import said
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.writing import writing

_LEAST = 0.5  # share of answers in the wanted writing
# A short Japanese text may do without kana.
_WRITINGS: Mapping[str, frozenset[str]] = {
    "japanese": frozenset({"Japanese", "Han"}),
    "chinese": frozenset({"Han"}),
    "korean": frozenset({"Hangul"}),
    "thai": frozenset({"Thai"}),
    "hindi": frozenset({"Devanagari"}),
    "greek": frozenset({"Greek"}),
    "hebrew": frozenset({"Hebrew"}),
    **dict.fromkeys(("arabic", "persian", "urdu"), frozenset({"Arabic"})),
    **dict.fromkeys(("russian", "ukrainian", "bulgarian"), frozenset({"Cyrillic"})),
    **dict.fromkeys(
        ("english", "french", "german", "spanish", "italian", "portuguese", "dutch", "polish", "turkish", "vietnamese"),
        frozenset({"Latin"}),
    ),
}


def language_findings(
    answers: Mapping[str, Sequence[Response]], prompts: Sequence[Prompt], *, wanted: str | None
) -> list[Finding]:
    """Per model, in which writing it answers.

    Args:
        answers: of each model to the prompts; a model without is left out.
        prompts: what was asked.
        wanted: the language that the run asks for, such as ``Japanese``; ``None``: that of the prompts is expected.
    """
    expected = _WRITINGS.get((wanted or "").split(" ")[0].lower())
    usual = Counter(filter(None, (writing(said(one)) for one in prompts))).most_common(1)
    if wanted is None and usual:
        expected = _WRITINGS["japanese"] if usual[0][0] == "Japanese" else frozenset({usual[0][0]})
    return [
        _finding(model, responses, expected, wanted or f"the prompts' {usual[0][0] if usual else 'language'}", wanted)
        for model, responses in answers.items()
        if responses
    ]


def _finding(
    model: str, responses: Sequence[Response], expected: frozenset[str] | None, name: str, wanted: str | None
) -> Finding:
    check = "answers-language"
    counts = Counter(writing(one.text) or "no letters" for one in responses)
    found = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    evidence = {"writings": dict(counts), "wanted": wanted}
    text = f"Answers are written in: {found}"
    if expected is None:
        return Finding(check, "ok", model, f"{text}; whether that is {name} the letters do not tell.", "", evidence)
    share = sum(count for kind, count in counts.items() if kind in expected) / len(responses)
    if share >= _LEAST:
        return Finding(check, "ok", model, f"{text}.", evidence=evidence)
    text += f", where {name} is expected."
    if wanted is None:
        return Finding(check, "note", model, text, evidence=evidence)
    remedy = (
        f"Say in prompts.system that answers are to be in {wanted}, or replace this parent: its merges inherit this."
    )
    return Finding(check, "warning", model, text, remedy, evidence)
