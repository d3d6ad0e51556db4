"""How well the search does on the demo's models, against a hand grid and against random search.

One engine serves all of it, so that the ratios come from one run:

    python benchmarks/search.py                  # 10 seeds x 40 evaluations, random search beside each, 9 x 9 grid

Prints, per seed, the best search fitness of CMA-ES and of random search at the same budget; the best of the grid
(81 evaluations over one pair of weights, the same in every layer); and the ratio of each to the best known.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from evolve.config import load_config
from evolve.demo import demo_models
from evolve.driver import Driver
from evolve.evaluation import Candidate, Evaluation
from evolve.evaluator import Evaluator
from evolve.genome import Genome
from evolve.prepare import Prepared, prepare, started
from evolve.progress import Silent
from evolve.resources import configs_dir
from evolve.search import search
from evolve.stopping import Generation, StopConditions
from workers.job import Job


class Plateaus(Silent):
    """Counts the generations that said nothing."""

    def __init__(self) -> None:
        self.tied: list[int] = []

    def generation(self, summary: Generation, *, replayed: bool) -> None:  # noqa: ARG002
        if not summary.informative:
            self.tied.append(summary.number)


class Asked:
    """Evaluates candidates, each recipe once per split: what was scored before is remembered."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._known: dict[tuple[str, str], Evaluation] = {}

    def __call__(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        asked = {(c.recipe.hash, c.split): c for c in candidates}
        new = {key: c for key, c in asked.items() if key not in self._known}
        for outcome in self._evaluator.evaluate([Job("-".join(key), c.recipe, c.split) for key, c in new.items()]):
            key = (outcome.job.recipe.hash, outcome.job.split)
            self._known[key] = Evaluation(new[key], outcome.result, outcome.seconds, None)
        return [Evaluation(c, self._known[c.recipe.hash, c.split].result, {}, None) for c in candidates]

    def validated(self, rows: Sequence[Evaluation]) -> Found:
        """The best of some rows, and how it does on the validation prompts."""
        best = max(rows, key=lambda row: row.value if row.value is not None else -math.inf)
        (unseen,) = self([replace(best.candidate, split="validation")])
        assert best.value is not None
        assert unseen.value is not None
        return Found(best.value, unseen.value)

    def best(self) -> float:
        """The best search fitness seen by anybody."""
        return max(row.value for (_, split), row in self._known.items() if split == "search" and row.value is not None)


@dataclass(frozen=True)
class Found:
    """The best search fitness of one way of searching, and that recipe's fitness on unseen prompts."""

    search: float
    validation: float

    def line(self, known: float) -> str:
        return f"{self.search:.4f} ({self.search / known:.3f} of the best known), unseen {self.validation:.4f}"


def grid(prepared: Prepared, ask: Asked, points: int) -> Found:
    """A person's grid: the same pair of weights in every layer, ``points`` x ``points`` over the searched range."""
    config = prepared.config.genome.model_copy(update={"layer_granularity": 0, "filters": ()})
    genome = Genome(config, prepared.architecture, out_dtype=prepared.out_dtype)
    pairs = itertools.product(np.linspace(0, 1, points), repeat=genome.dimensions)
    return ask.validated(ask([candidate(genome, pair) for pair in pairs]))


def cma_es(prepared: Prepared, ask: Asked, seed: int) -> tuple[Found, list[int]]:
    plateaus = Plateaus()
    seen: list[Evaluation] = []

    def evaluate(candidates: Sequence[Candidate]) -> list[Evaluation]:
        rows = ask(candidates)
        seen.extend(rows)
        return rows

    plan, settings = prepared.plan, prepared.config.search
    search(
        prepared.genome,
        plan,
        Driver(prepared.genome.x0, sigma0=settings.sigma0, popsize=plan.popsize, seed=seed),
        StopConditions(target_fitness=None, min_sigma=0, stagnation_generations=plan.generations, max_seconds=None),
        evaluate,
        repeats=1,
        stored=lambda _: None,
        kept=lambda _, asked: asked,
        drifted=lambda _: None,
        seconds=lambda: 0.0,
        progress=plateaus,
    )
    assert len(seen) == plan.max_fevals
    return ask.validated(seen), plateaus.tied


def random_search(prepared: Prepared, ask: Asked, seed: int) -> Found:
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(prepared.plan.max_fevals, prepared.genome.dimensions))
    return ask.validated(ask([candidate(prepared.genome, point) for point in points]))


def candidate(genome: Genome, point: Sequence[float]) -> Candidate:
    genotype = tuple(float(x) for x in point)
    return Candidate("benchmark", "search", "benchmark", genome.decode(genotype), "search", genotype=genotype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--max-fevals", type=int, default=40)
    parser.add_argument("--grid", type=int, default=9, help="ticks per weight; 0 leaves the grid out")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as in evolve run")
    options = parser.parse_args()
    console = Console(width=110)
    models = demo_models(console)
    settings = [
        f"genome.models={json.dumps([str(models.persona), str(models.facts)])}",
        f"genome.base_model={json.dumps(str(models.base))}",
        f"budget.max_fevals={options.max_fevals}",
        *options.overrides,
    ]
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(load_config(configs_dir() / "demo" / "run.yaml", settings), Path(folder))
        transcripts = Path(folder) / "transcripts"
        transcripts.mkdir()
        with started(prepared, transcripts) as evaluator:
            ask = Asked(evaluator)
            found = [
                (seed, cma_es(prepared, ask, seed), random_search(prepared, ask, seed)) for seed in range(options.seeds)
            ]
            by_grid = grid(prepared, ask, options.grid) if options.grid else None
            known = ask.best()
    print(f"best search fitness known: {known:.4f}; budget {options.max_fevals}, n = {prepared.genome.dimensions}")
    if by_grid is not None:
        print(f"grid of {options.grid} x {options.grid} over one pair of weights: {by_grid.line(known)}")
    for seed, (evolved, tied), drawn in found:
        print(f"seed {seed}: CMA-ES {evolved.line(known)}" + (f"; generations all tied: {tied}" if tied else ""))
        print(f"        random {drawn.line(known)}; CMA-ES / random {evolved.search / drawn.search:.3f}")
    for name, values in (("CMA-ES", [e for _, (e, _), _ in found]), ("random search", [d for *_, d in found])):
        reached = sum(value.search >= 0.9 * known for value in values)
        print(f"{name} reached 0.9 of the best known in {reached} of {len(values)} seeds")


if __name__ == "__main__":
    main()
