"""The search: ask, evaluate, record, tell.

The loop does not know whether a run is new or resumed: ``evaluate`` gives back what the history holds and evaluates
only what is missing, so that replaying the loop from its seed *is* resuming. The stored genotypes are the truth:
they are told, also where asking again gives something else (another processor or library).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evolve.budget import Plan
from evolve.driver import Driver, Genotype
from evolve.evaluation import Candidate, Evaluation
from evolve.genome import Genome
from evolve.progress import Progress
from evolve.stopping import Generation, StopConditions, StopReason

Evaluate = Callable[[Sequence[Candidate]], list[Evaluation]]


@dataclass(frozen=True)
class Searched:
    """How the search ended.

    Attributes:
        stop_reason: by name.
        mean: (n,) float64 in [0, 1], the final distribution mean.
        generations: how many were told.
    """

    stop_reason: StopReason
    mean: Genotype
    generations: int


def search(
    genome: Genome,
    plan: Plan,
    driver: Driver,
    conditions: StopConditions,
    evaluate: Evaluate,
    *,
    repeats: int,
    stored: Callable[[str], Evaluation | None],
    kept: Callable[[int, list[Genotype]], list[Genotype]],
    drifted: Callable[[float], None],
    seconds: Callable[[], float],
    progress: Progress,
) -> Searched:
    """Run the plan, or replay and finish it.

    Args:
        genome: decodes genotypes.
        plan: how many generations of which size, and what is left over.
        driver: CMA-ES, fresh from its seed.
        conditions: when to end before the budget does.
        evaluate: candidates to rows, in their order.
        repeats: answers of a candidate to each prompt.
        stored: the row of a key, where the history has one.
        kept: keeps what is asked in a generation before it is evaluated, or gives back what was asked then.
        drifted: told when a stored genotype differs from the one asked again by more than any before: this machine
            or its libraries compute otherwise. What is stored is what the search is told.
        seconds: wall-clock seconds of searching so far, over all sittings.
        progress: who watches.
    """
    history: list[Generation] = []
    drift = 0.0
    stop: StopReason | None = None
    while len(history) < plan.generations:
        number = len(history)
        found = [row for index in range(plan.popsize) if (row := stored(_key(number, index))) is not None]
        # What is recorded is replayed whatever the conditions say now: it was evaluated within those of its time.
        if not found and (stop := conditions.check(history, seconds=seconds())) is not None:
            break
        asked = driver.ask()
        replayed = len(found) == plan.popsize
        if replayed:
            rows = found
        else:
            population = kept(number, asked)
            rows = evaluate([_candidate(genome, x, number, i, repeats) for i, x in enumerate(population)])
        told = [_genotype(row) for row in rows]
        gap = max(float(np.abs(a - t).max()) for a, t in zip(asked, told, strict=True))
        if gap > drift:
            drift = gap
            drifted(gap)
        informative = driver.tell(told, [row.value for row in rows])
        history.append(_summary(number, rows, driver.sigma, informative))
        progress.generation(history[-1], replayed=replayed)
    mean = driver.mean
    if stop is None:
        stop = conditions.check(history, seconds=0.0) or "budget"
        if stop == "budget" and plan.remainder:
            evaluate(_remainder(genome, plan, driver, repeats, stored))
    return Searched(stop, mean, len(history))


def _key(generation: int, index: int) -> str:
    return f"search-{generation:04d}-{index:03d}"


def _candidate(
    genome: Genome, genotype: Genotype, generation: int, index: int, repeats: int, label: str = ""
) -> Candidate:
    return Candidate(
        key=_key(generation, index),
        kind="search",
        label=label or f"candidate {generation}.{index}",
        recipe=genome.decode(genotype),
        split="search",
        repeats=repeats,
        generation=generation,
        index=index,
        genotype=tuple(float(x) for x in genotype),
    )


def _remainder(
    genome: Genome, plan: Plan, driver: Driver, repeats: int, stored: Callable[[str], Evaluation | None]
) -> list[Candidate]:
    """What does not fill a generation: the distribution mean, then draws of the last distribution around it.

    Repeating a leader would teach nothing where decoding is deterministic, and where it is not the finalists'
    repeats do it on prompts that the search has not seen; so the rest goes to new points near the leaders. They
    stand behind the last generation's population and are not told, so that a larger budget can go on from there.
    """
    generation, first = plan.generations - 1, plan.popsize + plan.former_places
    # What an earlier, smaller budget has asked of this very distribution is not asked again.
    draws = driver.sample(plan.former_places + plan.remainder)[plan.former_places :]
    mean = _candidate(genome, driver.mean, generation, first, repeats, "distribution mean")
    former = [stored(_key(generation, index)) for index in range(plan.popsize, first)]
    if any(row is not None and row.candidate.recipe.hash == mean.recipe.hash for row in former):
        return [_candidate(genome, x, generation, first + i, repeats) for i, x in enumerate(draws)]
    others = [_candidate(genome, x, generation, first + i, repeats) for i, x in enumerate(draws[:-1], 1)]
    return [mean, *others]


def _genotype(row: Evaluation) -> Genotype:
    assert row.candidate.genotype is not None, "a candidate of the search has a genotype"
    return np.array(row.candidate.genotype, dtype=np.float64)


def _summary(number: int, rows: Sequence[Evaluation], sigma: float, informative: bool) -> Generation:
    values = [row.value for row in rows if row.value is not None]
    return Generation(
        number=number,
        best=max(values, default=None),
        mean=math.fsum(values) / len(values) if values else None,
        failed=len(rows) - len(values),
        sigma=sigma,
        informative=informative,
    )
