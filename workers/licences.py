"""What the model cards say about licences: facts to read on, no legal advice.

Licence ids are the hub's: https://huggingface.co/docs/hub/repositories-licenses
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from fitness.findings import Finding
from workers.model_facts import ModelFacts

WHERE = "genome.models"

#: From free to restrictive: class, and what ids of it look like. The first that matches counts.
CLASSES: tuple[tuple[str, str], ...] = (
    ("public domain", r"cc0.*|unlicense|wtfpl|pddl|0bsd"),
    (
        "permissive",
        r"apache.*|mit|bsd.*|isc|zlib|cc-by-\d.*|cc-by|afl.*|artistic.*|ms-pl|odc-by|ecl.*|ncsa|etalab.*|ofl.*|postgresql|bsl-1\.0",
    ),
    ("weak copyleft", r"lgpl.*|mpl.*|epl.*|eupl.*|cdla-sharing.*|lppl.*"),
    ("copyleft", r"a?gpl.*|cc-by-sa.*|osl.*|odbl|gfdl"),
    ("community licence", r"llama.*|gemma.*|.*rail.*|falcon.*|qwen|tongyi.*|deepseek.*"),
    ("no commercial use", r"cc-by-nc(-sa)?(-\d.*)?|.*non-?commercial.*|.*research.*|apple-amlr|apple-ascl|fair.*"),
    ("no derivatives", r"cc-by(-nc)?-nd.*"),
    ("proprietary or unknown", r".*"),
)
NAMES = tuple(name for name, _ in CLASSES)
_PERMISSIVE, _DERIVATIVES = map(NAMES.index, ("permissive", "no derivatives"))


def licence_class(licence: str) -> int:
    """How restrictive a licence id is: an index into :data:`NAMES`."""
    return next(i for i, (_, pattern) in enumerate(CLASSES) if re.fullmatch(pattern, licence.strip().lower()))


def licences(facts: Sequence[ModelFacts]) -> list[Finding]:
    """Names the licences on the cards and the most restrictive of them.

    Args:
        facts: every model that goes into the merge, the base included.

    Returns:
        ``licence-stated`` for models whose card has none, and one ``licences`` for those that have.
    """
    silent = [one.name for one in facts if not one.licences]
    found = []
    if silent:
        message = f"No licence in the model card of {', '.join(silent)}: find out whether a merge may be used."
        found.append(Finding("licence-stated", "note", WHERE, message, evidence={"models": silent}))
    stated = {one.name: list(one.licences) for one in facts if one.licences}
    if stated:
        found.append(_together(stated))
    return found


def _together(stated: dict[str, list[str]]) -> Finding:
    ranked = sorted({(licence_class(licence), licence) for several in stated.values() for licence in several})
    classes = {NAMES[rank]: [one for _, one in group] for rank, group in groupby(ranked, key=lambda pair: pair[0])}
    strictest, licence = ranked[-1]
    models = ", ".join(name for name, several in stated.items() if licence in several)
    message = f"The most restrictive licence is {licence} ({NAMES[strictest]}), of {models}."
    evidence = {"licences": stated, "classes": classes}
    if strictest == _DERIVATIVES:
        message += " It forbids derived works; ask its owner whether a merge is one."
        remedy = "Replace this parent, or ask its owner before the merge leaves your machine."
        return Finding("licences", "warning", WHERE, message, remedy, evidence)
    if strictest > _PERMISSIVE:
        if len(ranked) > 1:
            message += f" Others: {', '.join(one for _, one in ranked[:-1])}."
        return Finding(
            "licences", "note", WHERE, message + " Read its terms before you pass the merge on.", "", evidence
        )
    return Finding("licences", "ok", WHERE, message, evidence=evidence)
