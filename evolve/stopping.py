"""When the search ends, and the name of the reason. pycma's own termination is not used: it overshoots a budget
(checked only between generations) and gives up after one generation of ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

StopReason = Literal["budget", "wall_clock", "target_fitness", "min_sigma", "stagnation"]

EXPLANATIONS: dict[StopReason, str] = {
    "budget": "every planned evaluation was made",
    "wall_clock": "budget.max_hours was used up",
    "target_fitness": "a candidate reached search.target_fitness",
    "min_sigma": "the step size fell below search.min_sigma: the distribution has collapsed to a point",
    "stagnation": "search.stagnation_generations generations brought no better candidate",
}


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished generation in a few numbers.

    Attributes:
        number: 0-based.
        best, mean: over its scored candidates, ``None`` where all failed.
        failed: candidates that failed.
        sigma: step size after it was told, in units of the unit box.
        informative: False where all tied, so that the search restarted elsewhere.
    """

    number: int
    best: float | None
    mean: float | None
    failed: int
    sigma: float
    informative: bool


@dataclass(frozen=True, slots=True)
class StopConditions:
    """The conditions beyond the budget, all checked between generations.

    Attributes:
        target_fitness: stop at this fitness, ``None``: never.
        min_sigma: stop below this step size.
        stagnation_generations: stop after so many generations without a better best.
        max_seconds: wall-clock limit, ``None``: none.
    """

    target_fitness: float | None
    min_sigma: float
    stagnation_generations: int
    max_seconds: float | None

    def check(self, history: Sequence[Generation], *, seconds: float) -> StopReason | None:
        """The first condition that holds after these generations and seconds of searching."""
        if self.max_seconds is not None and seconds >= self.max_seconds:
            return "wall_clock"
        if not history:
            return None
        bests = [g.best for g in history if g.best is not None]
        if self.target_fitness is not None and bests and max(bests) >= self.target_fitness:
            return "target_fitness"
        if history[-1].informative and history[-1].sigma < self.min_sigma:
            return "min_sigma"
        if _without_progress(history) >= self.stagnation_generations:
            return "stagnation"
        return None


def _without_progress(history: Sequence[Generation]) -> int:
    """Generations since the best fitness last rose; a plateau that was left by a restart starts the count anew."""
    best, since = float("-inf"), 0
    for generation in history:
        if generation.best is not None and generation.best > best:
            best, since = generation.best, 0
        elif generation.informative:
            since += 1
        else:
            since = 0
    return since
