"""How well the search does on the demo's models, against a hand grid and against random search.

One engine serves all of it, so that the ratios come from one run:

    python benchmarks/search.py                  # 10 seeds x 40 evaluations, random search beside each, 9 x 9 grid

Prints, per seed, the best search fitness of CMA-ES and of random search at the same budget; the best of the grid
(81 evaluations over one pair of weights, the same in every layer); and the ratio of each to the best known.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
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
from evolve.stopping import StopConditions
from workers.job import Job


class Asked:
    """Evaluates candidates, each recipe once: what was scored before is remembered."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._known: dict[str, Evaluation] = {}

    def __call__(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        new = {c.recipe.hash: c for c in candidates if c.recipe.hash not in self._known}
        jobs = [Job(key, c.recipe, c.split) for key, c in new.items()]
        for outcome in self._evaluator.evaluate(jobs):
            key = outcome.job.recipe.hash
            self._known[key] = Evaluation(new[key], outcome.result, outcome.seconds, None)
        return [Evaluation(c, self._known[c.recipe.hash].result, {}, None) for c in candidates]

    def best(self) -> float:
        """The best fitness seen by anybody."""
        return max(row.value for row in self._known.values() if row.value is not None)


def best_of(rows: Sequence[Evaluation]) -> float:
    return max(row.value for row in rows if row.value is not None)


def grid(prepared: Prepared, ask: Asked, points: int) -> float:
    """A person's grid: the same pair of weights in every layer, ``points`` x ``points`` over the searched range."""
    config = prepared.config.genome.model_copy(update={"layer_granularity": 0, "filters": ()})
    genome = Genome(config, prepared.architecture, out_dtype=prepared.out_dtype)
    ticks = np.linspace(0, 1, points)
    rows = ask(
        [
            Candidate(f"grid-{i}", "search", "grid", genome.decode(pair), "search", genotype=pair)
            for i, pair in enumerate(itertools.product(ticks, repeat=genome.dimensions))
        ]
    )
    return best_of(rows)


def cma_es(prepared: Prepared, ask: Asked, seed: int) -> float:
    seen: list[Evaluation] = []

    def evaluate(candidates: Sequence[Candidate]) -> list[Evaluation]:
        rows = ask(candidates)
        seen.extend(rows)
        return rows

    genome, plan, settings = prepared.genome, prepared.plan, prepared.config.search
    driver = Driver(genome.x0, sigma0=settings.sigma0, popsize=plan.popsize, seed=seed)
    never = StopConditions(target_fitness=None, min_sigma=0, stagnation_generations=plan.generations, max_seconds=None)
    search(
        genome,
        plan,
        driver,
        never,
        evaluate,
        recorded=lambda _: False,
        seconds=lambda: 0.0,
        progress=Silent(),
    )
    assert len(seen) == plan.max_fevals
    return best_of(seen)


def random_search(prepared: Prepared, ask: Asked, seed: int) -> float:
    rng = np.random.default_rng(seed)
    genome = prepared.genome
    points = rng.uniform(size=(prepared.plan.max_fevals, genome.dimensions))
    return best_of(
        ask(
            [
                Candidate(f"random-{i}", "search", "random", genome.decode(x), "search", genotype=tuple(x))
                for i, x in enumerate(points)
            ]
        )
    )


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
        f"genome.models=[{models.persona}, {models.facts}]",
        f"genome.base_model={models.base}",
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
        print(
            f"grid of {options.grid} x {options.grid} over one pair of weights: {by_grid:.4f} ({by_grid / known:.3f})"
        )
    for seed, evolved, drawn in found:
        print(
            f"seed {seed}: CMA-ES {evolved:.4f} ({evolved / known:.3f} of best known), random {drawn:.4f}"
            f" ({drawn / known:.3f}), CMA-ES / random {evolved / drawn:.3f}"
        )
    reached = sum(evolved >= 0.9 * known for _, evolved, _ in found)
    print(
        f"CMA-ES reached 0.9 of the best known in {reached} of {len(found)} seeds,"
        f" random search in {sum(drawn >= 0.9 * known for *_, drawn in found)}"
    )


if __name__ == "__main__":
    main()
