"""Rubrics: what a judge is asked of an answer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fitness.errors import ScoringSetupError
from fitness.explain import explain
from fitness.shipped import read_named_text


class Scale(BaseModel):
    """The whole numbers that a judge may give."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min: int = 1
    """The worst."""
    max: int = 7
    """The best."""

    @model_validator(mode="after")
    def _upwards(self) -> Scale:
        if not 1 <= self.max - self.min <= 100:
            raise ValueError(f"max {self.max} must be 1 to 100 above min {self.min}")
        return self


class Criterion(BaseModel):
    """One question about an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)
    """Name in reports and in the judge's reply."""
    question: str = Field(min_length=1)
    """What the judge asks itself."""
    anchors: dict[int, str] = Field(min_length=1)
    """What some of the scores look like."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """Weight in the mean over the criteria."""


class Rubric(BaseModel):
    """What a judge is asked of an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    """Name in reports."""
    instructions: str = Field(min_length=1)
    """Who the judge is and what it looks at, in English."""
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    """The questions."""
    scale: Scale = Scale()
    """The scores, the same for all questions."""
    show_reference: bool = True
    """Whether the judge sees the right answers, where a prompt has some."""
    answer_language: str | None = None
    """Language that the answer ought to be in, such as ``Japanese``."""

    @model_validator(mode="after")
    def _fits_together(self) -> Rubric:
        names = [criterion.name for criterion in self.criteria]
        if len(set(names)) < len(names):
            raise ValueError(f"criteria: names must differ, found {', '.join(names)}")
        for criterion in self.criteria:
            for score in criterion.anchors:
                if not self.scale.min <= score <= self.scale.max:
                    raise ValueError(
                        f"criteria: anchor {score} of {criterion.name} is outside the scale"
                        f" {self.scale.min} to {self.scale.max}"
                    )
        return self

    @cached_property
    def version(self) -> str:
        """The first 16 hex digits of the SHA-256 of its content."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def unit(self, score: float) -> float:
        """A score of the scale as a number in [0, 1]."""
        return (score - self.scale.min) / (self.scale.max - self.scale.min)

    def value(self, scores: Mapping[str, float]) -> float:
        """The weighted mean of the criteria in [0, 1].

        Args:
            scores: for every criterion a score on the scale.
        """
        weighted = math.fsum(one.weight * self.unit(scores[one.name]) for one in self.criteria)
        return min(1.0, weighted / math.fsum(one.weight for one in self.criteria))


def load_rubric(name: str, *, root: Path, shipped: Path, setting: str) -> Rubric:
    """Reads a rubric.

    Args:
        name: name of a shipped one, or path of a ``.yaml`` file.
        root: folder against which relative paths are read.
        shipped: folder of the shipped rubrics.
        setting: dotted path of the setting, for messages.

    Raises:
        ScoringSetupError: there is no such rubric, or it is malformed.
    """
    path, text = read_named_text(name, suffix=".yaml", root=root, shipped=shipped, setting=setting)
    try:
        data = yaml.safe_load(text)
    except Exception as error:
        # PyYAML lets any exception of a constructor through, not only its own.
        raise ScoringSetupError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ScoringSetupError(f"{path}: expected the keys of a rubric: {', '.join(Rubric.model_fields)}")
    try:
        return Rubric.model_validate(data)
    except ValidationError as error:
        raise ScoringSetupError(f"{path}: {explain(error, Rubric)}") from error
