"""What a run has come to, as plain data: the JSON contract of ``show`` and ``history``, and the ranking.

A run may have thousands of evaluations: what is shown of all of them comes from their summaries, and only what is
shown whole is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from evolve.evaluation import Evaluation, Summary
from evolve.finals import Standing, compare, leaders, standings
from evolve.outcome import Failed
from evolve.run import Run
from evolve.usage import STAGES, judges, length_preference, utilisation
from fitness.intervals import Difference
from workers.recipe import Recipe

_PHASES = {"parent": 0, "baseline": 0, "search": 1, "finalist": 2}


@dataclass(frozen=True)
class Ranked:
    """A recipe and its place: by validation fitness where it is a finalist, behind them by search fitness."""

    rank: int
    label: str
    recipe: Recipe
    genotype: tuple[float, ...] | None
    standing: Standing | None
    search: Evaluation | None

    @property
    def optimism(self) -> float | None:
        """Search minus validation fitness: how much the search flattered it."""
        value = self.standing.value if self.standing is not None else None
        searched = self.search.value if self.search is not None else None
        return None if value is None or searched is None else searched - value

    def to_dict(self) -> dict[str, Any]:
        """As in ``show --json``."""
        return {
            "rank": self.rank,
            "label": self.label,
            "recipe": dict(self.recipe.config),
            "mask_seed": self.recipe.mask_seed,
            "recipe_hash": self.recipe.hash,
            "genotype": None if self.genotype is None else list(self.genotype),
            "search": _score(self.search),
            "validation": _validation(self.standing),
        }


class Ranking(Sequence[Ranked]):
    """All scored recipes of the search, best first; those behind the finalists are decoded when they are asked for.

    Attributes:
        finalists: those with a validation fitness, the winner first.
    """

    def __init__(self, run: Run) -> None:
        self._get = run.store.get
        self.finalists: list[Ranked] = []
        for standing in _standings(run, "finalist"):
            if standing.value is not None and standing.validation is not None:
                c = standing.validation.candidate
                rank = len(self.finalists) + 1
                self.finalists.append(Ranked(rank, c.label, c.recipe, c.genotype, standing, standing.search))
        validated = {one.recipe.hash for one in self.finalists}
        others: dict[str, Summary] = {}
        for summary in leaders(run.store.summaries("search")):
            if summary.recipe_hash not in validated:
                others.setdefault(summary.recipe_hash, summary)
        self._others = list(others.values())

    def __len__(self) -> int:
        """How many there are."""
        return len(self.finalists) + len(self._others)

    @overload
    def __getitem__(self, index: int) -> Ranked: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ranked]: ...
    def __getitem__(self, index: int | slice) -> Ranked | list[Ranked]:
        """By rank - 1."""
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    def __iter__(self) -> Iterator[Ranked]:
        """One after the other, the best first."""
        return (self._at(place) for place in range(len(self)))

    def _at(self, place: int) -> Ranked:
        if place < len(self.finalists):
            return self.finalists[place]
        row = self._get(self._others[place - len(self.finalists)].key)
        assert row is not None, "what has a summary has a row"
        c = row.candidate
        return Ranked(place + 1, c.label, c.recipe, c.genotype, None, row)


def ranking(run: Run) -> Ranking:
    """All scored recipes of the search, best first."""
    return Ranking(run)


def against(run: Run, ranked: Ranking) -> list[tuple[Standing, Difference | None]]:
    """Parents, baselines and other finalists, each with how much better the winner is on the validation prompts."""
    winner, *rivals = (one.standing for one in ranked.finalists) if ranked.finalists else (None,)
    count, bounds = len(ranked.finalists), run.state.score_bounds
    others = _standings(run, "parent") + _standings(run, "baseline") + [r for r in rivals if r is not None]
    if winner is None:
        return [(other, None) for other in others]
    return [(other, compare(winner, other, picked_from=count, bounds=bounds)) for other in others]


def summary_dict(run: Run) -> dict[str, Any]:
    """The JSON of ``evolve runs``, a part of that of ``evolve show``; reads no transcript."""
    rows = run.store.summaries("search")
    failed = sum(1 for row in rows if row.value is None)
    generations = [row.generation for row in rows if row.generation is not None]
    return {
        "name": run.name,
        "status": run.status,
        "stop_reason": run.state.stop_reason,
        "evaluations": {
            "planned": run.state.plan.search_evaluations,
            "complete": len(rows) - failed,
            "failed": failed,
        },
        "generation": max(generations, default=None),
    }


def show_dict(run: Run) -> dict[str, Any]:
    """The JSON of ``evolve show``."""
    ranked = ranking(run)
    best = ranked[0] if ranked else None
    compared = against(run, ranked)
    entries = [(standing.kind, _standing(standing, difference)) for standing, difference in compared]
    minus = [None, *(difference for standing, difference in compared if standing.kind == "finalist")]
    return {
        **summary_dict(run),
        "all_evaluations": {"planned": run.state.plan.total_evaluations, "recorded": len(run.store)},
        "best": {**best.to_dict(), "optimism": optimism(run, best)} if best else None,
        "finalists": [
            {**one.to_dict(), "winner_minus_it": difference.to_dict() if difference else None}
            for one, difference in zip(ranked.finalists, minus[: len(ranked.finalists)], strict=True)
        ],
        "parents": [data for kind, data in entries if kind == "parent"],
        "baselines": [data for kind, data in entries if kind == "baseline"],
        "utilisation": utilisation(run),
        "length": length_preference(run),
        "judges": judges(run),
        "changes": list(run.state.changes),
        "warnings": list(run.state.warnings),
        "versions": run.state.versions,
        "plan": run.state.plan.to_dict(),
    }


def optimism(run: Run, best: Ranked) -> float | None:
    """How much the search flattered a recipe; unknown where another judge scored the validation prompts."""
    return None if "fitness.final_judge" in run.state.judges else best.optimism


def history(run: Run) -> list[dict[str, Any]]:
    """The JSON of ``evolve history``: a row per evaluation, in the order of the run's phases.

    ``shares`` above 1 says that the candidate's prompts were split over so many pieces of work. An engine may then
    have batched them otherwise than those of other candidates, and another batch can change the last digits of a
    logit, and so an answer.
    """
    rows = sorted(run.store.rows(), key=_order)
    return [
        {
            "number": number,
            "key": row.candidate.key,
            "kind": row.candidate.kind,
            "label": row.candidate.label,
            "split": row.candidate.split,
            "generation": row.candidate.generation,
            "index": row.candidate.index,
            "state": "failed" if isinstance(row.result, Failed) else "complete",
            "fitness": row.value,
            "stderr": row.fitness.stderr if row.fitness else None,
            "parts": dict(row.fitness.parts) if row.fitness else {},
            "length_correlation": row.fitness.length_correlation if row.fitness else None,
            "genotype": None if row.candidate.genotype is None else list(row.candidate.genotype),
            "recipe_hash": row.candidate.recipe.hash,
            "seconds": {stage: row.seconds.get(stage) for stage in STAGES},
            "workers": sorted({share.worker for share in row.shares}),
            "shares": len(row.shares),
            "attempts": 1 + len(row.lost),
            "lost": [asdict(one) for one in row.lost],
            "failure": (
                {"stage": row.result.stage, "reason": row.result.reason} if isinstance(row.result, Failed) else None
            ),
        }
        for number, row in enumerate(rows)
    ]


def _standings(run: Run, kind: str) -> list[Standing]:
    rows = list(run.store.rows(kind))
    if kind == "finalist":
        rows += _searched(run, {row.candidate.recipe.hash for row in rows})
    return standings(rows, run.transcripts, kind, bounds=run.state.score_bounds)


def _searched(run: Run, hashes: set[str]) -> list[Evaluation]:
    """What the search made of some recipes."""
    keys = [s.key for s in run.store.summaries("search") if s.recipe_hash in hashes]
    return [row for key in keys if (row := run.store.get(key)) is not None]


def _order(row: Evaluation) -> tuple[int, int, int, str]:
    c = row.candidate
    validation = c.split == "validation"
    phase = 2 if validation else _PHASES[c.kind]
    return (phase, c.generation or 0, c.index or 0, c.key)


def _score(row: Evaluation | None) -> dict[str, float] | None:
    return {"fitness": row.fitness.value, "stderr": row.fitness.stderr} if row and row.fitness else None


def _validation(standing: Standing | None) -> dict[str, Any] | None:
    if standing is None or standing.value is None or standing.validation is None or not standing.validation.fitness:
        return None
    stderr = standing.validation.fitness.stderr
    return {"fitness": standing.value, "stderr": stderr, "ci95": list(standing.ci95 or ())}


def _standing(standing: Standing, difference: Difference | None) -> dict[str, Any]:
    name = "model" if standing.kind == "parent" else "label"
    return {
        name: standing.label,
        "search": _score(standing.search),
        "validation": _validation(standing),
        "winner_minus_it": difference.to_dict() if difference else None,
    }
