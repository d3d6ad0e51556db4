"""The metrics that need no judge, as pure functions of an answer; each gives a number in [0, 1].

Texts are compared after NFKC, case folding and collapsing white space, so that full-width and half-width
forms, and line breaks, make no difference (https://unicode.org/reports/tr15/).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

import sacrebleu

from fitness.prompts import Prompt
from fitness.responses import Response

Measure = Callable[[Prompt, Response], float]

REPETITION_NGRAM_CHARS = 8


def nfkc(text: str) -> str:
    """The text in Unicode's compatibility composition: ``ＡＢＣ！`` becomes ``ABC!``."""
    return unicodedata.normalize("NFKC", text)


def comparable(text: str) -> str:
    """The text as it is compared: NFKC, case-folded, white space collapsed."""
    # Folding can undo NFKC and the other way round, hence twice (Unicode standard, D146).
    return " ".join(nfkc(nfkc(text).casefold()).split())


def ended(response: Response) -> float:
    """1 where the model ended its answer by itself."""
    return float(response.finish == "stop")


def truncated(response: Response) -> float:
    """1 where the answer was cut at ``max_new_tokens``."""
    return float(response.finish == "length")


def repetition(text: str, *, ngram_chars: int = REPETITION_NGRAM_CHARS) -> float:
    """Share of the character n-grams that have occurred before in the text; 0 is none.

    Characters, because Japanese has no spaces. Plain prose has 0 to 0.15, a loop 0.7 and more. A text that
    is shorter than ``ngram_chars`` has 0.
    """
    characters = nfkc(text)
    total = len(characters) - ngram_chars + 1
    if total <= 0:
        return 0.0
    return 1 - len({characters[start : start + ngram_chars] for start in range(total)}) / total


def exact(text: str, references: Sequence[str]) -> float:
    """1 where the text is one of the references."""
    return float(comparable(text) in {comparable(reference) for reference in references})


def contains(text: str, references: Sequence[str]) -> float:
    """1 where any of the references occurs in the text, inside a longer word too."""
    answer = comparable(text)
    return float(any(comparable(reference) in answer for reference in references))


def chrf(text: str, references: Sequence[str]) -> float:
    """ChrF against the best of the references, scaled to [0, 1].

    Popovic 2015, https://aclanthology.org/W15-3049/, as sacrebleu computes it for one sentence.
    """
    score = sacrebleu.sentence_chrf(nfkc(text), [nfkc(reference) for reference in references]).score
    return min(1.0, max(0.0, float(score) / 100))


def ends_with(text: str, endings: Sequence[str]) -> float:
    """1 where the text ends with any of the endings."""
    return float(comparable(text).endswith(tuple(comparable(ending) for ending in endings)))


def matches(text: str, pattern: re.Pattern[str]) -> float:
    """1 where the pattern is found anywhere in the text after NFKC (case and white space are kept)."""
    return float(pattern.search(nfkc(text)) is not None)


def length(text: str, *, min_chars: int, max_chars: int | None) -> float:
    """1 where the number of characters, outer white space apart, is within the limits."""
    chars = len(text.strip())
    return float(chars >= min_chars and (max_chars is None or chars <= max_chars))
