"""In which writing a text is: enough to tell Japanese from English, and not to tell English from French."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

from fitness.measures import nfkc

_SCRIPTS = {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Han"}
_WORDY = 2  # a kanji or kana says about as much as two letters


def writing(text: str) -> str | None:
    """The writing of most of the text.

    Returns:
        ``Japanese`` (kana, with or without kanji), ``Han`` (Chinese characters alone, which may be Japanese too),
        ``Latin``, ``Hangul``, ``Cyrillic``, ...; ``None`` where there are no letters.
    """
    counts: Counter[str] = Counter()
    for character, count in Counter(nfkc(text)).items():
        script = _script(character)
        if script is not None:
            counts[script] += count * (_WORDY if script in ("Japanese", "Han") else 1)
    if counts["Japanese"]:
        counts["Japanese"] += counts.pop("Han", 0)
    return max(counts, key=lambda one: (counts[one], one)) if counts else None


@lru_cache(maxsize=8192)
def _script(character: str) -> str | None:
    if not unicodedata.category(character).startswith("L"):
        return None
    first = unicodedata.name(character, "").partition(" ")[0]
    return _SCRIPTS.get(first, first.capitalize()) or None
