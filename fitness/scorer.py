"""Scores answers: the terms of the config, the judge among them, and what is recorded of every answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fitness import measures
from fitness.errors import ScoringSetupError
from fitness.judge import Judge, JudgeConfig, build_judge
from fitness.metrics import MetricConfig, Term, build_term, refuse_shared_labels
from fitness.prompts import Prompt
from fitness.responses import Response
from fitness.rubric import load_rubric
from fitness.scores import Score, Unscored, Verdict

__all__ = ["FitnessConfig", "Score", "Scorer", "Unscored", "Verdict", "build_scorer"]


class FitnessConfig(BaseModel):
    """What a good answer is.

    The score of an answer is ``sum(weight * value) / sum(|weight|)`` over the terms, each value in [0, 1].
    Terms ``{weight: 2, value: 0.9}`` and ``{weight: -1, value: 0.3}`` give (1.8 - 0.3) / 3 = 0.5. The fitness
    of a model is the mean over its scored answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    terms: tuple[MetricConfig, ...] = Field(min_length=1)
    """The metrics that are summed, each with its weight."""
    judge: JudgeConfig | None = None
    """The judge; needed exactly when a term asks it."""
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
        if len(judged) > 1:
            raise ValueError(
                f"terms: {' and '.join(judged)} ask the judge, and one is the limit;"
                " put the criteria into one rubric, with weights"
            )
        return self


class Scorer:
    """Scores answers one by one; knows nothing of which model gave them."""

    def __init__(self, terms: Sequence[Term], judge: Judge | None) -> None:
        """Holds the terms and, where one of them asks it, the judge."""
        self._terms = tuple(terms)
        self._judge = judge

    async def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> tuple[Score, ...]:
        """Scores the answers to some prompts, the judge's requests side by side.

        Args:
            prompts: what was asked.
            responses: one per prompt, in the same order.

        Returns:
            One score per prompt, in the same order.

        Raises:
            ValueError: prompts and responses do not belong together.
        """
        asked, answered = [one.id for one in prompts], [one.prompt_id for one in responses]
        if asked != answered:
            raise ValueError(f"responses do not answer the prompts: asked {asked}, answered {answered}")
        pairs = zip(prompts, responses, strict=True)
        return tuple(await asyncio.gather(*(self._score(prompt, response) for prompt, response in pairs)))

    @property
    def rubric_version(self) -> str | None:
        """Content hash of the judge's rubric, ``None`` without a judge."""
        return None if self._judge is None else self._judge.rubric.version

    async def close(self) -> None:
        """Closes the judge's connections."""
        if self._judge is not None:
            await self._judge.close()

    async def _score(self, prompt: Prompt, response: Response) -> Score:
        verdict: Verdict | Unscored | None = None
        parts: dict[str, float | Unscored] = {}
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
                assert self._judge is not None, "a judge's term is built together with its judge"
                assert verdict is not None
                value = verdict if isinstance(verdict, Unscored) else _judged(self._judge, verdict, name, parts)
            parts[name] = value
            return value

        total = _weighted([(term.weight, value_of(term, term.label)) for term in self._terms])
        return Score(
            prompt_id=prompt.id,
            value=total,
            parts=parts,
            observed=_observe(response),
            verdict=verdict if isinstance(verdict, Verdict) else None,
        )


def build_scorer(config: FitnessConfig, *, prompts: Sequence[Prompt], root: Path, rubrics_dir: Path) -> Scorer:
    """Builds the scorer of a config and checks that every prompt can be scored; sends nothing.

    Args:
        config: what a good answer is.
        prompts: all prompts of the run, of both splits.
        root: folder against which relative paths are read.
        rubrics_dir: folder of the shipped rubrics.

    Raises:
        ScoringSetupError: a prompt lacks a reference that a term needs, a rubric cannot be read, or the
            judge's key is missing.
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
    judge = None
    for term in _judge_terms(terms):
        assert term.rubric is not None
        assert config.judge is not None, "the config refuses a judge's term without a judge"
        rubric = load_rubric(term.rubric, root=root, shipped=rubrics_dir, setting=f"{term.path}.rubric")
        judge = build_judge(config.judge, rubric)
    return Scorer(terms, judge)


def _build_terms(configs: Sequence[MetricConfig]) -> list[Term]:
    return [build_term(config, f"fitness.terms[{index}]") for index, config in enumerate(configs)]


def _judge_terms(terms: Sequence[Term]) -> list[Term]:
    return [inner for term in terms for inner in term.walk() if inner.rubric is not None]


def _judged(judge: Judge, verdict: Verdict, name: str, parts: dict[str, float | Unscored]) -> float:
    scores = {criterion: one.score for criterion, one in verdict.criteria.items()}
    parts.update({f"{name}.{criterion}": judge.rubric.unit(score) for criterion, score in scores.items()})
    return judge.rubric.value(scores)


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
