"""The terms of a fitness, as written in a config, and what they mean as functions.

A term is one of the models below, told apart by ``metric``; its functions are in :mod:`fitness.measures`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fitness import measures
from fitness.measures import Measure


class MetricBase(BaseModel):
    """What every metric has: a weight and a name."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    weight: float = Field(default=1.0, ge=-1000, le=1000, allow_inf_nan=False)
    """Weight in the sum ``sum(weight * value) / sum(|weight|)``; negative is a penalty, 0 only records."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    """Name in reports and histories; none: the metric's own name."""

    metric: str
    """Which metric."""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str | None) -> str | None:
        if value == "observed":
            raise ValueError("'observed' is kept for what is recorded of every answer; take another name")
        return value

    @property
    def label(self) -> str:
        """The name, or that of the metric."""
        return self.name or self.metric


class Ended(MetricBase):
    """1 where the model ended its answer by itself, by end-of-text or a stop text."""

    metric: Literal["ended"]


class Truncated(MetricBase):
    """1 where the answer was cut at ``max_new_tokens``."""

    metric: Literal["truncated"]


class Repetition(MetricBase):
    """Share of repeated character n-grams; 0 is none, a loop is near 1. Give it a negative weight."""

    metric: Literal["repetition"]
    ngram_chars: int = Field(default=measures.REPETITION_NGRAM_CHARS, ge=1, le=100)
    """Length of the n-grams in characters."""


class Exact(MetricBase):
    """1 where the answer is a reference, up to width (NFKC), case and white space."""

    metric: Literal["exact"]


class Contains(MetricBase):
    """1 where a reference occurs in the answer, up to width (NFKC), case and white space."""

    metric: Literal["contains"]


class ChrF(MetricBase):
    """The chrF of the answer against its references (sacrebleu's, divided by 100)."""

    metric: Literal["chrf"]


