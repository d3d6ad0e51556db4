"""What scoring one answer gives: numbers, or the reason why there is none. All of it goes into JSON and back.

An answer that could not be scored is :class:`Unscored`, a type of its own, so that no arithmetic can take
it for a number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unscored:
    """No score could be had for an answer; says nothing of the answer's worth.

    Attributes:
        reason: one line for people.
        reply: the judge's last reply, where there was one.
    """

    reason: str
    reply: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of :meth:`from_dict`."""
        return {"unscored": self.reason, "reply": self.reply}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Unscored:
        """Plain data back into the object."""
        return cls(reason=data["unscored"], reply=data["reply"])


@dataclass(frozen=True)
class CriterionScore:
    """One criterion of a rubric, judged.

    Attributes:
        reason: the judge's words, written before the score.
        score: on the rubric's scale.
    """

    reason: str
    score: float


@dataclass(frozen=True)
class Verdict:
    """What the judge said of one answer.

    Attributes:
        rubric: name of the rubric.
        rubric_version: its content hash.
        model: the judge, as the server named it.
        scale: the worst and the best score that a criterion can have.
        samples: every reply that kept to the protocol, at least one; criterion name to score.
    """

    rubric: str
    rubric_version: str
    model: str
    scale: tuple[float, float]
    samples: tuple[Mapping[str, CriterionScore], ...]

    @property
    def criteria(self) -> dict[str, CriterionScore]:
        """Per criterion the mean score of the samples, with the reason of the sample nearest to it."""
        means: dict[str, CriterionScore] = {}
        for name in self.samples[0]:
            scores = [sample[name] for sample in self.samples]
            mean = math.fsum(one.score for one in scores) / len(scores)
            nearest = min(scores, key=lambda one: abs(one.score - mean))
            means[name] = CriterionScore(nearest.reason, mean)
        return means

    @property
    def spread(self) -> dict[str, float] | None:
        """Per criterion the sample standard deviation over the samples, on the scale; ``None`` for a single one."""
        if len(self.samples) < 2:
            return None
        return {name: statistics.stdev(sample[name].score for sample in self.samples) for name in self.samples[0]}

    def unit(self, score: float) -> float:
        """A score of the scale as a number in [0, 1]."""
        low, high = self.scale
        return min(1.0, max(0.0, (score - low) / (high - low)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of :meth:`from_dict`."""
        return {
            "rubric": self.rubric,
            "rubric_version": self.rubric_version,
            "model": self.model,
            "scale": list(self.scale),
            "samples": [
                {name: {"reason": one.reason, "score": one.score} for name, one in sample.items()}
                for sample in self.samples
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """Plain data back into the object."""
        return cls(
            rubric=data["rubric"],
            rubric_version=data["rubric_version"],
            model=data["model"],
            scale=tuple(data["scale"]),
            samples=tuple(
                {name: CriterionScore(one["reason"], one["score"]) for name, one in sample.items()}
                for sample in data["samples"]
            ),
        )


@dataclass(frozen=True)
class Score:
    """One answer, scored.

    Attributes:
        prompt_id: the prompt that was answered.
        value: ``sum(weight * part) / sum(|weight|)`` over the terms of the config, in [-1, 1] (in [0, 1]
            where no weight is negative); unscored as soon as a term that weighs anything is.
        parts: by name each term's value in [0, 1]; ``<term>.<inner>`` for the metrics inside an ``all_of``,
            ``<term>.<criterion>`` for the criteria of a judge.
        observed: recorded for every answer, whatever the terms: ``ended``, ``truncated``, ``repetition``
            in [0, 1], ``chars`` and ``tokens`` as counts.
        verdict: what the judge said, where there is one and it answered.
    """

    prompt_id: str
    value: float | Unscored
    parts: Mapping[str, float | Unscored]
    observed: Mapping[str, float]
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        """Refuses what is not a number, so that no NaN travels further."""
        for name, number in {"value": self.value, **self.parts, **self.observed}.items():
            if not isinstance(number, Unscored) and not math.isfinite(number):
                raise ValueError(f"score of prompt {self.prompt_id!r}: {name} is {number}, expected a number")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of :meth:`from_dict`."""
        return {
            "prompt_id": self.prompt_id,
            "value": _plain(self.value),
            "parts": {name: _plain(part) for name, part in self.parts.items()},
            "observed": dict(self.observed),
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Score:
        """Plain data back into the object."""
        return cls(
            prompt_id=data["prompt_id"],
            value=_number(data["value"]),
            parts={name: _number(part) for name, part in data["parts"].items()},
            observed=dict(data["observed"]),
            verdict=None if data["verdict"] is None else Verdict.from_dict(data["verdict"]),
        )


def _plain(number: float | Unscored) -> float | dict[str, Any]:
    return number.to_dict() if isinstance(number, Unscored) else number


def _number(data: Any) -> float | Unscored:
    return Unscored.from_dict(data) if isinstance(data, Mapping) else data
