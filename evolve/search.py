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
        drift: largest difference between a stored genotype and the one asked again; 0 on the same machine.
    """

    stop_reason: StopReason
    mean: Genotype
    drift: float


def search(
    genome: Genome,
    plan: Plan,
    driver: Driver,
    conditions: StopConditions,
    evaluate: Evaluate,
    *,
    recorded: Callable[[str], bool],
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
        recorded: whether the history holds the evaluation of a key.
        seconds: wall-clock seconds of searching so far, over all sittings.
        progress: who watches.
    """
    history: list[Generation] = []
    drift = 0.0
    stop: StopReason | None = None
    while len(history) < plan.generations:
        number = len(history)
        # What is recorded is replayed whatever the clock says: it was evaluated within the limit.
        begun = any(recorded(_key(number, index)) for index in range(plan.popsize))
        spent = 0.0 if begun else seconds()
        if (stop := conditions.check(history, seconds=spent)) is not None:
            break
        asked = driver.ask()
        rows = evaluate([_candidate(genome, x, number, index) for index, x in enumerate(asked)])
        stored = [_genotype(row) for row in rows]
        drift = max(drift, *(float(np.abs(a - s).max()) for a, s in zip(asked, stored, strict=True)))
        informative = driver.tell(stored, [row.value for row in rows])
        history.append(_summary(number, rows, driver.sigma, informative))
        progress.generation(history[-1])
    mean = driver.mean
    if stop is None:
        stop = conditions.check(history, seconds=0.0) or "budget"
        if stop == "budget" and plan.remainder:
            evaluate(_remainder(genome, plan, driver))
    return Searched(stop, mean, drift)


def _key(generation: int, index: int) -> str:
    return f"search-{generation:04d}-{index:03d}"


def _candidate(genome: Genome, genotype: Genotype, generation: int, index: int, label: str = "") -> Candidate:
    return Candidate(
        key=_key(generation, index),
        kind="search",
        label=label or f"candidate {generation}.{index}",
        recipe=genome.decode(genotype),
        split="search",
        generation=generation,
        index=index,
        genotype=tuple(float(x) for x in genotype),
    )


def _remainder(genome: Genome, plan: Plan, driver: Driver) -> list[Candidate]:
    """What does not fill a generation: the distribution mean, then draws of the last distribution around it.

    Repeating a leader would teach nothing where decoding is deterministic, and where it is not the finalists'
    repeats do it on prompts that the search has not seen; so the rest goes to new points near the leaders.
    """
    points = [driver.mean, *driver.sample(plan.remainder - 1)] if plan.remainder > 1 else [driver.mean]
    labels = ["distribution mean"] + [""] * (plan.remainder - 1)
    return [
        _candidate(genome, point, plan.generations, index, label)
        for index, (point, label) in enumerate(zip(points, labels, strict=True))
    ]


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
