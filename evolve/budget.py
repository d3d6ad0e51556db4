"""How much will be evaluated: the arithmetic between ``max_fevals``, ``generations`` and ``popsize``.

One candidate merged and scored in the search is one fevals. Everything here is integer arithmetic on
plain values; the result is frozen into a run when it is created.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

from evolve.errors import ConfigError

MIN_POPSIZE = 2


class BudgetConfig(BaseModel):
    """Give any two of the three, or ``max_fevals`` or ``generations`` alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_fevals: int | None = Field(default=None, ge=MIN_POPSIZE)
    """Hard cap on candidates merged and scored in the search; baselines and finalists come on top."""

    generations: int | None = Field(default=None, ge=1)
    """Number of times CMA-ES asks for a population and is told its fitness."""

    popsize: int | None = Field(default=None, ge=MIN_POPSIZE)
    """Candidates per generation (lambda). Default: 4 + floor(3 ln n), rounded up to the worker count."""

    max_hours: float | None = Field(default=None, gt=0)
    """Wall-clock limit of the search over all its sittings, checked between generations."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will evaluate.

    Attributes:
        dimensions: number of searched coordinates n.
        popsize: candidates per generation.
        generations: full generations.
        max_fevals: the cap on evaluations of the search; equals ``search_evaluations`` where no stop
            condition ends the search before.
        search_evaluations: ``generations * popsize + remainder + former_remainder``.
        remainder: evaluations that do not fill a generation; they go to the distribution mean and the leaders.
        former_remainder: evaluations of remainders that smaller budgets of this run had before it was extended.
        former_places: places behind a population that these took.
        baselines: evaluations of parents, the equal-weight merge and listed recipes (both splits).
        finalists: evaluations of the mean and the leaders at the end.
        total_evaluations: all of it.
    """

    dimensions: int
    popsize: int
    generations: int
    max_fevals: int
    search_evaluations: int
    remainder: int
    baselines: int
    finalists: int
    total_evaluations: int
    former_remainder: int = 0
    former_places: int = 0

    def to_dict(self) -> dict[str, int]:
        """The JSON of ``evolve plan --json``; of an extended run also what it had formerly."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("former") or value}


def default_popsize(dimensions: int, *, workers: int = 1, noisy: bool = False) -> int:
    """4 + floor(3 ln n) (Hansen, arXiv:1604.00772, eq. 48), doubled for noisy fitness, rounded up to workers."""
    popsize = 4 + math.floor(3 * math.log(dimensions))
    if noisy:
        popsize *= 2
    return math.ceil(popsize / workers) * workers


def resolve_search(
    *,
    dimensions: int,
    max_fevals: int | None,
    generations: int | None,
    popsize: int | None,
    workers: int = 1,
    noisy: bool = False,
) -> tuple[int, int, int]:
    """Complete the budget.

    Returns:
        ``(popsize, generations, max_fevals)`` with ``generations * popsize <= max_fevals``. Where ``max_fevals`` and
        ``generations`` are both given they hold as given, and what is left over is the plan's remainder.

    Raises:
        ConfigError: where nothing or only ``popsize`` is given, or the three contradict each other.
    """
    if max_fevals is not None and popsize is not None and generations is not None:
        if generations != max_fevals // popsize:
            raise ConfigError(
                f"budget: generations {generations}, popsize {popsize} and max_fevals {max_fevals} contradict each "
                f"other: {max_fevals} // {popsize} = {max_fevals // popsize} generations, not {generations}. "
                "Give two of the three and the third follows."
            )
    elif max_fevals is not None and generations is not None:
        popsize = max_fevals // generations
        if popsize < MIN_POPSIZE:
            raise ConfigError(
                f"budget: max_fevals {max_fevals} over generations {generations} leaves a popsize of {popsize}; "
                f"CMA-ES needs at least {MIN_POPSIZE}. Raise budget.max_fevals to {MIN_POPSIZE * generations} "
                f"or lower budget.generations to {max_fevals // MIN_POPSIZE}."
            )
    elif max_fevals is not None:
        popsize = popsize or min(default_popsize(dimensions, workers=workers, noisy=noisy), max_fevals)
        if popsize > max_fevals:
            raise ConfigError(
                f"budget.popsize {popsize} is larger than budget.max_fevals {max_fevals}: not one generation fits. "
                f"Lower budget.popsize to at most {max_fevals} or raise budget.max_fevals."
            )
        generations = max_fevals // popsize
    elif generations is not None:
        popsize = popsize or default_popsize(dimensions, workers=workers, noisy=noisy)
        max_fevals = generations * popsize
    else:
        raise ConfigError(
            "budget: give budget.max_fevals (how many candidates are merged and scored at most) or "
            "budget.generations; budget.popsize alone does not say when to stop."
        )
    return popsize, generations, max_fevals


def make_plan(
    *,
    dimensions: int,
    budget: BudgetConfig,
    workers: int,
    noisy: bool,
    baseline_models: int,
    top_k: int,
) -> Plan:
    """The plan of a run.

    Args:
        dimensions: searched coordinates n, at least 1.
        budget: what the user asked for.
        workers: engines working in parallel; the default popsize is rounded up to a multiple of it.
        noisy: the fitness is declared noisy (``search.noise: high``): the default popsize doubles.
        baseline_models: parents, equal weights and listed recipes; each answers both splits.
        top_k: leaders re-scored at the end, the distribution mean comes on top.
    """
    popsize, generations, max_fevals = resolve_search(
        dimensions=dimensions,
        max_fevals=budget.max_fevals,
        generations=budget.generations,
        popsize=budget.popsize,
        workers=workers,
        noisy=noisy,
    )
    plan = Plan(
        dimensions=dimensions,
        popsize=popsize,
        generations=generations,
        max_fevals=max_fevals,
        search_evaluations=max_fevals,
        remainder=max_fevals - generations * popsize,
        baselines=2 * baseline_models,
        finalists=0,
        total_evaluations=0,
    )
    finalists = _finalists(plan, top_k)
    return replace(plan, finalists=finalists, total_evaluations=max_fevals + plan.baselines + finalists)


def extend_plan(
    plan: Plan,
    *,
    max_fevals: int | None,
    generations: int | None,
    begun: int,
    apart: int,
    apart_places: int,
    top_k: int,
    finalists: int,
) -> Plan:
    """The plan of a run that goes on with another budget. Its popsize stays, and so does what is recorded.

    Args:
        plan: the run's present plan.
        max_fevals: new cap; ``None``: it follows from ``generations``.
        generations: new number; ``None``: it follows from ``max_fevals``. Both ``None``: the search stays as it was.
        begun: generations of which a candidate is recorded.
        apart: recorded evaluations of the search outside of generations (a remainder).
        apart_places: places behind a population up to the last that these took.
        top_k: leaders re-scored at the end.
        finalists: evaluations of finalists that are recorded; the new ones come on top.

    Raises:
        ConfigError: the two contradict each other, or less would remain than is recorded.
    """
    if max_fevals is None and generations is None:
        same = replace(plan, finalists=_finalists(plan, top_k) + finalists)
        return replace(same, total_evaluations=same.max_fevals + same.baselines + same.finalists)
    if max_fevals is None:
        max_fevals = apart + (generations or 0) * plan.popsize
    fitting = (max_fevals - apart) // plan.popsize
    arithmetic = f"({max_fevals} - {apart} spent apart)" if apart else f"{max_fevals}"
    if generations is not None and generations != fitting:
        raise ConfigError(
            f"budget: generations {generations} and max_fevals {max_fevals} contradict each other in a run whose "
            f"popsize is {plan.popsize}: {arithmetic} // {plan.popsize} = {fitting} generations. Give one of the two."
        )
    if fitting < max(begun, 1):
        least = apart + max(begun, 1) * plan.popsize
        raise ConfigError(
            f"budget: {begun} generations of {plan.popsize} are recorded or under way"
            + (f" and {apart} evaluations apart" if apart else "")
            + f", so budget.max_fevals can be {least} at least, not {max_fevals}: what is evaluated stays."
        )
    extended = replace(
        plan,
        generations=fitting,
        max_fevals=max_fevals,
        search_evaluations=max_fevals,
        remainder=max_fevals - apart - fitting * plan.popsize,
        former_remainder=apart,
        former_places=apart_places,
    )
    count = _finalists(extended, top_k) + finalists
    return replace(extended, finalists=count, total_evaluations=max_fevals + plan.baselines + count)


def _finalists(plan: Plan, top_k: int) -> int:
    # The mean needs a search fitness too (the optimism gap): without a remainder it is asked at the end.
    # The remainder's first evaluation is the mean's own; the others can lead too.
    others = plan.search_evaluations - (1 if plan.remainder else 0)
    return 1 + min(top_k, others) + (0 if plan.remainder else 1)
