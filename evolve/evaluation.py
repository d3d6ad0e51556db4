"""The words of the history: candidates before, evaluations after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evolve.outcome import Failed, result_from_dict, result_to_dict
from fitness.aggregate import Fitness
from workers.job import Lost, Share, Split
from workers.recipe import Recipe

Kind = Literal["parent", "baseline", "search", "finalist"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to be evaluated once.

    Attributes:
        key: unique within the run; names the transcript file.
        kind: what it is evaluated for.
        label: for people: a parent's name, ``equal weights``, ``candidate 3.7`` (generation.index), ``mean``.
        recipe: what is merged.
        split: which prompts are asked.
        repeats: answers to each prompt, averaged prompt by prompt.
        generation: for ``search``: 0-based.
        index: for ``search``: place within the generation; those behind its population are a budget's remainder.
        genotype: for ``search`` and finalists: coordinates in [0, 1].
    """

    key: str
    kind: Kind
    label: str
    recipe: Recipe
    split: Split
    repeats: int = 1
    generation: int | None = None
    index: int | None = None
    genotype: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One row of the history.

    Attributes:
        candidate: what was evaluated, as it was evaluated.
        result: its fitness, or how it failed.
        seconds: wall seconds by stage: ``merge``, ``generate``, ``judge``.
        transcript: file name in the run's ``transcripts`` folder, ``None`` where nothing was answered.
        shares: which workers did it, and when.
        lost: attempts before, whose worker was replaced.
        number: order in which it was recorded within its study, from 0; -1 before it is.
    """

    candidate: Candidate
    result: Fitness | Failed
    seconds: Mapping[str, float]
    transcript: str | None
    shares: tuple[Share, ...] = ()
    lost: tuple[Lost, ...] = ()
    number: int = -1

    @property
    def fitness(self) -> Fitness | None:
        """The fitness, ``None`` where it failed."""
        return self.result if isinstance(self.result, Fitness) else None

    @property
    def value(self) -> float | None:
        """The fitness value, ``None`` where it failed."""
        return self.result.value if isinstance(self.result, Fitness) else None

    def transcript_in(self, folder: Path) -> Path | None:
        """Its transcript file, where there is one."""
        return None if self.transcript is None else folder / self.transcript

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of :meth:`from_dict`."""
        c = self.candidate
        return {
            "key": c.key,
            "kind": c.kind,
            "label": c.label,
            "recipe": c.recipe.to_dict(),
            "split": c.split,
            "repeats": c.repeats,
            "generation": c.generation,
            "index": c.index,
            "genotype": None if c.genotype is None else list(c.genotype),
            "result": result_to_dict(self.result),
            "seconds": dict(self.seconds),
            "transcript": self.transcript,
            "shares": [asdict(share) for share in self.shares],
            "lost": [asdict(one) for one in self.lost],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], number: int) -> Evaluation:
        """Plain data back into a row."""
        candidate = Candidate(
            key=data["key"],
            kind=data["kind"],
            label=data["label"],
            recipe=Recipe.from_dict(data["recipe"]),
            split=data["split"],
            repeats=data["repeats"],
            generation=data["generation"],
            index=data["index"],
            genotype=None if data["genotype"] is None else tuple(data["genotype"]),
        )
        return cls(
            candidate,
            result_from_dict(data["result"]),
            data["seconds"],
            data["transcript"],
            tuple(Share(**share) for share in data["shares"]),
            tuple(Lost(**one) for one in data["lost"]),
            number,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A row in short: what ranks it and what adds up, without its recipe; small, so that thousands fit in memory.

    Attributes:
        key, kind, split, generation, index: as of its candidate.
        recipe_hash: identity of what was merged.
        value: fitness, ``None`` where it failed.
        seconds: wall seconds by stage.
        shares: which workers did it, and when.
        chars: mean length of its answers, ``None`` where it failed.
        length_correlation: rank correlation of score and length over its answers, ``None`` where there is none.
    """

    key: str
    kind: Kind
    split: Split
    generation: int | None
    index: int | None
    recipe_hash: str
    value: float | None
    seconds: Mapping[str, float]
    shares: tuple[Share, ...]
    chars: float | None = None
    length_correlation: float | None = None
