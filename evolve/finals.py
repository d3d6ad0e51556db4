"""Choosing the winner on prompts that the search has not seen, and saying how sure that is.

The best observed score of a search flatters itself (it is a maximum over noise), so the leaders and the distribution
mean are scored once more, on the validation split, and compared prompt by prompt with parents and baselines.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evolve.evaluation import Candidate, Evaluation
from evolve.outcome import read_answers
from fitness.intervals import Difference, mean_interval, paired_difference
from fitness.scores import Unscored

if TYPE_CHECKING:
    from evolve.driver import Genotype
    from evolve.genome import Genome

Interval = tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """A model in the closing table.

    Attributes:
        label: parent's name, ``equal weights``, ``candidate 3.7`` (generation.index), ``distribution mean``.
        kind: ``parent``, ``baseline`` or ``finalist``.
        search: its evaluation on the search prompts, if any.
        validation: its evaluations on the validation prompts, one per repeat.
        value: mean validation fitness, ``None`` where it failed.
        ci95: its 95% interval, ``None`` where it failed.
    """

    label: str
    kind: str
    search: Evaluation | None
    validation: tuple[Evaluation, ...]
    value: float | None
    ci95: Interval | None


def finalists(
    genome: Genome, rows: Sequence[Evaluation], mean: Genotype, *, top_k: int, repeats: int
) -> list[Candidate]:
    """The distribution mean and the ``top_k`` leaders, to be scored on the validation prompts.

    The mean is asked on the search prompts too, unless the remainder of the budget has done so.

    Args:
        genome: decodes the mean.
        rows: the search's evaluations.
        mean: (n,) float64 in [0, 1].
        top_k: leaders beside the mean.
        repeats: evaluations of each.
    """
    recipe, genotype = genome.decode(mean), tuple(float(x) for x in mean)
    seen = {row.candidate.recipe.hash for row in rows}
    chosen: list[Candidate] = []
    if recipe.hash not in seen:
        chosen.append(
            Candidate("final-mean-search", "finalist", "distribution mean", recipe, "search", genotype=genotype)
        )
    entries = [("mean", "distribution mean", recipe, genotype)]
    taken = {recipe.hash}
    for row in leaders(rows):
        c = row.candidate
        if len(entries) == top_k + 1:
            break
        if c.recipe.hash not in taken:
            taken.add(c.recipe.hash)
            entries.append((f"{c.generation:04d}-{c.index:03d}", c.label, c.recipe, c.genotype or ()))
    for repeat in range(repeats):
        chosen += [
            Candidate(
                f"final-{key}-validation-{repeat}", "finalist", label, recipe, "validation", repeat, genotype=genotype
            )
            for key, label, recipe, genotype in entries
        ]
    return chosen


def leaders(rows: Sequence[Evaluation]) -> list[Evaluation]:
    """The search's scored evaluations, best first; the earlier one first where they tie."""
    scored = [row for row in rows if row.value is not None and row.candidate.split == "search"]
    # By place, not by time: among several workers it is chance which of two finishes first.
    return sorted(
        scored, key=lambda row: (-(row.value or 0.0), row.candidate.generation or 0, row.candidate.index or 0)
    )


def standings(
    rows: Sequence[Evaluation], transcripts: Path, kind: str, *, bounds: Interval | None = None
) -> list[Standing]:
    """The models of a kind with their validation fitness; finalists best first, others as configured."""
    searched = {row.candidate.recipe.hash: row for row in reversed(rows) if row.candidate.split == "search"}
    groups: dict[str, list[Evaluation]] = {}
    for row in sorted(rows, key=lambda row: row.candidate.key):
        c = row.candidate
        if c.kind == kind and (c.split == "validation" or c.kind != "finalist"):
            groups.setdefault(f"{c.label} {c.recipe.hash}", []).append(row)
    found = []
    for group in groups.values():
        validation = tuple(row for row in group if row.candidate.split == "validation")
        values = prompt_scores(validation, transcripts)
        own = [row for row in group if row.candidate.split == "search"]
        found.append(
            Standing(
                label=group[0].candidate.label,
                kind=kind,
                search=own[0] if own else searched.get(group[0].candidate.recipe.hash),
                validation=validation,
                value=float(np.mean(list(values.values()))) if values else None,
                ci95=mean_interval(list(values.values()), bounds=_covering(bounds, values.values()))
                if values
                else None,
            )
        )
    if kind == "finalist":
        found.sort(key=lambda s: (-(s.value if s.value is not None else -np.inf), -_search_value(s)))
    return found


def compare(
    winner: Standing, other: Standing, transcripts: Path, *, bounds: Interval | None = None
) -> Difference | None:
    """How much better the winner is, paired over the validation prompts that both have a score for."""
    a, b = (prompt_scores(s.validation, transcripts) for s in (winner, other))
    common = [key for key in a if key in b]
    if not common:
        return None
    pairs = [a[key] for key in common], [b[key] for key in common]
    return paired_difference(*pairs, bounds=_covering(bounds, [*pairs[0], *pairs[1]]))


def prompt_scores(rows: Sequence[Evaluation], transcripts: Path) -> dict[str, float]:
    """Score per prompt id, averaged over repeats; unscored answers are left out."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        path = row.transcript_in(transcripts)
        if row.value is None or path is None or not path.exists():
            continue
        for answer in read_answers(path):
            if not isinstance(answer.score.value, Unscored):
                scores.setdefault(answer.prompt_id, []).append(answer.score.value)
    return {key: float(np.mean(values)) for key, values in scores.items()}


def _covering(bounds: Interval | None, values: Collection[float]) -> Interval | None:
    """The bounds, widened where a user's own evaluator gives scores that the config's terms could not."""
    return None if bounds is None else (min(bounds[0], *values), max(bounds[1], *values))


def _search_value(standing: Standing) -> float:
    value = standing.search.value if standing.search is not None else None
    return value if value is not None else float("-inf")
