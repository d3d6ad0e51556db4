"""Rubrics: what a judge is asked of an answer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fitness.errors import ScoringSetupError
from fitness.explain import explain
from fitness.shipped import read_named_text

_LANGUAGE = "{answer_language}"


class Scale(BaseModel):
    """The whole numbers that a judge may give."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min: int = 1
    """The worst."""
    max: int = 7
    """The best."""
    note: str = ""
    """How the scale is meant; left out where answers are compared instead."""

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
    show_reference: bool | None = None
    """Whether this question needs the right answers; none: as the rubric says."""
    show_profile: bool | None = None
    """Whether this question needs the system message; none: as the rubric says."""

    @property
    def needs_language(self) -> bool:
        """Whether its texts name the required language."""
        return any(_LANGUAGE in text for text in (self.question, *self.anchors.values()))


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
    show_profile: bool = True
    """Whether the judge sees the system message, which holds a character's profile."""
    answer_language: str | None = Field(default=None, min_length=1)
    """Language that the answer must be in, such as ``Japanese``; it stands for ``{answer_language}`` in the texts. A
    criterion that names it is asked only where a language is required."""

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

    def asked_in(self, language: str | None) -> Rubric:
        """The rubric as it is asked: with the required language in its texts, or without the criteria that need one.

        Args:
            language: in place of the rubric's own; none: the rubric's own.

        Raises:
            ValueError: no criterion is left.
        """
        language = language or self.answer_language

        def filled(text: str) -> str:
            return text.replace(_LANGUAGE, language or "")

        criteria = [
            one.model_copy(
                update={
                    "question": filled(one.question),
                    "anchors": {score: filled(text) for score, text in one.anchors.items()},
                }
            )
            for one in self.criteria
            if language is not None or not one.needs_language
        ]
        if not criteria:
            raise ValueError("criteria: all of them ask for a language, and none is required; set answer_language")
        return self.model_copy(
            update={
                "instructions": filled(self.instructions),
                "criteria": tuple(criteria),
                "answer_language": language,
            }
        )

    def only(self, criterion: Criterion) -> Rubric:
        """The same rubric with one of its criteria."""
        return self.model_copy(update={"criteria": (criterion,)})

    def shows(self, what: Literal["reference", "profile"]) -> bool:
        """Whether any criterion needs the right answers, or the system message."""
        default = self.show_reference if what == "reference" else self.show_profile
        wished = [one.show_reference if what == "reference" else one.show_profile for one in self.criteria]
        return any(default if wish is None else wish for wish in wished)

    @property
    def version(self) -> str:
        """The first 16 hex digits of the SHA-256 of its content."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def value(self, units: Mapping[str, float]) -> float:
        """The weighted mean of the criteria in [0, 1].

        Args:
            units: for every criterion a number in [0, 1].
        """
        weighted = math.fsum(one.weight * units[one.name] for one in self.criteria)
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
