"""Scores answers: the terms of the config, the judge among them, and what is recorded of every answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fitness import measures
from fitness.errors import ScoringSetupError
from fitness.judge import Judge
from fitness.judge_config import AnyJudgeConfig, JudgeConfig, LocalJudgeConfig
from fitness.metrics import MetricConfig, Term, build_term, refuse_shared_labels
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.rubric import Rubric, load_rubric
from fitness.scores import Score, Unscored, Verdict

__all__ = ["FitnessConfig", "Score", "Scorer", "Scoring", "Unscored", "Verdict", "check_scoring"]


class LengthControl(BaseModel):
    """Takes back what a judge gives for length alone.

    An answer longer than ``centre_chars`` loses ``per_doubling`` of the judge's value for every doubling:
    ``value - per_doubling * log2(chars / centre_chars)``, at least 0. Shorter answers gain nothing, so that brevity is
    no way to a better fitness either. ``evolve judge check`` measures what a judge gives for length beyond what people
    give. After the length-controlled win rate of Dubois et al. 2024, arXiv:2404.04475.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    centre_chars: int = Field(ge=1)
    """Length of a usual good answer, in characters."""
    per_doubling: float = Field(gt=0, le=1)
    """What the judge gives for a doubling of the length, as a part of the range from its worst to its best score."""

    def controlled(self, value: float, chars: int) -> float:
        """The judge's value without what it gave for length.

        Args:
            value: in [0, 1].
            chars: of the answer.
        """
        return max(0.0, value - self.per_doubling * math.log2(max(1.0, chars / self.centre_chars)))


class FitnessConfig(BaseModel):
    """What a good answer is.

    The score of an answer is ``sum(weight * value) / sum(|weight|)`` over the terms, each value in [0, 1].
    Terms ``{weight: 2, value: 0.9}`` and ``{weight: -1, value: 0.3}`` give (1.8 - 0.3) / 3 = 0.5. The fitness
    of a model is the mean over its scored answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    terms: tuple[MetricConfig, ...] = Field(min_length=1)
    """The metrics that are summed, each with its weight."""
    judge: AnyJudgeConfig | None = None
    """The judge, a server's model or a local folder; needed exactly when a term asks it."""
    final_judge: AnyJudgeConfig | None = None
    """Another judge for the validation prompts, in place of the first: a dearer one for the few evaluations that
    decide, or one of another make, that what pleased the first does not please for the same reasons."""
    length_control: LengthControl | None = None
    """Takes back what the judge gives for length alone."""
    min_scored_share: float = Field(default=0.9, ge=0, le=1)
    """Fewest scored answers, as a share, for an evaluation to count; below it the evaluation has failed."""

    @property
    def score_bounds(self) -> tuple[float, float]:
        """The least and the greatest score that an answer can have, by the signs of the weights."""
        total = math.fsum(abs(term.weight) for term in self.terms)
        low = math.fsum(min(term.weight, 0.0) for term in self.terms)
        high = math.fsum(max(term.weight, 0.0) for term in self.terms)
        return low / total, high / total

    @model_validator(mode="after")
    def _fits_together(self) -> FitnessConfig:
        refuse_shared_labels(self.terms, "terms")
        if not any(term.weight for term in self.terms):
            raise ValueError("terms: all weights are 0, so there is no fitness; give one term a weight")
        judged = [term.path for term in _judge_terms(_build_terms(self.terms))]
        if judged and self.judge is None:
            raise ValueError(f"judge: missing, but {judged[0]} asks a judge; add judge: {{model: ...}}")
        if self.judge is not None and not judged:
            raise ValueError("judge: no term asks it; add a term {metric: judge, rubric: ...} or drop judge")
        for name in ("final_judge", "length_control"):
            if getattr(self, name) is not None and self.judge is None:
                raise ValueError(f"{name}: has no effect without a judge; drop it, or add judge: {{model: ...}}")
        if len(judged) > 1:
            raise ValueError(
                f"terms: {' and '.join(judged)} ask the judge, and one is the limit;"
                " put the criteria into one rubric, with weights"
            )
        return self


