"""Scores as means over the scale, weighted with the probabilities that the judge gave them.

G-Eval: Liu et al. 2023, "NLG Evaluation using GPT-4 with Better Human Alignment", arXiv:2303.16634, section 2.3. The
probabilities are those of the tokens that stood where the judge wrote a score, normalised over the scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fitness.scores import CriterionScore

# A quotation mark inside a JSON string is escaped, so that this cannot be found inside a reason.
_SCORE = re.compile(r'"score"\s*:\s*(?=-?\d)')


@dataclass(frozen=True)
class Token:
    """One token of a reply.

    Attributes:
        text: what it adds to the reply.
        alternatives: the likeliest tokens in this place, itself among them, with their log-probabilities.
    """

    text: str
    alternatives: Mapping[str, float]


class NoDistribution(Exception):
    """The reply has no probabilities for a score; the message says why."""


def expected_scores(
    scores: Mapping[str, CriterionScore], tokens: Sequence[Token], scale: tuple[float, float]
) -> dict[str, CriterionScore]:
    """Puts the mean over the scale in the place of each score.

    Args:
        scores: what was read from the reply, by criterion, in the order in which the reply gives them.
        tokens: of the reply.
        scale: the worst and the best score.

    Raises:
        NoDistribution: no probabilities were sent, or a score is not a single token.
    """
    reply = "".join(token.text for token in tokens)
    places = [match.end() for match in _SCORE.finditer(reply)]
    if len(places) != len(scores):
        raise NoDistribution("the endpoint sent no log-probabilities of its reply's tokens")
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(token.text))
    found = {}
    for (name, one), place in zip(scores.items(), places, strict=True):
        index = next(i for i in range(len(tokens)) if starts[i + 1] > place)
        found[name] = replace(one, score=_mean(tokens[index], place - starts[index], int(one.score), scale))
    return found


def _mean(token: Token, offset: int, score: int, scale: tuple[float, float]) -> float:
    """The mean over what could have stood in the place of a token.

    Args:
        token: the token in which the score begins.
        offset: characters of the token before the score, such as a space.
        score: the score that was written.
        scale: the worst and the best score.
    """
    if token.text[offset:].strip() != str(score):
        raise NoDistribution(f"the score {score} is not a token of its own; use a scale of single digits")
    before = token.text[:offset]
    mass: dict[int, float] = {}
    for text, logprob in token.alternatives.items():
        digits = text.removeprefix(before).strip()
        if text.startswith(before) and digits.isascii() and digits.isdigit() and scale[0] <= int(digits) <= scale[1]:
            mass[int(digits)] = mass.get(int(digits), 0.0) + math.exp(min(logprob, 0.0))  # rounding may exceed 0
    total = math.fsum(mass.values())
    if not total > 0:
        raise NoDistribution("the endpoint sent no log-probabilities of the scale's tokens")
    return math.fsum(value * share for value, share in mass.items()) / total
