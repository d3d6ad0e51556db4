"""Choosing the winner on prompts that the search has not seen, and saying how sure that is.

The best observed score of a search flatters itself (it is a maximum over noise), so the leaders and the distribution
mean are scored once more, on the validation split, and compared prompt by prompt with parents and baselines.
The best of these is a maximum over noise again, if a smaller one. The intervals of finalists, and of the winner's
lead, are therefore made to hold for all finalists at once (``fitness.intervals.simultaneous``): measured by
``benchmarks/noise.py``, plain ones hold for the winner in too few runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evolve.evaluation import Candidate, Evaluation, Summary
from evolve.outcome import read_answers
from fitness.aggregate import prompt_means
from fitness.intervals import Difference, mean_interval, paired_difference, simultaneous
from workers.job import Split

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
        validation: its evaluation on the validation prompts, if any.
        scores: prompt id to its score there, the mean over the answers to it; empty where it failed.
        value: mean validation fitness, ``None`` where it failed.
        ci95: its 95% interval, ``None`` where it failed; of a finalist wide enough for all finalists to be within
            theirs at once.
    """

    label: str
    kind: str
    search: Evaluation | None
    validation: Evaluation | None
    scores: Mapping[str, float]
    value: float | None
    ci95: Interval | None


def finalists(
    genome: Genome,
    summaries: Sequence[Summary],
    mean: Genotype,
    *,
    get: Callable[[str], Evaluation | None],
    top_k: int,
    repeats: int,
    search_repeats: int,
    label: str = "distribution mean",
) -> list[Candidate]:
    """The distribution mean and the ``top_k`` leaders, to be scored on the validation prompts.

    The mean is asked on the search prompts too, unless the remainder of the budget has done so. Keys are made of
    the recipe, so that a run that is extended asks nothing again of those that are finalists again.

    Args:
        genome: decodes the mean.
        summaries: the search's evaluations.
        mean: (n,) float64 in [0, 1].
        get: the evaluation of a key; asked for the leaders only.
        top_k: leaders beside the mean.
        repeats: answers of each finalist to a validation prompt.
        search_repeats: answers to a search prompt, as in the search.
        label: of the mean.
    """
    recipe, genotype = genome.decode(mean), tuple(float(x) for x in mean)

    def entry(split: Split, of: Candidate) -> Candidate:
        many = repeats if split == "validation" else search_repeats
        key = f"final-{of.recipe.hash[:12]}-{split}"
        return Candidate(key, "finalist", of.label, of.recipe, split, many, genotype=of.genotype)

    chosen = [Candidate("", "finalist", label, recipe, "search", genotype=genotype)]
    taken = {recipe.hash}
    for summary in leaders(summaries):
        if len(chosen) > top_k:
            break
        if summary.recipe_hash not in taken and (row := get(summary.key)) is not None:
            taken.add(summary.recipe_hash)
            chosen.append(row.candidate)
    searched = any(s.recipe_hash == recipe.hash and s.split == "search" for s in summaries)
    asked = [] if searched else [entry("search", chosen[0])]
    return asked + [entry("validation", one) for one in chosen]


def leaders(summaries: Iterable[Summary]) -> list[Summary]:
    """The search's scored evaluations, best first; the earlier one first where they tie."""
    scored = [s for s in summaries if s.value is not None and s.kind == "search"]
    # By place, not by time: among several workers it is chance which of two finishes first.
    return sorted(scored, key=lambda s: (-(s.value or 0.0), s.generation or 0, s.index or 0))


def standings(
    rows: Iterable[Evaluation], transcripts: Path, kind: str, *, bounds: Interval | None = None
) -> list[Standing]:
    """The models of a kind with their validation fitness; finalists best first, others as configured.

    Args:
        rows: all that were evaluated of the kind, and for finalists what the search made of them.
        transcripts: folder of the transcript files.
        kind: ``parent``, ``baseline`` or ``finalist``.
        bounds: least and greatest score there can be.
    """
    rows = sorted(rows, key=lambda row: row.candidate.key)
    # Of a recipe that the search met twice the better one counts: it is the one that led.
    best_last = sorted(rows, key=lambda row: row.value if row.value is not None else -np.inf)
    searched = {row.candidate.recipe.hash: row for row in best_last if row.candidate.split == "search"}
    groups: dict[tuple[str, str], dict[str, Evaluation]] = {}
    for row in rows:
        c = row.candidate
        if c.kind == kind and (c.split == "validation" or kind != "finalist"):
            groups.setdefault((c.label if kind != "finalist" else "", c.recipe.hash), {})[c.split] = row
    scores = {key: prompt_scores(group.get("validation"), transcripts) for key, group in groups.items()}
    picked_from = sum(1 for values in scores.values() if values) if kind == "finalist" else 1
    confidence = simultaneous(picked_from)
    found = []
    for (label, recipe_hash), group in groups.items():
        values = list(scores[label, recipe_hash].values())
        found.append(
            Standing(
                label=next(iter(group.values())).candidate.label,
                kind=kind,
                search=group.get("search", searched.get(recipe_hash)),
                validation=group.get("validation"),
                scores=scores[label, recipe_hash],
                value=float(np.mean(values)) if values else None,
                ci95=mean_interval(values, confidence, bounds=_covering(bounds, values)) if values else None,
            )
        )
    if kind == "finalist":
        found.sort(key=lambda s: (-(s.value if s.value is not None else -np.inf), -_search_value(s)))
    return found


def compare(
    winner: Standing, other: Standing, *, picked_from: int, bounds: Interval | None = None
) -> Difference | None:
    """How much better the winner is, paired over the validation prompts that both have a score for.

    Args:
        winner: the best finalist.
        other: a parent or baseline, or another finalist.
        picked_from: how many finalists there are. The interval holds for all of them beside the other model at
            once; or for all pairs of finalists, where the other is one of them.
        bounds: least and greatest score there can be.
    """
    common = [key for key in winner.scores if key in other.scores]
    if not common:
        return None
    pairs = [winner.scores[key] for key in common], [other.scores[key] for key in common]
    count = picked_from * (picked_from - 1) // 2 if other.kind == "finalist" else picked_from
    return paired_difference(*pairs, simultaneous(count), bounds=_covering(bounds, [*pairs[0], *pairs[1]]))


def prompt_scores(row: Evaluation | None, transcripts: Path) -> dict[str, float]:
    """Score per prompt id, averaged over the answers to it; unscored answers are left out."""
    path = row.transcript_in(transcripts) if row is not None and row.value is not None else None
    if path is None or not path.exists():
        return {}
    return prompt_means((answer.prompt_id, answer.score.value) for answer in read_answers(path))


def _covering(bounds: Interval | None, values: Collection[float]) -> Interval | None:
    """The bounds, widened where a user's own evaluator gives scores that the config's terms could not."""
    return None if bounds is None else (min(bounds[0], *values), max(bounds[1], *values))


def _search_value(standing: Standing) -> float:
    value = standing.search.value if standing.search is not None else None
    return value if value is not None else float("-inf")
