"""What a run has come to, as plain data: the JSON contract of ``show`` and ``history``, and the ranking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evolve.evaluation import Evaluation
from evolve.finals import Standing, compare, leaders, standings
from evolve.outcome import Failed
from evolve.run import Run
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


def ranking(run: Run) -> list[Ranked]:
    """All scored recipes of the search, best first."""
    found: list[Ranked] = []
    seen: set[str] = set()
    for standing in _standings(run, "finalist"):
        if standing.value is not None:
            c = standing.validation[0].candidate
            seen.add(c.recipe.hash)
            found.append(Ranked(len(found) + 1, c.label, c.recipe, c.genotype, standing, standing.search))
    for row in leaders(run.store.rows("search")):
        c = row.candidate
        if c.recipe.hash not in seen:
            seen.add(c.recipe.hash)
            found.append(Ranked(len(found) + 1, c.label, c.recipe, c.genotype, None, row))
    return found


def against(run: Run, winner: Ranked) -> list[tuple[Standing, Difference | None]]:
    """Parents and baselines, each with how much better the winner is on the validation prompts."""
    others = _standings(run, "parent") + _standings(run, "baseline")
    if winner.standing is None:
        return [(other, None) for other in others]
    bounds = run.state.score_bounds
    return [(other, compare(winner.standing, other, run.transcripts, bounds=bounds)) for other in others]


def summary_dict(run: Run) -> dict[str, Any]:
    """The JSON of ``evolve runs``, a part of that of ``evolve show``; reads no transcript."""
    rows = run.store.rows("search")
    failed = sum(1 for row in rows if row.value is None)
    generations = [row.candidate.generation for row in rows if row.candidate.generation is not None]
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
    compared = against(run, best) if best else [(s, None) for s in _standings(run, "parent")]
    entries = [(standing, _standing(standing, difference)) for standing, difference in compared]
    return {
        **summary_dict(run),
        "all_evaluations": {"planned": run.state.plan.total_evaluations, "recorded": len(run.store.rows())},
        "best": best.to_dict() if best else None,
        "finalists": [r.to_dict() for r in ranked if r.standing is not None],
        "parents": [data for standing, data in entries if standing.kind == "parent"],
        "baselines": [data for standing, data in entries if standing.kind == "baseline"],
        "warnings": list(run.state.warnings),
        "versions": run.state.versions,
        "plan": run.state.plan.to_dict(),
    }


def history(run: Run) -> list[dict[str, Any]]:
    """The JSON of ``evolve history``: a row per evaluation, in the order of the run's phases."""
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
            "genotype": None if row.candidate.genotype is None else list(row.candidate.genotype),
            "recipe_hash": row.candidate.recipe.hash,
            "seconds": {stage: row.seconds.get(stage) for stage in ("merge", "generate", "judge")},
            "failure": (
                {"stage": row.result.stage, "reason": row.result.reason} if isinstance(row.result, Failed) else None
            ),
        }
        for number, row in enumerate(rows)
    ]


def stage_seconds(rows: Sequence[Evaluation]) -> dict[str, float]:
    """Mean seconds per evaluation by stage."""
    stages = ("merge", "generate", "judge")
    return {s: math.fsum(row.seconds.get(s, 0.0) for row in rows) / len(rows) for s in stages} if rows else {}


def _standings(run: Run, kind: str) -> list[Standing]:
    return standings(run.store.rows(), run.transcripts, kind, bounds=run.state.score_bounds)


def _order(row: Evaluation) -> tuple[int, int, int, str]:
    c = row.candidate
    validation = c.split == "validation"
    phase = 2 if validation else _PHASES[c.kind]
    return (phase, c.generation or 0, c.index or 0, c.key)


def _score(row: Evaluation | None) -> dict[str, float] | None:
    return {"fitness": row.fitness.value, "stderr": row.fitness.stderr} if row and row.fitness else None


def _validation(standing: Standing | None) -> dict[str, Any] | None:
    if standing is None or standing.value is None:
        return None
    errors = [row.fitness.stderr for row in standing.validation if row.fitness]
    # Repeats share their prompts, so averaging them does not shrink the error between prompts.
    return {"fitness": standing.value, "stderr": math.fsum(errors) / len(errors), "ci95": list(standing.ci95 or ())}


def _standing(standing: Standing, difference: Difference | None) -> dict[str, Any]:
    name = "model" if standing.kind == "parent" else "label"
    return {
        name: standing.label,
        "search": _score(standing.search),
        "validation": _validation(standing),
        "winner_minus_it": difference.to_dict() if difference else None,
    }