class EndsWith(MetricBase):
    """1 where the answer ends with any of some texts, up to width (NFKC), case and white space."""

    metric: Literal["ends_with"]
    endings: tuple[str, ...] = Field(min_length=1)
    """The texts; write those with and without a full stop."""

    @field_validator("endings")
    @classmethod
    def _not_blank(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(measures.comparable(ending) for ending in value):
            raise ValueError("a blank ending would fit every answer")
        return value


class Matches(MetricBase):
    """1 where a regular expression (Python's) is found anywhere in the answer after NFKC."""

    metric: Literal["matches"]
    pattern: str = Field(min_length=1)
    """The expression; the answer is in NFKC, so write ``!`` for a full-width one. ``(?i)`` ignores case."""

    @field_validator("pattern")
    @classmethod
    def _can_match(cls, value: str) -> str:
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        if measures.nfkc(value) != value:
            changed = sorted({character for character in value if measures.nfkc(character) != character})
            forms = ", ".join(f"{measures.nfkc(one)!r} for {one!r}" for one in changed) or "composed characters"
            raise ValueError(f"the answer is in NFKC, so write {forms} (escaped where it means something)")
        return value


class Length(MetricBase):
    """1 where the number of characters of the answer is within limits, else 0."""

    metric: Literal["length"]
    min_chars: int = Field(default=0, ge=0)
    """Fewest characters, outer white space apart."""
    max_chars: int | None = Field(default=None, ge=0)
    """Most characters, outer white space apart; none: no limit."""

    @model_validator(mode="after")
    def _some_limit(self) -> Length:
        if self.max_chars is None and self.min_chars == 0:
            raise ValueError("give min_chars above 0, or max_chars: without, every answer fits")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars {self.max_chars} is below min_chars {self.min_chars}: no answer fits")
        return self


class JudgeTerm(MetricBase):
    """The judge's weighted mean over the criteria of a rubric, scaled to [0, 1] by the rubric's scale."""

    metric: Literal["judge"]
    rubric: str = Field(min_length=1)
    """Name of a shipped rubric (``role-play``, ``chat-quality``), or the path of a ``.yaml`` file."""
    answer_language: str | None = Field(default=None, min_length=1)
    """Language that the answers must be in, such as ``Japanese``: a criterion of its own in the shipped rubrics; none:
    as the rubric says."""


class AllOf(MetricBase):
    """The product of other metrics: right, and in style, and ended by itself."""

    metric: Literal["all_of"]
    of: tuple[MetricConfig, ...] = Field(min_length=2)
    """The metrics; without weights, for a product has none."""

    @model_validator(mode="after")
    def _no_weights(self) -> AllOf:
        for inner in self.of:
            # Not by which fields were set: a config that was stored whole must be readable again.
            if inner.weight != 1:
                raise ValueError(f"of: {inner.label} has a weight; give it to the all_of instead")
        refuse_shared_labels(self.of, "of")
        return self


MetricConfig = Annotated[
    Ended | Truncated | Repetition | Exact | Contains | ChrF | EndsWith | Matches | Length | JudgeTerm | AllOf,
    Field(discriminator="metric"),
]

AllOf.model_rebuild()


def refuse_shared_labels(metrics: Sequence[MetricBase], where: str) -> None:
    """Refuses two metrics side by side that would be recorded under one name.

    Raises:
        ValueError: as pydantic's validators expect it.
    """
    for label, count in Counter(metric.label for metric in metrics).items():
        if count > 1:
            raise ValueError(f'{where}: {count} are called {label!r}; give each a "name" of its own')


@dataclass(frozen=True)
class Term:
    """A metric ready for use.

    Attributes:
        label: name within its parent.
        path: dotted path in the config, for messages.
        weight: weight in the sum; means nothing inside an ``all_of``.
        measure: the function, ``None`` for the judge and for a product.
        judge: the judge's settings, only for the judge.
        of: the factors of a product.
        needs_reference: whether it cannot do without a reference.
    """

    label: str
    path: str
    weight: float = 1.0
    measure: Measure | None = None
    judge: JudgeTerm | None = None
    of: tuple[Term, ...] = ()
    needs_reference: bool = False

    def walk(self) -> Iterator[Term]:
        """Itself and everything inside it."""
        yield self
        for inner in self.of:
            yield from inner.walk()


def build_term(config: MetricConfig, path: str) -> Term:
    """Turns a metric's config into functions.

    Args:
        config: one of the models above.
        path: where it stands, such as ``fitness.terms[2]``.
    """
    of: tuple[Term, ...] = ()
    if isinstance(config, AllOf):
        of = tuple(build_term(inner, f"{path}.of[{index}]") for index, inner in enumerate(config.of))
    return Term(
        label=config.label,
        path=path,
        weight=config.weight,
        measure=_measure(config),
        judge=config if isinstance(config, JudgeTerm) else None,
        of=of,
        needs_reference=isinstance(config, Exact | Contains | ChrF),
    )


def _measure(config: MetricConfig) -> Measure | None:
    match config:
        case Ended():
            return lambda _, response: measures.ended(response)
        case Truncated():
            return lambda _, response: measures.truncated(response)
        case Repetition(ngram_chars=ngram_chars):
            return lambda _, response: measures.repetition(response.text, ngram_chars=ngram_chars)
        case Exact():
            return lambda prompt, response: measures.exact(response.text, prompt.references)
        case Contains():
            return lambda prompt, response: measures.contains(response.text, prompt.references)
        case ChrF():
            return lambda prompt, response: measures.chrf(response.text, prompt.references)
        case EndsWith(endings=endings):
            return lambda _, response: measures.ends_with(response.text, endings)
        case Matches(pattern=source):
            pattern = re.compile(source)
            return lambda _, response: measures.matches(response.text, pattern)
        case Length(min_chars=low, max_chars=high):
            return lambda _, response: measures.length(response.text, min_chars=low, max_chars=high)
        case JudgeTerm() | AllOf():
            return None