class Scorer:
    """Scores answers one by one; knows nothing of which model gave them."""

    def __init__(self, terms: Sequence[Term], judge: Judge | None, length_control: LengthControl | None = None) -> None:
        """Holds the terms and, where one of them asks it, the judge."""
        self._terms = tuple(terms)
        self._judge = judge
        self._length_control = length_control

    async def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> tuple[Score, ...]:
        """Scores the answers to some prompts, the judge's requests side by side.

        Args:
            prompts: what was asked.
            responses: one per prompt, in the same order.

        Returns:
            One score per prompt, in the same order.

        Raises:
            ValueError: prompts and responses do not belong together.
            JudgeStopped: the judge cannot or may not be asked any more.
        """
        asked, answered = [one.id for one in prompts], [one.prompt_id for one in responses]
        if asked != answered:
            raise ValueError(f"responses do not answer the prompts: asked {asked}, answered {answered}")
        pairs = zip(prompts, responses, strict=True)
        return tuple(await asyncio.gather(*(self._score(prompt, response) for prompt, response in pairs)))

    async def _score(self, prompt: Prompt, response: Response) -> Score:
        verdict: Verdict | Unscored | None = None
        parts: dict[str, float | Unscored] = {}
        observed = _observe(response)
        if self._judge is not None:
            verdict = await self._judge.judge(prompt, response)

        def value_of(term: Term, name: str) -> float | Unscored:
            """Records a term and what is inside it, and gives its value."""
            value: float | Unscored
            if term.measure is not None:
                value = term.measure(prompt, response)
            elif term.of:
                value = _product([value_of(inner, f"{name}.{inner.label}") for inner in term.of])
            else:
                assert verdict is not None, "a judge's term is built together with its judge"
                value = verdict if isinstance(verdict, Unscored) else self._judged(verdict, name, response, parts)
            parts[name] = value
            return value

        total = _weighted([(term.weight, value_of(term, term.label)) for term in self._terms])
        if isinstance(verdict, Verdict) and verdict.spread is not None:
            assert self._judge is not None
            low, high = verdict.scale
            units = {name: spread / (high - low) for name, spread in verdict.spread.items()}
            observed["judge_spread"] = self._judge.rubric.value(units)
        return Score(
            prompt_id=prompt.id,
            value=total,
            parts=parts,
            observed=observed,
            verdict=verdict if isinstance(verdict, Verdict) else None,
        )

    def _judged(self, verdict: Verdict, name: str, response: Response, parts: dict[str, float | Unscored]) -> float:
        assert self._judge is not None
        units = {criterion: verdict.unit(one.score) for criterion, one in verdict.criteria.items()}
        parts.update({f"{name}.{criterion}": unit for criterion, unit in units.items()})
        value = self._judge.rubric.value(units)
        if self._length_control is None:
            return value
        parts[f"{name}.before_length_control"] = value
        return self._length_control.controlled(value, len(response.text))


@dataclass(frozen=True)
class Scoring:
    """A fitness config that has been checked against the disk.

    Attributes:
        config: what a good answer is.
        terms: the metrics, ready for use.
        rubric: what the judge is asked, in its final wording; none without a judge.
    """

    config: FitnessConfig
    terms: tuple[Term, ...]
    rubric: Rubric | None

    def scorer(self, judge: Judge | None) -> Scorer:
        """What scores answers.

        Args:
            judge: given exactly where there is a rubric.
        """
        return Scorer(self.terms, judge, self.config.length_control)


def check_scoring(config: FitnessConfig, *, prompts: Sequence[Prompt], root: Path, rubrics_dir: Path) -> Scoring:
    """Checks that every prompt can be scored; sends nothing.

    Args:
        config: what a good answer is.
        prompts: all prompts of the run, of both splits.
        root: folder against which relative paths are read.
        rubrics_dir: folder of the shipped rubrics.

    Raises:
        ScoringSetupError: a prompt lacks a reference that a term needs, or a rubric cannot be read.
    """
    terms = _build_terms(config.terms)
    bare = [prompt.id for prompt in prompts if not prompt.references]
    for term in (inner for outer in terms for inner in outer.walk()):
        if term.needs_reference and bare:
            named = ", ".join(repr(one) for one in bare[:5]) + (", ..." if len(bare) > 5 else "")
            raise ScoringSetupError(
                f"{term.path}: {term.label} compares with a reference, which {len(bare)} of {len(prompts)} prompts"
                f' lack: {named}; give them a "reference", or take another metric'
            )
    rubric = None
    for term in _judge_terms(terms):
        assert term.judge is not None
        setting = f"{term.path}.rubric"
        rubric = load_rubric(term.judge.rubric, root=root, shipped=rubrics_dir, setting=setting)
        try:
            rubric = rubric.asked_in(term.judge.answer_language)
        except ValueError as error:
            raise ScoringSetupError(f"{setting}: {error}") from error
        _check_scale(rubric, config)
    return Scoring(config, tuple(terms), rubric)


def _check_scale(rubric: Rubric, config: FitnessConfig) -> None:
    """Where scores are read from single tokens, each must be one."""
    judges = {"judge": config.judge, "final_judge": config.final_judge}
    for name, judge in judges.items():
        of_tokens = isinstance(judge, LocalJudgeConfig) or (isinstance(judge, JudgeConfig) and judge.expected_score)
        if of_tokens and not 0 <= rubric.scale.min < rubric.scale.max <= 9:
            raise ScoringSetupError(
                f"fitness.{name}: scores by the probabilities of single digits, and the scale of the rubric "
                f"{rubric.name} is {rubric.scale.min} to {rubric.scale.max}; take a rubric with a scale within 0 to 9"
            )


def _build_terms(configs: Sequence[MetricConfig]) -> list[Term]:
    return [build_term(config, f"fitness.terms[{index}]") for index, config in enumerate(configs)]


def _judge_terms(terms: Sequence[Term]) -> list[Term]:
    return [inner for term in terms for inner in term.walk() if inner.judge is not None]


def _product(values: Sequence[float | Unscored]) -> float | Unscored:
    product = 1.0
    for value in values:
        if isinstance(value, Unscored):
            return value
        product *= value
    return product


def _weighted(terms: Sequence[tuple[float, float | Unscored]]) -> float | Unscored:
    """``sum(weight * value) / sum(|weight|)``, unscored where a value that counts is."""
    products = []
    for weight, value in terms:
        if weight == 0:
            continue
        if isinstance(value, Unscored):
            return value
        products.append(weight * value)
    mean = math.fsum(products) / math.fsum(abs(weight) for weight, _ in terms)
    return min(1.0, max(-1.0, mean))


def _observe(response: Response) -> dict[str, float]:
    return {
        "ended": measures.ended(response),
        "truncated": measures.truncated(response),
        "repetition": measures.repetition(response.text),
        "chars": len(response.text),
        "tokens": response.tokens,
    }
