"""From the scores of a model's answers to its fitness."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from fitness.errors import ScoringFailed
from fitness.scores import Score, Unscored


@dataclass(frozen=True)
class Fitness:
    """How good a model is on some prompts.

    Attributes:
        value: mean over the prompts, each prompt's score being the mean of its scored answers; always finite, in
            [-1, 1].
        stderr: standard error of that mean: the sample standard deviation of the prompts' scores over the root
            of their number, so that more answers to the same prompts do not pass for more prompts. With one
            scored prompt nothing is known of the spread, and it is 1, the largest there can be. It is 0
            where all prompts score the same, which is no proof of certainty: see ``fitness.intervals``.
        scored: number of answers that have a score.
        total: number of answers.
        parts: means, each over the prompts with answers that have that number: the terms by name,
            ``<term>.<inner>`` for what is inside them, and ``observed.<quantity>`` for what is recorded of
            every answer.
        length_correlation: Spearman's rank correlation of score and number of characters over the answers; ``None``
            where all are equally long, or equally good.
    """

    value: float
    stderr: float
    scored: int
    total: int
    parts: Mapping[str, float]
    length_correlation: float | None = None

    def __post_init__(self) -> None:
        """Refuses what is not a number, so that no NaN reaches the search."""
        numbers = {"value": self.value, "stderr": self.stderr, **self.parts}
        if self.length_correlation is not None:
            numbers["length_correlation"] = self.length_correlation
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise ValueError(f"fitness: {name} is {number}, expected a finite number")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of :meth:`from_dict`."""
        return {
            "value": self.value,
            "stderr": self.stderr,
            "scored": self.scored,
            "total": self.total,
            "parts": dict(self.parts),
            "length_correlation": self.length_correlation,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fitness:
        """Plain data back into the object."""
        return cls(
            value=data["value"],
            stderr=data["stderr"],
            scored=data["scored"],
            total=data["total"],
            parts=dict(data["parts"]),
            length_correlation=data["length_correlation"],
        )


def aggregate(scores: Sequence[Score], *, min_scored_share: float) -> Fitness:
    """Averages the scores of one evaluation: over the answers to each prompt, then over the prompts.

    Args:
        scores: one per answer; a prompt that was answered several times has several.
        min_scored_share: fewest scored answers, as a share in [0, 1].

    Raises:
        ScoringFailed: no answer has a score, or too few have one.
    """
    unscored = [score.value.reason for score in scores if isinstance(score.value, Unscored)]
    scored = len(scores) - len(unscored)
    if not scored or scored < min_scored_share * len(scores):
        why = f"; most often: {Counter(unscored).most_common(1)[0][0]}" if unscored else ""
        raise ScoringFailed(
            f"{scored} of {len(scores)} answers could be scored,"
            f" below fitness.min_scored_share {min_scored_share:g}{why}"
        )
    values = list(prompt_means((score.prompt_id, score.value) for score in scores).values())
    mean = _mean(values)
    stderr = 1.0
    if len(values) > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        stderr = math.sqrt(variance / len(values))
    columns: dict[str, list[tuple[str, float | Unscored]]] = {}
    for score in scores:
        observed = {f"observed.{name}": number for name, number in score.observed.items()}
        for name, number in {**score.parts, **observed}.items():
            columns.setdefault(name, []).append((score.prompt_id, number))
    means = {name: list(prompt_means(column).values()) for name, column in columns.items()}
    parts = {name: _mean(numbers) for name, numbers in means.items() if numbers}
    return Fitness(mean, stderr, scored, len(scores), parts, length_correlation(scores))


def length_correlation(scores: Iterable[Score]) -> float | None:
    """Spearman's rank correlation of score and length in characters; ``None`` where one of them does not vary."""
    pairs = [
        (one.value, one.observed["chars"])
        for one in scores
        if "chars" in one.observed and not isinstance(one.value, Unscored)
    ]
    values, chars = {value for value, _ in pairs}, {length for _, length in pairs}
    if len(pairs) < 3 or len(values) < 2 or len(chars) < 2:
        return None
    return float(stats.spearmanr(pairs).statistic)


def prompt_means(numbers: Iterable[tuple[str, float | Unscored]]) -> dict[str, float]:
    """Per prompt id the mean of what its answers got; a prompt with nothing scored is left out.

    Args:
        numbers: (prompt id, number) of every answer.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt_id, number in numbers:
        if not isinstance(number, Unscored):
            by_prompt.setdefault(prompt_id, []).append(number)
    return {prompt_id: _mean(found) for prompt_id, found in by_prompt.items()}


def _mean(numbers: Sequence[float]) -> float:
    # Rounding may carry the mean of equal numbers an ulp past them.
    return min(max(numbers), max(min(numbers), math.fsum(numbers) / len(numbers)))
